"""Which stream the arrays of other libraries are read on, and that it waits for what they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fused_penalties as fp
import gpu
import values
from capsules import Framework, OldProducer, OnlyInterface, Producer
from fused_penalties import regularizers
from gpu import Twins, assert_same, assert_same_sums, cupy

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
pytestmark = gpu.marks
W = np.array([[1, -2], [-3, 4]], np.float32)


@pytest.mark.parametrize("kind", [Producer, OldProducer])
def test_which_stream_dlpack_is_asked_for(kind: type[Producer]) -> None:
    """The one that will read; the default stream is called 1."""
    producer = kind(gpu.on_gpu(W))
    (stream,) = gpu.streams(1)
    for current, handle in ((cupy.cuda.Stream.null, 1), (stream, stream.ptr)):
        for call in (
            lambda: fp.sums([producer]),
            lambda: fp.partial_sums([producer]),
            lambda: fp.penalty([producer], L1(0.1)),
            lambda: fp.Plan([producer], L1(0.1)),
        ):
            producer.asked.clear()
            with current:
                call()
            assert set(producer.asked) == {handle}
        grad = Producer(gpu.on_gpu(W))
        with current:
            fp.Plan([gpu.on_gpu(W)], None).clip_grad_norm([grad], 1.0)
        assert set(grad.asked) == {handle}


LATE: dict[str, Callable[[list[Any]], Any]] = {
    "sums": lambda w: fp.sums(w).abs,
    "backwards": lambda w: fp.sums(w[::-1]).total_abs,
    "penalty": lambda w: fp.penalty(w, L1L2(0.1, 0.3)),
    "plan": lambda w: fp.Plan(w, L1L2(0.1, 0.3)).values(),
    "gradients": lambda w: fp.Plan(w[:1], None).clip_grad_norm(w[1:], 1.0),
}


@pytest.mark.parametrize("call", LATE)
@pytest.mark.parametrize("wrap", ["DLPack", "interface"])
def test_arrays_beside_those_of_a_library_with_its_own_stream(
    wrap: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is read on that stream, and not before the others' arrays arrive."""
    first, second, third = gpu.streams(3)
    x = values.make("normal", "float32", 9000)
    late, library = gpu.on_gpu(np.zeros_like(x)), Framework(gpu.on_gpu(x))
    cupy.cuda.Device().synchronize()
    streams = {stream.ptr: stream for stream in (first, second)}
    monkeypatch.setattr(Framework, "stream", first)
    with third:
        late.set(x)
    if wrap == "DLPack":
        array = Producer(late, lambda asked: streams[asked].wait_event(third.record()))
    else:
        array = OnlyInterface(late, third.ptr)
    with second:
        result = LATE[call]([library, array])
    with first:
        assert_same(result, LATE[call]([x, x.copy()]))


def test_dlpack_waits_for_what_its_library_does() -> None:
    first, second = gpu.streams(2)
    there = gpu.on_gpu(np.zeros(9000, np.float32))
    cupy.cuda.Device().synchronize()
    streams = {stream.ptr: stream for stream in (first, second)}
    x = values.make("normal", "float32", 9000)

    def arrives(handle: int) -> None:
        streams[handle].wait_event(first.record())

    with first:
        there.set(x)
    with second:
        assert_same_sums(fp.sums([Producer(there, arrives)]), fp.sums([x]))


def test_the_interface_waits_for_its_stream() -> None:
    first, second = gpu.streams(2)
    there = gpu.on_gpu(np.zeros(9000, np.float32))
    cupy.cuda.Device().synchronize()
    x = values.make("normal", "float32", 9000)
    with first:
        there.set(x)
    with second:
        assert_same_sums(fp.sums([OnlyInterface(there, first.ptr)]), fp.sums([x]))


def many(w: Any) -> float:
    """A regularizer that is no sum of L1 and L2."""
    return float(w.shape[0])


