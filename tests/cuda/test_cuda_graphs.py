"""CUDA graphs: calls of a plan captured once, and replayed after everything but them changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import fused_penalties as fp
import gpu
import values
from capsules import Framework, OnlyInterface
from fused_penalties import regularizers
from gpu import Twins, assert_same, cupy
from gpu_calls import CALLS, Case, some

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
pytestmark = gpu.marks

CAPTURED = [name for name in CALLS if name != "set_regularizer"]
RESULTS = [name for name in CAPTURED if name not in ("add_grad", "write_grad", "prox", "decay")]


class Captured:
    """What was captured on a stream: the graph, once it is complete."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.graph: Any = None

    def replay(self) -> None:
        """On the stream of the capture."""
        self.graph.launch(self.stream)


@contextmanager
def capture(stream: Any, mode: int | None = None) -> Iterator[Captured]:
    captured = Captured(stream)
    with stream:
        stream.begin_capture(mode)
        try:
            yield captured
        finally:
            captured.graph = stream.end_capture()


def known(case: Case, stream: Any) -> None:
    """Makes the gradients known to the plan on this stream, with no effect."""
    with stream:
        case.plan.add_grad(case.grads, 0.0)
        case.plan.clip_grad_norm(case.grads, float("inf"))
        stream.synchronize()


def change(case: Case, seed: int, stream: Any) -> None:
    """Other weights and gradients, of the CPU's plan and of the GPU's, and other strengths."""
    rng = np.random.default_rng(seed)
    for x in case.twins.host:
        x[...] = values.make("normal", x.dtype.name, x.size, int(rng.integers(99))).reshape(x.shape)
    with stream:
        case.twins.gpu_memory.set(case.twins.memory)
        each = [L1L2(*rng.uniform(0.0, 0.5, 2).tolist()) for _ in range(case.n)]
        each[3] = None  # type: ignore[call-overload]
        case.plan.set_regularizer(each)
        case.on_cpu.set_regularizer(each)


@pytest.mark.parametrize("name", CAPTURED)
def test_replayed_after_everything_changed(name: str) -> None:
    case = Case()
    (stream,) = gpu.streams(1)
    known(case, stream)
    with capture(stream) as captured:
        result = case.call(name)
    for turn in range(4):
        if turn != 2:
            change(case, turn, stream)
        captured.replay()
        with stream:
            wanted = case.expected(name)
            if wanted is not None:
                assert_same(result, wanted)
            case.twins.check()


@pytest.mark.parametrize("name", CAPTURED)
def test_a_capture_in_which_nobody_may_allocate(name: str) -> None:
    """But for results, for which the pool may need more memory: torch captures in this mode."""
    case = Case()
    (stream,) = gpu.streams(1)
    known(case, stream)
    with capture(stream, cupy.cuda.runtime.streamCaptureModeGlobal) as captured:
        result = case.call(name)
    captured.replay()
    with stream:
        wanted = case.expected(name)
        if wanted is not None:
            assert_same(result, wanted)
        case.twins.check()


def test_capturing_runs_nothing() -> None:
    case = Case()
    (stream,) = gpu.streams(1)
    known(case, stream)
    with capture(stream) as captured:
        for name in CAPTURED:
            case.call(name)
    with stream:
        case.twins.check()
    captured.replay()
    for name in CAPTURED:
        case.expected(name)
    with stream:
        case.twins.check()


def test_a_whole_step() -> None:
    """The gradient, clipping, the proximal step and decay in one graph, on another stream too."""
    case = Case()
    stream, other = gpu.streams(2)
    known(case, stream)
    names = ["value_and_grad", "clip_grad_norm", "prox", "decay", "value", "values", "l2_norm"]
    with capture(stream) as captured:
        results = [case.call(name) for name in names]
    for turn in range(5):
        on = other if turn == 3 else stream
        change(case, turn, on)
        captured.graph.launch(on)
        wanted = [case.expected(name) for name in names]
        with on:
            for got, want in zip(results, wanted, strict=True):
                if want is not None:
                    assert_same(got, want)
            case.twins.check()


def test_only_the_strengths_change() -> None:
    case = Case()
    (stream,) = gpu.streams(1)
    with capture(stream) as captured:
        value = case.plan.value()
    for one in (L1(0.5), None, L2(0.25), some(case.n), L1L2(1e-30, 1e30)):
        with stream:
            case.plan.set_regularizer(one)
            captured.replay()
            case.on_cpu.set_regularizer(one)
            assert_same(value, case.on_cpu.value())


