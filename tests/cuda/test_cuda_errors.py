"""After an error of CUDA, whichever call gave it, everything is right."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

import fused_penalties as fp
import gpu
from capsules import Framework
from fused_penalties import regularizers
from gpu import Twins, assert_same, assert_same_sums, cupy
from gpu_calls import CALLS, READS, Case, arrays

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
pytestmark = gpu.marks


FILES = r"csrc/cuda/(launch\.cu|queue\.cpp)|tests/native/emulated/\w+\.cpp"
MESSAGE = rf"({FILES}):\d+: cudaError\w+: .+"


def assert_fails(call: Callable[[], Any]) -> bool:
    """The call fails if one of CUDA's did, and says where and why; returns whether one did."""
    message = ""
    try:
        call()
    except RuntimeError as error:
        message = str(error)
    if not cupy._lib.emulated_has_failed():
        gpu.fail(gpu.NEVER)
        return False
    assert re.fullmatch(MESSAGE, message)
    return True


@gpu.emulation
@pytest.mark.parametrize("name", CALLS)
def test_after_an_error_everything_is_right(name: str) -> None:
    """Whichever call of CUDA failed, be it the second launch of two."""
    for calls in range(100):
        case = Case()
        gpu.fail(calls)
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
        gpu.fail(calls)
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
            gpu.fail(calls)
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
        gpu.fail(calls)
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
            gpu.fail(calls)
            with suppress(RuntimeError):
                call(twins.gpu)
            if not cupy._lib.emulated_has_failed():
                gpu.fail(gpu.NEVER)
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
