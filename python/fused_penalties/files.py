"""Weight files: their tensors are listed from the headers, and read a piece at a time."""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _core
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
    opened,
)
from ._formats import EXPANDS, Note, Wanted, files_in, list_tensors

__all__ = [
    "Batch",
    "FileFault",
    "Tensor",
    "batches",
    "files_in",
    "open_tensors",
    "place_of",
    "portion",
]


def open_tensors(
    path: str, wanted: Wanted = lambda name: True, note: Note = lambda text: None
) -> list[Tensor]:
    """The tensors of a file whose names are wanted, in the order in which the file has them; those
    of .safetensors, where the order says nothing, by their names.

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
    # To be called when the arrays have been used: FileFault if they did not stay what they were.
    check: Callable[[], None] = lambda: None


def portion(tensor: Tensor, begin: int, end: int) -> Tensor:
    """Bytes `begin` to `end` of a tensor that is `stored`, to be read in its place.

    Its sums add up to the tensor's with those of the others if it is cut at multiples of 8 KiB.
    """
    stored = _stored(tensor)
    if read := stored.read:
        stored = stored._replace(read=lambda first, last: read(begin + first, begin + last))
    else:
        stored = stored._replace(begin=stored.begin + begin, goes_on=end < tensor.nbytes)
    return tensor._replace(nbytes=end - begin, stored=stored)


def batches(tensors: Iterable[Tensor], most: int, *, mapped: bool = False) -> Iterator[Batch]:
    """All elements of the tensors, which must be `stored`, in batches of at most `most` bytes.

    `most` is a multiple of 8 KiB: a tensor cut there has the same sums as the whole. The batches
    can be read by several threads, a batch at a time by each; the file system is told of each batch
    when it is handed out, so that it reads ahead. Raises FileFault, here, in `read` or in `check`.

    A mapped file is read in the system's own cache, without a copy; that memory is given back when
    the batch's arrays are deleted. Members of archives are read, and so is what cannot be mapped.
    """
    for (source, how), group in groupby(enumerate(tensors), _place):
        yield from how(source, group, most, mapped)


_Numbered = Iterable[tuple[int, Tensor]]


def _place(
    numbered: tuple[int, Tensor],
) -> tuple[Source, Callable[[Source, _Numbered, int, bool], Iterator[Batch]]]:
    stored = _stored(numbered[1])
    return stored.source, _ask if stored.read else _unpack if stored.member else _cut


def _stored(tensor: Tensor) -> Stored:
    assert tensor.stored
    return tensor.stored


def place_of(tensor: Tensor) -> tuple[str, int, int]:
    """What tensors are sorted by to be read as they lie in their files."""
    stored = _stored(tensor)
    member = stored.member.header_offset if stored.member else 0
    return stored.source.path, member, stored.begin


class _Piece(NamedTuple):
    begin: int
    end: int
    dtype: np.dtype[Any]


def _cut(source: Source, tensors: _Numbered, most: int, mapped: bool) -> Iterator[Batch]:
    """Each batch is one read, from its first piece to its last, whatever lies between them."""
    file = _Opened(source)
    for first, pieces in _gathered(tensors, most):
        begin, end = pieces[0].begin, pieces[-1].end
        nbytes = sum(piece.end - piece.begin for piece in pieces)
        _read_ahead(file.fileno(), begin, end)
        if mapped and begin < end:
            batch = _Mapped(file, pieces)
            yield Batch(first, len(pieces), nbytes, batch.read, batch.check)
        else:
            yield Batch(first, len(pieces), nbytes, partial(_read, file, pieces))


def _gathered(tensors: _Numbered, most: int) -> Iterator[tuple[int, list[_Piece]]]:
    """What makes a batch, with the place of its first tensor."""
    first, pieces = 0, list[_Piece]()
    for place, tensor in tensors:
        stored = _stored(tensor)
        stop = stored.begin + tensor.nbytes
        for begin in range(stored.begin, max(stop, stored.begin + 1), most):
            piece = _Piece(begin, min(begin + most, stop), stored.dtype)
            if pieces and not (
                pieces[-1].end <= piece.begin and piece.end - pieces[0].begin <= most
            ):
                yield first, pieces
                pieces = []
            first = first if pieces else place
            pieces.append(piece)
    yield first, pieces


# Linux cuts advice off at the length to which it would read ahead by itself, which is no less.
_ADVICE = 128 << 10


def _read_ahead(file: int, begin: int, end: int) -> None:
    if begin == end or not hasattr(os, "RWF_NOWAIT"):  # Linux has it
        return
    try:
        # Of what is in memory already, the advice would take a fifth of the time of its sums.
        os.preadv(file, [bytearray(1)], end - 1, os.RWF_NOWAIT)
    except OSError:
        with suppress(OSError):
            for at in range(begin, end, _ADVICE):
                os.posix_fadvise(file, at, min(_ADVICE, end - at), os.POSIX_FADV_WILLNEED)


class _Opened:
    """A file as long as batches of it are to be read. It is opened once: some file systems forget
    at each opening what they have read ahead."""

    def __init__(self, source: Source) -> None:
        self.source = source
        with opened(source.path) as (file, _):
            self._number = os.dup(file.fileno())
        self.check()

    def __del__(self) -> None:
        if hasattr(self, "_number"):
            os.close(self._number)

    def fileno(self) -> int:
        return self._number

    def check(self) -> None:
        with faults_of(self.source.path):
            if Source.of(self.source.path, os.stat(self.source.path)) != self.source:
                raise Unfit(CHANGED)


def _read(file: _Opened, pieces: list[_Piece]) -> list[NDArray[Any]]:
    begin, end = pieces[0].begin, pieces[-1].end
    data = np.empty(end - begin, np.uint8)
    with faults_of(file.source.path):
        at = begin
        while count := os.preadv(file.fileno(), [data[at - begin :].data], at):
            at += count
    file.check()  # a file that is too short now is not what it was
    return _arrays(data, pieces)


class _Mapped:
    """A batch that is not copied. What others write to the file is seen in it, hence `check`."""

    def __init__(self, file: _Opened, pieces: list[_Piece]) -> None:
        self._file, self._pieces = file, pieces
        self._map: _core.FileMap | None = None

    def read(self) -> list[NDArray[Any]]:
        begin, end = self._pieces[0].begin, self._pieces[-1].end
        self._file.check()  # what is mapped has to be there
        with suppress(OSError):  # a file system without maps, or no address space left
            self._map = _core.FileMap(self._file.fileno(), begin, end - begin)
        if self._map is None:
            return _read(self._file, self._pieces)
        return _arrays(np.frombuffer(memoryview(self._map), np.uint8), self._pieces)

    def check(self) -> None:
        if self._map is None:
            return
        torn, self._map = self._map.torn, None
        self._file.check()
        if torn:
            raise FileFault(self._file.source.path, os.strerror(errno.EIO))


def _arrays(data: NDArray[np.uint8], pieces: list[_Piece]) -> list[NDArray[Any]]:
    start = pieces[0].begin
    return [data[begin - start : end - start].view(dtype) for begin, end, dtype in pieces]


def _unpack(source: Source, tensors: _Numbered, most: int, mapped: bool) -> Iterator[Batch]:
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
                for begin in range(0, stored.begin, most):  # to seek would end the check of its CRC
                    exactly(member, min(most, stored.begin - begin))
                for begin in range(0, max(tensor.nbytes, 1), most):
                    data = exactly(member, min(most, tensor.nbytes - begin))
                    if arrays and nbytes + len(data) > most:
                        yield Batch(first, len(arrays), nbytes, partial(list, arrays))
                        arrays, nbytes = [], 0
                    first = first if arrays else place
                    arrays.append(np.frombuffer(data, stored.dtype))
                    nbytes += len(data)
                if not stored.goes_on and member.read(1):
                    raise Corrupt(EXPANDS)
    yield Batch(first, len(arrays), nbytes, partial(list, arrays))


def _ask(source: Source, tensors: _Numbered, most: int, mapped: bool) -> Iterator[Batch]:
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
