"""Σ|w| and Σw² of many buffers in one read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core
from ._weights import collect


@dataclass(eq=False, slots=True)
class Sums:
    """The sums of n buffers, in the order in which they were given.

    Attributes:
        abs: Σ|w| of each buffer, float64 of shape (n,).
        square: Σw² of each buffer (no factor ½), float64 of shape (n,).
        total_abs, total_square: the same over all buffers. The exact sums are merged and rounded
            once, so a total may differ in its last digit from the sum of the rounded parts.
        names: the buffers' names if the weights were a mapping, else None.

    Those of weights on a GPU are CuPy arrays on the same device and the caller's stream; the totals
    then are of rank 0.
    """

    abs: Any
    square: Any
    total_abs: Any
    total_square: Any
    names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.abs)


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
    """

    def __init__(self, limbs: ArrayLike, names: tuple[str, ...] | None = None) -> None:
        self.names = names
        self.limbs = limbs

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
        return PartialSums(self.limbs + other.limbs, self.names)

    def sums(self) -> Sums:
        """Every sum rounded once, to nearest even."""
        return Sums(*_core.sums_of_limbs(self.limbs), self.names)

    def __repr__(self) -> str:
        return f"<PartialSums of {len(self)} buffer{'s' * (len(self) != 1)}>"


def sums(weights: Any, *, threads: int | None = None, unique: bool = False) -> Sums:
    """Σ|w| and Σw² of every buffer, each read once.

    The bits are the same whatever the processor, its instruction set, the number of threads, the
    alignment and the device. Elements are taken in the order of their addresses, so an array, its
    transpose and its reversal, which share memory, have the same bits; a copy in another order
    (Fortran's, say) may differ within the error below. Relative error: at most 2.6e-15 for float32
    and float64, 9.0e-7 for float16 and bfloat16, where the squares of float64 weights neither
    overflow nor underflow. NaN in a buffer gives NaN, else an infinity gives inf; an empty buffer
    gives 0.0.

    Args:
        weights: an array, an iterable of arrays, or a mapping of names to arrays, of any shapes.
            float16, bfloat16, float32 or float64; NumPy arrays of any layout and byte order, and
            whatever offers DLPack or ``__array__`` on the CPU, such as torch tensors. A (nested)
            list of numbers is one float32 array. Nothing is copied but views that are not
            contiguous, 8 KiB at a time. On a GPU: CuPy arrays of any layout, and whatever offers
            CUDA DLPack or ``__cuda_array_interface__``, all on one device. The work goes to torch's
            current stream if the first of them is a torch tensor, else to CuPy's, and nothing
            waits for it.
        threads: at most this many, fewer where no more can be made. None stands for
            ``OMP_NUM_THREADS`` as it was at the import, else for as many as this thread may use
            processors; in a child process after fork() for one. It means nothing on a GPU.
        unique: count memory that is listed more than once (tied weights) at its first place only;
            a repeat has the sums 0.0. Buffers that overlap only in part count in full.

    Raises:
        TypeError: a buffer of another dtype, None, or something that is no array.
        ValueError: buffers on several devices, ragged lists of numbers, ``threads`` below 1.
        RuntimeError: buffers on a device that cannot be read (`fused_penalties.cuda.is_available`
            says why), a FUSED_PENALTIES_ISA that is not supported, an error of CUDA, or a stream
            that is captured into a graph, for which `Plan` is made.
        KeyboardInterrupt: Ctrl-C in the middle of it, as what other signals' handlers raise, if
            this is the main thread and the weights are not on a GPU.
    """
    items, names = collect(weights)
    single = len(items) == 1 and items[0] is weights
    return Sums(*_core.sums(items, names, single, threads, unique), names)


def partial_sums(weights: Any, *, threads: int | None = None) -> PartialSums:
    """The exact sums of every buffer, mergeable with those of other shards of the same buffers.

    They are on the host, also those of weights on a GPU, which are waited for. Arguments and
    errors as in :func:`sums`.
    """
    items, names = collect(weights)
    single = len(items) == 1 and items[0] is weights
    return PartialSums(_core.partial_sums(items, names, single, threads), names)
