"""The rounding rules of penalties in exact fractions, independent of NumPy, for finite numbers."""

from __future__ import annotations

import ctypes
from fractions import Fraction

import numpy as np

import oracle
from oracle import nearest


def narrowed(dtype: str, value: float) -> float:
    """The value rounded as results and coefficients are: to float32 unless the dtype is float64."""
    return value if dtype == "float64" else ctypes.c_float(value).value


def term(dtype: str, sum_abs: float, sum_square: float, l1: float, l2: float) -> float:
    """One buffer's float64 penalty: each product rounded, then their sum."""
    products = [
        nearest(Fraction(narrowed(dtype, c)) * Fraction(s))
        for c, s in ((l1, sum_abs), (l2, sum_square))
    ]
    return nearest(sum(map(Fraction, products)))


def penalty(arrays: list[np.ndarray], coefficients: list[tuple[float, float]]) -> float:
    """The penalty of all buffers, from the oracle's sums of each."""
    exact = sum(
        Fraction(term(x.dtype.name, *oracle.sums(x), *pair))
        for x, pair in zip(arrays, coefficients, strict=True)
    )
    wide = any(x.dtype == np.float64 for x in arrays)
    return narrowed("float64" if wide else "float32", nearest(Fraction(exact)))
