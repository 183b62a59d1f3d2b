"""fp.Plan on the CPU: what a training step pays, against what people write today.

    pip install ".[bench]" && python bench/plan.py [--json FILE] [--rounds N]

Everything runs in one process, interleaved; each ratio is taken within a round and the median over
the rounds is printed. "Of the exchange" is the speed as a share of reading the weights and the
gradients and writing the gradients, with the same threads and next to no arithmetic, as fast as any
of limits.py's exchanges does. Every work is timed with all its memory on cache lines, as torch puts
it, and 16 bytes past them, as NumPy puts large arrays. Every result is checked against torch in
float64 before it is timed.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

import fused_penalties as fp
import limits
from fused_penalties.regularizers import L1L2
from reporting import Contenders, Report
from weights import OFFSETS, memory, values

L1, L2 = 1e-5, 1e-4


def placed(x: np.ndarray, offset: int) -> np.ndarray:
    """A copy whose memory lies so many bytes past a cache line."""
    copy = memory(x.size, x.dtype, offset).reshape(x.shape)
    copy[...] = x
    return copy


def expression(tensors: list[torch.Tensor]) -> Any:
    return sum([L1 * t.abs().sum() + L2 * t.square().sum() for t in tensors])


class TorchPeers:
    """What people write today, over tensors on any device and their gradients."""

    def __init__(self, tensors: list[torch.Tensor], grads: list[torch.Tensor]) -> None:
        self.tensors = tensors
        self.torch_grads = grads
        self.parameters = [torch.nn.Parameter(t) for t in tensors]
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = grad

    def foreach_norms(self) -> Any:
        return torch._foreach_norm(self.tensors, 1), torch._foreach_norm(self.tensors, 2)

    def foreach_value(self) -> torch.Tensor:
        norms, squares = self.foreach_norms()
        return L1 * torch.stack(norms).sum() + L2 * torch.stack(squares).square().sum()

    def expression_and_backward(self) -> Any:
        loss = expression(self.parameters)
        loss.backward()
        return loss

    def foreach_by_hand(self) -> Any:
        torch._foreach_add_(self.torch_grads, self.tensors, alpha=2 * L2)
        torch._foreach_add_(self.torch_grads, torch._foreach_sign(self.tensors), alpha=L1)
        return self.foreach_value()


class Work(TorchPeers):
    """Weights, the plan over them, and the same memory as torch tensors."""

    def __init__(self, weights: list[np.ndarray], offset: int) -> None:
        self.offset = offset
        self.weights = [placed(w, offset) for w in weights]
        tensors = [torch.from_numpy(w) for w in self.weights]
        super().__init__(tensors, [torch.zeros_like(t) for t in tensors])
        self.grads = [placed(np.zeros_like(w), offset) for w in weights]
        self.plan = fp.Plan(self.weights, L1L2(L1, L2))

    def value_and_grad(self) -> Any:
        return self.plan.value_and_grad(self.grads)

    def add_grad(self) -> None:
        self.plan.add_grad(self.grads)

    def numpy_loop(self) -> float:
        return sum(L1 * np.abs(w).sum() + L2 * np.square(w).sum() for w in self.weights)

    def check(self) -> None:
        """A wrong result must not be timed: values and gradients against torch in float64."""
        parameters = [t.double().requires_grad_() for t in self.tensors]
        loss = expression(parameters)
        loss.backward()
        wanted = loss.item()
        for g in self.grads:
            g.fill(0)
        for value in (self.plan.value(), self.value_and_grad()):
            if abs(float(value) - wanted) > 1e-6 * wanted:
                sys.exit(f"wrong result: {value!r}, torch says {wanted!r}")
        for at, (got, parameter) in enumerate(zip(self.grads, parameters, strict=True)):
            if not np.allclose(got, parameter.grad.numpy(), rtol=1e-6, atol=0.0):
                sys.exit(f"wrong result: the gradient of buffer {at} is not that of torch")


def limit(work: Work, threads: int) -> Contenders:
    # Into gradients of their own: what it leaves there is no number that others should add to.
    grads = [placed(np.zeros_like(w), work.offset) for w in work.weights]
    return {"pure exchange": limits.exchange(work.weights, grads, threads)}


def many_small(report: Report, offset: int) -> None:
    rng = np.random.default_rng(0)
    work = Work(
        [rng.standard_normal(64, np.float32) * np.float32(0.02) for _ in range(1000)], offset
    )
    work.check()
    report.run(
        f"1000 buffers of 64 float32, value, {offset} bytes off",
        {
            "plan.value": work.plan.value,
            "fp.penalty": lambda: fp.penalty(work.weights, L1L2(L1, L2)),
            "numpy loop": work.numpy_loop,
            "torch._foreach_norm": work.foreach_norms,
        },
        {"numpy loop": (75.0, 100.0)},
    )
    report.run(
        f"1000 buffers of 64 float32, value and gradient, {offset} bytes off",
        {
            "plan.value_and_grad": work.value_and_grad,
            "torch expression and backward": work.expression_and_backward,
            "torch._foreach by hand": work.foreach_by_hand,
        },
        {"torch expression and backward": (200.0,)},
    )
    regularizer = L1L2(L1, L2)
    for kind, weights in (("NumPy arrays", work.weights), ("torch tensors", work.tensors)):
        report.run(
            f"1000 {kind} of 64 float32, the way in, {offset} bytes off",
            {
                "fp.penalty": partial(fp.penalty, weights, regularizer),
                "fp.sums": partial(fp.sums, weights),
                "fp.Plan": partial(fp.Plan, weights, regularizer),
            },
            {"fp.sums": (1 / 1.5,)} if kind == "torch tensors" else {},
        )
    if offset == 0:
        bound = partial(fp.Plan, work.tensors, regularizer)
        report.absolute("fp.Plan of 1000 torch tensors", bound, 2e-3)


def resnet50(report: Report, offset: int) -> None:
    work = Work(list(values("resnet50", "float32", 0).values()), offset)
    work.check()
    for threads, wanted in ((1, (0.80, 0.93)), (2, (0.90, 0.97))):
        with threadpool_limits(threads):
            torch.set_num_threads(threads)
            work.plan = fp.Plan(work.weights, L1L2(L1, L2), threads=threads)
            exchange = limit(work, threads)
            # Without the peers: torch's threads go on spinning for some time when it is done.
            report.run(
                f"ResNet-50, float32, {threads} thread(s), value and gradient, {offset} bytes off",
                {"plan.value_and_grad": work.value_and_grad, **exchange},
                {"pure exchange": wanted},
            )
            report.run(
                f"ResNet-50, float32, {threads} thread(s), beside torch, {offset} bytes off",
                {
                    "plan.value_and_grad": work.value_and_grad,
                    "torch expression and backward": work.expression_and_backward,
                    "torch._foreach by hand": work.foreach_by_hand,
                },
                {"torch expression and backward": (5.0,), "torch._foreach by hand": (2.0,)},
            )
            report.run(
                f"ResNet-50, float32, {threads} thread(s), gradient alone, {offset} bytes off",
                {"plan.add_grad": work.add_grad, **exchange},
                {"pure exchange": (0.93, 1.0)} if threads == 1 else {},
            )


def main() -> None:
    report = Report(__doc__)
    for offset in OFFSETS:
        many_small(report, offset)
        resnet50(report, offset)
    report.absolute("plan.value() of an empty plan", fp.Plan([], L1L2(L1, L2)).value, 1e-6)
    report.write()


if __name__ == "__main__":
    main()
