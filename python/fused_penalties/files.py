"""Weight files: their tensors are listed from the headers, and read a piece at a time."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._file import (
    CHANGED,
    Corrupt,
    FileFault,
    Source,
    Stored,
    Tensor,
    Unfit,
    exactly,
    faults_of,
    fill,
    opened,
)
from ._formats import EXPANDS, Note, Wanted, list_tensors

__all__ = ["Batch", "FileFault", "Tensor", "batches", "open_tensors"]


def open_tensors(
    path: str, wanted: Wanted = lambda name: True, note: Note = lambda text: None
) -> list[Tensor]:
    """The tensors of a file whose names are wanted, in the order in which the file stores them.

    A `.npy` holds one array, which takes the file's name; a `.safetensors.index.json` stands for
    the tensors that it names in the shards beside it, and a folder for all that are in it. Only
    headers are read. Raises FileFault for what is not a whole file of these formats; `note` is told
    of what is odd but no fault. Pickles are never loaded: an array of Python objects is not summed,
    and a file of torch.save only opened by `torch.load(weights_only=True)`.
    """
    return list_tensors(path, wanted, note)


# Reading


class Batch(NamedTuple):
    """Pieces of `tensors` consecutive tensors, of which the one at `first` is the first."""

    first: int
    tensors: int
    nbytes: int
    read: Callable[[], list[NDArray[Any]]]


def batches(tensors: Iterable[Tensor], most: int) -> Iterator[Batch]:
    """All elements of the tensors, which must be `stored`, in batches of at most `most` bytes.

    `most` is a multiple of 8 KiB: a tensor cut there has the same sums as the whole. The batches
    can be read by several threads. What is mapped, rather than read, would be the end of the
    process when someone else makes the file shorter. Raises FileFault, here or in `read()`.
    """
    for (source, how), group in groupby(enumerate(tensors), _place):
        yield from how(source, group, most)


_Numbered = Iterable[tuple[int, Tensor]]


def _place(
    numbered: tuple[int, Tensor],
) -> tuple[Source, Callable[[Source, _Numbered, int], Iterator[Batch]]]:
    stored = _stored(numbered[1])
    return stored.source, _ask if stored.read else _unpack if stored.member else _cut


def _stored(tensor: Tensor) -> Stored:
    assert tensor.stored
    return tensor.stored


class _Piece(NamedTuple):
    begin: int
    end: int
    dtype: np.dtype[Any]


def _cut(source: Source, tensors: _Numbered, most: int) -> Iterator[Batch]:
    """Each batch is one read, from its first piece to its last, whatever lies between them."""
    first, pieces = 0, list[_Piece]()
    for place, tensor in tensors:
        stored = _stored(tensor)
        stop = stored.begin + tensor.nbytes
        for begin in range(stored.begin, max(stop, stored.begin + 1), most):
            piece = _Piece(begin, min(begin + most, stop), stored.dtype)
            if pieces and not (
                pieces[-1].end <= piece.begin and piece.end - pieces[0].begin <= most
            ):
                yield _batch(source, first, pieces)
                pieces = []
            first = first if pieces else place
            pieces.append(piece)
    yield _batch(source, first, pieces)


def _batch(source: Source, first: int, pieces: list[_Piece]) -> Batch:
    nbytes = sum(end - begin for begin, end, _ in pieces)
    return Batch(first, len(pieces), nbytes, partial(_read, source, pieces))


def _read(source: Source, pieces: list[_Piece]) -> list[NDArray[Any]]:
    start = pieces[0].begin
    data = np.empty(pieces[-1].end - start, np.uint8)
    fill(data, source, start)
    return [data[begin - start : end - start].view(dtype) for begin, end, dtype in pieces]


def _unpack(source: Source, tensors: _Numbered, most: int) -> Iterator[Batch]:
    """The members of an archive can only be read from their start, and are read here."""
    first, arrays, nbytes = 0, list[NDArray[Any]](), 0
    with opened(source.path) as (file, now), zipfile.ZipFile(file) as archive:
        if now != source:
            raise Unfit(CHANGED)
        for place, tensor in tensors:
            stored = _stored(tensor)
            assert stored.member
            with (
                faults_of(source.path, f"member {tensor.name!r}: "),
                archive.open(stored.member) as member,
            ):
                exactly(member, stored.begin)
                for begin in range(0, max(tensor.nbytes, 1), most):
                    data = exactly(member, min(most, tensor.nbytes - begin))
                    if arrays and nbytes + len(data) > most:
                        yield Batch(first, len(arrays), nbytes, partial(list, arrays))
                        arrays, nbytes = [], 0
                    first = first if arrays else place
                    arrays.append(np.frombuffer(data, stored.dtype))
                    nbytes += len(data)
                if member.read(1):
                    raise Corrupt(EXPANDS)
    yield Batch(first, len(arrays), nbytes, partial(list, arrays))


def _ask(source: Source, tensors: _Numbered, most: int) -> Iterator[Batch]:
    """Pieces that are read by a function of the tensor's own."""
    first, reads, nbytes = 0, list[Callable[[], NDArray[Any]]](), 0

    def batch() -> Batch:
        return Batch(first, len(reads), nbytes, partial(_answers, source, reads))

    for place, tensor in tensors:
        read = _stored(tensor).read
        assert read
        for begin in range(0, max(tensor.nbytes, 1), most):
            end = min(begin + most, tensor.nbytes)
            if reads and nbytes + end - begin > most:
                yield batch()
                reads, nbytes = [], 0
            first = first if reads else place
            reads.append(partial(read, begin, end))
            nbytes += end - begin
    yield batch()


def _answers(source: Source, reads: list[Callable[[], NDArray[Any]]]) -> list[NDArray[Any]]:
    with faults_of(source.path):
        return [read() for read in reads]
