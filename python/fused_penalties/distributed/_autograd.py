"""The penalty of tensors that are spread over ranks, as torch's autograd sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..torch._ops import _wanted_gradients
from ._shards import Shard, is_tensor


def attach(value: Any, held: Mapping[str, tuple[Any, float, float]]) -> Any:
    """The value with the derivative by what is held here: tensors, and their l1 and l2."""
    weights, l1, l2 = [], [], []
    for weight, one, two in held.values():
        if isinstance(weight, Shard):
            weight = weight.array
        if not is_tensor(weight) or not weight.requires_grad or not (one or two):
            continue
        # The derivative of to_local() is a DTensor with the same placements, made where it is.
        weights.append(weight.to_local() if hasattr(weight, "to_local") else weight)
        l1.append(one)
        l2.append(two)
    # Of a rank without weights it has a function all the same, since all ranks call backward.
    return _Value.apply(tuple(l1), tuple(l2), value.requires_grad_(), *weights)


class _Value(torch.autograd.Function):  # type: ignore[misc]
    """A number that is known, whose derivative by the weights that lie here is the penalty's."""

    @staticmethod
    def forward(l1: Any, l2: Any, value: Any, *weights: Any) -> Any:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.l1, ctx.l2, _, *weights = inputs
        ctx.save_for_backward(*weights)

    @staticmethod
    def backward(ctx: Any, upstream: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled() and upstream.requires_grad:
            raise RuntimeError(
                "penalty: the second derivative of a function that is not linear in the penalty "
                "would lack the parts of other ranks; wanted a first derivative, or a loss to "
                "which the penalty is added"
            )
        return (None, None, None, *_wanted_gradients(ctx, ctx.needs_input_grad[3:], upstream))
