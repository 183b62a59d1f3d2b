"""What counts as an array on a GPU, of whichever library, and whether there is a GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import capsules
import fresh
import fused_penalties as fp
import gpu
import oracle
import values
from capsules import Framework, OldProducer, OnlyInterface, Producer
from fused_penalties import regularizers
from gpu import Twins, assert_same, assert_same_sums, cupy

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
pytestmark = gpu.marks
W = np.array([[1, -2], [-3, 4]], np.float32)


class Subclass(cupy.ndarray):
    """As users of CuPy make them."""


WRAPS: dict[str, Callable[[Any], Any]] = {
    "interface": OnlyInterface,
    "DLPack": Producer,
    "DLPack 0": OldProducer,
    "managed memory": lambda array: Producer(array, kind=capsules.CUDA_MANAGED),
    "exchange table": Framework,
    "subclass": lambda array: array.view(Subclass),
}


def views(dtype: str) -> list[np.ndarray]:
    x = values.make("lognormal", dtype, 9000).reshape(30, 300)
    return [x, x.T, x[:, ::-1], x[::2, ::7], x[:0], x[3, 4:5].reshape(()), x[0, 1:], x]


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("dtype", [name for name in oracle.DTYPES if name != "bfloat16"])
def test_kinds_of_arrays(wrap: str, dtype: str) -> None:
    twins = Twins(views(dtype))
    wrapped = [WRAPS[wrap](x) for x in twins.gpu]
    assert_same_sums(fp.sums(wrapped), fp.sums(twins.host))
    assert_same_sums(fp.sums(wrapped[0]), fp.sums(twins.host[0]))
    assert_same_sums(fp.sums({"w": wrapped[1]}), fp.sums({"w": twins.host[1]}))
    assert_same_sums(fp.sums([wrapped[0], *twins.gpu]), fp.sums([twins.host[0], *twins.host]))
    np.testing.assert_array_equal(fp.partial_sums(wrapped).limbs, fp.partial_sums(twins.host).limbs)
    plan, on_cpu = fp.Plan(wrapped, L1L2(0.1, 0.3)), fp.Plan(twins.host, L1L2(0.1, 0.3))
    assert_same(plan.value(), on_cpu.value())
    assert_same(plan.values(), on_cpu.values())
    twins.check()


@pytest.mark.parametrize("wrap", ["DLPack", "DLPack 0", "managed memory", "exchange table"])
def test_bfloat16_of_other_libraries(wrap: str) -> None:
    """CuPy's own DLPack, and the CUDA array interface, have no name for it."""
    twins = Twins(views("bfloat16"))
    wrapped = [WRAPS[wrap](x) for x in twins.gpu]
    assert_same_sums(fp.sums(wrapped), fp.sums(twins.host))
    assert_same(fp.Plan(wrapped, L2(0.1)).value(), fp.penalty(twins.host, L2(0.1)))


@pytest.mark.parametrize(
    "wrap", ["interface", "DLPack", "managed memory", "exchange table", "subclass"]
)
def test_kinds_of_arrays_that_are_written(wrap: str) -> None:
    x = values.make("normal", "float32", 9000).reshape(90, 100)
    twins = Twins([x, x[::-1, 1:].copy()[:, ::2], np.zeros_like(x), np.zeros((90, 50), np.float32)])
    wrapped = [WRAPS[wrap](array) for array in twins.gpu]
    plan, on_cpu = fp.Plan(wrapped[:2], L1L2(0.1, 0.3)), fp.Plan(twins.host[:2], L1L2(0.1, 0.3))
    for name, *arguments in (("prox", 0.1), ("decay", 0.1)):
        getattr(plan, name)(*arguments)
        getattr(on_cpu, name)(*arguments)
        twins.check()
    for _ in range(2):
        assert_same(plan.value_and_grad(wrapped[2:]), on_cpu.value_and_grad(twins.host[2:]))
        plan.add_grad(wrapped[2:], -2.0)
        on_cpu.add_grad(twins.host[2:], -2.0)
        norm = plan.clip_grad_norm(wrapped[2:], 1.0)
        assert_same(norm, on_cpu.clip_grad_norm(twins.host[2:], 1.0))
        twins.check()


