"""The one way in: any weights as a plan of the core, which every call of the package is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import _core
from ._device import DevicePlan
from .typing import Scalar, Vector

FoundSums: TypeAlias = tuple[
    Vector, Vector, Scalar, Scalar, NDArray[np.int64], Vector | None, Scalar | None
]
"""Σ|w| and Σw² of each buffer, both over all, and how many elements each has; then the largest
magnitude of each, and over all, or None if nobody asked for them."""


class BoundPlan(Protocol):
    """Weights whose memory is found, on the CPU (`_core.HostPlan`) or on a GPU (`DevicePlan`).

    Both give the same bits, rounded and in the dtype that users see: NumPy arrays and scalars, or
    on a GPU arrays of the weights' library. `strengths` is what the method of that name made.
    """

    @property
    def dtypes(self) -> list[str]:
        """Of each buffer: "float16", "bfloat16", "float32" or "float64"."""

    @property
    def wide(self) -> bool:
        """True if penalties are float64, not float32: if one of the buffers is."""

    def sums(self, largest: bool) -> FoundSums: ...

    def limbs(self) -> NDArray[np.int64]:
        """The exact sums of each buffer, on the host."""

    def limbs_and_largest(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The same and the largest magnitude of each buffer, on the host too."""

    def l2_norm(self) -> Scalar:
        """The square root of Σw² over all buffers."""

    def strengths(self, l1: float | list[float], l2: float | list[float]) -> Any:
        """Coefficients of all buffers or of each, which it rounds to the buffers' dtypes.

        What it returns has them as `l1` and `l2`.
        """

    def value(self, strengths: Any) -> Scalar:
        """The penalty of all buffers."""

    def values(self, strengths: Any) -> Vector:
        """The penalty of each."""

    def terms(self, strengths: Any) -> NDArray[np.float64]:
        """The penalty of each before it is rounded, on the host, which waits for it."""

    def rounded_total(self, terms: list[float]) -> Scalar:
        """A result like `value` from such terms: their exact sum."""

    def rounded_each(self, terms: NDArray[np.float64]) -> Vector:
        """A result like `values` from such terms."""

    def scalars(self, values: Vector) -> list[Scalar]:
        """What `values` gave, one by one, each with the dtype that it has alone."""

    # `upstream` is a float, or on a GPU an array with one float32 or float64, none of the grads.
    # One of the plan's library and device is not waited for.
    def add_grad(self, strengths: Any, grads: list[Any], upstream: Any) -> None: ...
    def write_grad(self, strengths: Any, grads: list[Any], upstream: Any) -> None:
        """Makes of all grads that are given what `add_grad` makes of zeros.

        What they hold is not read, and where there is no gradient they get +0. Of grads that share
        memory the last one stays there.
        """

    def value_and_grad(self, strengths: Any, grads: list[Any], upstream: Any) -> Scalar: ...
    def prox(self, strengths: Any, step: float) -> None: ...
    def decay(self, strengths: Any, rate: float) -> None: ...
    def clip_grad_norm(self, grads: list[Any], max_norm: float) -> Scalar: ...


def bind(
    items: Sequence[Any],
    names: Sequence[str] | None = None,
    single: bool = False,
    threads: Any = None,
    keep: bool = False,
    unique: bool = False,
    wide: bool = False,
) -> BoundPlan:
    """The plan of buffers that `collect` found.

    With `single`, errors speak of "weights", not of "weights[0]". With `keep` it is for many calls,
    at each of which it looks whether the weights are still where they were; else for one that reads
    them. With `unique` memory that is listed again counts as empty. With `wide` the plan is, even
    if no buffer is float64.
    """
    core = _core.bind(items, names, single, threads, keep, unique, wide)
    return core if type(core) is _core.HostPlan else DevicePlan(core, items)


def sums_of(
    items: Sequence[Any],
    names: Sequence[str] | None,
    single: bool,
    threads: Any,
    unique: bool,
    largest: bool,
) -> FoundSums:
    """`bind(...).sums(largest)` with one call into the core where that is enough: on the CPU."""
    found = _core.sums(items, names, single, threads, unique, largest)
    return found if isinstance(found, tuple) else DevicePlan(found, items).sums(largest)
