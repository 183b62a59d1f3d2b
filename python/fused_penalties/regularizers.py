"""The regularizers of Keras 3, with its formulas, defaults, checks and messages; no Keras needed.

The L2 penalty of Keras is l2 * sum(w**2): **no factor 1/2**. `fused_penalties.contrib` has the
convention with the factor. A penalty is a NumPy scalar, or on a GPU an array of rank 0 there,
float32 for float16, bfloat16 and float32 weights and float64 for float64, and comes from one read
of the weights.

Differences from Keras: NumPy scalars are accepted as factors, and the name "l1_l2" by `get`. A
factor is a float64 and stays one for float64 weights, where Keras on TensorFlow makes it a float32
(`L1(0.01).get_config()` says 0.009999999776482582). `OrthogonalRegularizer` gives 0.0 where there
is no pair, not NaN.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from itertools import repeat
from operator import is_
from typing import Any, TypeVar

import numpy as np

from . import _core
from ._evaluate import AllParts, Parts, one_buffer, one_penalty
from ._weights import on_host, refuse_without_values
from .typing import Array, Numbers, RegularizerLike, Scalar

__all__ = [
    "L1",
    "L1L2",
    "L2",
    "OrthogonalRegularizer",
    "Regularizer",
    "deserialize",
    "get",
    "l1",
    "l1_l2",
    "l2",
    "orthogonal_regularizer",
    "serialize",
]

Self = TypeVar("Self", bound="Regularizer")


def __dir__() -> list[str]:
    return __all__


class Regularizer:
    """A function from one buffer of weights to its penalty.

    A subclass either has `coefficients`, and is then evaluated together with all the others in one
    read of the weights, or overrides `__call__` to return a scalar, or None for no penalty.
    """

    @property
    def coefficients(self) -> tuple[float, float] | None:
        """(l1, l2) if the penalty is l1 * sum(|w|) + l2 * sum(w**2), with no factor 1/2 in it.

        None if the penalty is not of this form.
        """
        return None

    @property
    def parts(self) -> Parts:
        """The coefficients, and the functions to be called besides."""
        return Parts(None, (self,)) if self.coefficients is None else Parts(self.coefficients, ())

    def __call__(self, x: Array | Numbers) -> Scalar | None:
        """The penalty of one buffer `x`, as `penalty` gives it, or None for no penalty."""
        return 0.0 if self.coefficients is None else one_penalty(x, parts_of(self))

    def __repr__(self) -> str:
        try:
            config = self.get_config()
        except NotImplementedError:
            return super().__repr__()
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in config.items())})"

    @classmethod
    def from_config(cls: type[Self], config: dict[str, Any]) -> Self:
        """The regularizer whose `get_config()` is `config`."""
        return cls(**config)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this regularizer again."""
        raise NotImplementedError(f"{type(self).__name__} does not implement get_config()")


def parts_of(regularizer: RegularizerLike | None) -> Parts:
    """Any regularizer taken apart; None has no parts.

    ValueError for coefficients that no penalty has: an attribute that was set to NaN after the
    regularizer was made, say, or those of a user's own class.
    """
    if regularizer is None:
        return Parts(None, ())
    if not isinstance(regularizer, Regularizer):
        return Parts(None, (regularizer,))
    linear, others = regularizer.parts
    if linear is None:
        return Parts(None, others)
    l1, l2 = map(float, linear)
    if not (0.0 <= l1 < math.inf and 0.0 <= l2 < math.inf):
        raise ValueError(
            f"regularizer: {regularizer!r} has the coefficients ({l1}, {l2}); wanted finite "
            "numbers of at least 0"
        )
    return Parts((l1, l2), others)


def parts_of_each(regularizers: Sequence[RegularizerLike | None]) -> AllParts:
    """`parts_of` every buffer's regularizer, of each one that differs asked once."""
    if regularizers and all(map(is_, regularizers, repeat(regularizers[0]))):
        return parts_of(regularizers[0])
    distinct = {id(one): one for one in regularizers}
    parts = {key: parts_of(one) for key, one in distinct.items()}
    return [parts[id(one)] for one in regularizers]


class _Linear(Regularizer):
    """One that has coefficients, and so a penalty of any buffer: never None."""

    def __call__(self, x: Array | Numbers) -> Scalar:
        """The penalty of one buffer `x`, as `penalty` gives it."""
        value = one_penalty(x, parts_of(self))
        assert value is not None
        return value


class L1(_Linear):
    """l1 * sum(|w|).

    Raises ValueError unless `l1` is a finite number of at least 0; None means 0.01.
    """

    def __init__(self, l1: float | None = 0.01) -> None:
        self.l1 = _factor(0.01 if l1 is None else l1, "l1")

    @property
    def coefficients(self) -> tuple[float, float]:
        return self.l1, 0.0

    def get_config(self) -> dict[str, Any]:
        return {"l1": self.l1}


class L2(_Linear):
    """l2 * sum(w**2), **without** the factor 1/2 of `contrib.l2_regularizer` and `l2_loss`.

    Raises ValueError unless `l2` is a finite number of at least 0; None means 0.01.
    """

    def __init__(self, l2: float | None = 0.01) -> None:
        self.l2 = _factor(0.01 if l2 is None else l2, "l2")

    @property
    def coefficients(self) -> tuple[float, float]:
        return 0.0, self.l2

    def get_config(self) -> dict[str, Any]:
        return {"l2": self.l2}


