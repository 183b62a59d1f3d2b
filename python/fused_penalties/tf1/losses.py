"""Penalties that keep their name and are computed when they are asked for, and the sum of many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from .. import _core
from .._evaluate import bind_once, evaluation_of, terms
from .._weights import with_dtype
from ..regularizers import parts_of_each
from ..typing import RegularizerLike


class Loss(NDArrayOperatorsMixin):
    """The penalty of some buffers, by name: computed from what the buffers hold when it is used.

    It acts as its value, a NumPy scalar, in arithmetic, `float()`, `np.asarray` and when printed.
    Losses added to each other stay one loss, so that `sum(losses)` reads all buffers in one pass.
    """

    def __init__(
        self, name: str, weights: Sequence[Any], regularizers: Sequence[RegularizerLike | None]
    ) -> None:
        self.name = name
        self.weights = tuple(weights)
        self.regularizers = tuple(regularizers)

    def value(self) -> np.floating[Any]:
        """The penalty now."""
        return add_n([self])

    def __add__(self, other: Any) -> Any:
        if isinstance(other, Loss):
            return Loss(
                "add_n", self.weights + other.weights, self.regularizers + other.regularizers
            )
        return super().__add__(other)

    def __radd__(self, other: Any) -> Any:
        # sum() starts at the integer 0.
        return self if type(other) is int and other == 0 else super().__radd__(other)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        values = [x.value() if isinstance(x, Loss) else x for x in inputs]
        return getattr(ufunc, method)(*values, **kwargs)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.asarray(self.value(), dtype=dtype)

    def __float__(self) -> float:
        return float(self.value())

    def __str__(self) -> str:
        return str(self.value())

    def __format__(self, spec: str) -> str:
        return format(self.value(), spec)

    def __repr__(self) -> str:
        return f"<Loss {self.name!r}>"


def add_n(inputs: Iterable[Any]) -> np.floating[Any]:
    """The sum of penalties, as `tf.add_n`: losses of a store, NumPy scalars or numbers.

    All losses are computed in one pass. The float64 values are added exactly and rounded once, to
    float64 if any of them is, else to float32; a Python number counts as float32.

    Raises:
        ValueError: no inputs (in TensorFlow's words), or one that is not a scalar.
    """
    inputs = list(inputs)
    if not inputs:
        raise ValueError(
            "Inputs must be an iterable of at least one Tensor/IndexedSlices with the same dtype "
            "and shape."
        )
    losses = [x for x in inputs if isinstance(x, Loss)]
    weights = [w for loss in losses for w in loss.weights]
    parts = parts_of_each([regularizer for loss in losses for regularizer in loss.regularizers])
    plan, buffers = bind_once(weights, parts)
    found = terms(plan, evaluation_of(plan, buffers, parts))
    wide = plan.wide
    for position, x in enumerate(inputs):
        if isinstance(x, Loss):
            continue
        label = f"inputs[{position}]"
        if np.ndim(x) != 0:
            raise ValueError(f"{label}: got an array of shape {np.shape(x)}; wanted a scalar")
        if not hasattr(x, "__float__"):
            raise TypeError(f"{label}: got {type(x).__name__}; wanted a scalar")
        try:
            found.append(float(x))
        except OverflowError:
            raise ValueError(f"{label}: got a number too large for a float64") from None
        wide = wide or (hasattr(x, "dtype") and _core.RESULT_IS_FLOAT64[with_dtype(x, label)[1]])
    return _core.scalar(_core.total(found), wide)