@pytest.mark.parametrize("steps", range(4))
@pytest.mark.parametrize("name", RESULTS)
def test_a_replay_beside_other_calls(name: str, steps: int) -> None:
    """The graph is half done when the plan is called on another stream; neither waits."""
    case = Case()
    first, second = gpu.streams(2)
    known(case, first)
    known(case, second)
    with capture(first) as captured:
        result = case.call(name)
    reads = ["value", "abs", "total_square"]
    for _ in range(3):
        captured.replay()
        gpu.step(first, steps)
        with second:
            others = [case.call(read) for read in reads]
            gpu.step(second, steps)
        with first:
            first.synchronize()
            wanted = [case.expected(read) for read in reads]
            assert_same(result, case.expected(name))
        with second:
            for got, want in zip(others, wanted, strict=True):
                assert_same(got, want)
    case.twins.check()


@pytest.mark.parametrize("steps", range(4))
def test_a_replay_on_another_stream_beside_other_calls(steps: int) -> None:
    """The stream of the capture is free, and what the calls take from the pool there is too."""
    case = Case()
    first, second = gpu.streams(2)
    known(case, first)
    inf = float("inf")
    with capture(first) as captured:
        norm, value = case.plan.clip_grad_norm(case.grads, inf), case.call("value")
    captured.graph.launch(second)
    gpu.step(second, steps)
    with first:
        other, total = case.plan.clip_grad_norm(case.grads, inf), case.call("total_square")
        wanted = case.on_cpu.clip_grad_norm(case.on_cpu_grads, inf)
        assert_same(other, wanted)
        assert_same(total, case.expected("total_square"))
    with second:
        assert_same(norm, wanted)
        assert_same(value, case.expected("value"))


@pytest.mark.parametrize("steps", range(3))
def test_other_calls_during_a_capture(steps: int) -> None:
    case = Case()
    first, second = gpu.streams(2)
    known(case, first)
    with second:
        before = case.call("value")
        gpu.step(second, steps)
    with capture(first) as captured:
        results = [case.call("value")]
        with second:
            beside = case.call("abs")
            gpu.step(second, steps)
        results.append(case.call("l2_norm"))
        with second:
            assert_same(beside, case.expected("abs"))
            case.plan.set_regularizer(L1(0.1))
            second.synchronize()
    assert_same(before, case.expected("value"))
    case.on_cpu.set_regularizer(L1(0.1))
    captured.replay()
    with first:
        assert_same(results[0], case.expected("value"))
        assert_same(results[1], case.expected("l2_norm"))


def test_two_graphs_of_one_plan() -> None:
    """One after the other, in any order."""
    case = Case()
    (stream,) = gpu.streams(1)
    made = {}
    for name in ("value", "values", "total_square"):
        with capture(stream) as captured:
            result = case.call(name)
        made[name] = captured, result
    for name in ("values", "value", "value", "total_square", "values"):
        captured, result = made[name]
        captured.replay()
        with stream:
            assert_same(result, case.expected(name))


def test_more_gradients_than_a_plan_remembers() -> None:
    """Those that a graph uses stay, whatever else the plan is given."""
    (stream,) = gpu.streams(1)
    w = values.make("normal", "float32", 30_001)
    with stream:
        plan, on_cpu = fp.Plan(gpu.on_gpu(w), L1L2(0.1, 0.3)), fp.Plan(w, L1L2(0.1, 0.3))
        grads = [Twins([values.make("normal", "float32", 30_001, n)]) for n in range(30)]
        plan.add_grad(grads[0].gpu, 0.0)
        plan.clip_grad_norm(grads[0].gpu, float("inf"))
    with capture(stream) as captured:
        value = plan.value_and_grad(grads[0].gpu)
        norm = plan.clip_grad_norm(grads[0].gpu, 1.0)
    with stream:
        for other in grads[1:]:
            plan.add_grad(other.gpu, 0.0)
            plan.clip_grad_norm(other.gpu, float("inf"))
        stream.synchronize()
        for _ in range(3):
            captured.replay()
            assert_same(value, on_cpu.value_and_grad(grads[0].host))
            assert_same(norm, on_cpu.clip_grad_norm(grads[0].host, 1.0))
            grads[0].check()


