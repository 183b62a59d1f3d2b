"""Weight files: their tensors are listed from the headers, and read a piece at a time."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._file import Corrupt, FileFault, Source, Stored, Tensor, Unfit, exactly, faults_of, opened
from ._formats import (
    EXPANDS,
    Note,
    Wanted,
    bounded,
    list_npy,
    list_npz,
    list_safetensors,
    parsed,
)

__all__ = ["Batch", "FileFault", "Tensor", "batches", "open_tensors"]


def open_tensors(
    path: str, wanted: Wanted = lambda name: True, note: Note = lambda text: None
) -> list[Tensor]:
    """The tensors of a file whose names are wanted, in the order in which the file stores them.

    A `.npy` holds one array, which takes the file's name; a `.safetensors.index.json` stands for
    the tensors that it names in the shards beside it. Only headers are read. Raises FileFault for
    what is not a whole file of these formats; `note` is told of what is odd but no fault. Pickles
    are never loaded: an array of Python objects is not summed, and a pickled format not opened.
    """
    found = [list_tensors for suffix, list_tensors in _FORMATS.items() if suffix.search(path)]
    with opened(path) as (file, source):
        if not found:
            raise Unfit(
                "not a supported format (.npy, .npz, .safetensors, .safetensors.index.json); "
                "pickled files (.pt, .pth, .bin, .pkl) are never loaded",
            )
        first = file.read(len(_GIT_LFS))
        if not first:
            raise Unfit("the file is empty")
        if first == _GIT_LFS:
            raise Unfit("a pointer of Git LFS; the file itself was not fetched")
        file.seek(0)
        return list(found[0](file, source, wanted, note))


_GIT_LFS = b"version https://git-lfs"


def _list_index(file: IO[bytes], source: Source, wanted: Wanted, note: Note) -> Iterator[Tensor]:
    path = source.path
    index = parsed(file.read(bounded(source.size)))
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict):
        raise Unfit("it has no weight_map")
    names_in: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        # With a folder in it, the name could lead anywhere on the disk.
        beside = isinstance(shard, str) and Path(shard).name == shard and shard.isprintable()
        if not beside or not shard.lower().endswith(".safetensors"):
            raise Unfit(f"weight_map[{name!r}]: {shard!r} is no .safetensors beside it")
        names_in.setdefault(shard, set()).add(name)
    total: int | None = 0
    for shard, names in names_in.items():
        if not any(map(wanted, names)):
            total = None  # not known: the shard is not opened
            continue
        try:
            tensors = open_tensors(str(Path(path).with_name(shard)))
        except FileFault as error:
            raise FileFault(path, f"shard {shard!r}: {error.fault}") from error
        held = {tensor.name for tensor in tensors}
        if missing := names - held:
            raise Unfit(f"shard {shard!r} has no tensor {min(missing)!r}")
        if unlisted := held - names:
            note(
                f"shard {shard!r}: {len(unlisted)} left out that weight_map does not list, "
                f"{min(unlisted)!r} first"
            )
        listed = [tensor for tensor in tensors if tensor.name in names]
        if total is not None:
            total += sum(tensor.nbytes for tensor in listed)
        yield from (tensor for tensor in listed if wanted(tensor.name))
    metadata = index.get("metadata")
    claimed = metadata.get("total_size") if isinstance(metadata, dict) else None
    if None not in (claimed, total) and claimed != total:
        note(f"total_size is {claimed!r}, but the tensors have {total} bytes")


_FORMATS = {
    re.compile(suffix, re.IGNORECASE | re.DOTALL): list_tensors
    for suffix, list_tensors in {
        r"\.npy\Z": list_npy,
        r"\.npz\Z": list_npz,
        r"\.safetensors\Z": list_safetensors,
        # A variant of the model has one more word: model.safetensors.index.fp16.json
        r"\.safetensors\.index(\.[^/]+)?\.json\Z": _list_index,
    }.items()
}


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
    for (source, in_archive), group in groupby(enumerate(tensors), _place):
        yield from (_unpack if in_archive else _cut)(source, group, most)


def _place(numbered: tuple[int, Tensor]) -> tuple[Source, bool]:
    stored = _stored(numbered[1])
    return stored.source, stored.member is not None


def _stored(tensor: Tensor) -> Stored:
    assert tensor.stored
    return tensor.stored


class _Piece(NamedTuple):
    begin: int
    end: int
    dtype: np.dtype[Any]


def _cut(source: Source, tensors: Iterable[tuple[int, Tensor]], most: int) -> Iterator[Batch]:
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
    with opened(source.path) as (file, _):
        file.seek(start)
        count = file.readinto(data.data)
        if count < len(data) or Source.of(source.path, file) != source:
            raise Unfit(_CHANGED)
    return [data[begin - start : end - start].view(dtype) for begin, end, dtype in pieces]


_CHANGED = "it was changed while it was read"


def _unpack(source: Source, tensors: Iterable[tuple[int, Tensor]], most: int) -> Iterator[Batch]:
    """The members of an archive can only be read from their start, and are read here."""
    first, arrays, nbytes = 0, list[NDArray[Any]](), 0
    with opened(source.path) as (file, now), zipfile.ZipFile(file) as archive:
        if now != source:
            raise Unfit(_CHANGED)
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
