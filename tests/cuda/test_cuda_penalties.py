"""Penalties of arrays on a GPU: the CPU's bits, as CuPy arrays, from every way of asking."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fused_penalties as fp
import gpu
import oracle
import values
from fused_penalties import contrib, regularizers
from gpu import Twins, assert_same, assert_same_sums, cupy

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
pytestmark = gpu.marks
dtypes = pytest.mark.parametrize("dtype", oracle.DTYPES)

REGULARIZERS: dict[str, Any] = {
    "L1": L1(0.01),
    "L2": L2(0.3),
    "L1L2": L1L2(0.1, 0.3),
    "none at all": L1L2(0.0, 0.0),
    "huge": L1L2(1e300, 3e38),
    "tiny": L1L2(1e-42, 1e-300),
    "contrib l1": contrib.l1_regularizer(0.5),
    "contrib l2": contrib.l2_regularizer(0.5),
    "contrib l1_l2": contrib.l1_l2_regularizer(0.5, 0.25),
    "contrib sum": contrib.sum_regularizer([contrib.l1_regularizer(0.5), L2(0.1)]),
}


def largest(w: Any) -> float:
    """A regularizer that is no sum of L1 and L2, for arrays of NumPy and of CuPy."""
    return float(np.abs(w.get() if isinstance(w, cupy.ndarray) else w).max())


def assorted(*seeds: int) -> list[np.ndarray]:
    """Arrays of every dtype, of no, one and several blocks."""
    kinds = ["normal", "lognormal", "cauchy", "spread", "subnormal"]
    return [
        values.make(kinds[seed % 5], dtype, size, seed)
        for seed in seeds
        for dtype in oracle.DTYPES
        for size in (0, 1, 1000, 4096, 20_001)
    ]


@dtypes
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_one_regularizer_of_one_array(dtype: str, regularizer: str) -> None:
    one = REGULARIZERS[regularizer]
    for kind in values.KINDS:
        for length in (1, 300, 9000):
            x = values.make(kind, dtype, length)
            there = gpu.on_gpu(x)
            assert_same(one(there), one(x))
            assert_same(fp.penalty(there, one), fp.penalty(x, one))
            plan = fp.Plan(there, one)
            assert_same(plan.value(), one(x))
            assert_same(plan.values(), [one(x)])


@dtypes
def test_l2_loss(dtype: str) -> None:
    x = values.make("normal", dtype, 9000)
    assert_same(fp.l2_loss(gpu.on_gpu(x)), fp.l2_loss(x))
    assert float(fp.l2_loss(gpu.on_gpu(np.array([300.0], np.float16)))) == 45000.0


@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize("only", [None, *oracle.DTYPES])
def test_many_arrays(regularizer: str, only: str | None) -> None:
    """The result is float64 if any array is, with a penalty or without."""
    one = REGULARIZERS[regularizer]
    arrays = [x for x in assorted(0, 1, 2) if only in (None, x.dtype.name)]
    twins = Twins(arrays)
    assert_same(fp.penalty(twins.gpu, one), fp.penalty(arrays, one))
    for mixture in ([one, None], [None, one, L1(0.5)]):
        each = (mixture * len(arrays))[: len(arrays)]
        assert_same(fp.penalty(twins.gpu, each), fp.penalty(arrays, each))
        plan, there = fp.Plan(arrays, each), fp.Plan(twins.gpu, each)
        assert_same(there.value(), plan.value())
        assert_same(there.values(), plan.values())
    twins.check()


@gpu.seeds(8)
def test_random_plans(seed: int) -> None:
    """400 lists with random strengths, each evaluated in every way, some of them twice."""
    rng = np.random.default_rng([seed, 1])
    for _ in range(50):
        arrays = [*gpu.random_arrays(rng), values.make("normal", "float16", 1)]
        strengths = 10.0 ** rng.uniform(-50, 40, (len(arrays), 2)) * rng.integers(
            0, 2, (len(arrays), 2)
        )
        each = [None if rng.random() < 0.2 else L1L2(*pair) for pair in strengths.tolist()]
        each[-1] = each[-1] or L1(0.1)
        twins = Twins(arrays)
        plan, there = fp.Plan(twins.host, each), fp.Plan(twins.gpu, each)
        for name in rng.permutation(["value", "values", "sums", "value", "l1_norm", "l2_norm"]):
            found, wanted = getattr(there, name)(), getattr(plan, name)()
            (assert_same_sums if name == "sums" else assert_same)(found, wanted)
        assert_same(fp.penalty(twins.gpu, each), fp.penalty(twins.host, each))
        twins.check()


def test_every_call_leaves_the_workspace_as_it_was() -> None:
    """Whatever came before, each answer is the first one's."""
    twins = Twins(assorted(0, 1) + [values.make("nan and inf", "float32", 9000)] * 2)
    grads = Twins([np.zeros(x.shape, x.dtype) for x in twins.host])
    each = ([L1(0.1), None, L1L2(0.2, 0.3)] * len(twins.host))[: len(twins.host)]
    plan = fp.Plan(twins.gpu, each)
    calls: dict[str, Callable[[], Any]] = {
        "value": plan.value,
        "values": plan.values,
        "l1_norm": plan.l1_norm,
        "l2_norm": plan.l2_norm,
        "abs": lambda: plan.sums().abs,
        "total": lambda: plan.sums().total_square,
        "value_and_grad": lambda: plan.value_and_grad(grads.gpu, 0.0),
        "clip": lambda: plan.clip_grad_norm(grads.gpu, 1.0),
    }
    first = {name: call().get().tobytes() for name, call in calls.items()}
    order = np.random.default_rng(0).choice(list(calls), 200)
    for name in order:
        if name == order[0]:
            plan.add_grad(grads.gpu, 0.0)
            plan.prox(0.0)
        assert calls[name]().get().tobytes() == first[name], name
    finite = fp.Plan(twins.gpu[:-2], each[:-2])
    assert_same(finite.value(), fp.Plan(twins.host[:-2], each[:-2]).value())


