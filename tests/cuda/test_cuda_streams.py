"""Streams and threads: nothing is waited for, and what shares memory comes one after the other."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import fused_penalties as fp
import gpu
import oracle
import values
from capsules import Framework, OnlyInterface
from fused_penalties import regularizers
from gpu import Twins, assert_same, assert_same_sums, cupy
from gpu_calls import CALLS, READS, Case, arrays, assert_not_there_yet, blocked, some
from plan_cases import write_grad

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
pytestmark = gpu.marks


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_waited_for(name: str) -> None:
    case = Case()
    (stream,) = gpu.streams(1)
    case.call("value")  # loads the kernels
    cupy.cuda.Device().synchronize()
    with stream:
        case.plan.value_and_grad(case.grads, 0.0)  # makes them known on this stream
        case.plan.clip_grad_norm(case.grads, float("inf"))
        stream.synchronize()
        with blocked(stream):
            result = case.call(name)
            if result is not None:
                assert_not_there_yet(result)
        wanted = case.expected(name)
        if wanted is not None:
            assert_same(result, wanted)
        assert_same(case.plan.value(), case.on_cpu.value())
        case.twins.check()


def test_nothing_is_waited_for_with_thousands_of_buffers() -> None:
    """What is uploaded is more than CUDA takes from any memory without waiting."""
    n = 5000
    w = np.ones(n, np.float32)
    weights, old, new = (gpu.on_gpu(w) for _ in range(3))
    lists = [[x[k : k + 1] for k in range(n)] for x in (weights, old, new)]
    (stream,) = gpu.streams(1)
    cupy.cuda.Device().synchronize()
    with stream:
        plan = fp.Plan(lists[0], L1(1.0))
        plan.add_grad(lists[1], 0.0)
        plan.value().get()
        with blocked(stream):
            plan.set_regularizer(L1(2.0))
        with blocked(stream):
            plan.add_grad(lists[2])
        with blocked(stream):
            other = fp.Plan(lists[0], L1(3.0))
        assert_same(plan.value(), np.float32(2 * n))
        assert_same(other.value(), np.float32(3 * n))
        assert_same(new, 3 * w)


@gpu.emulation
def test_memory_for_uploads_is_used_again() -> None:
    """When the upload before is done, and not earlier."""
    case = Case()
    first, second = gpu.streams(2)
    with first:
        case.plan.set_regularizer(L1(0.1))  # waits until the end
        with second:
            other = fp.Plan(case.twins.gpu[: case.n], L1(0.1))
            second.synchronize()
            before = cupy._lib.emulated_pinned()
            for k in range(50):
                other.set_regularizer(L1(0.1 * k))
                second.synchronize()
            assert cupy._lib.emulated_pinned() == before
            found = []
            for k in range(50):
                other.set_regularizer(L1(0.1 * k))
                found.append(other.value())
            for k, value in enumerate(found):
                assert_same(value, fp.penalty(case.twins.host[: case.n], L1(0.1 * k)))
        assert_same(case.plan.value(), fp.penalty(case.twins.host[: case.n], L1(0.1)))


@gpu.emulation
@pytest.mark.parametrize("name", [*CALLS, "made and gone", "sums", "captured", "an error"])
def test_no_call_of_cuda_is_made_with_pythons_lock(name: str) -> None:
    """Any may wait for what runs on a stream, which may want that lock."""
    case = Case()
    first, second = gpu.streams(2)
    monkeypatch = pytest.MonkeyPatch()
    before = cupy._lib.emulated_under_lock()
    with monkeypatch.context() as patch, first:
        if name == "made and gone":
            patch.setattr(Framework, "stream", second)
            plan = fp.Plan([Framework(case.twins.gpu[2])], L1(0.1))
            plan.value_and_grad([cupy.zeros_like(case.twins.gpu[2])])
            del plan
            fp.cuda.is_available.__wrapped__()
        elif name == "sums":
            fp.sums(case.twins.gpu)
            fp.sums([OnlyInterface(case.twins.gpu[2], second.ptr)])
            with cupy.cuda.Device(1):
                fp.partial_sums(case.twins.gpu)
        elif name == "captured":
            first.begin_capture()
            case.plan.value()
            first.end_capture()
        elif name == "an error":
            gpu.fail(5)
            with pytest.raises(RuntimeError):
                case.plan.value()
        else:
            case.call(name)
    gc.collect()
    assert cupy._lib.emulated_under_lock() == before


@pytest.mark.parametrize(
    "call",
    [
        lambda w: fp.sums(w).total_abs,
        lambda w: fp.sums(dict(enumerate(w)), unique=True).square,
        lambda w: fp.penalty(w, some(len(w))),
        lambda w: fp.penalty(w, L1(0.1)),
        lambda w: L2(0.3)(w[-1]),
        lambda w: fp.l2_loss(w[7]),
        lambda w: fp.Plan(w, some(len(w))).value(),
    ],
)
def test_nothing_is_waited_for_without_a_plan(call: Callable[[list[Any]], Any]) -> None:
    twins = Twins(arrays())
    (stream,) = gpu.streams(1)
    cupy.cuda.Device().synchronize()
    with stream:
        call(twins.gpu).get()
        with blocked(stream):
            result = call(twins.gpu)
            assert_not_there_yet(result)
        assert_same(result, call(twins.host))


def lists() -> dict[str, list[np.ndarray]]:
    tiny = [values.make("normal", dtype, n) for n in range(500) for dtype in oracle.DTYPES]
    return {
        "mixed": arrays(),
        "tiny and huge": [values.make("normal", "float32", 1_000_000), *tiny],
        "strided": [x[::-2] for x in arrays()],
        "tied": arrays() * 3,
    }


@gpu.emulation
@pytest.mark.parametrize("name", lists())
def test_two_kernels_for_any_list(name: str) -> None:
    """One reads, one finishes; gradients and updates of tied weights come one after the other."""
    twins = Twins(lists()[name])
    grads = Twins([np.zeros(x.shape, x.dtype) for x in twins.host]).gpu
    plan = fp.Plan(twins.gpu, L1L2(0.1, 0.2))
    for call in ("value", "values", "sums", "l1_norm", "l2_norm"):
        assert gpu.launches(getattr(plan, call)) <= 2
    assert gpu.launches(lambda: fp.sums(twins.gpu)) <= 2
    assert gpu.launches(lambda: fp.partial_sums(twins.gpu)) <= 2
    assert gpu.launches(lambda: fp.penalty(twins.gpu, L1(0.1))) <= 2
    assert gpu.launches(lambda: plan.clip_grad_norm(grads, 1.0)) <= 3
    if name != "tied":
        assert gpu.launches(lambda: plan.value_and_grad(grads)) <= 2
        assert gpu.launches(lambda: plan.add_grad(grads)) == 1
        assert gpu.launches(lambda: write_grad(plan, grads)) == 1
        assert gpu.launches(lambda: plan.prox(0.1)) == 1
        assert gpu.launches(lambda: plan.decay(0.1)) == 1


@pytest.mark.parametrize("name", CALLS)
def test_a_stream_of_the_callers(name: str) -> None:
    """All of it happens there, and nothing on the default stream."""
    case = Case()
    (stream,) = gpu.streams(1)
    null = cupy.cuda.Stream.null
    with stream:
        result = case.call(name)
        assert not gpu.EMULATED or (null.done and not stream.done)
        wanted = case.expected(name)
        if wanted is not None:
            assert_same(result, wanted)
        stream.synchronize()
    case.twins.check()


def test_a_plan_made_on_one_stream_and_used_on_another() -> None:
    first, second = gpu.streams(2)
    with first:
        twins = Twins(arrays())
        plan = fp.Plan(twins.gpu, some(len(twins.gpu)))
    # Its table is under way on the first stream, as are the weights; the plan sees to its own.
    with second:
        assert_same(plan.value(), fp.Plan(twins.host, some(len(twins.host))).value())
        plan.set_regularizer(L1(0.1))
    with first:
        assert_same(plan.value(), fp.penalty(twins.host, L1(0.1)))


@pytest.mark.parametrize("steps", range(5))
@pytest.mark.parametrize("names", [("value", "values"), ("abs", "value"), ("value_and_grad",) * 2])
def test_two_streams_share_a_plan(names: tuple[str, str], steps: int) -> None:
    """The second call finds the first one half done."""
    case = Case()
    first, second = gpu.streams(2)
    with first:
        one = case.call(names[0])
        gpu.step(first, steps)
    with second:
        other = case.call(names[1])
        wanted = [case.expected(name) for name in names]
        assert_same(other, wanted[1])
    with first:
        assert_same(one, wanted[0])
    case.twins.check()


@gpu.seeds(20)
def test_any_interleaving(seed: int) -> None:
    """40 calls on three streams and the default one, which run whenever they like."""
    rng = np.random.default_rng(seed)
    case = Case(seed)
    streams = [*gpu.streams(3), cupy.cuda.Stream.null]
    found: list[tuple[Any, Any]] = []
    for _ in range(40):
        name = str(rng.choice(list(CALLS)))
        with streams[rng.integers(len(streams))]:
            found.append((case.call(name), case.expected(name)))
        for stream in streams:
            if rng.random() < 0.3:
                gpu.step(stream, int(rng.integers(1, 8)))
        if rng.random() < 0.2:
            gc.collect()
    cupy.cuda.Device().synchronize()
    for got, wanted in found:
        if wanted is not None:
            assert_same(got, wanted)
    case.twins.check()


@pytest.mark.parametrize("per_thread", [False, True])
def test_threads_share_a_plan(per_thread: bool) -> None:
    """Each with a stream of its own, or with that which CUDA has for each thread."""
    case = Case()
    expected = {name: case.expected(name) for name in READS}
    start = threading.Barrier(4)
    device = cupy.cuda.Device()

    def work(turn: int) -> None:
        with device, cupy.cuda.Stream.ptds if per_thread else gpu.streams(1)[0]:
            start.wait()
            for k in range(30):
                name = READS[(turn + k) % len(READS)]
                assert_same(case.call(name), expected[name])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_threads_with_plans_of_their_own() -> None:
    twins = Twins(arrays())
    n = len(twins.gpu)
    expected = fp.Plan(twins.host, some(n)).value()
    cupy.cuda.Device().synchronize()

    def work(_: int) -> None:
        with gpu.streams(1)[0]:
            assert_same(fp.Plan(twins.gpu, some(n)).value(), expected)
            assert_same_sums(fp.sums(twins.gpu), fp.sums(twins.host))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(40)))
