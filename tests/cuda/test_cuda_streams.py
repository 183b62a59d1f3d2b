"""Streams and threads: nothing is waited for, and what shares memory comes one after the other."""

from __future__ import annotations

import gc
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest

import fused_penalties as fp
import gpu
import oracle
import values
from capsules import Framework, OnlyInterface
from fused_penalties import _device, regularizers
from gpu import Twins, assert_same, assert_same_sums, cupy

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
pytestmark = gpu.marks


def arrays(seed: int = 0) -> list[np.ndarray]:
    """Of every dtype, of no, one and several blocks."""
    sizes = (0, 1, 1000, 4096, 30_001)
    return [values.make("normal", dtype, n, seed) for dtype in oracle.DTYPES for n in sizes]


def some(n: int) -> list[Any]:
    """Regularizers for `n` arrays, some of them None."""
    return ([L1(0.1), None, L1L2(0.2, 0.3), L2(0.4)] * n)[:n]


class Case:
    """A plan on the CPU and one on the GPU, with gradients of which the GPU's are known to it."""

    def __init__(self, seed: int = 0) -> None:
        self.n = len(arrays())
        self.twins = Twins([*arrays(seed), *arrays(seed + 1)])
        self.on_cpu = fp.Plan(self.twins.host[: self.n], some(self.n))
        self.plan = fp.Plan(self.twins.gpu[: self.n], some(self.n))
        self.grads, self.on_cpu_grads = self.twins.gpu[self.n :], self.twins.host[self.n :]
        self.plan.add_grad(self.grads, 0.0)
        self.plan.clip_grad_norm(self.grads, float("inf"))
        cupy.cuda.Device().synchronize()

    def call(self, name: str) -> Any:
        """On the GPU."""
        return CALLS[name](self.plan, self.grads)

    def expected(self, name: str) -> Any:
        """The same on the CPU."""
        return CALLS[name](self.on_cpu, self.on_cpu_grads)


CALLS: dict[str, Callable[[fp.Plan, list[Any]], Any]] = {
    "value": lambda plan, grads: plan.value(),
    "values": lambda plan, grads: plan.values(),
    "abs": lambda plan, grads: plan.sums().abs,
    "total_square": lambda plan, grads: plan.sums().total_square,
    "l1_norm": lambda plan, grads: plan.l1_norm(),
    "l2_norm": lambda plan, grads: plan.l2_norm(),
    "value_and_grad": lambda plan, grads: plan.value_and_grad(grads, -0.5),
    "clip_grad_norm": lambda plan, grads: plan.clip_grad_norm(grads, 1.5),
    "add_grad": lambda plan, grads: plan.add_grad(grads, 0.25),
    "prox": lambda plan, grads: plan.prox(0.1),
    "decay": lambda plan, grads: plan.decay(0.1),
    "set_regularizer": lambda plan, grads: plan.set_regularizer(some(len(plan))[::-1]),
}
READS = [*CALLS][:6]


@contextmanager
def blocked(stream: Any) -> Iterator[None]:
    """Nothing that is put on the stream happens before the end, at which something must wait."""
    released, waited = threading.Event(), []
    limit = 0.2 if gpu.EMULATED else 2.0
    stream.launch_host_func(lambda _: waited.append(released.wait(limit)), None)
    try:
        yield
        assert not waited, "something waited for the stream"
        assert not stream.done
    finally:
        released.set()
    stream.synchronize()
    assert waited == [True], "something waited for the stream"


def assert_not_there_yet(result: Any) -> None:
    """The emulation shows it: that is still what fresh memory is filled with."""
    if gpu.EMULATED:
        assert set(result._array.tobytes()) == {cupy.FRESH}


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
            fail(5)
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


# Memory goes back to CuPy's pool, whose next owner on the same stream writes into it.


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
        fail(0)
        try:
            _device._let_go()
        finally:
            assert cupy._lib.emulated_has_failed()
            fail(NEVER)
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


# Errors.

MESSAGE = r"(csrc/cuda|tests/native/emulated)/\w+\.(cu|cpp):\d+: cudaError\w+: .+"
NEVER = -1


def fail(calls: int) -> None:
    """Lets one call of CUDA fail, after so many others."""
    cupy._lib.emulated_fail(calls)


def assert_fails(call: Callable[[], Any]) -> bool:
    """The call fails if one of CUDA's did, and says where and why; returns whether one did."""
    message = ""
    try:
        call()
    except RuntimeError as error:
        message = str(error)
    if not cupy._lib.emulated_has_failed():
        fail(NEVER)
        return False
    assert re.fullmatch(MESSAGE, message)
    return True


