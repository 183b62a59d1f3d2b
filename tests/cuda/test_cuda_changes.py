"""What a plan does to weights and gradients on a GPU, byte by byte as on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import fused_penalties as fp
import gpu
import oracle
import plan_oracle
import values
from fused_penalties import contrib, regularizers
from gpu import Twins, assert_same, cupy
from layouts import LAYOUTS, cube
from plan_cases import DECAY, FLAT, GRAD_LAYOUTS, PAIRS, PROXIMAL, STRENGTHS, write_grad
from plan_oracle import same_bits

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
pytestmark = gpu.marks
dtypes = pytest.mark.parametrize("dtype", oracle.DTYPES)
pairs = pytest.mark.parametrize(("dtype", "grad_dtype"), PAIRS)
W = np.array([[1, -2], [-3, 4]], np.float32)
EVERY = np.arange(1 << 16, dtype=np.uint64)

Change = Callable[[fp.Plan, list[Any]], Any]


def add_grad(upstream: Any) -> Change:
    return lambda plan, grads: plan.add_grad(grads, upstream)


def value_and_grad(upstream: Any) -> Change:
    return lambda plan, grads: plan.value_and_grad(grads, upstream)


def stored(upstream: float) -> Change:
    return lambda plan, grads: write_grad(plan, grads, upstream)


def prox(step: float) -> Change:
    return lambda plan, grads: plan.prox(step)


def decay(rate: float) -> Change:
    return lambda plan, grads: plan.decay(rate)


def clip(max_norm: float) -> Change:
    return lambda plan, grads: plan.clip_grad_norm(grads, max_norm)


CHANGES: dict[str, Change] = {
    "add_grad": add_grad(-0.7),
    "value_and_grad": value_and_grad(0.3),
    "write_grad": stored(0.5),
    "prox": prox(0.7),
    "decay": decay(0.7),
    "clip_grad_norm": clip(1.5),
}
changes = pytest.mark.parametrize("change", CHANGES)


def assert_like_cpu(
    weights: Sequence[np.ndarray],
    grads: Sequence[np.ndarray | None],
    one: Any,
    *calls: Change,
) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """The same calls of a plan on the CPU and of one on the GPU; returns what they made."""
    given = [g for g in grads if g is not None]
    twins = Twins([*weights, *given])
    n = len(weights)
    sides = []
    for arrays in (twins.host, twins.gpu):
        rest = iter(arrays[n:])
        sides.append((fp.Plan(arrays[:n], one), [None if g is None else next(rest) for g in grads]))
    for call in calls:
        wanted, got = (call(*side) for side in sides)
        if wanted is None:
            assert got is None
        else:
            assert_same(got, wanted)
        twins.check()
    return twins.host[:n], sides[0][1]


def assert_same_arrays(got: Sequence[Any], wanted: Sequence[np.ndarray]) -> None:
    for at, (x, y) in enumerate(zip(got, wanted, strict=True)):
        assert same_bits(x, y), at


@pairs
@pytest.mark.parametrize("strength", [*STRENGTHS, *FLAT, (0.3, 0.1, 1e-60)])
def test_gradients(dtype: str, grad_dtype: str, strength: tuple[float, float, float]) -> None:
    """Also an upstream of 0, one that rounds to 0, infinities and NaN, and the oracle's word."""
    l1, l2, upstream = strength
    w, g = values.assorted(dtype, 20_003, 1), values.assorted(grad_dtype, 20_003, 2)
    _, made = assert_like_cpu(
        [w, w[3:]],
        [g, g[3:].copy()],
        L1L2(l1, l2),
        add_grad(upstream),
        value_and_grad(upstream),
    )
    wanted = plan_oracle.gradient(w, g, l1, l2, upstream)
    assert_same_arrays(made[:1], [plan_oracle.gradient(w, wanted, l1, l2, upstream)])
    _, made = assert_like_cpu([w, w[3:]], [g, g[3:].copy()], L1L2(l1, l2), stored(upstream))
    wanted = plan_oracle.stored_gradient(w, g.dtype, l1, l2, upstream)
    assert_same_arrays(made, [wanted, wanted[3:]])