def test_names_and_patterns() -> None:
    arrays = {
        "dense/kernel": values.make("normal", "float32", 9000),
        "dense/bias": values.make("normal", "float32", 100),
        "norm/scale": values.make("normal", "float64", 100),
        "head/kernel": values.make("normal", "bfloat16", 5000),
        "steps": np.array(3, np.int64),
    }
    twins = Twins(arrays.values())
    there = dict(zip(arrays, twins.gpu, strict=True))
    patterns = {r"bias|norm|steps": None, r"head": L1(0.5), r".*": L2(0.25)}
    plan, on_cpu = fp.Plan(there, patterns), fp.Plan(arrays, patterns)
    assert plan.names == tuple(arrays)
    assert_same(plan.value(), on_cpu.value())
    assert_same(plan.values(), on_cpu.values())
    assert_same(fp.penalty(there, patterns), fp.penalty(arrays, patterns))
    named = plan.named()
    assert list(named) == list(arrays)
    for name, value in on_cpu.named().items():
        dtype = np.float64 if name == "norm/scale" else np.float32
        assert_same(named[name], dtype(value))


def test_named_has_each_arrays_own_dtype() -> None:
    arrays = {"a": np.ones(3, np.float32), "b": np.ones(3), "c": np.ones(3, np.float16)}
    twins = Twins(arrays.values())
    named = fp.Plan(dict(zip(arrays, twins.gpu, strict=True)), L1(0.1)).named()
    for name, x in arrays.items():
        assert_same(named[name], L1(0.1)(x))
    with pytest.raises(ValueError, match=r"^named: the weights were given without names"):
        fp.Plan(twins.gpu, L1(0.1)).named()


