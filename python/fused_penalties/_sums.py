"""Σ|w| and Σw² of many buffers, and if asked for their largest magnitudes, in one read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core, _memory
from ._bind import bind, sums_of
from ._numbers import flag
from ._resolve import some_of
from ._weights import collect
from .typing import Scalar, Vector, Weights


class BufferSums(NamedTuple):
    """The sums of one buffer: floats, or for weights on a GPU arrays of rank 0 there."""

    abs: Scalar
    square: Scalar
    size: int | None
    """How many elements it has; None if it is not known, as in the sums of `PartialSums`."""
    largest: Scalar | None = None
    """max|w|; None if it was not asked for."""

    @property
    def l1_norm(self) -> Scalar:
        """Σ|w|."""
        return self.abs

    @property
    def l2_norm(self) -> Scalar:
        """The square root of Σw²."""
        return _root(self.square)

    @property
    def rms(self) -> Scalar:
        """The square root of the mean of w²; 0.0 for an empty buffer."""
        return _root(self.square / max(_known(self.size), 1))


@dataclass(eq=False, slots=True)
class Sums:
    """The sums of n buffers, in the order in which they were given.

    Attributes:
        abs: Σ|w| of each buffer, float64 of shape (n,).
        square: Σw² of each buffer (no factor ½), float64 of shape (n,).
        total_abs, total_square: the same over all buffers. The exact sums are merged and rounded
            once, so a total may differ in its last digit from the sum of the rounded parts.
        sizes: how many elements each buffer has, int64 of shape (n,), on the host; 0 for one that
            `unique` left out. None for the sums of `PartialSums`, which do not know.
        largest: the largest magnitude of each buffer, max|w|, float64 of shape (n,); None unless
            it was asked for with ``largest=True``. It is exact; NaN if there is one.
        total_largest: the same over all buffers.
        names: the buffers' names if the weights were a mapping, else None.

    The sums of weights on a GPU are arrays of their library, torch's tensors or CuPy's, on the same
    device and the caller's stream; the totals then are of rank 0. Norms and means are computed when
    they are asked for, on a GPU on that library's current stream.

    ``sums["kernel"]`` has `abs`, `square`, `size`, `l1_norm`, `l2_norm`, `rms` and `largest` of one
    buffer.
    """

    abs: Vector
    square: Vector
    total_abs: Scalar
    total_square: Scalar
    sizes: NDArray[np.int64] | None = None
    largest: Vector | None = None
    total_largest: Scalar | None = None
    names: tuple[str, ...] | None = None
    _places: dict[str, int] | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.abs)

    def __getitem__(self, name: str) -> BufferSums:
        """The sums of the buffer of this name. KeyError if there is none."""
        if not isinstance(name, str):
            raise TypeError(
                f"sums[{name!r}]: got {name!r}; wanted a buffer's name, a string (abs and "
                "square have the sums in the order of the buffers)"
            )
        if self.names is None:
            raise TypeError(
                f"sums[{name!r}]: the weights were given without names; wanted a mapping of names "
                "to arrays (abs and square have the sums in the order of the buffers)"
            )
        if self._places is None:
            self._places = {own: place for place, own in enumerate(self.names)}
        if name not in self._places:
            raise KeyError(f"sums[{name!r}]: no buffer has this name, only {some_of(self.names)}")
        at = self._places[name]
        abs_, square = self.abs[at], self.square[at]
        largest = None if self.largest is None else self.largest[at]
        if isinstance(abs_, float):  # NumPy's are shown as np.float64(...)
            abs_, square = float(abs_), float(square)
            largest = None if largest is None else float(largest)
        size = None if self.sizes is None else int(self.sizes[at])
        return BufferSums(abs_, square, size, largest)

    @property
    def l1_norm(self) -> Vector:
        """Σ|w| of each buffer."""
        return self.abs

    @property
    def l2_norm(self) -> Vector:
        """The square root of Σw² of each buffer."""
        return _roots(self.square)

    @property
    def rms(self) -> Vector:
        """The square root of the mean of w² of each buffer; 0.0 for an empty one.

        ValueError for the sums of `PartialSums`, which do not know how many elements there are.
        """
        sizes = np.maximum(_known(self.sizes), 1)
        return _roots(self.square / _memory.beside(sizes, self.square))

    @property
    def total_l1_norm(self) -> Scalar:
        """Σ|w| over all buffers."""
        return self.total_abs

    @property
    def total_l2_norm(self) -> Scalar:
        """The square root of Σw² over all buffers, `Plan.l2_norm()`."""
        return _root(self.total_square)

    @property
    def total_rms(self) -> Scalar:
        """The square root of the mean of w² over all buffers; errors as in `rms`."""
        return _root(self.total_square / max(int(_known(self.sizes).sum()), 1))

    def to_dict(self) -> dict[str, Any]:
        """The attributes as lists, floats and None, for `json.dumps`; waits for a GPU."""
        return {
            "abs": self.abs.tolist(),
            "square": self.square.tolist(),
            "total_abs": float(self.total_abs),
            "total_square": float(self.total_square),
            "sizes": None if self.sizes is None else self.sizes.tolist(),
            "names": None if self.names is None else list(self.names),
            "largest": None if self.largest is None else self.largest.tolist(),
            "total_largest": None if self.total_largest is None else float(self.total_largest),
        }


def _root(x: Any) -> Scalar:
    # np.sqrt of a float would be a NumPy scalar.
    return math.sqrt(x) if isinstance(x, float) else cast("Scalar", _roots(x))


def _roots(x: Any) -> Vector:
    roots: Vector = x.sqrt() if hasattr(x, "sqrt") else np.sqrt(x)  # torch's; NumPy's and CuPy's
    return roots


def _known(size: Any) -> Any:
    if size is None:
        raise ValueError(
            "rms: the sums come from PartialSums, which do not know how many elements there are; "
            "divide square by their number, and take the root"
        )
    return size


class PartialSums:
    """The exact sums of n buffers before they are rounded, to be merged with those of other shards.

    Shards must be cut at multiples of 8 KiB from a buffer's first element; then any order and
    grouping of merges gives the bits that one read of the whole buffer would have given.

    Attributes:
        limbs: int64 of shape (n, 2, 70): Σ|w| and Σw² of each buffer as 68 digits of 32 bits
            (digit k weighs 2^(32k - 1074)), then the number of NaN and of infinite blocks.
            An all-reduce may add limbs as they are, of up to 2^31 shards:
            ``PartialSums(reduced_limbs)``.
        names: the buffers' names if the weights were a mapping, else None.
        largest: the largest magnitude of each buffer, float64 of shape (n,), NaN if there is one;
            None unless it was asked for with ``largest=True``. An all-reduce may take the maximum
            of ``largest.view(np.int64)``, where NaN is the largest.
    """

    def __init__(
        self,
        limbs: ArrayLike,
        names: tuple[str, ...] | None = None,
        largest: ArrayLike | None = None,
    ) -> None:
        self.names = names
        self.limbs = limbs
        self.largest = largest

    @property
    def limbs(self) -> NDArray[np.int64]:
        return self._limbs

    @limbs.setter
    def limbs(self, limbs: ArrayLike) -> None:
        given = np.asarray(limbs)
        if given.dtype != np.int64 or given.ndim != 3 or given.shape[1:] != (2, _core.LIMBS):
            raise ValueError(
                f"limbs: got {given.dtype} of shape {given.shape}; "
                f"wanted int64 of shape (n, 2, {_core.LIMBS})"
            )
        if self.names is not None and len(self.names) != len(given):
            raise ValueError(
                f"names: got {len(self.names)}; wanted one for each of {len(given)} buffers"
            )
        self._limbs = _core.canonical_limbs(given)

    @property
    def largest(self) -> NDArray[np.float64] | None:
        return self._largest

    @largest.setter
    def largest(self, largest: ArrayLike | None) -> None:
        self._largest: NDArray[np.float64] | None = None
        if largest is None:
            return
        given = np.asarray(largest)
        if given.dtype != np.float64 or given.shape != (len(self),):
            raise ValueError(
                f"largest: got {given.dtype} of shape {given.shape}; "
                f"wanted float64 of shape ({len(self)},), one for each buffer"
            )
        # By the bits, which no mode of the processor rounds: of NaN there is one, of zero too.
        bits = given.view(np.int64)
        nan = (bits & ~_SIGN) > _INFINITY
        found = np.where(nan, _NAN, np.where(bits == _SIGN, 0, bits))
        if (found < 0).any():
            raise ValueError("largest: got a negative number; wanted magnitudes")
        self._largest = found.view(np.float64)

    def __len__(self) -> int:
        return len(self.limbs)

    def __radd__(self, other: object) -> PartialSums:
        # sum() starts at the integer 0.
        return self if type(other) is int and other == 0 else NotImplemented

    def __add__(self, other: object) -> PartialSums:
        if not isinstance(other, PartialSums):
            return NotImplemented
        if len(self) != len(other):
            raise ValueError(
                f"cannot merge the sums of {len(self)} buffers with those of {len(other)}"
            )
        if self.names != other.names:
            raise ValueError(f"cannot merge sums named {self.names} with sums named {other.names}")
        if (self.largest is None) != (other.largest is None):
            raise ValueError(
                "cannot merge sums with the largest magnitudes and sums without them; wanted both "
                "made with largest=True, or none"
            )
        merged = PartialSums(self.limbs + other.limbs, self.names)
        if self.largest is not None and other.largest is not None:
            merged.largest = larger(self.largest, other.largest)
        return merged

    def sums(self) -> Sums:
        """Every sum rounded once, to nearest even."""
        sums = Sums(*_core.sums_of_limbs(self.limbs), names=self.names)
        if self.largest is not None:
            sums.largest = self.largest.copy()
            sums.total_largest = largest_of_all(self.largest)
        return sums

    def __repr__(self) -> str:
        return f"<PartialSums of {len(self)} buffer{'s' * (len(self) != 1)}>"


# Magnitudes as int64 have the order of the numbers, with NaN above infinity.
_SIGN, _INFINITY, _NAN = (
    np.array([x]).view(np.int64)[0] for x in (-0.0, float("inf"), float("nan"))
)


def larger(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """The larger magnitude of each pair; NaN is larger than all."""
    return np.maximum(one.view(np.int64), other.view(np.int64)).view(np.float64)


def largest_of_all(largest: NDArray[np.float64]) -> float:
    """The largest of magnitudes; 0.0 if there are none."""
    return float(largest.view(np.int64).max(initial=0).view(np.float64))


def sums(
    weights: Weights,
    *,
    threads: int | None = None,
    unique: bool = False,
    largest: bool = False,
) -> Sums:
    """Σ|w| and Σw² of every buffer, each read once.

    The bits are the same whatever the processor, its instruction set, the number of threads, the
    alignment and the device. A buffer is read as it lies in memory: an array, its transpose and its
    reversal, which share their memory, have the same bits. A copy in another layout (Fortran's,
    say) is another sequence of numbers and may differ within the error below. Relative error: at
    most 2.6e-15 for float32 and float64, 9.0e-7 for float16 and bfloat16, where the squares of
    float64 weights neither overflow nor underflow. NaN in a buffer gives NaN, else an infinity
    gives inf; an empty buffer gives 0.0.

    Args:
        weights: an array, an iterable of arrays, or a mapping of names to arrays, of any shapes.
            float16, bfloat16, float32 or float64; NumPy arrays of any layout and byte order, and
            whatever offers DLPack or ``__array__`` on the CPU, such as torch tensors. A (nested)
            list of numbers is one float32 array. Nothing is copied but views that are not
            contiguous, 8 KiB at a time. On a GPU: CuPy arrays of any layout, and whatever offers
            CUDA DLPack or ``__cuda_array_interface__``, all on one device. If torch's tensors are
            among them the sums are torch's, on its current stream, else CuPy's. The call does not
            wait for the GPU.
        threads: at most this many, fewer where no more can be made. None means
            ``OMP_NUM_THREADS`` as it was at the import; without it, as many as the processors that
            this thread may use; in a child process after fork(), one. Not used on a GPU.
        unique: count memory that is listed more than once (tied weights) at its first place only;
            a repeat has the sums 0.0. Buffers that overlap only in part count in full.
        largest: find the largest magnitudes too, in the same read.

    Raises:
        TypeError: a buffer of another dtype, None, or something that is no array, or that has not
            all its elements in one place to be read: a sparse, masked or distributed one, a fake
            or meta tensor, a parameter that is not initialized yet.
        ValueError: buffers on several devices, ragged lists of numbers, ``threads`` below 1.
        RuntimeError: buffers on a device that cannot be read (`fused_penalties.cuda.is_available`
            says why), a FUSED_PENALTIES_ISA that is not supported, an error of CUDA, or a stream
            that is captured into a graph, for which `Plan` is made.
        KeyboardInterrupt: Ctrl-C in the middle of it, as what other signals' handlers raise, if
            this is the main thread and the weights are not on a GPU.
    """
    if unique is not False:
        unique = flag(unique, "unique")
    if largest is not False:
        largest = flag(largest, "largest")
    items, names = collect(weights)
    single = len(items) == 1 and items[0] is weights
    return Sums(*sums_of(items, names, single, threads, unique, largest), names)


def partial_sums(
    weights: Weights, *, threads: int | None = None, largest: bool = False
) -> PartialSums:
    """The exact sums of every buffer, mergeable with those of other shards of the same buffers.

    The result is on the host; for weights on a GPU the call waits for it. Arguments and errors as
    in :func:`sums`.
    """
    with_largest = flag(largest, "largest")
    items, names = collect(weights)
    single = len(items) == 1 and items[0] is weights
    plan = bind(items, names, single, threads=threads)
    limbs, found = plan.limbs_and_largest() if with_largest else (plan.limbs(), None)
    return PartialSums(limbs, names, found)
