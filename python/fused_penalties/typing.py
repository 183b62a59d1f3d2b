"""The types of this package's arguments and results, for annotations and type checkers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, SupportsFloat, TypeAlias

__all__ = [
    "Array",
    "Numbers",
    "RegularizerLike",
    "Regularizers",
    "Rule",
    "Scalar",
    "Vector",
    "Weights",
]


def __dir__() -> list[str]:
    return __all__


class _OffersArray(Protocol):
    def __array__(self) -> Any: ...


class _OffersDLPack(Protocol):
    def __dlpack__(self) -> Any: ...
    def __dlpack_device__(self) -> tuple[Any, Any]: ...


class _OffersCudaArray(Protocol):
    @property
    def __cuda_array_interface__(self) -> Any: ...


Array: TypeAlias = _OffersArray | _OffersDLPack | _OffersCudaArray | memoryview
"""What is an array: NumPy's, torch's, JAX's, TensorFlow's, CuPy's and others, by what it offers."""

# Not a recursive type: a str is a sequence of strs, and would be one.
Numbers: TypeAlias = float | Sequence[float] | Sequence[Sequence[float]]
"""A number, a list of numbers or a list of rows: one float32 array."""

Weights: TypeAlias = Array | Numbers | Iterable[Array | Numbers] | Mapping[Any, Array | Numbers]
"""An array, an iterable of arrays, or a mapping of names to arrays."""

RegularizerLike: TypeAlias = Callable[[Any], SupportsFloat | None]
"""From one buffer of weights to its penalty: a scalar, or None for no penalty."""

Rule: TypeAlias = str | re.Pattern[str] | Callable[[str, Any], object]
"""A regular expression that is searched in a buffer's name, or a function of name and array."""

Regularizers: TypeAlias = (
    RegularizerLike
    | Sequence[RegularizerLike | tuple[Rule, RegularizerLike | None] | None]
    | Mapping[str, RegularizerLike | None]
    | Mapping[re.Pattern[str], RegularizerLike | None]
    | None
)
"""One for all buffers, one per buffer in their order, or rules over names and arrays."""


class _Arithmetic(Protocol):
    def __add__(self, other: Any, /) -> Any: ...
    def __radd__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __rsub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __rmul__(self, other: Any, /) -> Any: ...
    def __truediv__(self, other: Any, /) -> Any: ...
    def __rtruediv__(self, other: Any, /) -> Any: ...
    def __lt__(self, other: Any, /) -> Any: ...
    def __le__(self, other: Any, /) -> Any: ...
    def __gt__(self, other: Any, /) -> Any: ...
    def __ge__(self, other: Any, /) -> Any: ...


class Scalar(_Arithmetic, Protocol):
    """A number as a result: a float or a NumPy scalar; on a GPU an array of rank 0."""

    def __float__(self) -> float: ...


class Vector(_Arithmetic, Protocol):
    """One number for each buffer, as a result: a NumPy array; on a GPU an array there.

    It has what both offer; NumPy's functions take it too.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    def __len__(self) -> int: ...
    def __getitem__(self, key: Any, /) -> Any: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __array__(self) -> Any: ...
    def argmax(self) -> Any: ...
    def argsort(self) -> Any: ...
    def max(self) -> Any: ...
    def sum(self) -> Any: ...
    def tolist(self) -> Any: ...