@dtypes
def test_proximal_steps_and_decay(dtype: str) -> None:
    weights = [values.assorted(dtype, 20_003), values.assorted(dtype, 4_001)[1:]]
    weights.append(values.assorted(dtype, 9_001)[::-2])
    for l1, l2, step in PROXIMAL:
        made, _ = assert_like_cpu(weights, [], L1L2(l1, l2), prox(step))
        assert_same_arrays(made, [plan_oracle.proximal(x, l1, l2, step) for x in weights])
    for l2, rate in DECAY:
        made, _ = assert_like_cpu(weights, [], L1L2(0.1, l2), decay(rate))
        assert_same_arrays(made, [plan_oracle.decayed(x, l2, rate) for x in weights])


@changes
@pairs
def test_lengths_and_addresses(change: str, dtype: str, grad_dtype: str) -> None:
    lengths = values.edge_lengths(dtype)[::3]
    w, g = values.assorted(dtype, lengths[-1], 1), values.assorted(grad_dtype, lengths[-1], 2)
    at = range(0, 65, 8)
    weights = [w[:length] for length in lengths]
    grads = [g[:length].copy() for length in lengths]
    weights += [values.at_offset(w[:5000], a) for a in at for _ in at]
    grads += [values.at_offset(g[:5000], b) for _ in at for b in at]
    weights += [values.at_offset(w[:700], w.itemsize * a) for a in range(9)]
    grads += [values.at_offset(g[:700], g.itemsize * a) for a in range(9)]
    if change in ("prox", "decay"):
        weights, grads = [x.copy() for x in weights[: len(lengths)]] + weights[len(lengths) :], []
    assert_like_cpu(weights, grads, L1L2(0.1, 0.3), CHANGES[change])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_every_16_bit_gradient(dtype: str, strength: tuple[float, float, float]) -> None:
    """Every weight with every kind of gradient, and every gradient with a few weights."""
    l1, l2, upstream = strength
    w = values.from_patterns(EVERY, dtype)
    shuffled = values.from_patterns(np.random.default_rng(0).permutation(EVERY), dtype)
    zeros = np.zeros(1 << 16, oracle.DTYPES[dtype])
    single = values.assorted("float32", 1 << 16)
    few = np.array([1.0, -1.0, 0.0, -0.0, np.nan, np.inf, 1e-30], oracle.DTYPES[dtype])
    weights = [w, w, w, *(np.full(1 << 16, x) for x in few)]
    grads = [shuffled, zeros, single, *(w.copy() for _ in few)]
    _, made = assert_like_cpu(weights, grads, L1L2(l1, l2), add_grad(upstream))
    wanted = [
        plan_oracle.gradient(x, g, l1, l2, upstream) for x, g in zip(weights, grads, strict=True)
    ]
    assert_same_arrays(made, wanted)
    _, made = assert_like_cpu(weights, grads, L1L2(l1, l2), stored(upstream))
    wanted = [
        plan_oracle.stored_gradient(x, g.dtype, l1, l2, upstream)
        for x, g in zip(weights, grads, strict=True)
    ]
    assert_same_arrays(made, wanted)


