"""From sums to penalties: which number is rounded, to what, and when.

TensorFlow, Keras and the contrib layers disagree about the factor 1/2 but agree on the dtype: the
coefficient is rounded to the weight's dtype before it multiplies, which is why Keras' default
``L1()`` of ten ones prints 0.099999994. Every regularizer of this package reduces to one form,

    value = l1 * sum(|w|) + l2 * sum(w**2)

with no factor 1/2 in it (a convention that has one halves its l2), and every value is made here:

- a coefficient is rounded to the weight's dtype, float32 for 16-bit weights;
- a coefficient that is zero then means that its term is absent, even beside an infinite sum;
- products and their sum are float64;
- several buffers: the float64 terms are added exactly and rounded once, so neither the order of
  the buffers nor a grouping of them changes a bit;
- the result is rounded once more, to the result dtype: float32 for float16, bfloat16 and float32
  weights, float64 for float64. What does not fit becomes inf, without a warning.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

FLOAT32: np.dtype[Any] = np.dtype(np.float32)
FLOAT64: np.dtype[Any] = np.dtype(np.float64)

_RESULTS = {"float16": FLOAT32, "bfloat16": FLOAT32, "float32": FLOAT32, "float64": FLOAT64}


@lru_cache(maxsize=64)
def result_dtype(dtype: Any) -> np.dtype[Any]:
    """The dtype of a penalty of weights of `dtype`: a NumPy or foreign (torch, TensorFlow) dtype.

    float32 for float16, bfloat16 and float32, in any byte order; float64 for float64. TypeError
    for any other.
    """
    # NumPy, JAX and TensorFlow dtypes carry a name, scalar types a __name__, torch's only a str().
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None)
    name = str(name or dtype).rpartition(".")[2]
    try:
        return _RESULTS[name]
    except KeyError:
        raise TypeError(
            f"dtype {name} is not supported; wanted float16, bfloat16, float32 or float64"
        ) from None


def widest(dtypes: Iterable[Any]) -> np.dtype[Any]:
    """The result dtype of several weights together; float32 when there are none."""
    return max(map(result_dtype, dtypes), key=lambda dtype: dtype.itemsize, default=FLOAT32)


def scalar(value: float, dtype: np.dtype[Any]) -> np.floating[Any]:
    """`value` rounded once to `dtype`, float32 or float64; inf where it does not fit."""
    result: np.floating[Any]
    if value == 0.0 or 2.0**-126 <= abs(value) < 2.0**127:
        result = dtype.type(value)  # cannot warn, so this is spared the microsecond of errstate
    else:
        with np.errstate(all="ignore"):
            result = dtype.type(value)
    return result


@lru_cache(maxsize=1024)
def coefficient(dtype: Any, value: float) -> float:
    """A coefficient as it multiplies: rounded to the weights' dtype, float32 for 16-bit ones."""
    return float(scalar(value, result_dtype(dtype)))


def term(dtype: Any, sum_abs: float, sum_square: float, l1: float = 0.0, l2: float = 0.0) -> float:
    """One buffer's penalty l1 * sum_abs + l2 * sum_square (no factor 1/2) in float64.

    Each product and their sum are rounded to float64, in that order, with no fused multiply-add.
    """
    l1 = coefficient(dtype, l1)
    l2 = coefficient(dtype, l2)
    # float(): a product of np.float64 scalars that overflows would warn.
    abs_part = l1 * float(sum_abs) if l1 != 0.0 else 0.0
    square_part = l2 * float(sum_square) if l2 != 0.0 else 0.0
    return abs_part + square_part


def penalty(
    dtype: Any, sum_abs: float, sum_square: float, l1: float = 0.0, l2: float = 0.0
) -> np.floating[Any]:
    """One buffer's penalty l1 * sum_abs + l2 * sum_square (no factor 1/2) as users see it.

    `dtype` is the weights'; the result is a NumPy scalar of its `result_dtype`.
    """
    return scalar(term(dtype, sum_abs, sum_square, l1, l2), result_dtype(dtype))


def total(terms: Iterable[float]) -> float:
    """The sum of float64 terms, correctly rounded to float64, whatever their order.

    A NaN, or infinities of both signs, give NaN; else an infinity gives itself; a sum that is too
    large gives an infinity. Depositing the terms into the exact accumulator and rounding it once
    gives the same bits.
    """
    values = [float(value) for value in terms]
    special = {value for value in values if not math.isfinite(value)}
    if special:
        only = special.pop()
        # Not the NaN itself: processors give it different signs.
        return math.nan if special or math.isnan(only) else only
    try:
        return math.fsum(values)
    except OverflowError:
        # fsum gives up on a partial sum that overflows, even if a later term would bring it back.
        exact = sum(map(Fraction, values))
        try:
            return float(exact)
        except OverflowError:
            return math.inf if exact > 0 else -math.inf