def test_what_is_no_array_of_floats_needs_no_penalty() -> None:
    counter = cupy.asarray(np.arange(3))
    x = values.make("normal", "float16", 5000)
    plan = fp.Plan([gpu.on_gpu(x), counter, "name"], [L1(0.1), None, None])
    assert_same(plan.value(), L1(0.1)(x))
    assert_same(plan.values(), [L1(0.1)(x), np.float32(0), np.float32(0)])
    assert_same(fp.penalty([counter, gpu.on_gpu(x)], [None, L1(0.1)]), L1(0.1)(x))
    for weights in ([counter], [gpu.on_gpu(x), counter]):
        with pytest.raises(TypeError, match=r"^weights\[.\]: dtype int64 is not supported"):
            fp.Plan(weights, L1(0.1))
        with pytest.raises(TypeError, match=r"^weights\[.\]: dtype int64 is not supported"):
            fp.penalty(weights, L1(0.1))


def test_functions_among_the_regularizers() -> None:
    arrays = [values.make("normal", dtype, 500) for dtype in oracle.DTYPES]
    as_array: Any = lambda w: cupy.asarray(np.float32(largest(w)))  # noqa: E731
    nothing: Any = lambda w: None  # noqa: E731
    twins = Twins(arrays)
    for mixture in (
        [largest, L1(0.1), None, L2(0.3)],
        [largest] * 4,
        [contrib.sum_regularizer([largest, L1(0.5)]), as_array, nothing, L1L2(0.1, 0.3)],
    ):
        plain = [largest if one is as_array else one for one in mixture]
        assert_same(fp.penalty(twins.gpu, mixture), fp.penalty(arrays, plain))
        plan, on_cpu = fp.Plan(twins.gpu, mixture), fp.Plan(arrays, plain)
        assert_same(plan.value(), on_cpu.value())
        assert_same(plan.values(), on_cpu.values())
        for call in (lambda: plan.prox(0.1), lambda: plan.add_grad(twins.gpu)):  # noqa: B023
            with pytest.raises(TypeError, match=r"^regularizer: no .* is known of"):
                call()
    twins.check()


def test_orthogonal_regularizer() -> None:
    x = values.make("normal", "float32", 600).reshape(20, 30)
    for mode in ("rows", "columns"):
        one = regularizers.OrthogonalRegularizer(0.1, mode)
        found = one(gpu.on_gpu(x))
        assert float(found) == float(one(x))
        each = [one, L1(0.1)]
        assert_same(fp.penalty([gpu.on_gpu(x)] * 2, each), fp.penalty([x, x], each))


def test_apply_regularization() -> None:
    arrays = assorted(3)
    twins = Twins(arrays)
    for one in (contrib.l1_regularizer(0.5), contrib.l2_regularizer(0.5), L1L2(0.1, 0.3)):
        wanted = contrib.apply_regularization(one, arrays)
        assert_same(contrib.apply_regularization(one, twins.gpu), wanted)


def test_no_penalty_at_all() -> None:
    x = values.make("normal", "float64", 9000)
    assert_same(fp.Plan(gpu.on_gpu(x), None).value(), np.float64(0))
    assert_same(fp.Plan([gpu.on_gpu(x)], [None]).values(), [np.float64(0)])
    assert_same(fp.penalty(gpu.on_gpu(x), None), np.float64(0))
    assert_same(fp.penalty([gpu.on_gpu(x)], [None]), np.float64(0))
    assert_same(fp.penalty(gpu.on_gpu(x), [lambda w: None]), np.float64(0))


def test_absent_terms_are_not_read() -> None:
    """NaN and infinities beside a strength of zero: that of float16 weights rounds to zero."""
    x = np.array([np.nan, np.inf], np.float16)
    y = values.make("normal", "float32", 100)
    for each in ([None, L1(0.1)], [L1L2(0.0, 0.0), L1(0.1)], [L1(1e-300), L1(0.1)]):
        assert_same(fp.penalty([gpu.on_gpu(x), gpu.on_gpu(y)], each), L1(0.1)(y))
    inf = np.array([np.inf, 1e200])
    for one in (L1(0.1), L2(0.1), L1L2(0.1, 0.1)):
        assert_same(one(gpu.on_gpu(inf[1:])), one(inf[1:]))
        assert_same(one(gpu.on_gpu(inf)), np.float64(np.inf))


