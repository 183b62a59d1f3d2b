"""The penalty as people write it in torch, in float64, for autograd to differentiate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def expression(weights: Sequence[Any], l1: float | Sequence[float], l2: Any) -> Any:
    """The sum of l1 * sum(|w|) + l2 * sum(w**2), one coefficient for all or one for each."""
    total = torch.zeros((), dtype=torch.float64)
    for at, weight in enumerate(weights):
        one, two = (each if isinstance(each, float) else each[at] for each in (l1, l2))
        w = weight.double()
        total = total + one * w.abs().sum() + two * w.square().sum()
    return total


def gradients(weights: Sequence[Any], l1: Any, l2: Any, upstream: float = 1.0) -> list[Any]:
    """Of each weight, in float64."""
    leaves = [weight.detach().double().requires_grad_() for weight in weights]
    return list(torch.autograd.grad(upstream * expression(leaves, l1, l2), leaves))


# Relative, of one rounding to the dtype or a few of them.
TOLERANCE = {
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
    torch.float32: 1e-6,
    torch.float64: 1e-14,
}


def assert_close(got: Any, wanted: Any) -> None:
    """Equal within the rounding of the dtype that `got` has."""
    tolerance = TOLERANCE[got.dtype]
    torch.testing.assert_close(got.detach().double(), wanted.double(), rtol=tolerance, atol=0.0)


def tensors(dtype: Any, *shapes: tuple[int, ...], seed: int = 0) -> list[Any]:
    """Leaves with normal values, a zero among them."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for shape in shapes:
        values = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        if values.numel():
            values.view(-1)[0] = 0.0
        made.append(values.requires_grad_())
    return made
