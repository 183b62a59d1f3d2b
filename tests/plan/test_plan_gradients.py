"""The gradient against its formula, bit by bit: dtypes, lengths, layouts, ISAs, threads, modes."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import float_environment
import fused_penalties as fp
import oracle
import plan_oracle
import values
from fused_penalties import regularizers
from layouts import LAYOUTS, cube
from oracle import hexes
from plan_cases import FLAT, GRAD_LAYOUTS, PAIRS, STRENGTHS, write_grad
from plan_oracle import bits, same_bits

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
pairs = pytest.mark.parametrize(("dtype", "grad_dtype"), PAIRS)


def assert_gradients(
    weights: list[np.ndarray],
    grads: list[np.ndarray],
    strength: tuple[float, float, float] = (0.1, 0.3, -0.7),
    threads: int | None = None,
) -> None:
    """add_grad, value_and_grad and write_grad like the oracle; the value is like `value`."""
    l1, l2, upstream = strength
    wanted = [
        plan_oracle.gradient(w, g, l1, l2, upstream) for w, g in zip(weights, grads, strict=True)
    ]
    before = [bits(w) for w in weights]
    plan = fp.Plan(weights, L1L2(l1, l2), threads=threads)
    kept = [g.copy() for g in grads]
    plan.add_grad(grads, upstream)
    _assert_same(grads, wanted, weights)
    for g, old in zip(grads, kept, strict=True):
        g[...] = old
    value = plan.value_and_grad(grads, upstream)
    _assert_same(grads, wanted, weights)
    for g, old in zip(grads, kept, strict=True):
        g[...] = old
    write_grad(plan, grads, upstream)
    stored = [
        plan_oracle.stored_gradient(w, g.dtype, l1, l2, upstream)
        for w, g in zip(weights, grads, strict=True)
    ]
    _assert_same(grads, stored, weights)
    assert type(value) is type(plan.value())
    assert hexes([float(value)]) == hexes([float(plan.value())])
    assert all(np.array_equal(bits(w), b) for w, b in zip(weights, before, strict=True))


def _assert_same(
    grads: list[np.ndarray], wanted: list[np.ndarray], weights: list[np.ndarray]
) -> None:
    for at, (got, want) in enumerate(zip(grads, wanted, strict=True)):
        if same_bits(got, want):
            continue
        worst = np.flatnonzero(bits(got) != bits(want))[0]
        raise AssertionError(
            f"grads[{at}] of {got.dtype}, shape {got.shape}, differs first at {worst}: "
            f"w = {weights[at].flatten()[worst]!r}, got {bits(got)[worst]:#x}, "
            f"wanted {bits(want)[worst]:#x}"
        )


@pairs
@pytest.mark.parametrize("strength", [*STRENGTHS, *FLAT])
@pytest.mark.usefixtures("isa")
def test_strengths(dtype: str, grad_dtype: str, strength: tuple[float, float, float]) -> None:
    w, g = values.assorted(dtype, 20_000, 1), values.assorted(grad_dtype, 20_000, 2)
    assert_gradients([w], [g], strength)


@pairs
@pytest.mark.usefixtures("isa")
def test_lengths(dtype: str, grad_dtype: str) -> None:
    lengths = values.edge_lengths(dtype)
    w = values.assorted(dtype, lengths[-1], 1)
    g = values.assorted(grad_dtype, lengths[-1], 2)
    for upstream in (1.0, -0.7):
        grads = [g[:length].copy() for length in lengths]
        assert_gradients([w[:length] for length in lengths], grads, (0.1, 0.3, upstream))


@pairs
@pytest.mark.usefixtures("isa")
def test_addresses(dtype: str, grad_dtype: str) -> None:
    """Nothing has to be aligned, not even to its own size."""
    w, g = values.assorted(dtype, 5000, 1), values.assorted(grad_dtype, 5000, 2)
    for strength in STRENGTHS[:4]:
        weights = [values.at_offset(w, offset) for offset in range(0, 65, 3)]
        grads = [values.at_offset(g, offset % 64) for offset in range(64, -1, -3)]
        assert_gradients(weights, grads[: len(weights)], strength)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("strength", STRENGTHS[:6])
@pytest.mark.usefixtures("isa")
def test_every_16_bit_weight(dtype: str, strength: tuple[float, float, float]) -> None:
    every = np.arange(1 << 16, dtype=np.uint64)
    w = values.from_patterns(every, dtype)
    shuffled = values.from_patterns(np.random.default_rng(0).permutation(every), dtype)
    zeros = np.zeros(1 << 16, oracle.DTYPES[dtype])
    single = values.assorted("float32", 1 << 16)
    assert_gradients([w, w, w], [shuffled, zeros, single], strength)


@pytest.mark.usefixtures("isa")
def test_the_formula_in_exact_fractions() -> None:
    """The formula once more, in numbers that nothing rounds behind its back."""
    w, g = values.make("normal", "float64", 1000, 1), values.make("normal", "float64", 1000, 2)
    wanted = []
    a, b = 0.75 * 0.1, 2.0 * 0.75 * 0.3
    for x, y in zip(w.tolist(), g.tolist(), strict=True):
        product = float(Fraction(b) * Fraction(x))
        u = float(Fraction(product) + Fraction(math.copysign(a, x)))
        wanted.append(float(Fraction(y) + Fraction(u)))
    fp.Plan(w, L1L2(0.1, 0.3)).add_grad(g, 0.75)
    assert hexes(g.tolist()) == hexes(wanted)


@pytest.mark.usefixtures("isa")
def test_zeros_of_both_signs_and_nan() -> None:
    for dtype in oracle.DTYPES.values():
        w = np.array([0.0, -0.0, np.nan, 0.0, -0.0], dtype)
        for l1, l2 in ((0.5, 0.0), (0.0, 0.5), (0.5, 0.5)):
            g = np.array([1.0, 1.0, 1.0, 0.0, -0.0], dtype)
            fp.Plan(w, L1L2(l1, l2)).add_grad(g)
            assert g[:2].tolist() == [1.0, 1.0]
            assert np.isnan(g[2])
            # The gradient of L2 at -0 is -0, and that of L1 is +0.
            minus = 1 if l1 == 0.0 else 0
            if l2 == 0.0 or l1 == 0.0:
                assert np.signbit(g[3:].astype(float)).tolist() == [False, bool(minus)]


@pairs
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("isa")
def test_layouts(dtype: str, grad_dtype: str, layout: str) -> None:
    """Weights of every layout with grads of every layout, the same one and others."""
    w = np.asarray(LAYOUTS[layout](cube(dtype)))
    filling = values.assorted(grad_dtype, w.size, 3).reshape(w.shape)
    grads = [make(w.shape, oracle.DTYPES[grad_dtype]) for make in GRAD_LAYOUTS.values()]
    same = np.asarray(LAYOUTS[layout](np.empty_like(cube(dtype), oracle.DTYPES[grad_dtype])))
    overlaps = 0 in same.strides or "windows" in layout
    if same.flags.writeable and not overlaps:
        grads.append(same)
    for g in grads:
        g[...] = filling
    weights = [w] * len(grads)
    if dtype != "bfloat16":
        weights[1] = w.astype(w.dtype.newbyteorder(">"))
    assert_gradients(weights, grads)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("layout", ["C order", "F order", "every third", "field of a record"])
@pytest.mark.usefixtures("isa")
def test_big_endian(dtype: str, layout: str) -> None:
    x = cube(dtype).astype(oracle.DTYPES[dtype].newbyteorder(">"))
    w = np.asarray(LAYOUTS[layout](x))
    filling = values.assorted(dtype, w.size, 3).reshape(w.shape)
    grads = [filling.copy(), filling.astype(x.dtype), np.asfortranarray(filling.astype(x.dtype))]
    assert_gradients([w] * 3, grads)


@st.composite
def weights_and_grads(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Of the same shape, each with its axes in any order, sliced in any direction."""
    dtype, grad_dtype = draw(st.sampled_from(PAIRS))
    shape = draw(st.lists(st.integers(0, 20) | st.integers(1, 40), max_size=4))
    made = []
    for one in (dtype, grad_dtype):
        axes = draw(st.permutations(range(len(shape))))
        steps = [draw(st.sampled_from([1, 1, -1, 2, -3])) for _ in shape]
        outer = [shape[axis] * abs(steps[axis]) for axis in axes]
        x = values.assorted(one, math.prod(outer), draw(st.integers(0, 99)))
        x = values.at_offset(x, draw(st.integers(0, 63))).reshape(outer)
        x = x.transpose(np.argsort(np.asarray(axes, int)))
        x = x[(..., *(slice(None, None, step) for step in steps))]
        if one != "bfloat16" and draw(st.integers(0, 4)) == 0:
            x = x.astype(x.dtype.newbyteorder(">"))
        assert x.shape == tuple(shape)
        made.append(x)
    return made[0], made[1]


