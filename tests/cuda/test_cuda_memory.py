"""What is gone before its work was done: plans, gradients, weights, results, streams.

Memory goes back to CuPy's pool, whose next owner on the same stream writes into it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fused_penalties as fp
import gpu
import values
from capsules import Framework
from fused_penalties import _device, regularizers
from gpu import Twins, assert_same, cupy
from gpu_calls import READS, Case, arrays, some

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
pytestmark = gpu.marks


def test_a_plan_that_is_gone_before_its_work_was_done() -> None:
    first, second = gpu.streams(2)
    weights = Twins(arrays())
    grads = Twins([np.ones(x.shape, x.dtype) for x in weights.host])
    n = len(weights.gpu)
    wanted = fp.Plan(weights.host, some(n)).value_and_grad(grads.host)
    cupy.cuda.Device().synchronize()
    for upload in (first, second):
        with first:
            plan = fp.Plan(weights.gpu, some(n))
        with upload:
            plan.add_grad(grads.gpu, 0.0)
        with second:
            result = plan.value_and_grad(grads.gpu, 1.0 if upload is first else 0.0)
            gpu.step(second, 2)
        del plan
        with first:
            cupy.empty(1 << 20, np.uint8).set(np.zeros(1 << 20, np.uint8))
        first.synchronize()
        with second:
            assert_same(result, wanted)
    grads.check()


@pytest.mark.parametrize("forgets", [0, 1])
def test_gradients_that_the_plan_forgot_before_their_work_was_done(forgets: int) -> None:
    first, second = streams = gpu.streams(2)
    w = values.make("normal", "float32", 30_001)
    plan, on_cpu = fp.Plan(gpu.on_gpu(w), L1L2(0.1, 0.3)), fp.Plan(w, L1L2(0.1, 0.3))
    grads = [Twins([values.make("normal", "float32", 30_001, seed)]) for seed in range(20)]
    cupy.cuda.Device().synchronize()
    with first:
        plan.add_grad(grads[0].gpu, 0.0)
        plan.clip_grad_norm(grads[0].gpu, float("inf"))
    with second:
        plan.add_grad(grads[0].gpu)
        norm = plan.clip_grad_norm(grads[0].gpu, 1.0)
        gpu.step(second, 3)
    with streams[forgets]:
        for other in grads[1:]:
            plan.add_grad(other.gpu)
            plan.clip_grad_norm(other.gpu, 1.0)
    first.synchronize()
    second.synchronize()
    norms = []
    for twins in grads:
        on_cpu.add_grad(twins.host)
        norms.append(on_cpu.clip_grad_norm(twins.host, 1.0))
        twins.check()
    assert_same(norm, norms[0])


def test_a_plan_whose_stream_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that its memory was taken on, before the plan and before its work was done."""
    weights = Twins(arrays())
    n = len(weights.gpu)
    wanted = fp.Plan(weights.host, some(n)).value()
    cupy.cuda.Device().synchronize()
    monkeypatch.setattr(Framework, "stream", None)  # is undone, and knows no other
    for reused in (False, True):
        *streams, second = gpu.streams(2)
        Framework.stream = streams[0]
        plan = fp.Plan([Framework(x) for x in weights.gpu], some(n))
        Framework.stream = second
        with second:
            result = plan.value()
            gpu.step(second, 2)
        streams.clear()  # and destroyed
        streams = gpu.streams(1) if reused else []
        del plan
        cupy.cuda.Device().synchronize()
        with second:
            assert_same(result, wanted)
            assert_same(fp.Plan(weights.gpu, some(n)).value(), wanted)
    _device._let_go()  # that of the last plan too
    assert not _device._left


def another_takes_the_place_of(streams: list[Any]) -> None:
    """Destroys the only stream of the list, and puts one into it that has its handle."""
    handle = streams.pop().ptr
    streams += gpu.streams(1)
    assert not gpu.EMULATED or streams[0].ptr == handle


