"""What a plan does to each element, written from the text of its formulas and from nothing else.

NumPy does element-wise IEEE arithmetic here: every operation below rounds once, to R.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

import oracle
from oracle import hexes


def real(dtype: np.dtype) -> type[np.floating]:
    """R: float32, or float64 for float64 weights."""
    return np.float64 if dtype.itemsize == 8 else np.float32


def gradient(
    w: np.ndarray, g: np.ndarray, l1: float, l2: float, upstream: float = 1.0
) -> np.ndarray:
    """What g becomes."""
    with np.errstate(all="ignore"):
        R = real(w.dtype)
        c1, c2 = float(R(l1)), float(R(l2))
        a = R(upstream * c1 if c1 else 0.0)
        b = R(2.0 * upstream * c2 if c2 else 0.0)
        if a == 0 and b == 0:
            return g.copy()
        x = _in(R, w)
        signed = np.where(x > 0, a, np.where(x < 0, -a, np.where(x == 0, R(0), R(np.nan))))
        product = b * x
        if b == 0:
            u = signed
        elif a == 0:
            u = product
        else:
            u = np.where(x == 0, product, product + signed)
        return _stored(_in(R, g) + u, g.dtype)


def stored_gradient(
    w: np.ndarray, dtype: np.dtype, l1: float, l2: float, upstream: float = 1.0
) -> np.ndarray:
    """What is stored in the place of a g of this dtype: what a g of +0 becomes."""
    return gradient(w, np.zeros(w.shape, dtype), l1, l2, upstream)


def proximal(w: np.ndarray, l1: float, l2: float, step: float) -> np.ndarray:
    """What w becomes."""
    with np.errstate(all="ignore"):
        R = real(w.dtype)
        c1, c2 = float(R(l1)), float(R(l2))
        if c1 == 0 and c2 == 0:
            return w.copy()
        t = R(step * c1)
        d = R(1.0 + 2.0 * step * c2)
        x = _in(R, w)
        r = np.abs(x) - t
        moved = np.where(r > 0, np.copysign(r / d, x), R(0))
        return _stored(np.where(np.isnan(x), x, moved), w.dtype)


def decayed(w: np.ndarray, l2: float, rate: float) -> np.ndarray:
    """What w becomes."""
    with np.errstate(all="ignore"):
        R = real(w.dtype)
        c2 = float(R(l2))
        if c2 == 0:
            return w.copy()
        f = R(1.0 - 2.0 * rate * c2)
        if f == 1:
            return w.copy()
        return _stored(_in(R, w) * f, w.dtype)


def norm(grads: Iterable[np.ndarray]) -> float:
    """The joint L2 norm: the root of the total of canon v2."""
    return math.sqrt(oracle.totals(grads)[1])


def clipped(g: np.ndarray, norm: float, max_norm: float) -> np.ndarray:
    """What g becomes, one of several with this joint norm."""
    with np.errstate(all="ignore"):
        R = real(g.dtype)
        ratio = max_norm / (norm + 1e-6)
        c = R(ratio if ratio < 1.0 or math.isnan(ratio) else 1.0)
        return g.copy() if c == 1 else _stored(_in(R, g) * c, g.dtype)


def bits(x: np.ndarray) -> np.ndarray:
    """The bit patterns of the elements in C order, in native integers: NaN and -0 count too."""
    order = ">" if x.dtype.byteorder == ">" else "="
    return x.flatten().view(f"{order}u{x.itemsize}").astype(f"=u{x.itemsize}")


def same_bits(got: np.ndarray, wanted: np.ndarray) -> bool:
    """Equal in shape and bit by bit, whatever the layout and the byte order."""
    return got.shape == wanted.shape and np.array_equal(bits(got), bits(wanted))


def same_number(got: Any, wanted: Any) -> bool:
    """Of one type, and the same double."""
    return type(got) is type(wanted) and hexes([float(got)]) == hexes([float(wanted)])


def _in(R: type[np.floating], x: np.ndarray) -> np.ndarray:
    return np.asarray(x.astype(R))


def _stored(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rounded to the dtype, to nearest even; every NaN the quiet one without a sign."""
    stored = np.asarray(x).astype(dtype)
    stored[np.isnan(np.asarray(x))] = np.nan
    return stored
