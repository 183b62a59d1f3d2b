"""fused_penalties.torch: the penalty in a loss and in an optimizer's steps, against the expression.

    pip install ".[bench]" && python bench/frameworks_torch.py [--json FILE] [--rounds N]
    OMP_NUM_THREADS=1 python bench/frameworks_torch.py    # with one thread, on both sides

Forward and backward of the penalty alone, as the operation, as the expression that people write and
as `torch.compile` of it; and what an attached penalty adds to a step that has gradients already.
Everything runs in one process, interleaved; each ratio is taken within a round and the median over
the rounds is printed. Values and gradients are checked against the expression before they are
timed.

Where other work takes one of the cores, torch's threads spin while they wait for each other, and
the expression alone was seen to take twenty times as long with two threads as with one: a ratio of
then says nothing about the penalty. Believe several threads only if the expression is quicker with
them; OMP_WAIT_POLICY=PASSIVE and GOMP_SPINCOUNT=0 help, but do not undo it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch

import fused_penalties as fp
from fused_penalties.regularizers import L1L2
from fused_penalties.torch import Penalty
from reporting import Report
from weights import values

L1, L2 = 1e-5, 1e-4


class Work:
    """A model's parameters, its penalty, and the ways to their gradient."""

    def __init__(self, weights: Iterable[torch.Tensor]) -> None:
        self.model = torch.nn.ParameterList(map(torch.nn.Parameter, weights))
        self.params = list(self.model)
        self.penalty = Penalty(self.model, L1L2(L1, L2))
        self.optimizer = torch.optim.SGD(self.params, lr=0.0)
        self.handle = self.penalty.attach(self.optimizer)
        self.compiled = torch.compile(self.expression)

    def expression(self) -> torch.Tensor:
        return sum([L1 * p.abs().sum() + L2 * p.square().sum() for p in self.params])

    def foreach_by_hand(self) -> None:
        weights, grads = [p.detach() for p in self.params], [p.grad for p in self.params]
        torch._foreach_add_(grads, weights, alpha=2 * L2)
        torch._foreach_add_(grads, torch._foreach_sign(weights), alpha=L1)

    def attached(self) -> None:
        """What the optimizer calls at the beginning of a step."""
        for hook in self.optimizer._optimizer_step_pre_hooks.values():
            hook(self.optimizer, (self.optimizer,), {})

    def clear(self) -> None:
        for param in self.params:
            param.grad = None

    def without_grads(self, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def call() -> None:
            self.clear()
            loss().backward()

        return call

    def with_grads(self, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
        return lambda: loss().backward()

    def check(self) -> None:
        """A wrong result must not be timed."""
        self.without_grads(self.expression)()
        wanted = self.expression().item(), [p.grad for p in self.params]
        self.without_grads(self.penalty)()
        by_operation = [p.grad for p in self.params]
        self.clear()
        self.attached()
        for grads in by_operation, [p.grad for p in self.params]:
            for got, want in zip(grads, wanted[1], strict=True):
                if not torch.allclose(got, want, rtol=1e-5, atol=0.0):
                    sys.exit("wrong result: a gradient is not that of the expression")
        for value in self.penalty().item(), self.handle.value().item():
            if abs(value - wanted[0]) > 1e-4 * wanted[0]:
                sys.exit(f"wrong result: {value!r}, the expression says {wanted[0]!r}")


def measure(report: Report, name: str, work: Work, threads: int, targets: Any) -> None:
    title = f"{name}, {threads} thread(s)"
    fresh, present, attached = targets
    # Compiling an expression of 1000 tensors takes minutes.
    compiled = {"torch.compile of it": work.compiled} if len(work.params) < 500 else {}
    ways = {"Penalty": work.penalty, "the expression": work.expression, **compiled}
    report.run(
        f"{title}, forward and backward, no gradients yet",
        {way: work.without_grads(loss) for way, loss in ways.items()},
        {"the expression": fresh},
    )
    report.run(
        f"{title}, forward and backward, added to gradients",
        {way: work.with_grads(loss) for way, loss in ways.items()},
        {"the expression": present},
    )
    report.run(
        f"{title}, attached, added to gradients",
        {
            "Penalty.attach": work.attached,
            "the expression": work.with_grads(work.expression),
            "torch._foreach by hand": work.foreach_by_hand,
        },
        {"the expression": attached},
    )


def main() -> None:
    report = Report(__doc__)
    generator = torch.Generator().manual_seed(0)
    small = Work(0.02 * torch.randn(64, generator=generator) for _ in range(1000))
    resnet = Work(map(torch.from_numpy, values("resnet50", "float32", 0).values()))
    for work in small, resnet:
        work.check()
    threads = fp._core.default_threads()
    torch.set_num_threads(threads)
    attached = (5.0, 10.0) if threads == 1 else (8.0, 15.0)
    measure(report, "1000 x 64", small, threads, ((8.0, 12.0), (8.0,), (80.0, 140.0)))
    measure(report, "ResNet-50", resnet, threads, ((3.5, 5.0), (2.0, 3.0), attached))
    report.write()


if __name__ == "__main__":
    main()
