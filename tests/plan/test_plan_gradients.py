"""The gradient against its formula, bit by bit: dtypes, lengths, layouts, ISAs, threads, modes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import float_environment
import fused_penalties as fp
import oracle
import plan_oracle
import values
from fused_penalties import contrib, regularizers
from layouts import LAYOUTS, cube
from messages import exactly
from oracle import hexes
from plan_cases import GRAD_LAYOUTS, PAIRS, STRENGTHS
from plan_oracle import bits, same_bits
from wrapped import FakeCuda, OnlyArray, OnlyDLPack

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
W = np.array([[1, -2], [-3, 4]], np.float32)
pairs = pytest.mark.parametrize(("dtype", "grad_dtype"), PAIRS)


def assert_gradients(
    weights: list[np.ndarray],
    grads: list[np.ndarray],
    strength: tuple[float, float, float] = (0.1, 0.3, -0.7),
    threads: int | None = None,
) -> None:
    """add_grad and value_and_grad, both like the oracle; the value is like `value`."""
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
@pytest.mark.parametrize("strength", STRENGTHS)
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
    found = set()
    for threads in (None, *range(1, 9)):
        grads = [g.copy() for g in kept]
        plan = fp.Plan(weights, L1L2(0.1, 0.3), threads=threads)
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
    plan = fp.Plan(weights, L1L2(*strength[:2]), threads=threads)
    usual = plan.value()
    grads, more = [g.copy() for g in kept], [g.copy() for g in kept]
    with float_environment.hostile(mode) as control:
        plan.add_grad(grads, strength[2])
        value = plan.value_and_grad(more, strength[2])
        after = float_environment.control()
    assert after == control
    _assert_same(grads, wanted, weights)
    _assert_same(more, wanted, weights)
    assert hexes([float(value)]) == hexes([float(usual)])


# Against torch.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("upstream", [1.0, -2.5])
def test_autograd(dtype: str, upstream: float) -> None:
    torch = pytest.importorskip("torch")
    arrays = [values.make("normal", dtype, 300, seed).reshape(15, 20) for seed in range(3)]
    mixture = [L1(0.1), contrib.l2_regularizer(0.2), L1L2(0.1, 0.3)]
    tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
    a, b, c = tensors
    loss = 0.1 * a.abs().sum() + 0.2 * (b * b).sum() / 2
    loss = upstream * (loss + 0.1 * c.abs().sum() + 0.3 * (c * c).sum())
    loss.backward()
    grads = [torch.zeros_like(x) for x in tensors]
    with torch.no_grad():
        fp.Plan(tensors, mixture).add_grad(grads, upstream)
    epsilon = np.finfo(dtype).eps
    for x, got in zip(tensors, grads, strict=True):
        np.testing.assert_allclose(got.numpy(), x.grad.numpy(), rtol=4 * epsilon, atol=0.0)


def test_torch_gradients_accumulate() -> None:
    """Into `parameter.grad`, beside that of the loss, as autograd would have added it."""
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        layer = torch.nn.Linear(30, 20).to(dtype)
        layer(torch.ones(2, 30, dtype=dtype)).sum().backward()
        parameters = list(layer.parameters())
        name = str(dtype).rpartition(".")[2]
        as_arrays = [
            [values.from_patterns(x.detach().view(unsigned(x)).numpy(), name) for x in tensors]
            for tensors in (parameters, [p.grad for p in parameters])
        ]
        wanted = [plan_oracle.gradient(w, g, 0.1, 0.3) for w, g in zip(*as_arrays, strict=True)]
        fp.Plan(parameters, L1L2(0.1, 0.3)).add_grad([p.grad for p in parameters])
        for parameter, want in zip(parameters, wanted, strict=True):
            got = parameter.grad.view(unsigned(parameter)).numpy()
            assert np.array_equal(got, want.view(got.dtype))


def unsigned(tensor: Any) -> Any:
    torch = pytest.importorskip("torch")
    return {2: torch.uint16, 4: torch.uint32}[tensor.element_size()]


# The ways of giving grads.


def test_ways_of_giving_grads() -> None:
    wanted = np.sign(W) * np.float32(0.5)
    plan = fp.Plan({"a": W, "b": W}, L1(0.5))
    a, b = np.zeros_like(W), np.zeros_like(W)
    for grads in (
        [a, b],
        (a, b),
        iter([a, b]),
        {"b": b, "a": a},
        MappingProxyType({"a": a, "b": b}),
    ):
        a[...], b[...] = 0, 1
        plan.add_grad(grads)
        assert np.array_equal(a, wanted)
        assert np.array_equal(b, wanted + 1)
    for weights in (W, [W], {"w": W}, memoryview(W)):
        for grads in (a, [a]):
            a[...] = 0
            fp.Plan(weights, L1(0.5)).add_grad(grads)
            assert np.array_equal(a, wanted)


@pytest.mark.parametrize(
    "upstream",
    [
        -2,
        -2.0,
        Fraction(-2),
        np.float32(-2),
        np.int8(-2),
        np.array(-2.0),
        np.array(-2, ">i4"),
        values.make("zeros", "bfloat16", 1)[0] - 2,
    ],
)
def test_upstream(upstream: Any) -> None:
    g = np.zeros_like(W)
    plan = fp.Plan(W, L1(0.5))
    plan.add_grad(g, upstream)
    assert g.tolist() == [[-1, 1], [1, -1]]
    assert plan.value_and_grad(g, upstream=upstream) == 5.0
    assert g.tolist() == [[-2, 2], [2, -2]]


def test_upstream_of_torch() -> None:
    torch = pytest.importorskip("torch")
    g = np.zeros_like(W)
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        fp.Plan(W, L1(0.5)).add_grad(g, torch.tensor(-2, dtype=dtype))
    assert g.tolist() == [[-3, 3], [3, -3]]


def test_buffers_without_a_penalty_need_no_grad() -> None:
    names = {"a": W, "b": W, "c": W}
    plan = fp.Plan(names, {"a": L1(0.5), "b": L1(0.0), "c": None})
    g = np.zeros_like(W)
    plan.add_grad({"a": g})
    plan.add_grad({"a": g, "b": None})
    plan.add_grad([g, None, None])
    assert g.tolist() == [[1.5, -1.5], [-1.5, 1.5]]


def test_a_grad_without_a_penalty_is_left_alone() -> None:
    g = [values.assorted("float32", 4, seed).reshape(2, 2) for seed in range(2)]
    before = [bits(x) for x in g]
    fp.Plan([W, W], [None, L1(0.0)]).add_grad(g)
    fp.Plan([W, W], L1(0.5)).add_grad(g, 0.0)
    assert fp.Plan([W, W], L1(0.5)).value_and_grad(g, 0.0) == 10.0
    assert all(np.array_equal(bits(x), b) for x, b in zip(g, before, strict=True))


# Errors, and that nothing is written before one.


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


OVERLAP = np.zeros(64, np.float32)
BAD_GRADS: dict[str, tuple[Any, type[Exception]]] = {
    "float64": (np.zeros((2, 2)), TypeError),
    "float16": (np.zeros((2, 2), np.float16), TypeError),
    "int": (np.zeros((2, 2), int), TypeError),
    "complex": (np.zeros((2, 2), complex), TypeError),
    "None": (None, TypeError),
    "str": ("gradient", TypeError),
    "number": (1.0, (TypeError, ValueError)),
    "NumPy scalar": (np.float32(1.0), (TypeError, ValueError)),
    "list": ([[0.0, 0.0], [0.0, 0.0]], (TypeError, ValueError)),
    "masked": (np.ma.array(np.zeros((2, 2), np.float32)), TypeError),
    "other shape": (np.zeros((2, 3), np.float32), ValueError),
    "as many, other shape": (np.zeros((4, 1), np.float32), ValueError),
    "flat": (np.zeros(4, np.float32), ValueError),
    "one more axis": (np.zeros((1, 2, 2), np.float32), ValueError),
    "empty": (np.zeros((0, 2), np.float32), ValueError),
    "read-only": (read_only(np.zeros((2, 2), np.float32)), ValueError),
    "broadcast": (np.broadcast_to(np.float32(0.0), (2, 2)), ValueError),
    "read-only, by DLPack": (OnlyDLPack(read_only(np.zeros((2, 2), np.float32))), ValueError),
    "the weight": (OVERLAP[:4].reshape(2, 2), ValueError),
    "the weight, transposed": (OVERLAP[:4].reshape(2, 2).T, ValueError),
    "part of the weight": (OVERLAP[3:7].reshape(2, 2), ValueError),
    "the weight as bytes": (OVERLAP.view(np.uint8)[:16].view(np.float32).reshape(2, 2), ValueError),
}
CALLS: dict[str, Callable[[fp.Plan, Any], Any]] = {
    "add_grad": lambda plan, grads: plan.add_grad(grads),
    "value_and_grad": lambda plan, grads: plan.value_and_grad(grads),
}
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@calls
@pytest.mark.parametrize("bad", BAD_GRADS)
def test_errors_leave_everything_untouched(call: Any, bad: str) -> None:
    OVERLAP[...] = np.arange(64)
    grad, error = BAD_GRADS[bad]
    weights = {
        "first": W,
        "at fault": OVERLAP[:4].reshape(2, 2),
        "last": W,
    }
    for named, label in ((True, r"^grads\['at fault'\]: "), (False, r"^grads\[1\]: ")):
        plan = fp.Plan(weights if named else list(weights.values()), L1L2(0.1, 0.3))
        good = [np.ones_like(W) for _ in range(2)]
        grads = [good[0], grad, *good[1:]]
        with pytest.raises(error, match=label):
            call(plan, grads)
        if named:
            with pytest.raises(error, match=label):
                call(plan, dict(zip(weights, grads, strict=True)))
        assert all((g == 1.0).all() for g in good)
        assert OVERLAP.tolist() == list(range(64))
        if isinstance(grad, np.ndarray) and not np.shares_memory(grad, OVERLAP):
            assert not np.asarray(grad).any()


@calls
def test_what_16_bit_weights_take(call: Any) -> None:
    """Their own dtype or float32, and not the other 16-bit one."""
    for dtype, other in (("float16", "bfloat16"), ("bfloat16", "float16")):
        plan = fp.Plan(W.astype(oracle.DTYPES[dtype]), L1(0.5))
        for good in (dtype, "float32"):
            call(plan, np.zeros((2, 2), oracle.DTYPES[good]))
        for bad in (other, "float64"):
            with pytest.raises(TypeError, match=f"^grads: .*{bad}") as raised:
                call(plan, np.zeros((2, 2), oracle.DTYPES[bad]))
            assert dtype in str(raised.value)
            assert "float32" in str(raised.value)
    for dtype in ("float32", "float64"):
        plan = fp.Plan(W.astype(dtype), L1(0.5))
        for bad in oracle.DTYPES.keys() - {dtype}:
            with pytest.raises(TypeError, match=f"^grads: .*{bad}.*{dtype}"):
                call(plan, np.zeros((2, 2), oracle.DTYPES[bad]))


@calls
def test_gradients_on_another_device(call: Any) -> None:
    with pytest.raises((RuntimeError, ValueError), match=r"^grads\[0\]: .*(cuda|CUDA|device)"):
        call(fp.Plan([np.zeros(4, np.float32)], L1(0.5)), [FakeCuda()])


@calls
def test_what_would_be_written_into_a_copy(call: Any) -> None:
    """An array that only promises a NumPy one may hand out a copy each time."""

    class Copies(OnlyArray):
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return self.x.copy()

    with pytest.raises((TypeError, ValueError), match=r"^grads\[0\]: "):
        call(fp.Plan([W], L1(0.5)), [Copies(np.zeros_like(W))])


@calls
@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        (None, TypeError, "^grads: got None; wanted"),
        ("ab", TypeError, "^grads: got a str; wanted"),
        (3.0, TypeError, "^grads: got a float; wanted"),
        ([], ValueError, "^grads: got 0; wanted one for each of 2 weights"),
        ([W.copy()] * 3, ValueError, "^grads: got 3; wanted one for each of 2 weights"),
        (np.zeros((2, 2, 2), np.float32), TypeError, "^grads: got one array; wanted a sequence"),
        ({}, ValueError, "^grads: nothing for the weights named a, b$"),
        ({"a": W.copy()}, ValueError, "^grads: nothing for the weights named b$"),
        (
            {"a": W.copy(), "b": W.copy(), "typo": W.copy()},
            ValueError,
            "^grads: no weights are named typo$",
        ),
    ],
)
def test_wrong_collections(call: Any, grads: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call(fp.Plan({"a": W, "b": W}, L1(0.5)), grads)
    listed = grads.values() if isinstance(grads, dict) else grads if isinstance(grads, list) else []
    assert all(np.array_equal(g, W) for g in listed)


@calls
def test_a_frozen_weight_without_a_gradient(call: Any) -> None:
    torch = pytest.importorskip("torch")
    kernel = torch.ones(3, requires_grad=True)
    frozen = torch.ones(3, requires_grad=False)
    kernel.grad = torch.zeros(3)
    plan = fp.Plan({"kernel": kernel, "frozen": frozen}, L1(0.5))
    message = (
        "grads['frozen']: got None, for weights['frozen'] is frozen (its requires_grad is False); "
        "wanted an array, or None as the regularizer of this weight"
    )
    for grads in ([kernel.grad, None], {"frozen": None, "kernel": kernel.grad}):
        with pytest.raises(TypeError, match=exactly(message)):
            call(plan, grads)
    message = "grads: nothing for the weights named frozen (frozen: its requires_grad is False)"
    with pytest.raises(ValueError, match=exactly(message)):
        call(plan, {"kernel": kernel.grad})
    with pytest.raises(TypeError, match=r"^grads\['kernel'\]: got None; wanted an array$"):
        call(plan, [None, torch.zeros(3)])
    assert kernel.grad.tolist() == [0, 0, 0]
    plan.set_regularizer({"kernel": L1(0.5)})
    call(plan, [kernel.grad, None])
    assert kernel.grad.tolist() == [0.5, 0.5, 0.5]


@calls
def test_a_weight_that_keras_does_not_train(call: Any) -> None:
    class Variable:
        """As Keras' variables on NumPy: an array to NumPy, and a word whether it is trained."""

        trainable = False
        dtype = W.dtype

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return W

    plan = fp.Plan([Variable()], L1(0.5))
    message = "grads[0]: got None, for weights[0] is frozen (its trainable is False); wanted"
    with pytest.raises(TypeError, match=rf"^{re.escape(message)}"):
        call(plan, [None])


