"""What a plan's changes are tried with, on the CPU and on the GPU: dtypes, strengths, layouts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import fused_penalties as fp
import oracle

# The dtypes of a weight and its gradient.
PAIRS = [(dtype, dtype) for dtype in oracle.DTYPES] + [
    ("float16", "float32"),
    ("bfloat16", "float32"),
]

# (l1, l2, upstream): one of them, both, large, subnormal, and products that vanish or overflow.
STRENGTHS = [
    (0.1, 0.0, 1.0),
    (0.0, 0.1, 1.0),
    (0.1, 0.3, 1.0),
    (0.1, 0.3, -0.7),
    (0.1, 0.0, -0.7),
    (1e-5, 30.0, 1e3),
    (1e38, 1e-42, 1.0),
    (1e-42, 1e38, -1.0),
    (1e38, 1e38, 1e38),
    (1e-30, 0.1, 1e-30),
    (0.1, 1e-30, 1e-30),
    (0.1, 0.3, math.inf),
    (0.1, 0.3, math.nan),
]

# With which nothing has a gradient: no strengths, and products that are zero.
FLAT = [
    (0.0, 0.0, 1.0),
    (0.0, 0.0, math.nan),
    (0.1, 0.3, 0.0),
    (0.3, 0.1, -0.0),
    (0.1, 0.3, 1e-330),
]

BACKWARDS = slice(None, None, -1)

GRAD_LAYOUTS: dict[str, Callable[[tuple[int, ...], np.dtype], np.ndarray]] = {
    "C order": lambda shape, dtype: np.empty(shape, dtype),
    "F order": lambda shape, dtype: np.empty(shape, dtype, order="F"),
    "flipped": lambda shape, dtype: np.empty(shape, dtype)[(..., *[BACKWARDS] * len(shape))],
    "strided": lambda shape, dtype: np.empty((*shape, 3), dtype)[..., 1],
    "strided, other axes first": lambda shape, dtype: np.empty((*shape[::-1], 3), dtype).T[1, ...],
    "part of a larger one": lambda shape, dtype: np.empty([n + 2 for n in shape], dtype)[
        (..., *(slice(1, -1) for _ in shape))
    ],
    "field of a record": lambda shape, dtype: np.empty(shape, [("tag", "u1"), ("g", dtype)])["g"],
    "big-endian": lambda shape, dtype: np.empty(
        shape, dtype if dtype == oracle.BFLOAT16 else dtype.newbyteorder(">")
    ),
}

# (l1, l2, step)
PROXIMAL = [
    (0.1, 0.0, 1.0),
    (0.0, 0.3, 0.7),
    (0.1, 0.3, 0.7),
    (1e-42, 1e-42, 1.0),
    (3e38, 3e38, 1.0),
    (3e38, 3e38, 10.0),
    (0.0, 3e38, 10.0),
    (0.1, 0.3, 0.0),
    (1e-20, 0.3, 1e-30),
]

# (l2, rate)
DECAY = [(0.3, 0.7), (0.5, 1.0), (1e-42, 1.0), (0.3, 0.0), (1e-9, 1e-9), (3e38, 1e-39)]


def write_grad(plan: fp.Plan, grads: list[Any], upstream: float = 1.0) -> None:
    """The gradient in the place of grads, for which plans have no method of users."""
    plan._plan.write_grad(plan._applied.evaluation.strengths, grads, upstream)
