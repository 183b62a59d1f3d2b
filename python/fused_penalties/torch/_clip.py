"""Clipping of gradients by their joint norm."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from .._numbers import at_least_0
from ._ops import WEIGHTS
from ._plans import Bound, tensor_of, with_bound


def clip_grad_norm_(
    parameters: Any,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Any:
    """`torch.nn.utils.clip_grad_norm_`, whose arguments it has, in one read and one write.

    The norm is taken in float64 and is a float32 tensor, or float64 for float64 gradients, so that
    float16 gradients do not overflow. Nothing is written where nothing is clipped. What this cannot
    do is left to torch's: another `norm_type`, gradients that are no plain tensors, those on
    several devices or on one that is neither the CPU nor a GPU of CUDA.

    Args:
        parameters: a tensor or an iterable of tensors, whose ``grad`` is clipped in place.
        max_norm: at least 0. (torch's own takes negative ones too, and reverses the gradients.)

    Returns:
        The norm before it was clipped, a tensor of rank 0.

    Raises:
        TypeError: `parameters` that are no tensors.
        ValueError: a `max_norm` that is negative or NaN.
        RuntimeError: a norm that is not finite, if `error_if_nonfinite` says so.
    """
    if isinstance(parameters, torch.Tensor):
        parameters = [parameters]
    elif not isinstance(parameters, Iterable) or isinstance(parameters, torch.nn.Module):
        raise TypeError(
            f"parameters: got {type(parameters).__name__}; wanted a tensor or an iterable of "
            "tensors, such as model.parameters()"
        )
    parameters = list(parameters)
    for at, param in enumerate(parameters):
        if not isinstance(param, torch.Tensor):
            raise TypeError(f"parameters[{at}]: got {type(param).__name__}; wanted a tensor")
    params = [param for param in parameters if param.grad is not None]
    if norm_type != 2.0 or not params or not _all_plain(params):
        return torch.nn.utils.clip_grad_norm_(
            parameters, max_norm, norm_type, error_if_nonfinite, foreach
        )
    most = at_least_0(max_norm, "max_norm", math.inf)
    grads = [param.grad for param in params]

    if error_if_nonfinite and not math.isfinite(with_bound(grads, lambda one: one.plan.l2_norm())):
        raise RuntimeError(
            "The total norm of order 2.0 for gradients from `parameters` is non-finite, so it "
            "cannot be clipped. To disable this error and scale the gradients by the non-finite "
            "norm anyway, set `error_if_nonfinite=False`"
        )

    def clip(bound: Bound) -> Any:
        return tensor_of(bound.plan.clip_grad_norm(grads, most), bound.plan.wide)

    norm = with_bound(params, clip)
    torch.autograd.graph.increment_version(grads)
    return norm


def _all_plain(params: Iterable[Any]) -> bool:
    """True if the gradients are what a plan reads, and all on one device."""
    device: Any = None
    for param in params:
        grad = param.grad
        if type(grad) is not torch.Tensor or type(param) not in (
            torch.Tensor,
            torch.nn.Parameter,
        ):
            return False
        if grad.layout != torch.strided or grad.dtype not in WEIGHTS or grad.dtype != param.dtype:
            return False
        if device is None:
            device = grad.device
        if grad.device != device or param.device != device or device.type not in ("cpu", "cuda"):
            return False
    return True