@pytest.mark.usefixtures("isa")
@given(
    st.lists(weights_and_grads(), max_size=4),
    st.tuples(st.floats(0, 10), st.floats(0, 10), st.floats(-10, 10)),
    st.integers(1, 3),
)
def test_any_views(
    made: list[tuple[np.ndarray, np.ndarray]],
    strength: tuple[float, float, float],
    threads: int,
) -> None:
    assert_gradients([w for w, _ in made], [g for _, g in made], strength, threads)


@pytest.mark.usefixtures("isa")
def test_any_number_of_threads() -> None:
    sizes = [1_500_011, 70_001, 9000, *range(200)]
    made = [(dtype, size) for size in sizes for dtype in ("float32", "bfloat16")]
    weights = [values.make("lognormal", dtype, size, 1) for dtype, size in made]
    weights += [weights[0][::-3], weights[1][: 700 * 700].reshape(700, 700).T]
    kept = [values.make("normal", w.dtype.name, w.size, 2).reshape(w.shape) for w in weights]
    wanted = [plan_oracle.gradient(w, g, 0.1, 0.3) for w, g in zip(weights, kept, strict=True)]
    stored = [plan_oracle.stored_gradient(w, w.dtype, 0.1, 0.3) for w in weights]
    found = set()
    for threads in (None, *range(1, 9)):
        grads = [g.copy() for g in kept]
        plan = fp.Plan(weights, L1L2(0.1, 0.3), threads=threads)
        write_grad(plan, grads)
        _assert_same(grads, stored, weights)
        grads = [g.copy() for g in kept]
        found.add(float(plan.value_and_grad(grads)).hex())
        _assert_same(grads, wanted, weights)
        found.add(float(plan.value()).hex())
    assert len(found) == 1


