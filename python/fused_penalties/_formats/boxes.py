"""Elements that do not lie one after the other: parts of a tensor in many files, and views.

A range of the elements, in C order, is a few boxes; the elements of each are copied as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._file import Stored, fill


def boxes(
    shape: Sequence[int], begin: int, end: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Where the boxes that make up the elements from `begin` to `end` start, and their sizes."""
    steps = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    while begin < end:
        # The largest that starts here: it goes along this axis, and has all of those behind it.
        axis, step = next(
            (axis, step)
            for axis, step in enumerate(steps)
            if begin % step == 0 and begin + step <= end
        )
        corner = tuple(begin // step % size for step, size in zip(steps, shape, strict=True))
        count = min((end - begin) // step, shape[axis] - corner[axis])
        yield corner, (*[1] * axis, count, *shape[axis + 1 :])
        begin += count * step


class Part(NamedTuple):
    """A box of a tensor, whose elements lie one after the other in a file."""

    begin: tuple[int, ...]
    shape: tuple[int, ...]
    stored: Stored

    @property
    def end(self) -> tuple[int, ...]:
        return tuple(begin + size for begin, size in zip(self.begin, self.shape, strict=True))


class Parts(NamedTuple):
    """A tensor that is put together from its parts, a range at a time."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    parts: list[Part]

    def read(self, begin: int, end: int) -> NDArray[Any]:
        itemsize = self.dtype.itemsize
        elements = np.empty((end - begin) // itemsize, self.dtype)
        at = 0
        for corner, sizes in boxes(self.shape, begin // itemsize, end // itemsize):
            box = elements[at : at + prod(sizes)].reshape(sizes)
            at += box.size
            for part in self.parts:
                low = np.maximum(corner, part.begin)
                high = np.minimum(np.add(corner, sizes), part.end)
                if (low < high).all():
                    # Where these two overlap, the elements lie one after the other in the part too.
                    first = int(np.ravel_multi_index(low - part.begin, part.shape))
                    place = box[tuple(map(slice, low - corner, high - corner))]
                    within = place.flags.c_contiguous and part.stored.dtype == self.dtype
                    data = place if within else np.empty(place.shape, part.stored.dtype)
                    begins = part.stored.begin + first * itemsize
                    fill(data.reshape(-1).view(np.uint8), part.stored.source, begins)
                    if not within:
                        place[...] = data
        return elements


# No mesh has more axes; the number of corners is a power of it.
_MOST_CUT = 8


def tile(shape: Sequence[int], parts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> bool:
    """Whether each element of the shape is in just one of the parts, each a begin and an end.

    Then their corners, counted as +1 and -1 in turn, cancel but for those of the whole.
    """
    cut = [
        axis
        for axis, size in enumerate(shape)
        if any((begin[axis], end[axis]) != (0, size) for begin, end in parts)
    ]
    if len(cut) > _MOST_CUT:
        return False
    corners: Counter[tuple[int, ...]] = Counter()
    whole = ([0] * len(shape), shape)
    for sign, (begin, end) in [(-1, whole), *((1, part) for part in parts)]:
        for ends in product((False, True), repeat=len(cut)):
            corner = tuple(
                (end if is_end else begin)[axis] for axis, is_end in zip(cut, ends, strict=True)
            )
            corners[corner] += sign * (-1) ** sum(ends)
    return not any(corners.values())


class View(NamedTuple):
    """An array in memory, whose elements in C order are read a range at a time."""

    array: NDArray[Any]

    def read(self, begin: int, end: int) -> NDArray[Any]:
        piece: NDArray[Any]
        first, last = begin // self.array.itemsize, end // self.array.itemsize
        if self.array.flags.c_contiguous:
            piece = self.array.reshape(-1)[first:last]
            return piece
        copied = [np.empty(0, self.array.dtype)]
        for corner, sizes in boxes(self.array.shape, first, last):
            place = tuple(map(slice, corner, np.add(corner, sizes)))
            copied.append(self.array[place].ravel())
        return np.concatenate(copied)


def in_order(array: NDArray[Any]) -> NDArray[Any]:
    """The array with such axes that its C order is the one of csrc/CANON.md."""
    array = array.squeeze()
    walk: NDArray[Any] = array.transpose(
        sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
    )
    reach = 0
    for size, stride in zip(walk.shape[::-1], walk.strides[::-1], strict=True):
        if stride - reach < array.itemsize:
            return array  # it repeats or interleaves its elements
        reach += (size - 1) * stride
    return walk
