"""What people write in torch, over tensors on any device and their gradients."""

from __future__ import annotations

from typing import Any

import torch

L1, L2 = 1e-5, 1e-4


def expression(tensors: list[torch.Tensor]) -> Any:
    return sum([L1 * t.abs().sum() + L2 * t.square().sum() for t in tensors])


class TorchPeers:
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