@pytest.mark.parametrize("mode", float_environment.MODES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.usefixtures("isa")
def test_hostile_modes(mode: str, threads: int) -> None:
    weights = [values.assorted(dtype, 60_000, 1) for dtype, _ in PAIRS]
    kept = [values.assorted(dtype, 60_000, 2) for _, dtype in PAIRS]
    weights += [w[::-2] for w in weights]
    kept += [g[1::2] for g in kept]
    strength = (0.1, 1e-39, 0.7)
    wanted = [plan_oracle.gradient(w, g, *strength) for w, g in zip(weights, kept, strict=True)]
    stored = [
        plan_oracle.stored_gradient(w, g.dtype, *strength)
        for w, g in zip(weights, kept, strict=True)
    ]
    plan = fp.Plan(weights, L1L2(*strength[:2]), threads=threads)
    usual = plan.value()
    grads, more, written = ([g.copy() for g in kept] for _ in range(3))
    with float_environment.hostile(mode) as control:
        plan.add_grad(grads, strength[2])
        value = plan.value_and_grad(more, strength[2])
        write_grad(plan, written, strength[2])
        after = float_environment.control()
    assert after == control
    _assert_same(grads, wanted, weights)
    _assert_same(more, wanted, weights)
    _assert_same(written, stored, weights)
    assert hexes([float(value)]) == hexes([float(usual)])


@pytest.mark.usefixtures("isa")
def test_a_gradient_in_the_place_of_another_weight() -> None:
    """No error, and no race: the buffers are then taken one after the other."""
    memory = values.make("normal", "float32", 600_000)
    first, second = memory[:300_000], memory[300_000:]
    changed = plan_oracle.gradient(first, second, 0.1, 0.3)
    wanted = plan_oracle.gradient(changed, np.zeros_like(first), 0.1, 0.3)
    for threads in (1, 2, 5):
        here = memory.copy()
        weights, g = [here[:300_000], here[300_000:]], np.zeros_like(first)
        fp.Plan(weights, L1L2(0.1, 0.3), threads=threads).add_grad([weights[1], g])
        assert same_bits(weights[1], changed)
        assert same_bits(g, wanted)


@pytest.mark.usefixtures("isa")
def test_tied_weights_share_a_gradient() -> None:
    """One array as the grad of two weights is added to twice, with any number of threads."""
    w = values.make("normal", "float32", 300_000)
    for threads in (1, 2, 5):
        g = np.zeros_like(w)
        fp.Plan([w, w], [L1(0.5), L1(0.25)], threads=threads).add_grad([g, g])
        assert np.array_equal(g, np.sign(w) * np.float32(0.75))