@gpu.emulation
@pytest.mark.parametrize("name", CALLS)
def test_after_an_error_everything_is_right(name: str) -> None:
    """Whichever call of CUDA failed, be it the second launch of two."""
    for calls in range(100):
        case = Case()
        fail(calls)
        if not assert_fails(lambda: case.call(name)):  # noqa: B023
            break
        case.twins.memory[:] = case.twins.gpu_memory.get()  # changes may have been made, or not
        if name == "set_regularizer":
            assert case.call(name) is case.expected(name) is None
        for following in ("value", "abs", "clip_grad_norm", "value_and_grad", "values"):
            assert_same(case.call(following), case.expected(following))
        case.twins.check()
    assert 3 <= calls < 99


@gpu.emulation
@pytest.mark.parametrize("steps", range(3))
@pytest.mark.parametrize("name", READS)
def test_after_an_error_everything_is_right_on_another_stream(name: str, steps: int) -> None:
    """What was launched before the error may still be under way."""
    for calls in range(100):
        case = Case()
        first, second = gpu.streams(2)
        fail(calls)
        with first:
            if not assert_fails(lambda: case.call(name)):  # noqa: B023
                break
        with second:
            result = case.call("value")
            gpu.step(second, steps)
            first.synchronize()
            assert_same(result, case.expected("value"))
            assert_same(case.call("abs"), case.expected("abs"))
    assert 3 <= calls < 99


@gpu.emulation
@pytest.mark.parametrize("name", ["add_grad", "value_and_grad", "clip_grad_norm"])
def test_after_an_error_the_gradients_library_waits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was launched before the error still changes gradients, and theirs is another stream."""
    for calls in range(100):
        case = Case()
        first, second = gpu.streams(2)
        monkeypatch.setattr(Framework, "stream", second)
        grads = [Framework(x) for x in case.grads]
        with first:
            case.plan.add_grad(grads, 0.0)
            case.plan.clip_grad_norm(grads, float("inf"))
            first.synchronize()
            fail(calls)
            if not assert_fails(lambda: CALLS[name](case.plan, grads)):  # noqa: B023
                break
        with second:
            found = case.twins.gpu_memory.get()
        cupy.cuda.Device().synchronize()
        assert found.tobytes() == case.twins.gpu_memory.get().tobytes()
    assert 3 <= calls < 99


@gpu.emulation
@pytest.mark.parametrize("reused", [False, True])
@pytest.mark.parametrize("name", READS)
def test_after_an_error_the_stream_is_gone(name: str, reused: bool) -> None:
    """What was launched before is under way; the handle may be another stream's by now."""
    for calls in range(100):
        case = Case()
        (second,) = gpu.streams(1)
        streams = gpu.streams(1)
        fail(calls)
        with streams[0]:
            if not assert_fails(lambda: case.call(name)):  # noqa: B023
                break
        streams.clear()
        streams = gpu.streams(1) if reused else []
        with second:
            result = case.call("value")
            gpu.step(second, 2)
        cupy.cuda.Device().synchronize()
        with second:
            assert_same(result, case.expected("value"))
            assert_same(case.call("abs"), case.expected("abs"))
    assert 3 <= calls < 99


@gpu.emulation
def test_after_an_error_plans_can_be_made() -> None:
    twins = Twins(arrays())
    for call in (fp.sums, lambda w: fp.penalty(w, L1(0.1)), lambda w: fp.Plan(w, L1(0.1))):
        for calls in range(100):
            fail(calls)
            with suppress(RuntimeError):
                call(twins.gpu)
            if not cupy._lib.emulated_has_failed():
                fail(NEVER)
                break
            assert_same_sums(fp.sums(twins.gpu), fp.sums(twins.host))
        assert 5 <= calls < 99


@pytest.mark.parametrize("name", READS)
def test_an_error_that_cuda_gives(name: str) -> None:
    """The default stream may not be used while one that waits for it is captured."""
    case = Case()
    case.call(name)
    stream = cupy.cuda.Stream()
    stream.begin_capture()
    try:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=f"^{MESSAGE}$") as raised:
                case.call(name)
            assert "cudaErrorStreamCaptureImplicit" in str(raised.value)
    finally:
        with stream:
            stream.end_capture()
    assert_same(case.call(name), case.expected(name))
