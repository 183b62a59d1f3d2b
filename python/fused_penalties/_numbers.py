"""Arguments that are one number, or True or False."""

from __future__ import annotations

import math
import numbers
import sys
from typing import Any

import numpy as np


def number(value: Any, name: str) -> float:
    """`value`, a real number or an array of rank 0, as a float: NaN and infinities too.

    TypeError or ValueError, beginning with the name, for anything else.
    """
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    else:
        kind = str(getattr(dtype, "name", dtype)).rpartition(".")[2]  # torch's is "torch.float32"
        real = kind.startswith(("float", "bfloat", "int", "uint"))
    if not real:
        raise TypeError(f"{name}: got {value!r}; wanted a number or an array of rank 0")
    if rank := np.ndim(value):
        raise ValueError(f"{name}: got an array of rank {rank}; wanted a number or one of rank 0")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}: got a number too large for a float64") from None


def at_least_0(value: Any, name: str, most: float = sys.float_info.max) -> float:
    """The same, of at least 0 and at most `most`, which may be inf; else ValueError."""
    found = number(value, name)
    if not 0.0 <= found <= most:
        wanted = "a number" if most == math.inf else "a finite number"
        raise ValueError(f"{name}: got {found!r}; wanted {wanted} of at least 0")
    return found


def flag(value: Any, name: str) -> bool:
    """`value`, which is True or False, also NumPy's; else TypeError."""
    if value is not True and value is not False and not isinstance(value, np.bool_):
        raise TypeError(f"{name}: got {value!r}; wanted True or False")
    return bool(value)