def test_set_regularizer() -> None:
    arrays = assorted(0)
    twins = Twins(arrays)
    plan, on_cpu = fp.Plan(twins.gpu, L1(0.1)), fp.Plan(arrays, L1(0.1))
    before = plan.value()
    for one in (L2(0.3), None, [None, L1L2(0.2, 0.1)] * (len(arrays) // 2), L1(0.1)):
        plan.set_regularizer(one)
        on_cpu.set_regularizer(one)
        assert_same(plan.value(), on_cpu.value())
        assert_same(plan.values(), on_cpu.values())
    plan.set_regularizer(lambda step: L2(0.5**step), 3)
    on_cpu.set_regularizer(L2(0.125))
    assert_same(plan.value(), on_cpu.value())
    assert_same(before, fp.penalty(arrays, L1(0.1)))
    with pytest.raises(ValueError, match=r"^regularizer: got a sequence of 1"):
        plan.set_regularizer([L1(0.1)])
    assert_same(plan.value(), on_cpu.value())


@pytest.mark.parametrize("one", [None, L1(0.1), largest])
def test_empty_arrays_only(one: Any) -> None:
    arrays = [np.zeros(0, np.float32), np.zeros((0, 3), np.float64)]
    twins = Twins(arrays)
    if one is largest:
        one = [None, lambda w: float(w.size)]
    plan, on_cpu = fp.Plan(twins.gpu, one), fp.Plan(arrays, one)
    for name in ("value", "values", "l1_norm", "l2_norm"):
        assert_same(getattr(plan, name)(), getattr(on_cpu, name)())
    assert_same(fp.penalty(twins.gpu, one), fp.penalty(arrays, one))
    if one:
        assert_same(fp.penalty(twins.gpu[0], L1(0.1)), np.float32(0))


def test_empty_arrays_of_the_other_device() -> None:
    x, empty = np.ones(3, np.float32), np.zeros(0, np.float32)
    wanted = fp.penalty([x, empty], L1(0.5))
    assert_same(fp.penalty([gpu.on_gpu(x), empty], L1(0.5)), wanted)
    assert_same(fp.Plan([empty, gpu.on_gpu(x)], L1(0.5)).value(), wanted)
    for result in (
        fp.penalty([x, gpu.on_gpu(empty)], L1(0.5)),
        fp.Plan([x, gpu.on_gpu(empty)], L1(0.5)).value(),
    ):
        assert (type(result), result) == (np.float32, wanted)


def test_nothing_at_all() -> None:
    """No arrays are on no device."""
    for plan in (fp.Plan([], L1(0.1)), fp.Plan([cupy.asarray(np.arange(3))], None)):
        assert float(plan.value()) == 0.0
        assert float(plan.l2_norm()) == 0.0
    assert fp.penalty([], L1(0.1)) == 0.0


def test_a_plan_sees_what_the_weights_hold() -> None:
    x = values.make("normal", "float32", 9000)
    there = gpu.on_gpu(x)
    plan = fp.Plan([there], L1L2(0.1, 0.3))
    for turn in range(3):
        x = values.make("lognormal", "float32", 9000, turn)
        there.set(x)
        assert_same(plan.value(), L1L2(0.1, 0.3)(x))
        assert_same_sums(plan.sums(), fp.sums([x]))


def test_a_plan_keeps_its_weights() -> None:
    plan = fp.Plan([gpu.on_gpu(np.ones(5000, np.float32))], L1(0.5))
    for _ in range(3):
        gpu.on_gpu(np.full(5000, 7, np.float32))
        cupy.cuda.Device().synchronize()
        assert float(plan.value()) == 2500.0
