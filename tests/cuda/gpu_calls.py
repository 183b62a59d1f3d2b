"""Every call of a plan on a GPU, and the same on the CPU, with a stream that waits meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import fused_penalties as fp
import gpu
import oracle
import values
from fused_penalties import regularizers
from gpu import Twins, cupy
from plan_cases import write_grad

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2


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
    "largest": lambda plan, grads: plan.sums(largest=True).largest,
    "l1_norm": lambda plan, grads: plan.l1_norm(),
    "l2_norm": lambda plan, grads: plan.l2_norm(),
    "value_and_grad": lambda plan, grads: plan.value_and_grad(grads, -0.5),
    "clip_grad_norm": lambda plan, grads: plan.clip_grad_norm(grads, 1.5),
    "add_grad": lambda plan, grads: plan.add_grad(grads, 0.25),
    "write_grad": lambda plan, grads: write_grad(plan, grads, 0.25),
    "prox": lambda plan, grads: plan.prox(0.1),
    "decay": lambda plan, grads: plan.decay(0.1),
    "set_regularizer": lambda plan, grads: plan.set_regularizer(some(len(plan))[::-1]),
}
READS = [*CALLS][:7]


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
