"""Penalties, gradients and proximal steps in NumPy, in float64, from the formulas alone."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

DTYPES = ("float16", "bfloat16", "float32", "float64")
EPSILON = {name: float(ml_dtypes.finfo(name).eps) for name in DTYPES}


def weights(dtype: str = "float32", seed: int = 0) -> dict[str, Any]:
    """Small normal weights of several shapes, with a zero of each sign."""
    rng = np.random.default_rng(seed)
    shapes = {"dense": {"kernel": (5, 7), "bias": (7,)}, "norm": {"scale": (3,)}, "out": (2, 3, 4)}

    def make(shape: Any) -> Any:
        if isinstance(shape, dict):
            return {key: make(one) for key, one in shape.items()}
        x = rng.standard_normal(shape)
        x.flat[:2] = 0.0, -0.0
        return x.astype(dtype)

    return make(shapes)


def value(arrays: list[Any], l1: float, l2: float) -> float:
    wide = [np.asarray(x, np.float64) for x in arrays]
    return sum(float(l1 * np.abs(x).sum() + l2 * np.square(x).sum()) for x in wide)


def gradient(x: Any, l1: float, l2: float) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return l1 * np.sign(x) + 2 * l2 * x


def shrunk(x: Any, l1: float, l2: float) -> np.ndarray:
    """The proximal step of the length 1."""
    x = np.asarray(x, np.float64)
    return np.sign(x) * np.maximum(np.abs(x) - l1, 0.0) / (1 + 2 * l2)


def assert_close(found: Any, wanted: Any, dtype: str = "float32", ulps: float = 4.0) -> None:
    within = ulps * EPSILON[dtype]
    np.testing.assert_allclose(
        np.asarray(found, np.float64), np.asarray(wanted, np.float64), rtol=within, atol=within
    )
