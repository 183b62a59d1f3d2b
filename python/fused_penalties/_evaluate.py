"""The penalties of many buffers in one pass, whatever mixture of regularizers applies to them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import _convention, _core, _device
from ._weights import adapt, collect, is_on_gpu, refuse_without_values
from .typing import RegularizerLike, Scalar


class Parts(NamedTuple):
    """A regularizer taken apart: what the fused sums give, and what has to be called."""

    linear: tuple[float, float] | None
    """(l1, l2) of l1 * sum(|w|) + l2 * sum(w**2), no factor 1/2; None: it has no such part."""
    others: tuple[RegularizerLike, ...]
    """Functions from the buffer to a scalar, or to None for no penalty."""


class _Term(NamedTuple):
    """One buffer that has a penalty."""

    key: int
    buffer: Any
    label: Any
    dtype: Any
    linear: tuple[float, float] | None
    others: tuple[RegularizerLike, ...]


def terms(
    items: Sequence[Any],
    parts: Sequence[Parts],
    names: Sequence[str] | None = None,
    single: bool = False,
) -> tuple[list[float], np.dtype[Any]]:
    """The float64 terms of the penalty of all buffers, and the result dtype of their total.

    The linear parts take one call of the core, in which a buffer is read once however often it is
    listed, and not at all where both coefficients are zero. An empty list of terms means that
    there is no penalty, which is not the same as one of 0.0.

    The dtype is that of all buffers, with a penalty or without, so that no strength changes it.
    A buffer without one may be of another dtype, or no array at all, and then does not count.
    """
    work, dtype = _with_penalty(items, parts, names, single)
    return _terms_of(work, single), dtype


def penalty(
    items: Sequence[Any],
    parts: Sequence[Parts],
    names: Sequence[str] | None = None,
    single: bool = False,
) -> tuple[Scalar | None, np.dtype[Any]]:
    """The penalty of all buffers, or None, as in `terms`, and its dtype.

    A NumPy scalar; a CuPy array of rank 0 for weights on a GPU, for which nothing waits unless
    there are functions to be called.
    """
    work, dtype = _with_penalty(items, parts, names, single)
    buffers, labels = [one.buffer for one in work], [one.label for one in work]
    plan = _device_plan(buffers, labels, single, dtype)
    if plan and not any(one.others for one in work):
        return _device.penalty(plan, [one.linear or (0.0, 0.0) for one in work]), dtype
    found = _terms_of(work, single)
    if not found:
        return None, dtype
    total = _convention.scalar(_convention.total(found), dtype)
    return (plan.asarray(total) if plan else total), dtype


def _device_plan(
    buffers: list[Any], labels: list[Any], single: bool, dtype: np.dtype[Any] | None = None
) -> _device.DevicePlan | None:
    """A plan with results of this dtype, or their own; None for weights on the CPU."""
    if not any(map(is_on_gpu, buffers)):
        return None
    return _device.plan_of(buffers, tuple(labels), single, dtype)


def _with_penalty(
    items: Sequence[Any], parts: Sequence[Parts], names: Sequence[str] | None, single: bool
) -> tuple[list[_Term], np.dtype[Any]]:
    # The core says in errors which item is at fault; with buffers left out it is told their labels.
    labels: Sequence[Any] = range(len(items)) if names is None else names
    work = []
    dtypes: set[Any] = set()
    for item, (linear, others), label in zip(items, parts, labels, strict=True):
        if linear is None and not others:
            with contextlib.suppress(TypeError):
                dtypes.add(_convention.result_dtype(getattr(item, "dtype", None)))
            continue
        what = "weights" if single else f"weights[{label!r}]"
        buffer, dtype = with_dtype(item, what)
        if others:  # the core may never see it
            refuse_without_values(buffer, what)
        dtypes.add(dtype)
        work.append(_Term(id(item), buffer, label, dtype, linear, others))
    return work, _convention.widest(dtypes)


def _terms_of(work: list[_Term], single: bool) -> list[float]:
    read: dict[int, int] = {}  # the key of a buffer -> its place in the pass
    buffers: list[Any] = []
    labels: list[Any] = []
    for one in work:
        if one.linear is not None and any(one.linear) and one.key not in read:
            read[one.key] = len(buffers)
            buffers.append(one.buffer)
            labels.append(one.label)
    plan = _device_plan(buffers, labels, single)
    sum_abs, sum_square, *_ = (
        plan.host_sums() if plan else _core.sums(buffers, tuple(labels), single, None, False)
    )

    found = []
    for one in work:
        if one.linear is not None:
            at = read.get(one.key)
            found.append(
                0.0
                if at is None
                else _convention.term(one.dtype, sum_abs[at], sum_square[at], *one.linear)
            )
        if one.others:
            found.extend(called(one.others, one.buffer))
    return found


def one_buffer(x: Any) -> tuple[Any, np.dtype[Any]]:
    """The one buffer that `x` is, and the result dtype of its penalty."""
    items, _ = collect(x)
    if len(items) != 1:
        raise ValueError(
            f"weights: got {len(items)} arrays; wanted one (fused_penalties.penalty takes many)"
        )
    buffer, dtype = with_dtype(items[0], "weights")
    return buffer, _convention.result_dtype(dtype)


def one_penalty(x: Any, parts: Parts) -> Scalar | None:
    """The penalty of the one buffer `x`; None if there is none."""
    buffer, _ = one_buffer(x)
    return penalty([buffer], [parts], single=True)[0]


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


def with_dtype(item: Any, label: str) -> tuple[Any, Any]:
    """The item as something that has a dtype, and that dtype, one which the core reads."""
    dtype = getattr(item, "dtype", None)
    with contextlib.suppress(TypeError):
        _convention.result_dtype(dtype)
        return item, dtype
    if dtype is None or not hasattr(item, "__dlpack__"):
        buffer = adapt(item, label)  # what pandas calls Float32 is float32 in NumPy
        if isinstance(buffer, np.ndarray):
            item, dtype = buffer, buffer.dtype
        elif dtype is None:
            dtype = _core.dtype_of(item, label)
    try:
        _convention.result_dtype(dtype)
    except TypeError as error:
        raise TypeError(f"{label}: {error}") from None
    return item, dtype
