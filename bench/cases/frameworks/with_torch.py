"""fused_penalties.torch: the penalty in a loss and in an optimizer's steps, against the expression.

Forward and backward of the penalty alone, as the operation, as the expression that people write, as
`torch.compile` of it and by hand with `torch._foreach`; and what an attached penalty adds to a step
that has gradients already. Values and gradients are checked against the expression before they are
timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from bench import machine
from bench.cases.frameworks.buffers import L1, L2, buffers, keys, models
from bench.settings import Settings
from bench.timing import Contenders
from bench.work import Row, Work
from bench.work import rows as measured_rows
from fused_penalties.regularizers import L1L2
from fused_penalties.torch import Penalty


class Model:
    """A model's parameters, its penalty, and the ways to their gradient."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        tensors = [torch.from_numpy(x.copy()) for x in arrays]
        self.model = torch.nn.ParameterList(map(torch.nn.Parameter, tensors))
        self.params = list(self.model)
        self.penalty = Penalty(self.model, L1L2(L1, L2))
        self.optimizer = torch.optim.SGD(self.params, lr=0.0)
        self.handle = self.penalty.attach(self.optimizer)
        self.check()

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
                    raise ValueError("a gradient is not that of the expression")
        for value in self.penalty().item(), self.handle.value().item():
            if abs(value - wanted[0]) > 1e-4 * wanted[0]:
                raise ValueError(f"value: got {value!r}; the expression says {wanted[0]!r}")


def rows(settings: Settings) -> Iterator[Row]:
    torch.set_num_threads(machine.threads())
    works = [work for name in models(settings) for work in works_of(name, settings)]
    return measured_rows("frameworks", works, settings)


def works_of(name: str, settings: Settings) -> list[Work]:
    arrays = buffers(name)

    def losses(model: Model) -> dict[str, Callable[[], torch.Tensor]]:
        found = {"fused_penalties": model.penalty, "the expression": model.expression}
        # Compiling an expression of 1000 tensors takes minutes.
        if len(arrays) < 500 and not settings.quick:
            found["torch.compile of it"] = torch.compile(model.expression)
        return found

    def without_grads(errors: dict[str, float]) -> Contenders:
        model = Model(arrays)
        return {
            **{way: model.without_grads(loss) for way, loss in losses(model).items()},
            "torch._foreach by hand": lambda: (model.clear(), model.foreach_value_and_grad()),
        }

    def with_grads(errors: dict[str, float]) -> Contenders:
        model = Model(arrays)
        return {
            **{way: partial(backward, loss) for way, loss in losses(model).items()},
            "torch._foreach by hand": model.foreach_value_and_grad,
        }

    def attached(errors: dict[str, float]) -> Contenders:
        model = Model(arrays)
        return {
            "fused_penalties": model.attached,
            "the expression": partial(backward, model.expression),
            "torch._foreach by hand": model.foreach_value_and_grad,
        }

    return [
        Work(keys("torch", what, name, arrays), prepare)
        for what, prepare in (
            ("forward and backward, no gradients yet", without_grads),
            ("forward and backward, added to gradients", with_grads),
            ("attached, added to gradients", attached),
        )
    ]


def backward(loss: Callable[[], torch.Tensor]) -> None:
    loss().backward()