def test_grads_without_a_gradient_are_zero() -> None:
    """Of buffers without a penalty, or none of whose products are other than zero; NaN too."""
    for step in (1, 2):
        w = [np.full(9001, np.nan, oracle.DTYPES[dtype])[::step] for dtype, _ in PAIRS] * 2
        g = [np.full(9001, -1.5, oracle.DTYPES[dtype])[::step] for _, dtype in PAIRS] * 2
        each = [None] * len(PAIRS) + [L1(1e-300), L2(1e-300)] * (len(PAIRS) // 2)
        _, made = assert_like_cpu(w, g, each, stored(1e-100))
        assert not any(plan_oracle.bits(x).any() for x in made)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_16_bit_weight(dtype: str) -> None:
    w = values.from_patterns(EVERY, dtype)
    for l1, l2, step in PROXIMAL:
        made, _ = assert_like_cpu([w], [], L1L2(l1, l2), prox(step))
        assert_same_arrays(made, [plan_oracle.proximal(w, l1, l2, step)])
    for l2, rate in DECAY:
        made, _ = assert_like_cpu([w], [], L2(l2), decay(rate))
        assert_same_arrays(made, [plan_oracle.decayed(w, l2, rate)])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_rounding_to_16_bits(dtype: str) -> None:
    """Ties of either kind, below the smallest normal number too, and what overflows."""
    w = values.from_patterns(EVERY, dtype)
    ones = np.ones(1 << 16, oracle.DTYPES[dtype])
    exponents = [*range(-26, 16)] if dtype == "float16" else [*range(-140, 128, 13), -9, -8, -7]
    for exponent in exponents:
        for almost in (1.0, 1 + 2.0**-23, 1 - 2.0**-24):
            assert_like_cpu(
                [ones],
                [w],
                L1(1.0),
                add_grad(almost * 2.0**exponent),
            )
    for factor in (0.5, 0.25, 0.75, 1 - 2.0**-11, 1 - 2.0**-8, 1 - 2.0**-24, 2.0**-14, 0.1, 0.0):
        assert_like_cpu([w], [], L2(0.5), decay(1.0 - factor))


# A GPU cannot read elements that are not aligned, and CuPy has no arrays of the other byte order.
LAYOUTS_THERE = {name: make for name, make in LAYOUTS.items() if "record" not in name}
GRAD_LAYOUTS_THERE = [
    make for name, make in GRAD_LAYOUTS.items() if name not in ("big-endian", "field of a record")
]


def repeats(x: np.ndarray, layout: str) -> bool:
    """True for what shows an element twice."""
    return "windows" in layout or any(
        n > 1 and step == 0 for n, step in zip(x.shape, x.strides, strict=True)
    )


@pairs
@pytest.mark.parametrize("layout", LAYOUTS_THERE)
def test_layouts_of_gradients(dtype: str, grad_dtype: str, layout: str) -> None:
    """Weights of every layout with gradients of every layout, the same one and others."""
    w = np.asarray(LAYOUTS[layout](cube(dtype)))
    same = np.asarray(LAYOUTS[layout](np.empty_like(cube(dtype), oracle.DTYPES[grad_dtype])))
    grads = [make(w.shape, oracle.DTYPES[grad_dtype]) for make in GRAD_LAYOUTS_THERE]
    grads += [same] if same.flags.writeable and not repeats(same, layout) else []
    for g in grads:
        g[...] = values.assorted(grad_dtype, w.size, 3).reshape(w.shape)
    x = values.make("normal", "float64", 1)  # the others may be empty
    calls = [CHANGES[name] for name in ("add_grad", "value_and_grad", "clip_grad_norm")]
    calls.append(CHANGES["write_grad"])
    assert_like_cpu([x, *[w] * len(grads)], [x.copy(), *grads], L1L2(0.1, 0.3), *calls)


@pytest.mark.parametrize("layout", LAYOUTS_THERE)
def test_layouts_of_weights(layout: str) -> None:
    weights = [
        np.asarray(
            LAYOUTS[layout](values.assorted(dtype, cube(dtype).size).reshape(cube(dtype).shape))
        )
        for dtype in oracle.DTYPES
    ]
    if not repeats(weights[0], layout):
        assert_like_cpu(weights, [], L1L2(0.1, 0.3), CHANGES["prox"], CHANGES["decay"])
        return
    twins = Twins(weights)
    for call in (CHANGES["prox"], CHANGES["decay"]):
        with pytest.raises(ValueError, match=r"^weights\[0\]: repeats its elements"):
            call(fp.Plan(twins.gpu, L1L2(0.1, 0.3)), [])
    twins.check()


@gpu.seeds(8)
def test_random_lists(seed: int) -> None:
    """400 lists and what 20 calls make of each: any layouts, strengths, and missing gradients."""
    rng = np.random.default_rng([seed, 2])
    for _ in range(50):
        weights = [x for x in gpu.random_arrays(rng)[:40] if 0 not in x.strides and x.size]
        grads: list[np.ndarray | None] = []
        each = []
        for w in weights:
            dtype = w.dtype.name if w.itemsize > 2 or rng.random() < 0.5 else "float32"
            g = values.assorted(dtype, 3 * w.size, int(rng.integers(99)))
            step = int(rng.choice([1, 1, 1, -1, 2, -3]))
            start = int(rng.integers(0, 4))
            g = np.concatenate([g, g[:4]])[start : start + abs(step) * w.size][::step]
            one = None if rng.random() < 0.2 else L1L2(*(10.0 ** rng.uniform(-9, -0.2, 2)).tolist())
            grads.append(None if one is None and rng.random() < 0.5 else g.reshape(w.shape))
            each.append(one)
        if not weights:
            continue
        calls = [CHANGES[name] for name in rng.choice(list(CHANGES), 20)]
        assert_like_cpu(weights, grads, each, *calls)


def test_one_huge_array_beside_thousands_of_tiny_ones() -> None:
    made = [(dtype, size) for size in [1_000_003, *range(0, 500)] for dtype in oracle.DTYPES]
    weights = [values.make("normal", dtype, size, 1) for dtype, size in made]
    grads = [values.make("normal", dtype, size, 2) for dtype, size in made]
    assert_like_cpu(weights, grads, L1L2(1e-3, 1e-2), *CHANGES.values())


# Clipping.


@pytest.mark.parametrize("max_norm", [0.0, 1e-300, 0.5, 1.0, 37.0, 1e300, math.inf])
@dtypes
def test_clipping(dtype: str, max_norm: float) -> None:
    for kind in values.KINDS:
        grads = [values.make(kind, dtype, size, 1) for size in (0, 1, 100, 9001)]
        w = [np.ones_like(g) for g in grads]
        _, made = assert_like_cpu(w, [*grads], None, clip(max_norm))
        norm = plan_oracle.norm(grads)
        assert_same_arrays(made, [plan_oracle.clipped(g, norm, max_norm) for g in grads])


def test_clipping_where_half_precision_overflows() -> None:
    g = np.full(10_000, 60_000, np.float16)
    _, made = assert_like_cpu([g.copy()], [g], None, clip(6.0))
    assert np.allclose(made[0].astype(float), 0.06, rtol=1e-3)


def test_clipping_with_missing_gradients() -> None:
    g = values.make("normal", "float32", 9000)
    for grads in ([g, None, g[::-2].copy()[:100]], [None] * 3):
        weights = [g.copy(), g.copy(), g[:100].copy()]
        for turn in range(2):
            assert_like_cpu(
                weights,
                grads,
                L1(0.1),
                clip(2.0**-turn),
            )


def test_what_changes_nothing_writes_nothing() -> None:
    """A NaN that any writing would replace stays."""
    for step in (1, 2):
        x = np.full(9000, np.float32(np.nan))
        x.view(np.uint32)[:] = 0x7FC12345
        weight, zeros = x[::step], np.zeros(len(x[::step]), np.float32)
        for one, call in (
            (L2(1.0), add_grad(0.0)),
            (L2(1.0), add_grad(1e-300)),
            (L2(1.0), value_and_grad(0.0)),
            (L1(1.0), decay(1.0)),
            (L2(1.0), decay(0.0)),
            (L2(1e-9), decay(1e-9)),
            (None, prox(1.0)),
            (None, value_and_grad(1.0)),
        ):
            made, grads = assert_like_cpu([weight], [x.copy()[::step]], one, call)
            for array in (made[0], grads[0]):
                assert (array.view(np.uint32) == 0x7FC12345).all()
        tiny = values.make("normal", "float32", 9000) * np.float32(1e-9)
        for most in (1.0, math.inf):
            _, grads = assert_like_cpu([weight], [zeros], None, clip(most))
            assert not grads[0].any()
            assert_like_cpu([x], [tiny], None, clip(most))


# Weights and gradients that share memory: one buffer after the other, in the order given.


@changes
def test_tied_weights(change: str) -> None:
    for dtype in oracle.DTYPES:
        w, g = values.make("normal", dtype, 30_000, 1), values.make("normal", dtype, 30_000, 2)
        square, other = w.reshape(150, 200), g.reshape(150, 200)
        assert_like_cpu([w, w], [g, g], L1L2(0.1, 0.3), CHANGES[change])
        assert_like_cpu([w, w, w], [g, g.copy(), g], [L1(0.5), None, L2(0.25)], CHANGES[change])
        assert_like_cpu([square, square.T, w], [other, other.T, g], L1L2(0.1, 0.3), CHANGES[change])
        parts = [w[:20_000], w[10_000:], w[:5]], [g[:20_000], g[10_000:], g[:5]]
        assert_like_cpu(*parts, [L1(0.5), L2(0.5), L1(0.1)], CHANGES[change])


def test_a_gradient_in_the_place_of_another_weight() -> None:
    memory = values.make("normal", "float32", 60_000)
    g = np.zeros(30_000, np.float32)
    for call in (CHANGES["add_grad"], CHANGES["value_and_grad"], CHANGES["write_grad"]):
        made, grads = assert_like_cpu(
            [memory[:30_000], memory[30_000:]], [memory[30_000:], g], L1L2(0.1, 0.3), call
        )
        assert same_bits(made[1], grads[0])


def test_thousands_of_tied_weights() -> None:
    g = np.zeros(100, np.float32)
    w = values.make("normal", "float32", 100)
    assert_like_cpu([w] * 1000, [g] * 1000, L1(0.5), CHANGES["add_grad"], CHANGES["clip_grad_norm"])


# The ways of giving gradients.


def test_ways_of_giving_gradients() -> None:
    wanted = np.sign(W) * np.float32(0.5)
    there = gpu.on_gpu(W)
    plan = fp.Plan({"a": there, "b": there}, L1(0.5))
    a, b = (gpu.on_gpu(np.zeros_like(W)) for _ in range(2))
    for grads in ([a, b], (a, b), iter([a, b]), {"b": b, "a": a}):
        a.set(np.zeros_like(W))
        b.set(np.ones_like(W))
        plan.add_grad(grads)
        assert_same(a, wanted)
        assert_same(b, wanted + 1)
    for weights in (there, [there], {"w": there}):
        for grads in (a, [a]):
            a.set(np.zeros_like(W))
            fp.Plan(weights, L1(0.5)).add_grad(grads)
            assert_same(a, wanted)


@pytest.mark.parametrize(
    "kind", [float, np.float32, np.int8, np.array, lambda x: cupy.asarray(np.array(x))]
)
def test_upstream_of_any_kind(kind: Any) -> None:
    plan, g = fp.Plan(gpu.on_gpu(W), L1(0.5)), gpu.on_gpu(np.zeros_like(W))
    plan.add_grad(g, kind(-2.0))
    assert g.tolist() == [[-1, 1], [1, -1]]


@pytest.mark.parametrize("call", [fp.Plan.add_grad, fp.Plan.value_and_grad])
def test_known_gradients_whose_shape_was_set(call: Any) -> None:
    w = values.make("normal", "float32", 600).reshape(20, 30)
    plan, g = fp.Plan(gpu.on_gpu(w), L1(0.5)), gpu.on_gpu(np.zeros_like(w))
    call(plan, [g])
    known = g.tolist()
    g.shape = (30, 20)
    with pytest.raises(ValueError, match=r"\(30, 20\)"):
        call(plan, [g])
    g.shape = (20, 30)
    assert g.tolist() == known
    call(plan, [g])
    assert g.tolist() == (2 * np.array(known)).tolist()


def test_more_lists_of_gradients_than_a_plan_remembers() -> None:
    w = values.make("normal", "float32", 9000)
    plan, on_cpu = fp.Plan(gpu.on_gpu(w), L1L2(0.1, 0.3)), fp.Plan(w, L1L2(0.1, 0.3))
    grads = [Twins([values.make("normal", "float32", 9000, seed)]) for seed in range(20)]
    for turn in range(3):
        for g in grads[:: (-1) ** turn]:
            assert_same(plan.value_and_grad(g.gpu), on_cpu.value_and_grad(g.host))
            assert_same(plan.clip_grad_norm(g.gpu, 1.0), on_cpu.clip_grad_norm(g.host, 1.0))
            plan.add_grad(g.gpu, 0.5)
            on_cpu.add_grad(g.host, 0.5)
    for g in grads:
        g.check()


def test_a_step_of_training() -> None:
    """Many calls without anybody waiting in between."""
    arrays = [values.make("normal", dtype, 9001, 1) for dtype in oracle.DTYPES]
    twins = Twins(arrays + [np.zeros_like(x) for x in arrays])
    each = [L1(1e-3), contrib.l2_regularizer(0.1), L1L2(1e-4, 0.01), None]
    found = []
    for side in (twins.host, twins.gpu):
        weights, grads = side[:4], side[4:]
        plan = fp.Plan(weights, each)
        results = []
        for turn in range(5):
            results.append(plan.value_and_grad(grads, 0.5))
            results.append(plan.clip_grad_norm(grads, 1.0))
            plan.prox(0.01)
            plan.set_regularizer([L2(0.1 / (turn + 1))] * 4)
            plan.decay(0.1)
            results.append(plan.value())
        found.append(results)
    for wanted, got in zip(*found, strict=True):
        assert_same(got, wanted)
    twins.check()