@pytest.mark.parametrize("wrap", WRAPS)
def test_penalties_of_other_libraries(wrap: str) -> None:
    x = values.make("normal", "float32", 9000)
    wrapped = WRAPS[wrap](gpu.on_gpu(x))
    assert_same(fp.penalty([wrapped], L1(0.1)), L1(0.1)(x))
    assert_same(L2(0.1)(wrapped), L2(0.1)(x))


@pytest.mark.parametrize("wrap", WRAPS)
def test_functions_of_arrays_of_other_libraries(wrap: str) -> None:
    """The one that this package has: it copies the matrix to the host."""
    x = values.make("normal", "float32", 600).reshape(20, 30)
    one = regularizers.OrthogonalRegularizer(0.1)
    wrapped = WRAPS[wrap](gpu.on_gpu(x))
    assert float(one(wrapped)) == float(one(x))
    assert float(fp.penalty([wrapped], one)) == float(one(x))


def test_tied_arrays_of_several_libraries() -> None:
    there = gpu.on_gpu(np.ones((3, 4), np.float32))
    shared = [
        there,
        Producer(there),
        OnlyInterface(there.T),
        Framework(there),
        there.view(Subclass),
    ]
    assert_same(fp.sums(shared, unique=True).abs, [12.0, 0.0, 0.0, 0.0, 0.0])
    fp.Plan(shared, L1(1.0)).prox(0.125)
    assert (there.get() == 1 - 5 * 0.125).all()


@pytest.mark.parametrize("wrap", ["DLPack", "DLPack 0"])
def test_capsules_are_released(wrap: str) -> None:
    before = capsules.alive()
    there = gpu.on_gpu(W)
    fp.sums([WRAPS[wrap](there)])
    assert capsules.alive() == before
    plan = fp.Plan([WRAPS[wrap](there)], L1(0.1))
    assert capsules.alive() == before + 1, "it keeps the memory"
    del plan
    assert capsules.alive() == before


def test_memory_that_moved() -> None:
    w = Framework(gpu.on_gpu(W))
    plan = fp.Plan([gpu.on_gpu(W), w], L1(1.0))
    value = plan.value()
    old, w.array = w.array, gpu.on_gpu(W)
    grads = [gpu.on_gpu(np.zeros_like(W)) for _ in range(2)]
    for call in (
        plan.value,
        plan.sums,
        lambda: plan.add_grad(grads),
        lambda: plan.prox(1.0),
        lambda: plan.clip_grad_norm(grads, 1.0),
    ):
        with pytest.raises(RuntimeError, match=r"^weights\[1\]: its memory has moved"):
            call()
    w.array = old
    assert_same(plan.value(), value.get())
    assert not any(grad.get().any() for grad in grads)


# Whether there is a GPU.


def test_is_available() -> None:
    available = fp.cuda.is_available()
    assert available
    assert bool(available) is True
    assert str(available) == "available"
    assert available.reason == ""
    assert isinstance(fp.build_info()["cuda"], str)


def test_without_cupy_and_torch() -> None:
    """What is read by neither is refused with a word on that, and the CPU's side works."""
    code = """
    import sys, cupy, numpy as np
    import fused_penalties as fp, gpu, capsules
    there = gpu.on_gpu(np.ones(3, np.float32))
    sys.modules["cupy"] = sys.modules["torch"] = None
    for weights in ([capsules.Framework(there)], [capsules.OnlyInterface(there)]):
        try:
            fp.sums(weights)
        except RuntimeError as error:
            print(error)
    print(fp.sums(np.ones(3)).total_abs)
    """
    lines = fresh.output(code, PYTHONPATH=os.pathsep.join(sys.path)).splitlines()
    assert lines[0].startswith(
        "CuPy, which gives the memory on a GPU but for torch's tensors, cannot"
    )
    assert lines[0].endswith("pip install 'fused-penalties[cuda]'")
    assert lines[1].startswith("a OnlyInterface on a GPU is read by CuPy: ")
    assert lines[2] == "3.0"
