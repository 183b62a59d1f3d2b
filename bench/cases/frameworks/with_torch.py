"""fused_penalties.torch: the penalty in a loss and in an optimizer's steps, against the expression.

Forward and backward of the penalty alone, as the operation, as the expression that people write, as
`torch.compile` of it and by hand with `torch._foreach`; and what an attached penalty adds to a step
that has gradients already. Values and gradients are checked against the expression before they are
timed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

import fused_penalties as fp
from fused_penalties.regularizers import L1L2
from fused_penalties.torch import Penalty
from reporting import Report
from shapes import L1, L2, WORKS, buffers


class Work:
    """A model's parameters, its penalty, and the ways to their gradient."""

    def __init__(self, name: str) -> None:
        tensors = map(torch.from_numpy, buffers(name))
        self.model = torch.nn.ParameterList(map(torch.nn.Parameter, tensors))
        self.params = list(self.model)
        self.penalty = Penalty(self.model, L1L2(L1, L2))
        self.optimizer = torch.optim.SGD(self.params, lr=0.0)
        self.handle = self.penalty.attach(self.optimizer)
        self.compiled = torch.compile(self.expression)

    def expression(self) -> torch.Tensor:
        return sum([L1 * p.abs().sum() + L2 * p.square().sum() for p in self.params])

    def foreach_grad(self) -> None:
        weights, grads = [p.detach() for p in self.params], [p.grad for p in self.params]
        torch._foreach_add_(grads, weights, alpha=2 * L2)
        torch._foreach_add_(grads, torch._foreach_sign(weights), alpha=L1)

    def foreach_value_and_grad(self) -> torch.Tensor:
        """The gradients made where there are none, as backward does."""
        weights = [p.detach() for p in self.params]
        norms, squares = torch._foreach_norm(weights, 1), torch._foreach_norm(weights, 2)
        if self.params[0].grad is None:
            slopes = torch._foreach_mul(weights, 2 * L2)
            torch._foreach_add_(slopes, torch._foreach_sign(weights), alpha=L1)
            for param, slope in zip(self.params, slopes, strict=True):
                param.grad = slope
        else:
            self.foreach_grad()
        return L1 * torch.stack(norms).sum() + L2 * torch.stack(squares).square().sum()

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


def measure(report: Report, name: str, threads: int) -> None:
    work = Work(name)
    work.check()
    fresh, present, attached = targets(name, threads)
    title = f"{name}, {threads} thread(s)"
    ways = {"Penalty": work.penalty, "the expression": work.expression}
    if len(work.params) < 500:  # compiling an expression of 1000 tensors takes minutes
        ways["torch.compile of it"] = work.compiled
    report.run(
        f"{title}, forward and backward, no gradients yet",
        {
            **{way: work.without_grads(loss) for way, loss in ways.items()},
            "torch._foreach by hand": lambda: (work.clear(), work.foreach_value_and_grad()),
        },
        {"the expression": fresh},
    )
    report.run(
        f"{title}, forward and backward, added to gradients",
        {
            **{way: work.with_grads(loss) for way, loss in ways.items()},
            "torch._foreach by hand": work.foreach_value_and_grad,
        },
        {"the expression": present},
    )
    report.run(
        f"{title}, attached, added to gradients",
        {
            "Penalty.attach": work.attached,
            "the expression": work.with_grads(work.expression),
            "torch._foreach by hand": work.foreach_value_and_grad,
        },
        {"the expression": attached},
    )


def targets(name: str, threads: int) -> Any:
    """What is wanted at least, and aimed for, of each row."""
    if name == "1000 x 64":
        return (8.0, 12.0), (8.0,), (80.0, 140.0)
    if name == "ResNet-50":
        return (3.5, 5.0), (2.0, 3.0), (5.0, 10.0) if threads == 1 else (8.0, 15.0)
    return (), (), ()  # nothing is promised


def main() -> None:
    report = Report(__doc__)
    threads = fp._core.default_threads()
    torch.set_num_threads(threads)
    for name in WORKS:
        measure(report, name, threads)
    report.write()


if __name__ == "__main__":
    main()
