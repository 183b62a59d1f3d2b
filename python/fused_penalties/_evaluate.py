"""The penalties of bound weights under any mixture of regularizers, in one read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from . import _core
from ._bind import BoundPlan, bind
from ._weights import collect, is_weight, with_dtype
from .typing import RegularizerLike, Scalar, Vector


class Parts(NamedTuple):
    """A regularizer taken apart: what the fused sums give, and what has to be called."""

    linear: tuple[float, float] | None
    """(l1, l2) of l1 * sum(|w|) + l2 * sum(w**2), no factor 1/2; None: it has no such part."""
    others: tuple[RegularizerLike, ...]
    """Functions from the buffer to a scalar, or to None for no penalty."""


class Strengths(NamedTuple):
    """What the regularizers of a plan's buffers came to."""

    core: Any
    """The coefficients, as the plan has made them."""
    functions: list[tuple[int, Any, tuple[RegularizerLike, ...]]]
    """What has to be called: a buffer's place, the buffer, the functions."""
    linear: bool
    """False if there are functions alone: if all return None there is no penalty at all then."""


AllParts: TypeAlias = Parts | list[Parts]
"""Those of all buffers, as most calls have one regularizer; or one for each."""


def bind_penalized(
    items: Sequence[Any],
    parts: AllParts,
    names: Sequence[str] | None = None,
    single: bool = False,
    *,
    threads: Any = None,
    keep: bool = False,
) -> tuple[BoundPlan, Sequence[Any]]:
    """The plan of these buffers, and them, as `bind` took them.

    One without a penalty may be of another dtype or no array at all. An empty one stands for it
    then, which counts nowhere, so that no strength changes the dtype of results.
    """
    if not (isinstance(parts, Parts) and any(parts)):
        items = [
            item if any(one) or is_weight(item) else NOTHING
            for item, one in zip(items, of_each(parts, len(items)), strict=True)
        ]
    return bind(items, names, single, threads=threads, keep=keep), items


NOTHING = np.zeros(0, np.float16)


def of_each(parts: AllParts, count: int) -> Iterable[Parts]:
    return repeat(parts, count) if isinstance(parts, Parts) else parts


def strengths_of(
    plan: BoundPlan, items: Sequence[Any], parts: AllParts, label: Callable[[int], str]
) -> Strengths:
    """What `parts` come to; `label` says which item is at fault."""
    if isinstance(parts, Parts):
        core = plan.strengths(*parts.linear or (0.0, 0.0))
        linear, called = parts.linear is not None, bool(parts.others)
    else:
        pairs = [one.linear or (0.0, 0.0) for one in parts]
        core = plan.strengths([l1 for l1, _ in pairs], [l2 for _, l2 in pairs])
        linear = any(one.linear is not None for one in parts)
        called = any(one.others for one in parts)
    functions = [
        (at, with_dtype(items[at], label(at))[0], one.others)
        for at, one in enumerate(of_each(parts, len(items) if called else 0))
        if one.others
    ]
    return Strengths(core, functions, linear or not functions)


def value(plan: BoundPlan, strengths: Strengths) -> Scalar | None:
    """The penalty of all buffers; None if there is none, which is not the same as one of 0.0."""
    if not strengths.functions:
        return plan.value(strengths.core)
    found = terms(plan, strengths)
    return plan.finished(found) if found else None


def terms(plan: BoundPlan, strengths: Strengths) -> list[float]:
    """The float64 terms whose sum it is, on the host."""
    found: list[float] = plan.terms(strengths.core).tolist() if strengths.linear else []
    for _, buffer, functions in strengths.functions:
        found += called(functions, buffer)
    return found


def values(plan: BoundPlan, strengths: Strengths) -> Vector:
    """The penalty of each buffer."""
    if not strengths.functions:
        return plan.values(strengths.core)
    found = plan.terms(strengths.core)
    for at, buffer, functions in strengths.functions:
        found[at] = _core.total([float(found[at]), *called(functions, buffer)])
    return plan.finished_each(found)


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
    plan = bind([buffer], single=True)
    return value(plan, strengths_of(plan, [buffer], parts, lambda _: "weights"))


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
            raise TypeError(f"regularizer returned a {type(result).__name__}; wanted a scalar")
    return [float(result) for result in results]