LIBRARY_CALLS: dict[str, Callable[[Any], Any]] = {
    "sums": lambda w: fp.sums([w]).abs,
    "total": lambda w: fp.sums(w).total_square,
    "penalty": lambda w: fp.penalty([w], L1L2(0.1, 0.3)),
    "penalty by functions": lambda w: fp.penalty([w, w], [L1(0.1), many]),
    "L1": L1(0.1),
    "value": lambda w: fp.Plan([w], L1L2(0.1, 0.3)).value(),
    "values": lambda w: fp.Plan([w], L1L2(0.1, 0.3)).values(),
    "value by functions": lambda w: fp.Plan([w, w], [L1(0.1), many]).value(),
    "values by functions": lambda w: fp.Plan([w, w], [L1(0.1), many]).values(),
    "named": lambda w: fp.Plan({"w": w}, L1(0.1)).named()["w"],
    "l1_norm": lambda w: fp.Plan([w], None).l1_norm(),
    "l2_norm": lambda w: fp.Plan([w], None).l2_norm(),
}


@pytest.mark.parametrize("current_device", [0, pytest.param(1, marks=gpu.several)])
@pytest.mark.parametrize("call", LIBRARY_CALLS)
def test_work_is_on_the_stream_of_the_weights_library(
    call: str, current_device: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says which one that is at the moment; CuPy's current stream and device do not matter."""
    first, second = gpu.streams(2)
    there = gpu.on_gpu(np.zeros(9000, np.float32))
    cupy.cuda.Device().synchronize()
    x = values.make("normal", "float32", 9000)
    monkeypatch.setattr(Framework, "stream", first)
    with first:
        there.set(x)
    with cupy.cuda.Device(current_device):
        current = second if current_device == 0 else cupy.cuda.Stream.null
        with current:
            result = LIBRARY_CALLS[call](Framework(there))
            assert cupy.cuda.get_current_stream().ptr == current.ptr
    assert result.device.id == 0
    wanted = LIBRARY_CALLS[call](x)
    with first:
        assert_same(result, np.float32(wanted) if call == "named" else wanted)


def test_the_stream_of_the_weights_library_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = gpu.streams(2)
    x = values.make("normal", "float32", 9000)
    twins = Twins([x, np.zeros_like(x)])
    on_cpu = fp.Plan(twins.host[0], L1L2(0.1, 0.3))
    cupy.cuda.Device().synchronize()
    monkeypatch.setattr(Framework, "stream", first)
    plan = fp.Plan([Framework(twins.gpu[0])], L1L2(0.1, 0.3))
    for turn in range(4):
        monkeypatch.setattr(Framework, "stream", (first, second)[turn % 2])
        value = plan.value_and_grad([Framework(twins.gpu[1])])
        plan.prox(0.01)
        wanted = on_cpu.value_and_grad(twins.host[1])
        on_cpu.prox(0.01)
    with second:
        assert_same(value, wanted)
        twins.check()


@pytest.mark.parametrize("waits", [0, 1])
def test_gradients_of_another_library(waits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read after what that did to them, and it sees what was written."""
    first, second = streams = gpu.streams(2)
    x, g = (values.make("normal", "float32", 9000, seed) for seed in (1, 2))
    twins = Twins([x, np.zeros_like(g)])
    cupy.cuda.Device().synchronize()
    monkeypatch.setattr(Framework, "stream", first)
    plan, on_cpu = fp.Plan(twins.gpu[0], L1L2(0.1, 0.3)), fp.Plan(x, L1L2(0.1, 0.3))
    grads = Framework(twins.gpu[1])
    for name, *arguments in (("add_grad", 0.5), ("value_and_grad", 0.5), ("clip_grad_norm", 1.0)):
        with first:
            twins.gpu[1].set(g)
        with second:
            result = getattr(plan, name)([grads], *arguments)
        streams[waits].synchronize()
        twins.host[1][:] = g
        wanted = getattr(on_cpu, name)([twins.host[1]], *arguments)
        with first:
            assert_same(twins.gpu[1], twins.host[1])
        if wanted is not None:
            with second:
                assert_same(result, wanted)


@gpu.several
def test_the_interface_of_an_array_on_the_other_gpu() -> None:
    with cupy.cuda.Device(1):
        there = gpu.on_gpu(W)
        cupy.cuda.Device().synchronize()
    sums = fp.sums([OnlyInterface(there)])
    fp.Plan([OnlyInterface(there)], L1(0.5)).prox(1.0)
    with cupy.cuda.Device(1):
        assert sums.abs.device.id == 1
        assert_same(sums.abs, [10.0])
        assert_same(there, np.sign(W) * (np.abs(W) - np.float32(0.5)))