@calls
def test_a_mapping_needs_names(call: Any) -> None:
    with pytest.raises(ValueError, match=r"^grads: got a mapping for weights without names"):
        call(fp.Plan([W], L1(0.5)), {"w": np.zeros_like(W)})


@pytest.mark.parametrize(
    ("upstream", "error"),
    [
        (True, TypeError),
        (np.True_, TypeError),
        (np.array(True), TypeError),
        ("1.0", TypeError),
        (np.array("1.0"), TypeError),
        (None, TypeError),
        (1j, TypeError),
        (np.complex64(1), TypeError),
        ([1.0], TypeError),
        (np.array(1.0, object), TypeError),
        (np.ones(1), ValueError),
        (np.ones((1, 1)), ValueError),
        (np.ones(2), ValueError),
        (10**400, ValueError),
    ],
)
def test_what_is_no_upstream(upstream: Any, error: type[Exception]) -> None:
    g = np.zeros_like(W)
    plan = fp.Plan(W, L1(0.5))
    for call in (plan.add_grad, plan.value_and_grad):
        with pytest.raises(error, match=r"^upstream: got "):
            call(g, upstream)
    assert not g.any()


@calls
def test_functions_have_no_gradient(call: Any) -> None:
    def mine(x: np.ndarray) -> float:
        return float(x.max())

    for regularizer in (
        [L1(0.5), mine],
        [L1(0.5), contrib.sum_regularizer([L1(0.5), mine])],
        [L1(0.5), regularizers.OrthogonalRegularizer()],
    ):
        grads = [np.zeros_like(W), np.zeros_like(W)]
        plan = fp.Plan({"a": W, "b": W}, regularizer)
        with pytest.raises(TypeError, match=r"^regularizer: no gradient is known of .*\['b'\] has"):
            call(plan, grads)
        assert not np.any(grads)
        plan.set_regularizer([L1(0.5), None])
        call(plan, grads)
        assert np.any(grads[0])


@calls
def test_a_plan_works_after_an_error(call: Any) -> None:
    plan = fp.Plan([W, W], L1(0.5))
    good = np.zeros_like(W)
    with pytest.raises(TypeError):
        call(plan, [good, None])
    call(plan, [good, np.zeros_like(W)])
    assert good.tolist() == [[0.5, -0.5], [-0.5, 0.5]]
    assert plan.value() == 10.0


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
