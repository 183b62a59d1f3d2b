"""Gradients that come again are not looked up again; whatever changed about them is seen."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fused_penalties as fp
import gpu
import values
from capsules import Framework, OnlyInterface, Producer
from fused_penalties import regularizers
from gpu import Twins, assert_same, cupy

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
pytestmark = gpu.marks
N = 12
KINDS: dict[str, Callable[[Any], Any]] = {
    "CuPy": lambda x: x,
    "tensors": Framework,
    "DLPack": Producer,
    "interface": OnlyInterface,
}


class Counting:
    """The core's plan, and how often it looked gradients up."""

    def __init__(self, core: Any) -> None:
        self.core, self.count = core, 0

    def __getattr__(self, name: str) -> Any:
        self.count += name in ("gradient_table", "norm_table")
        return getattr(self.core, name)


class Case:
    def __init__(self, kind: str = "CuPy") -> None:
        shapes = [(k, 7) for k in range(1, N + 1)]
        w = [values.make("normal", "float32", a * b, a).reshape(a, b) for a, b in shapes]
        self.twins = Twins([*w, *(np.zeros_like(x) for x in w + w)])
        self.plan = fp.Plan(self.twins.gpu[:N], L1L2(0.1, 0.3))
        self.on_cpu = fp.Plan(self.twins.host[:N], L1L2(0.1, 0.3))
        self.grads = [KINDS[kind](x) for x in self.twins.gpu[N : 2 * N]]
        self.others = self.twins.gpu[2 * N :]
        self.core = self.plan._plan._core = Counting(self.plan._plan._core)

    def looks(self, grads: list[Any]) -> int:
        """How often a call of either kind looks the gradients up."""
        before = self.core.count
        self.plan.value_and_grad(grads)
        self.plan.clip_grad_norm(grads, 1.0)
        return self.core.count - before

    def expect(self, host: list[np.ndarray]) -> None:
        self.on_cpu.value_and_grad(host)
        self.on_cpu.clip_grad_norm(host, 1.0)
        self.twins.check()


@pytest.mark.parametrize("kind", KINDS)
def test_looked_up_once(kind: str) -> None:
    """But for arrays whose library has to be asked each time to have them ready."""
    case = Case(kind)
    host = case.twins.host[N : 2 * N]
    looks = []
    for turn in range(3):
        looks.append(case.looks(list(case.grads) if turn else case.grads))
        case.expect(host)
    assert looks == ([2, 0, 0] if kind in ("CuPy", "tensors") else [2, 2, 2])


def test_lists_in_turn() -> None:
    case = Case()
    host = case.twins.host[N : 2 * N], case.twins.host[2 * N :]
    for turn in range(3):
        for grads, expected in zip((case.grads, case.others), host, strict=True):
            assert case.looks(grads) == (0 if turn else 2)
            case.expect(expected)


@pytest.mark.parametrize("at", [0, 5, N - 1])
def test_one_of_them_is_another(at: int) -> None:
    case = Case()
    case.looks(case.grads)
    case.expect(case.twins.host[N : 2 * N])
    grads = [*case.grads]
    grads[at] = case.others[at]
    assert case.looks(grads) == 2
    host = case.twins.host[N : 2 * N]
    host[at] = case.twins.host[2 * N + at]
    case.expect(host)


def test_another_array_with_the_same_address() -> None:
    case = Case()
    case.looks(case.grads)
    case.expect(case.twins.host[N : 2 * N])
    grads, host = [*case.grads], case.twins.host[N : 2 * N]
    grads[6], host[6] = grads[6].T, host[6].T  # 7 x 7
    assert case.looks(grads) == 2
    case.expect(host)