NEW = (
    r"^grads: these are new to the plan \(a call before the capture makes them known\), and "
    r"nothing can be uploaded while the stream is captured into a graph$"
)
REFUSED: dict[str, tuple[Callable[[Case], Any], str]] = {
    "add_grad": (lambda case: case.plan.add_grad(case.grads, 0.0), NEW),
    "value_and_grad": (lambda case: case.plan.value_and_grad(case.grads), NEW),
    "clip_grad_norm": (lambda case: case.plan.clip_grad_norm(case.grads, 1.0), NEW),
    "set_regularizer": (
        lambda case: case.plan.set_regularizer(L1(0.5)),
        "^the strengths cannot be set while the stream is captured into a graph$",
    ),
    "Plan": (
        lambda case: fp.Plan(case.twins.gpu, L1(0.1)),
        "^a plan cannot be made while the stream is captured into a graph$",
    ),
    "sums": (lambda case: fp.sums(case.twins.gpu), "^a plan cannot be made while"),
    "penalty": (lambda case: fp.penalty(case.twins.gpu, L1(0.1)), "^a plan cannot be made while"),
    "L1": (lambda case: L1(0.1)(case.twins.gpu[1]), "^a plan cannot be made while"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_captured(what: str) -> None:
    """The graph is none the worse for it, and the plan is as it was."""
    case = Case()
    case.grads = Twins([np.ones(x.shape, x.dtype) for x in case.twins.host[case.n :]]).gpu
    (stream,) = gpu.streams(1)
    cupy.cuda.Device().synchronize()
    call, message = REFUSED[what]
    with capture(stream) as captured:
        value = case.plan.value()
        for _ in range(2):
            with pytest.raises(RuntimeError, match=message):
                call(case)
        total = case.plan.sums().total_abs
    captured.replay()
    with stream:
        assert_same(value, case.on_cpu.value())
        assert_same(total, case.on_cpu.sums().total_abs)
        for grad in case.grads:
            assert not (grad.get() != 1).any()
        call(case)


def test_gradients_with_the_same_memory_are_known() -> None:
    """Other objects, and any way of giving them: what counts is where they are."""
    w = values.make("normal", "float32", 9000)
    (stream,) = gpu.streams(1)
    with stream:
        twins = Twins([w, np.zeros_like(w)])
        plan = fp.Plan({"w": twins.gpu[0]}, L1(0.5))
        plan.add_grad([twins.gpu[1]], 0.0)
    with capture(stream) as captured:
        plan.add_grad({"w": twins.gpu[1][:]}, 2.0)
    captured.replay()
    with stream:
        assert_same(twins.gpu[1], np.sign(w))


@gpu.emulation
@pytest.mark.parametrize("name", RESULTS)
def test_after_an_error_during_a_capture(name: str) -> None:
    for calls in range(100):
        case = Case()
        (stream,) = gpu.streams(1)
        known(case, stream)
        gpu.fail(calls)
        failed = False
        with capture(stream):
            try:
                case.call(name)
            except RuntimeError:
                failed = True
        gpu.fail(gpu.NEVER)
        with capture(stream) as captured:
            result = case.call(name)
        with stream:
            assert_same(case.call("value"), case.expected("value"))
            captured.replay()
            assert_same(result, case.expected(name))
        if not failed:
            break
    assert 3 <= calls < 99


# Streams that wait for each other, of which some are captured.

DRAWN = "^a stream that has to be waited for is captured into a graph, of which this call would "


class Apart:
    """Weights of a library that works on `first`; gradients of CuPy, or of a library, on `second`.

    `into` makes the gradients 1 on the stream that is CuPy's current one.
    """

    def __init__(self, grads: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.first, self.second = gpu.streams(2)
        w = values.make("normal", "float32", 9000)
        twins = Twins([w, np.zeros_like(w), np.ones_like(w)])
        cupy.cuda.Device().synchronize()
        self.weights, self.memory, self.ones = twins.gpu
        self.host = twins.host[:2]
        self.on_cpu = fp.Plan(self.host[0], L1L2(0.1, 0.3))
        if grads == "CuPy's stream":
            monkeypatch.setattr(Framework, "stream", self.first)
            self.plan = fp.Plan(Framework(self.weights), L1L2(0.1, 0.3))
            self.grad = self.memory
        else:
            monkeypatch.setattr(Framework, "stream", self.second)
            with self.first:
                self.plan = fp.Plan(self.weights, L1L2(0.1, 0.3))
            self.grad = Framework(self.memory)
        self.current = self.second if grads == "CuPy's stream" else self.first

    def calls(self) -> dict[str, Callable[[], Any]]:
        return {
            "add_grad": lambda: self.plan.add_grad([self.grad]),
            "value_and_grad": lambda: self.plan.value_and_grad([self.grad]),
            "clip_grad_norm": lambda: self.plan.clip_grad_norm([self.grad], 1.0),
        }

    def known(self) -> None:
        with self.current:
            self.plan.add_grad([self.grad], 0.0)
            self.plan.clip_grad_norm([self.grad], float("inf"))
        cupy.cuda.Device().synchronize()

    def write(self) -> None:
        """The gradients become 1, on `second`."""
        cupy._lib.emulated_copy(
            0, self.second.ptr, self.memory.data.ptr, self.ones.data.ptr, self.memory.nbytes
        )

    def check(self) -> None:
        """What value_and_grad makes of gradients of 1."""
        self.host[1][:] = 1.0
        self.on_cpu.add_grad([self.host[1]])
        cupy.cuda.Device().synchronize()
        assert_same(self.memory, self.host[1])


GRADS = ["CuPy's stream", "a library's stream"]


@pytest.mark.parametrize("name", ["add_grad", "value_and_grad", "clip_grad_norm"])
@pytest.mark.parametrize("grads", GRADS)
def test_a_call_is_not_drawn_into_the_graph_of_another_stream(
    grads: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Apart(grads, monkeypatch)
    case.known()
    with capture(case.second) as captured, case.current:
        with pytest.raises(RuntimeError, match=DRAWN):
            case.calls()[name]()
        assert not case.plan._plan._core.capturing(case.first.ptr)
    captured.replay()
    case.second.synchronize()
    assert not case.memory.get().any()
    with case.current:
        case.calls()[name]()
        case.on_cpu.clip_grad_norm([case.host[1]], 1.0)
        if name != "clip_grad_norm":
            case.on_cpu.add_grad([case.host[1]])
    cupy.cuda.Device().synchronize()
    assert_same(case.memory, case.host[1])


@pytest.mark.parametrize("grads", GRADS)
def test_a_call_is_not_drawn_from_one_graph_into_another(
    grads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Apart(grads, monkeypatch)
    case.known()
    with capture(case.first), capture(case.second), case.current:
        for call in case.calls().values():
            with pytest.raises(RuntimeError, match=DRAWN):
                call()


@pytest.mark.parametrize("grads", GRADS)
def test_a_graph_waits_for_nothing_outside_of_it(
    grads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the stream of the weights is captured: the gradients are what they are at the replay."""
    case = Apart(grads, monkeypatch)
    case.known()
    with capture(case.first) as captured, case.current:
        case.plan.add_grad([case.grad])
    with case.second:
        case.memory.set(case.ones.get())
        case.second.synchronize()
    captured.replay()
    case.check()


@gpu.emulation
@pytest.mark.parametrize("grads", GRADS)
def test_streams_of_one_capture_wait_for_each_other(
    grads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the graph: gradients are written on one, changed on another, read on the first."""
    case = Apart(grads, monkeypatch)
    case.known()
    seen = gpu.on_gpu(np.zeros(9000, np.float32))
    cupy.cuda.Device().synchronize()
    with capture(case.first) as captured:
        case.second.wait_event(case.first.record())
        case.write()
        with case.current:
            case.plan.add_grad([case.grad])
        if grads == "CuPy's stream":  # which nobody promised to let wait
            case.second.wait_event(case.first.record())
        cupy._lib.emulated_copy(
            0, case.second.ptr, seen.data.ptr, case.memory.data.ptr, seen.nbytes
        )
        case.first.wait_event(case.second.record())
    for _ in range(2):
        captured.replay()
        case.check()
        assert_same(seen, case.host[1])


def test_the_stream_of_an_interface_is_captured() -> None:
    first, second = gpu.streams(2)
    there = gpu.on_gpu(np.ones(9000, np.float32))
    cupy.cuda.Device().synchronize()
    with capture(second) as captured, first, pytest.raises(RuntimeError, match=DRAWN):
        fp.sums([OnlyInterface(there, second.ptr)])
    captured.replay()
    with first:
        assert_same(fp.sums([OnlyInterface(there, second.ptr)]).total_abs, 9000.0)