class L1L2(_Linear):
    """l1 * sum(|w|) + l2 * sum(w**2), **without** a factor 1/2.

    Both default to 0.0, as in Keras 3 (they were 0.01 in `tf.keras.regularizers.l1_l2`). Raises
    ValueError unless each is a finite number of at least 0; None means 0.0.
    """

    def __init__(self, l1: float | None = 0.0, l2: float | None = 0.0) -> None:
        self.l1 = _factor(0.0 if l1 is None else l1, "l1")
        self.l2 = _factor(0.0 if l2 is None else l2, "l2")

    @property
    def coefficients(self) -> tuple[float, float]:
        return self.l1, self.l2

    def get_config(self) -> dict[str, Any]:
        return {"l1": self.l1, "l2": self.l2}


class OrthogonalRegularizer(Regularizer):
    """factor times the mean |cosine| between the rows, or columns, of a matrix, over all pairs.

    The factor 1/2 in Keras' formula makes each pair count once. It is no sum over the elements, as
    the other regularizers are: a matrix product in float64 computes it, apart from the one read. A
    row of zeros has the cosine 0 with all others; a matrix without a pair has the penalty 0.

    Args:
        factor: a finite number of at least 0.
        mode: "rows" or "columns".

    Raises:
        ValueError: another factor or mode; when called, an array that is not of rank 2.
    """

    def __init__(self, factor: float = 0.01, mode: str = "rows") -> None:
        self.factor = _factor(factor, "factor")
        if mode not in ("rows", "columns"):
            raise ValueError(
                'Invalid value for argument `mode`. Expected one of {"rows", "columns"}. '
                f"Received: mode={mode}"
            )
        self.mode = mode

    def __call__(self, x: Array | Numbers) -> np.floating[Any]:
        """The penalty of the matrix `x`, as a NumPy scalar."""
        matrix, dtype = _matrix(x)
        if self.mode == "columns":
            matrix = matrix.T
        with np.errstate(all="ignore"):
            # Keras' lower bound for a norm, which leaves a row of zeros as it is.
            unit = matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-7)
            cosines = np.abs(np.tril(unit @ unit.T, -1))
        pairs = len(matrix) * (len(matrix) - 1) // 2
        mean = float(cosines.sum()) / max(pairs, 1)
        return _core.scalar(
            _core.coefficient(dtype, self.factor) * mean, _core.RESULT_IS_FLOAT64[dtype]
        )

    def get_config(self) -> dict[str, Any]:
        return {"factor": self.factor, "mode": self.mode}


l1 = L1
l2 = L2
l1_l2 = L1L2
orthogonal_regularizer = OrthogonalRegularizer

# Keras' own identifiers, and the "l1_l2" that its documentation uses but `get` refuses.
_CLASSES: dict[str, type[Regularizer]] = {
    "L1": L1,
    "l1": L1,
    "L2": L2,
    "l2": L2,
    "L1L2": L1L2,
    "l1l2": L1L2,
    "l1_l2": L1L2,
    "OrthogonalRegularizer": OrthogonalRegularizer,
    "orthogonal_regularizer": OrthogonalRegularizer,
}


def get(
    identifier: str | Mapping[str, Any] | type[Regularizer] | RegularizerLike | None,
) -> RegularizerLike | None:
    """The regularizer that `identifier` stands for.

    None gives None; a name such as "l2", or a class, an instance with its defaults; a dict, what
    `deserialize` makes of it; anything callable is itself. ValueError for anything else.
    """
    if identifier is None:
        return None
    if isinstance(identifier, str | Mapping):
        return deserialize(identifier)
    if isinstance(identifier, type):
        made: Regularizer = identifier()
        return made
    if callable(identifier):
        return identifier
    raise ValueError(f"Could not interpret regularizer identifier: {identifier}")


def serialize(regularizer: Regularizer | None) -> dict[str, Any] | None:
    """The regularizer as a dict that Keras and `deserialize` understand; None for None.

    TypeError for a plain function, which has no config.
    """
    if regularizer is None:
        return None
    if not isinstance(regularizer, Regularizer):
        raise TypeError(
            f"regularizer: got {regularizer!r}; wanted a Regularizer, which has a config"
        )
    cls = type(regularizer)
    ours = cls.__module__ == __name__
    return {
        "module": "keras.regularizers" if ours else cls.__module__,
        "class_name": cls.__name__,
        "config": regularizer.get_config(),
        "registered_name": None if ours else cls.__name__,
    }


def deserialize(
    config: Mapping[str, Any] | str | None,
    custom_objects: Mapping[str, type[Regularizer]] | None = None,
) -> Regularizer | None:
    """The regularizer that `serialize` wrote, or that a name stands for; None for None.

    `custom_objects` maps further class names to classes. ValueError for an unknown name.
    """
    if config is None:
        return None
    classes = {**_CLASSES, **(custom_objects or {})}
    name = config if isinstance(config, str) else config.get("class_name")
    if name is None:
        raise ValueError(f"Unknown `config` as a `dict`, config={config}")
    if name not in classes:
        raise ValueError(f"Could not interpret regularizer identifier: {config}")
    arguments = {} if isinstance(config, str) else config.get("config") or {}
    return classes[name].from_config(arguments)


def _factor(value: Any, name: str) -> float:
    if isinstance(value, numbers.Real):
        try:
            factor = float(value)
        except OverflowError:
            factor = math.inf
        if factor >= 0.0 and factor != math.inf:
            return factor
    # Keras' words, with no space after the full stop.
    raise ValueError(
        f"Invalid value for argument {name}: expected a non-negative float.Received: {name}={value}"
    )


def _matrix(x: Any) -> tuple[np.ndarray[Any, np.dtype[np.float64]], str]:
    buffer, dtype = one_buffer(x)
    refuse_without_values(buffer, "weights")
    matrix = np.asarray(on_host(buffer), dtype=np.float64)
    if matrix.ndim != 2:
        raise ValueError(
            "Inputs to OrthogonalRegularizer must have rank 2. Received: "
            f"inputs.shape={matrix.shape}"
        )
    return matrix, dtype
