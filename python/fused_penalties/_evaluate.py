"""The penalties of bound weights under any mixture of regularizers, in one read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from . import _core
from ._bind import BoundPlan, bind
from ._weights import collect, dtype_name, on_cuda, refuse_without_values, with_dtype
from .typing import RegularizerLike, Scalar, Vector


class Parts(NamedTuple):
    """A regularizer taken apart: what the fused sums give, and what has to be called."""

    linear: tuple[float, float] | None
    """(l1, l2) of l1 * sum(|w|) + l2 * sum(w**2), no factor 1/2; None: it has no such part."""
    others: tuple[RegularizerLike, ...]
    """Functions from the buffer to a scalar, or to None for no penalty."""


class Evaluation(NamedTuple):
    """What the regularizers of a plan's buffers came to."""

    strengths: Any
    """The coefficients, as the plan has made them."""
    functions: list[tuple[int, Any, tuple[RegularizerLike, ...]]]
    """What has to be called: a buffer's place, the buffer, the functions."""
    linear: bool
    """False if there are functions alone: if all return None there is no penalty at all then."""


AllParts: TypeAlias = Parts | list[Parts]
"""Those of all buffers, as most calls have one regularizer; or one for each."""


NOTHING = np.zeros(0, np.float16)
"""Stands for a buffer that is not to be read: it counts nowhere."""


def bind_once(
    items: Sequence[Any],
    parts: AllParts,
    names: Sequence[str] | None = None,
    single: bool = False,
    label: Callable[[int], str] = lambda at: f"weights[{at}]",
) -> tuple[BoundPlan, Sequence[Any]]:
    """The plan for one evaluation, and the buffers as functions are given them.

    Only those are bound that have to be read. The dtypes of all count, so that no strength changes
    that of the result; but a buffer without a penalty may be no array at all.
    """
    if isinstance(parts, Parts) and parts.linear and any(parts.linear) and not parts.others:
        return bind(items, names, single), items
    buffers, bound, wide = list(items), [NOTHING] * len(items), False
    for at, (item, one) in enumerate(zip(items, of_each(parts, len(items)), strict=True)):
        if not any(one):
            with contextlib.suppress(TypeError):
                wide |= _core.RESULT_IS_FLOAT64[dtype_name(getattr(item, "dtype", None))]
            continue
        buffers[at], dtype = with_dtype(item, label(at))
        wide |= _core.RESULT_IS_FLOAT64[dtype]
        if one.others:  # which read it for themselves
            refuse_without_values(buffers[at], label(at))
        if one.linear and any(one.linear):
            bound[at] = buffers[at]
    if bound and all(one is NOTHING for one in bound):  # a result on a GPU is there all the same
        bound[0] = next((item for item in items if on_cuda(item)), NOTHING)
    return bind(bound, names, single, wide=wide), buffers


def of_each(parts: AllParts, count: int) -> Iterable[Parts]:
    """One for each of so many buffers."""
    return repeat(parts, count) if isinstance(parts, Parts) else parts


def evaluation_of(plan: BoundPlan, buffers: Sequence[Any], parts: AllParts) -> Evaluation:
    """What `parts` come to; their functions are given these buffers."""
    if isinstance(parts, Parts):
        strengths = plan.strengths(*parts.linear or (0.0, 0.0))
        linear, called = parts.linear is not None, bool(parts.others)
    else:
        pairs = [one.linear or (0.0, 0.0) for one in parts]
        strengths = plan.strengths([l1 for l1, _ in pairs], [l2 for _, l2 in pairs])
        linear = any(one.linear is not None for one in parts)
        called = any(one.others for one in parts)
    functions = [
        (at, buffers[at], one.others)
        for at, one in enumerate(of_each(parts, len(buffers) if called else 0))
        if one.others
    ]
    return Evaluation(strengths, functions, linear or not functions)


def value(plan: BoundPlan, of: Evaluation) -> Scalar | None:
    """The penalty of all buffers; None if there is none, which is not the same as one of 0.0."""
    if not of.functions:
        return plan.value(of.strengths)
    found = terms(plan, of)
    return plan.rounded_total(found) if found else None


def terms(plan: BoundPlan, of: Evaluation) -> list[float]:
    """The float64 terms whose sum it is, on the host."""
    found: list[float] = plan.terms(of.strengths).tolist() if of.linear else []
    for _, buffer, functions in of.functions:
        found += called(functions, buffer)
    return found


def values(plan: BoundPlan, of: Evaluation) -> Vector:
    """The penalty of each buffer."""
    if not of.functions:
        return plan.values(of.strengths)
    found = plan.terms(of.strengths)
    for at, buffer, functions in of.functions:
        found[at] = _core.total([float(found[at]), *called(functions, buffer)])
    return plan.rounded_each(found)


def one_buffer(x: Any) -> tuple[Any, str]:
    """The one buffer that `x` is, and its dtype."""
    items, _ = collect(x)
    if len(items) != 1:
        raise ValueError(
            f"weights: got {len(items)} arrays; wanted one (fused_penalties.penalty takes many)"
        )
    return with_dtype(items[0], "weights")


def one_penalty(x: Any, parts: Parts) -> Scalar | None:
    """The penalty of the one buffer `x`; None if there is none."""
    buffer, _ = one_buffer(x)
    plan, buffers = bind_once([buffer], parts, single=True, label=lambda _: "weights")
    return value(plan, evaluation_of(plan, buffers, parts))


def called(others: Sequence[RegularizerLike], buffer: Any) -> list[float]:
    """What the functions make of one buffer, without the Nones.

    ValueError, in TensorFlow's words, for an array; TypeError for what is no number at all.
    """
    results: list[Any] = [result for other in others if (result := other(buffer)) is not None]
    for result in results:
        if rank := np.ndim(result):
            raise ValueError(
                f"regularizer must return a scalar Tensor instead of a Tensor with rank {rank}."
            )
        if not hasattr(result, "__float__"):
            raise TypeError(f"regularizer returned {type(result).__name__}; wanted a scalar")
    return [float(result) for result in results]