@gpu.emulation
@pytest.mark.parametrize("kind", ["CuPy", "tensors"])
def test_memory_that_moved_under_the_same_object(kind: str) -> None:
    case = Case(kind)
    case.looks(case.grads)
    case.expect(case.twins.host[N : 2 * N])
    if kind == "CuPy":
        case.grads[3].data = case.others[3].data
    else:
        case.grads[3].array = case.others[3]
    assert case.looks(case.grads) == 2
    host = case.twins.host[N : 2 * N]
    host[3] = case.twins.host[2 * N + 3]
    case.expect(host)


def test_a_tensor_that_was_transposed_in_place() -> None:
    """Its memory is where it was."""
    case = Case("tensors")
    case.looks(case.grads)
    case.expect(case.twins.host[N : 2 * N])
    square = case.grads[6]  # 7 x 7
    square.array = square.array.T
    assert case.looks(case.grads) == 2
    host = case.twins.host[N : 2 * N]
    host[6] = host[6].T
    case.expect(host)
    case.grads[2].array = case.grads[2].array.reshape(21)
    case.grads[2].shape = (21,)
    with pytest.raises(ValueError, match=r"^grads\[2\]: got shape \(21,\); wanted \(3, 7\)"):
        case.plan.add_grad(case.grads)


def test_an_array_in_the_place_of_one_that_is_gone() -> None:
    """It may be the same address that Python knows it by."""
    case = Case()
    for turn in range(50):
        at = [2 * N, N][turn % 2]
        grads = [x[...] for x in case.twins.gpu[at : at + N]]
        case.looks(grads)
        case.expect(case.twins.host[at : at + N])
        del grads


def test_none_where_there_is_a_penalty_by_now() -> None:
    case = Case()
    grads = [*case.grads[:-1], None]
    host = [*case.twins.host[N : 2 * N - 1], None]
    each = [L1(0.1)] * (N - 1)
    for plan in (case.plan, case.on_cpu):
        plan.set_regularizer([*each, None])
    for _ in range(2):
        looks = case.looks(grads)
        case.expect(host)
    assert looks == 0
    case.plan.set_regularizer(L1(0.1))
    for _ in range(2):
        with pytest.raises(TypeError, match=rf"^grads\[{N - 1}\]: got None; wanted an array$"):
            case.plan.add_grad(grads)
    case.twins.check()


def test_they_are_not_kept() -> None:
    case = Case()
    grads = [x[...] for x in case.grads]
    case.looks(grads)
    watched = [weakref.ref(x) for x in grads]
    del grads
    gc.collect()
    assert [one() for one in watched] == [None] * N


def test_their_library_is_asked_for_its_stream_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("tensors")
    cupy.cuda.Device().synchronize()
    g = [values.make("normal", "float32", x.size, 5).reshape(x.shape) for x in case.twins.host[:N]]
    for stream in (*gpu.streams(3), None, *gpu.streams(1)):
        monkeypatch.setattr(Framework, "stream", stream)
        with stream or cupy.cuda.Stream.null:
            for there, here, new in zip(
                case.twins.gpu[N:], case.twins.host[N:], [*g, *g], strict=True
            ):
                there.set(new)
                here[...] = new
        with gpu.streams(1)[0]:
            case.plan.value_and_grad(case.grads)
        case.on_cpu.value_and_grad(case.twins.host[N : 2 * N])
        with stream or cupy.cuda.Stream.null:
            for there, here in zip(case.twins.gpu[N:], case.twins.host[N:], strict=True):
                assert_same(there, here)


def test_names_in_another_order() -> None:
    w = {"a": np.float32([1, -2]), "b": np.float32([3])}
    twins = Twins([*w.values(), np.zeros(2, np.float32), np.zeros(1, np.float32)])
    plan = fp.Plan(dict(zip("ab", twins.gpu, strict=False)), L2(0.5))
    for names in ("ab", "ba", "ab"):
        plan.add_grad({name: twins.gpu["ab".index(name) + 2] for name in names})
    assert_same(twins.gpu[2], 3 * w["a"])
    assert_same(twins.gpu[3], 3 * w["b"])
