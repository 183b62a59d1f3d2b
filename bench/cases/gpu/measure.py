"""fp.Plan on a GPU: what a training step pays, against the card's limits and what people write.

    pip install ".[bench,cuda]"
    python -m bench.cases.gpu.measure [--json FILE] [--picture FILE] [--rounds N]
        [--latest SECONDS] [--quick]

Everything runs in one process, interleaved, on one stream that torch and CuPy share; each ratio is
taken within a round and the median over the rounds is printed. "Of the read" is the speed as a
share of the fastest of several plain kernels that read 4 GB and do nothing with them, "of the
exchange" of those that read weights and gradients and write the gradients. Before each call other
memory is read, so that the weights come from the card's memory as in a training step, not from its
cache.

The median is the device's time between two events. The device is held up until the host has queued
the call, as far as its queue goes (about 1000 launches), so the host's time is not in it. "host" is
the host's time of a call, apart. Every result of the plan is checked against torch in float64
before it is timed. Without a GPU this says so and exits with status 2.
"""

from __future__ import annotations

import gc
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import fused_penalties as fp
from bench.cases.gpu.card import BIG, Card, cp, random
from bench.cases.gpu.report import EXCHANGE, GRADIENT, NORMS, READ, Contenders, GpuReport, draw
from bench.cases.plan.with_torch import L1, L2, TorchPeers, expression
from bench.weights import shapes
from fused_penalties.regularizers import L1L2

COMPILE_SECONDS = 50.0  # for torch.compile, in the whole run
MOST_COMPILED = 400  # buffers
PIECE = 1 << 26  # elements that a check converts to float64 at a time


@dataclass(frozen=True)
class Load:
    """What to measure: float32 buffers are given to the plan by CuPy, others by torch."""

    title: str
    shapes: list[tuple[int, ...]]
    dtype: torch.dtype = torch.float32
    subject: str = "plan.sums"
    gradient: bool = True

    def bytes(self) -> int:
        return sum(map(math.prod, self.shapes)) * self.dtype.itemsize

    def needs(self, gradient: bool) -> int:
        """Bytes on the card: weights, gradients and their signs, temporaries of the peers."""
        largest = max(map(math.prod, self.shapes)) * self.dtype.itemsize
        return self.bytes() * (3 if gradient else 1) + 4 * largest


def model(title: str, name: str, dtype: torch.dtype = torch.float32) -> Load:
    return Load(title, list(shapes(name).values()), dtype)