def test_a_plan_whose_only_stream_is_gone() -> None:
    """Memory is taken there and used there, still when another stream has its handle."""
    weights = Twins(arrays())
    n = len(weights.gpu)
    wanted = fp.Plan(weights.host, some(n)).value()
    cupy.cuda.Device().synchronize()
    streams = gpu.streams(1)
    with streams[0]:
        plan = fp.Plan(weights.gpu, some(n))
        streams[0].synchronize()
        result = plan.value()
    another_takes_the_place_of(streams)
    del plan
    streams[0].synchronize()  # writes into memory that it was given
    cupy.cuda.Device().synchronize()
    with streams[0]:
        assert_same(result, wanted)


@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_gradients_whose_stream_is_gone(clip: bool, forgotten: bool) -> None:
    """So is the plan, or it has forgotten them; the plan's own memory is another stream's."""
    w = values.make("normal", "float32", 30_001)
    many = [Twins([values.make("normal", "float32", 30_001, seed)]) for seed in range(20)]
    call = fp.Plan.clip_grad_norm if clip else fp.Plan.add_grad
    weights = gpu.on_gpu(w)
    cupy.cuda.Device().synchronize()
    (second,) = gpu.streams(1)
    with second:
        plan, on_cpu = fp.Plan(weights, L1L2(0.1, 0.3)), fp.Plan(w, L1L2(0.1, 0.3))
        second.synchronize()
    streams = gpu.streams(1)
    with streams[0]:
        call(plan, many[0].gpu, 0.5)
        gpu.step(streams[0], 2)
    another_takes_the_place_of(streams)
    with second:
        for other in many[1:] if forgotten else ():
            call(plan, other.gpu, 0.5)
            call(on_cpu, other.host, 0.5)
    if not forgotten:
        del plan
    streams[0].synchronize()  # writes into memory that it was given
    cupy.cuda.Device().synchronize()
    call(on_cpu, many[0].host, 0.5)
    for twins in many:
        twins.check()


@gpu.emulation
def test_memory_of_forgotten_gradients_does_not_pile_up() -> None:
    """Though the plan's last work is never done when the next comes."""
    w = values.make("normal", "float32", 1000)
    grads = gpu.on_gpu(np.zeros(2000, np.float32))
    plan = fp.Plan(gpu.on_gpu(w), L1(0.1))
    cupy.cuda.Device().synchronize()
    null = cupy.cuda.Stream.null
    for k in range(200):
        plan.add_grad([grads[k : k + 1000]])
        behind = cupy._lib.emulated_waiting(0, null.ptr)
        gpu.step(null, max(0, behind - 10))
        assert not null.done
    assert len(_device._left) < 20


@gpu.emulation
def test_an_error_of_a_plan_that_is_gone_is_no_other_plans() -> None:
    w = values.make("normal", "float32", 1000)
    weights = gpu.on_gpu(w)
    cupy.cuda.Device().synchronize()
    fp.Plan(weights, L1(0.1)).value()
    assert _device._left
    with gpu.streams(1)[0]:
        gpu.fail(0)
        try:
            _device._let_go()
        finally:
            assert cupy._lib.emulated_has_failed()
            gpu.fail(gpu.NEVER)
    assert _device._left
    cupy.cuda.Device().synchronize()
    _device._let_go()
    assert not _device._left


def test_weights_that_are_gone_before_they_were_read() -> None:
    w = values.make("normal", "float32", 30_001)
    for stream in (cupy.cuda.Stream.null, *gpu.streams(1)):
        with stream:
            results = [fp.sums(gpu.on_gpu(w)).total_abs, fp.sums([gpu.on_gpu(w)]).total_abs]
            penalties = [fp.penalty(gpu.on_gpu(w), L1(0.1)), L1(0.1)(gpu.on_gpu(w))]
            penalties.append(fp.Plan([gpu.on_gpu(w)], L1(0.1)).value())
            for result in results:
                assert_same(result, fp.sums(w).total_abs)
            for result in penalties:
                assert_same(result, L1(0.1)(w))


def test_results_that_nobody_wants() -> None:
    case = Case()
    for _ in range(5):
        for name in READS:
            case.call(name)
    assert_same(case.call("value"), case.expected("value"))
