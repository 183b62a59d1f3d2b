"""The penalty of a list of tensors as one operation of torch's, with its derivatives.

Two operators are registered: the value, and the gradient of each tensor. Neither knows of autograd;
`fused_penalty` is what autograd sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import attrgetter
from typing import Any

import torch
from torch.autograd import forward_ad

from .._coefficients import for_each, picked
from ._plans import Bound, tensor_of, with_bound

WEIGHTS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Kept by the module: operators are gone with their library. One coefficient in a list is that of
# all tensors; there is no factor 1/2.
_library = torch.library.Library("fused_penalties", "DEF")
_library.define("value(Tensor[] weights, float[] l1, float[] l2) -> Tensor")
_library.define("gradient(Tensor[] weights, Tensor upstream, float[] l1, float[] l2) -> Tensor[]")


def _value(weights: list[Any], l1: list[float], l2: list[float]) -> Any:
    def value(bound: Bound) -> Any:
        return tensor_of(bound.plan.value(bound.strengths(l1, l2)), bound.plan.wide)

    return with_bound(weights, value)


def _gradient(weights: list[Any], upstream: Any, l1: list[float], l2: list[float]) -> list[Any]:
    grads = list(map(torch.empty_like, weights))
    # The core reads plain tensors without a lazy sign, and waits for none on the weights' device.
    factor = upstream.detach().resolve_neg() if upstream.is_cuda else float(upstream)
    with_bound(weights, lambda bound: bound.plan.write_grad(bound.strengths(l1, l2), grads, factor))
    return grads


for _device in "CPU", "CUDA":
    _library.impl("value", _value, _device)
    _library.impl("gradient", _gradient, _device)


def _fake_value(weights: list[Any], l1: Any, l2: Any) -> Any:
    return weights[0].new_empty((), dtype=result_dtype(weights))


def _fake_gradient(
    weights: list[Any], upstream: Any, l1: list[float], l2: list[float]
) -> list[Any]:
    return [torch.empty_like(weight) for weight in weights]


torch.library.register_fake("fused_penalties::value", _fake_value, lib=_library)
torch.library.register_fake("fused_penalties::gradient", _fake_gradient, lib=_library)


def result_dtype(weights: Sequence[Any]) -> Any:
    wide = any(weight.dtype == torch.float64 for weight in weights)
    return torch.float64 if wide else torch.float32


def fused_penalty(l1: Sequence[float], l2: Sequence[float], weights: Sequence[Any]) -> Any:
    """The sum of l1 * sum(|w|) + l2 * sum(w**2), as autograd sees it; one tensor at least.

    One coefficient in l1 and l2 is that of all.
    """
    if not (torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0):
        with torch.no_grad():
            value = torch.ops.fused_penalties.value(weights, l1, l2)
        trained = [k for k, w in enumerate(weights) if w.requires_grad]
        if not trained or not torch.is_grad_enabled():
            return value
        if len(trained) < len(weights):  # others may change before backward
            l1, l2 = picked(l1, trained), picked(l2, trained)
            weights = [weights[k] for k in trained]
        for part in _parts(weights):
            pair = (each if len(each) == 1 else each[part] for each in (l1, l2))
            value = _Backward.apply(value, *pair, *weights[part])
        return value
    if torch.compiler.is_compiling():
        return _expression(l1, l2, weights)
    return _Transformed.apply(l1, l2, *weights)


def _expression(l1: Sequence[float], l2: Sequence[float], weights: Sequence[Any]) -> Any:
    """The same in plain operations: torch.compile knows of no other derivative than backward."""
    dtype = result_dtype(weights)
    total = weights[0].new_zeros((), dtype=dtype)
    for w, one, two in zip(
        weights, for_each(l1, len(weights)), for_each(l2, len(weights)), strict=True
    ):
        if one:
            total = total + one * w.abs().sum(dtype=dtype)
        if two:
            total = total + two * w.to(dtype).square().sum()
    return total


_PART = 8 << 20  # bytes
_MOST_PARTS = 32  # whose plans are remembered together
_sizes_of = attrgetter("nbytes")


def _parts(weights: Sequence[Any]) -> Iterator[slice]:
    """Parts of the list whose gradients autograd asks for one after the other.

    It adds a part's gradients to what is there, and lets them go, before it asks for the next ones.
    These then get the same memory, most of it in cache. Gradients of all weights at once get theirs
    from the system, which takes several times as long as to compute them.
    """
    plain = type(weights[0]) in (torch.Tensor, torch.nn.Parameter)  # not one that stands for others
    if not plain or not weights[0].is_cpu or torch.compiler.is_compiling():
        yield slice(None)
        return
    ends = list(accumulate(map(_sizes_of, weights)))
    least = max(_PART, ends[-1] // _MOST_PARTS)
    start = before = 0
    for k, end in enumerate(ends, 1):
        if end - before >= least or k == len(ends):
            yield slice(start, k)
            start, before = k, end


class _Backward(torch.autograd.Function):  # type: ignore[misc]
    """The penalty as it is, with the one derivative that training asks for, by some weights.

    torch.compile refuses a function with a jvp, and torch takes longer, for each tensor, with a
    function that can be transformed. The weights come one by one, since autograd looks for tensors
    in no list.
    """

    @staticmethod
    def forward(
        ctx: Any, value: Any, l1: Sequence[float], l2: Sequence[float], *weights: Any
    ) -> Any:
        ctx.l1, ctx.l2 = l1, l2
        ctx.save_for_backward(*weights)
        return value.clone()  # else it is a view, to which nothing can be added in place

    @staticmethod
    def backward(ctx: Any, upstream: Any) -> tuple[Any, ...]:
        wanted = ctx.needs_input_grad[3:]
        return (upstream, None, None, *_wanted_gradients(ctx, wanted, upstream))


def _wanted_gradients(ctx: Any, wanted: Sequence[bool], upstream: Any) -> Sequence[Any]:
    """The gradient of each weight that a context has saved; None where it is not wanted."""
    if not any(wanted):
        return [None] * len(wanted)
    weights, l1, l2 = ctx.saved_tensors, ctx.l1, ctx.l2
    if not all(wanted):
        at = [k for k, one in enumerate(wanted) if one]
        l1, l2 = picked(l1, at), picked(l2, at)
        weights = [weights[k] for k in at]
    if _is_transformed(upstream):
        slopes = _slopes(weights, l1, l2)
        found = [(upstream * slope).to(w.dtype) for w, slope in zip(weights, slopes, strict=True)]
    else:
        found = torch.ops.fused_penalties.gradient(weights, upstream, l1, l2)
    if all(wanted):
        return found
    grads = iter(found)
    return [next(grads) if one else None for one in wanted]


def _is_transformed(upstream: Any) -> bool:
    """True if what is computed of it is differentiated too, or is a batch of gradients."""
    if torch.is_grad_enabled() or forward_ad._current_level >= 0:
        return True
    if torch.compiler.is_compiling():
        return False
    return any(
        is_batch(upstream)
        for is_batch in (
            torch._C._functorch.is_batchedtensor,
            torch._C._functorch.is_legacy_batchedtensor,  # of autograd's is_grads_batched
        )
    )


class _Transformed(torch.autograd.Function):  # type: ignore[misc]
    """With derivatives in forward mode too, and batches of weights."""

    @staticmethod
    def forward(l1: Sequence[float], l2: Sequence[float], *weights: Any) -> Any:
        return torch.ops.fused_penalties.value(weights, l1, l2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.l1, ctx.l2, *weights = inputs
        ctx.save_for_backward(*weights)
        ctx.save_for_forward(*weights)

    @staticmethod
    def backward(ctx: Any, upstream: Any) -> tuple[Any, ...]:
        return (None, None, *_wanted_gradients(ctx, ctx.needs_input_grad[2:], upstream))

    @staticmethod
    def jvp(ctx: Any, _l1: Any, _l2: Any, *tangents: Any) -> Any:
        weights = ctx.saved_tensors
        dtype = result_dtype(weights)
        total = weights[0].new_zeros((), dtype=dtype)
        for slope, tangent in zip(_slopes(weights, ctx.l1, ctx.l2), tangents, strict=True):
            if tangent is not None:
                total = total + (slope * tangent).sum(dtype=dtype)
        return total

    @staticmethod
    def vmap(info: Any, in_dims: Any, l1: Any, l2: Any, *weights: Any) -> tuple[Any, int]:
        total = weights[0].new_zeros(info.batch_size, dtype=result_dtype(weights))
        for w, dim, one, two in zip(
            weights,
            in_dims[2:],
            for_each(l1, len(weights)),
            for_each(l2, len(weights)),
            strict=True,
        ):
            rows = w[None] if dim is None else w.movedim(dim, 0)
            rows = rows[..., None].flatten(1).to(total.dtype)
            if one:
                total = total + one * rows.abs().sum(1)
            if two:
                total = total + two * rows.square().sum(1)
        return total, 0


def _slopes(weights: Sequence[Any], l1: Sequence[float], l2: Sequence[float]) -> list[Any]:
    """The derivative by each element, in plain operations, in float32 for 16-bit weights.

    A term whose coefficient is zero is left out: zero times infinity is none.
    """
    slopes = []
    for weight, one, two in zip(
        weights, for_each(l1, len(weights)), for_each(l2, len(weights)), strict=True
    ):
        w = weight if weight.dtype == torch.float64 else weight.float()
        slope = 2.0 * two * w if two else torch.zeros_like(w)
        slopes.append(slope + one * w.sign() if one else slope)
    return slopes