LOADS = [
    Load("4 GB float32", [(BIG // 4,)]),
    Load("4 GB bfloat16", [(BIG // 2,)], torch.bfloat16),
    model("GPT-2 small float32", "gpt2"),
    model("7B bfloat16", "llama-2-7b", torch.bfloat16),
    Load("2000 x 512 float32", [(512,)] * 2000, subject="plan.value"),
    model("ResNet-50 float32", "resnet50"),
    model("BERT-base float32", "bert-base"),
    Load("1e9 + 2000 x 256 float32", [(10**9,), *[(256,)] * 2000], gradient=False),
]


class Work(TorchPeers):
    """Fresh random weights on the card, the plan over them, and what others make of them."""

    def __init__(self, load: Load, gradient: bool) -> None:
        tensors = [random(shape, load.dtype) for shape in load.shapes]
        super().__init__(tensors, [torch.zeros_like(t) if gradient else None for t in tensors])
        self.arrays, self.grads = tensors, self.torch_grads
        if load.dtype == torch.float32:
            self.arrays = [cp.from_dlpack(t) for t in tensors]
            self.flat = [a.ravel() for a in self.arrays]  # norms of order 1 are those of vectors
            self.grads = [g if g is None else cp.from_dlpack(g) for g in self.torch_grads]
        self.plan = fp.Plan(self.arrays, L1L2(L1, L2))

    def value_and_grad(self) -> Any:
        return self.plan.value_and_grad(self.grads)

    def cupy_expression(self) -> Any:
        return sum(L1 * cp.abs(a).sum() + L2 * cp.square(a).sum() for a in self.arrays)

    def cupy_norms(self) -> Any:
        norm = cp.linalg.norm
        return sum(L1 * norm(a, 1) + L2 * norm(a) ** 2 for a in self.flat)

    def check(self) -> None:
        """A wrong result must not be timed: everything against torch in float64."""
        narrow = self.tensors[0].dtype == torch.bfloat16
        wanted = [
            torch.stack([torch.stack([p.abs().sum(), p.square().sum()]) for p in doubles(t)]).sum(0)
            for t in self.tensors
        ]
        wanted_abs, wanted_square = torch.stack(wanted).cpu().numpy().T
        sums = self.plan.sums()
        for got, expected in ((sums.abs, wanted_abs), (sums.square, wanted_square)):
            if not np.allclose(cp.asnumpy(got), expected, rtol=9e-7 if narrow else 1e-11, atol=0.0):
                raise SystemExit("wrong result: the sums are not those of torch")
        penalty = L1 * wanted_abs.sum() + L2 * wanted_square.sum()
        values = [self.plan.value()]
        if self.torch_grads[0] is not None:
            values.append(self.value_and_grad())
        for value in values:
            if not math.isclose(float(value), penalty, rel_tol=2e-6):
                raise SystemExit(f"wrong result: {float(value)!r}, torch says {penalty!r}")
        if self.torch_grads[0] is None:
            return
        bound = 2**-8 if narrow else 1e-6
        for at, (tensor, grad) in enumerate(zip(self.tensors, self.torch_grads, strict=True)):
            for w, g in zip(doubles(tensor), doubles(grad), strict=True):
                if not torch.allclose(g, L1 * w.sign() + 2 * L2 * w, rtol=bound, atol=0.0):
                    raise SystemExit(f"wrong result: the gradient of buffer {at} is not torch's")


def measure_value(report: GpuReport, load: Load) -> None:
    work = Work(load, gradient=False)
    work.check()
    ours: Contenders = {"plan.sums": work.plan.sums, "plan.value": work.plan.value}
    contenders: Contenders = {
        load.subject: ours[load.subject],
        **ours,
        READ: report.card.contenders[READ],
        "torch expression": lambda: expression(work.tensors),
        NORMS: work.foreach_value,
    }
    if isinstance(function := compiled(report, load, work.tensors), str):
        report.leave_out(load.title, "torch.compile", function)
    else:
        contenders["torch.compile of the expression"] = lambda: function(work.tensors)
    if load.dtype == torch.float32:
        contenders["CuPy expression"] = work.cupy_expression
        contenders["cupy.linalg.norm 1 and 2"] = work.cupy_norms
    else:
        report.leave_out(
            load.title, "CuPy expression and cupy.linalg.norm", "the weights are not float32"
        )
    report.compare(load.title, contenders, load.bytes(), len(load.shapes))


def measure_gradient(report: GpuReport, load: Load) -> None:
    work = Work(load, gradient=True)
    work.check()
    contenders = {
        "plan.value_and_grad": work.value_and_grad,
        EXCHANGE: report.card.contenders[EXCHANGE],
        "torch expression and backward": work.expression_and_backward,
        "torch._foreach by hand": work.foreach_by_hand,
    }
    report.compare(load.title + GRADIENT, contenders, 3 * load.bytes(), len(load.shapes))


def compiled(report: GpuReport, load: Load, tensors: list[torch.Tensor]) -> Any:
    """The compiled expression, or why there is none; takes its time out of the report's."""
    if report.options.quick:
        return "--quick"
    if len(tensors) > MOST_COMPILED:
        return f"it compiles for too long for more than {MOST_COMPILED} buffers"
    budget = COMPILE_SECONDS - report.compiling
    if budget < 1.0:
        return f"the {COMPILE_SECONDS:g} s for compiling are used up"
    start = time.monotonic()
    torch.compiler.reset()
    function = torch.compile(expression, dynamic=False)
    try:
        with at_most(budget):
            function(tensors)
            torch.cuda.synchronize()
    except OutOfTime:
        return f"not compiled within {budget:.0f} s"
    except Exception as error:  # whatever the compiler lacks here, the other peers are there
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    finally:
        report.compiling += time.monotonic() - start
    return function


class OutOfTime(BaseException):
    """No Exception: the compiler handles those as its own."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    def expire(*_: Any) -> None:
        raise OutOfTime

    previous = signal.signal(signal.SIGALRM, expire)
    # Again every second, for what is raised inside a callback gets lost.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)


def doubles(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    return (piece.double() for piece in tensor.flatten().split(PIECE))


def free_bytes() -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    cp.get_default_memory_pool().free_all_blocks()
    return torch.cuda.mem_get_info()[0]


def measure(report: GpuReport, load: Load, gradient: bool) -> None:
    spent, needs, free = time.monotonic() - report.started, load.needs(gradient), free_bytes()
    title = load.title + GRADIENT * gradient
    if spent > report.options.latest:
        report.leave_out(title, "everything", f"{spent:.0f} s have passed")
    elif needs > free:
        why = f"needs {needs / 1e9:.0f} GB of the card's memory, of which {free / 1e9:.0f} are free"
        report.leave_out(title, "everything", why)
    else:
        try:
            (measure_gradient if gradient else measure_value)(report, load)
        except (torch.OutOfMemoryError, cp.cuda.memory.OutOfMemoryError):
            report.leave_out(title, "everything", "the card's memory ran out")


def main() -> None:
    report = GpuReport(__doc__)
    torch.manual_seed(0)
    # CuPy's own stream, made known to torch: whatever is timed queues behind what came before.
    stream = cp.cuda.Stream(non_blocking=True)
    with stream, torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr)):
        report.use(Card())
        for load in LOADS:
            measure(report, load, gradient=False)
            if load.gradient:
                measure(report, load, gradient=True)
    report.print_must_reach()
    report.complete = True
    report.write()
    if report.options.picture and report.results:
        draw(report.figures(), report.options.picture)


if __name__ == "__main__":
    main()
