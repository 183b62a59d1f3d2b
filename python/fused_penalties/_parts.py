"""Parts of a report: the sums of a share of the bytes, in a file each, and what merges them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import compress, islice, zip_longest
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _core
from ._file import Corrupt, FileFault, Source, Tensor, Unfit, faults_of, opened
from ._sums import PartialSums, larger

BLOCK = 8 << 10  # a tensor that is cut at multiples of it has the same sums as the whole
MOST_PARTS = 1 << 31  # limbs are int64 of which so many can be added


class Entry(NamedTuple):
    """One line of a report to be: a tensor and the file, as the command line names it."""

    file: str
    tensor: Tensor
    summed: bool


class Read(NamedTuple):
    """What the files had: sums of the tensors that are summed, and how they were read."""

    entries: list[Entry]
    notes: list[str]
    sums: PartialSums  # with the largest magnitudes
    seconds: float
    isa: str
    threads: int

    def only(self, left: Sequence[bool]) -> Read:
        """Without some of the entries."""
        kept = [keep for (_, _, summed), keep in zip(self.entries, left, strict=True) if summed]
        rows = np.array(kept, bool)
        sums = PartialSums(self.sums.limbs[rows], largest=largest_of(self.sums)[rows])
        return self._replace(entries=[*compress(self.entries, left)], sums=sums)


class Which(NamedTuple):
    """Which part of which checkpoint."""

    number: int
    parts: int
    checkpoint: dict[str, Any]  # what must be equal in all parts

    @classmethod
    def of(cls, number: int, parts: int, entries: Iterable[Entry]) -> Which:
        return cls(number, parts, _checkpoint(entries))


class Part(NamedTuple):
    which: Which
    read: Read  # with the sums of its own share, of each tensor that has some of it


def no_sums(count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Limbs and largest magnitudes of as many tensors, to add to and to take the maximum with."""
    return np.zeros((count, 2, _core.LIMBS), np.int64), np.zeros(count)


def largest_of(sums: PartialSums) -> NDArray[np.float64]:
    assert sums.largest is not None  # they were asked for
    return sums.largest


def share(tensors: Sequence[Tensor], number: int, parts: int) -> Iterator[tuple[int, int, int]]:
    """The place of each tensor of which a part has something, and from which byte to which.

    Parts differ in size by two blocks at most.
    """
    total = sum(tensor.nbytes for tensor in tensors)
    first, last = total * (number - 1) // parts, total * number // parts
    at = 0
    for place, tensor in enumerate(tensors):
        begin, end = (
            tensor.nbytes if cut >= at + tensor.nbytes else max(cut - at, 0) // BLOCK * BLOCK
            for cut in (first, last)
        )
        if begin < end:
            yield place, begin, end
        at += tensor.nbytes


# The file


# The sums depend on the canon (csrc/CANON.md), so parts by another one are no parts of the same.
_FORMAT = {"fused-penalties": "a part of a report", "format": 2, "canon": 2}
_NO_PART = "not a part that report --save wrote"


@contextmanager
def to_be_saved(path: str, which: Which) -> Iterator[IO[bytes]]:
    """A file to write the part to, which is at `path` when it is whole. Made before the reading,
    which may take hours, so that what is wrong with the path is said at once."""
    _check_replaceable(path, which)
    beside = f"{path}.{secrets.token_hex(4)}.tmp"
    with faults_of(path):
        file = open(beside, "xb")  # noqa: SIM115
    try:
        with file:
            yield file
        _check_replaceable(path, which)  # another run may have been quicker
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise


def _check_replaceable(path: str, which: Which) -> None:
    """Only the same part may be there, which a scheduler runs once more."""
    if not os.path.lexists(path):
        return
    try:
        there = load(path).which
    except FileFault as error:
        raise FileFault(path, f"not overwritten: {error.fault}") from error
    if there[:2] != which[:2]:
        raise FileFault(path, f"not overwritten: part {there.number} of {there.parts} is there")
    if differs := _difference(there, which):
        raise FileFault(path, f"not overwritten: a part of another report is there: {differs}")


def save(file: IO[bytes], path: str, which: Which, read: Read) -> None:
    about = {
        **_FORMAT,
        "part": [which.number, which.parts],
        "files": [entry.file for entry in read.entries],
        "notes": read.notes,
        "seconds": read.seconds,
        "isa": read.isa,
        "threads": read.threads,
        "checkpoint": which.checkpoint,
    }
    with faults_of(path):
        text = np.frombuffer(json.dumps(about).encode(), np.uint8)
        np.savez_compressed(file, about=text, limbs=read.sums.limbs, largest=largest_of(read.sums))


def load(path: str) -> Part:
    with opened(path) as (file, _):
        if file.peek(4)[:4] != b"PK\3\4":
            raise Unfit(_NO_PART)
        with np.load(file, allow_pickle=False) as archive:
            if not {"about", "limbs"} <= {*archive.files}:
                raise Unfit(_NO_PART)
            about = json.loads(archive["about"].tobytes())
            for key, ours in _FORMAT.items():
                if (theirs := about.get(key)) != ours:
                    raise Unfit(
                        f"{_NO_PART}, or by another version: {key}: {theirs!r}, not {ours!r}"
                    )
            return _part(about, archive["limbs"], archive["largest"])


def _part(about: dict[str, Any], limbs: NDArray[Any], largest: NDArray[Any]) -> Part:
    number, parts = about["part"]
    listed = about["checkpoint"]["tensors"]
    entries = [
        Entry(str(file), Tensor(name, tuple(shape), dtype, nbytes, None), where is not None)
        for file, (name, shape, dtype, nbytes, where) in zip(about["files"], listed, strict=True)
    ]
    summed = [entry.tensor for entry in entries if entry.summed]
    sizes = [number, parts, *(size for _, one, _ in entries for size in (*one.shape, one.nbytes))]
    sound = (
        all(type(size) is int and size >= 0 for size in sizes)
        and 0 < number <= parts <= MOST_PARTS
        and all(isinstance(entry.tensor.name, str) for entry in entries)
        and all(tensor.dtype in _core.RESULT_IS_FLOAT64 for tensor in summed)
        and limbs.dtype == np.int64
        and limbs.shape == (len([*share(summed, number, parts)]), 2, _core.LIMBS)
        and 0.0 < about["seconds"] < math.inf
    )
    if not sound:
        raise Corrupt("what it says of itself does not fit together")
    sums = PartialSums(limbs, largest=largest)  # which looks at the values
    notes = [str(note) for note in about["notes"]]
    read = Read(
        entries, notes, sums, float(about["seconds"]), str(about["isa"]), int(about["threads"])
    )
    return Part(Which(number, parts, about["checkpoint"]), read)


def _checkpoint(entries: Iterable[Entry]) -> dict[str, Any]:
    """Which one it is, wherever it lies: what the headers say of the tensors, and the files' sizes
    and samples, since all checkpoints of one training have the same headers."""
    sources: dict[Source, int] = {}
    tensors = []
    for _, tensor, _ in entries:
        where = None
        if stored := tensor.stored:
            number = sources.setdefault(stored.source, len(sources))
            where = [number, stored.begin, stored.dtype.str]
            if stored.member:
                where += [stored.member.CRC]
        tensors.append([tensor.name, [*tensor.shape], tensor.dtype, tensor.nbytes, where])
    return {"tensors": tensors, "files": [[one.size, _samples(one)] for one in sources]}


def _samples(source: Source) -> str:
    digest = hashlib.sha256()
    with opened(source.path) as (file, _):
        for third in range(4):
            file.seek(max(source.size - 4096, 0) * third // 3)
            digest.update(file.read(4096))
    return digest.hexdigest()


# Merging


def merged(paths: Sequence[str]) -> Read:
    """The parts' sums as those of one run. FileFault unless they are all of one checkpoint."""
    which, read = load(paths[0])
    tensors = [entry.tensor for entry in read.entries if entry.summed]
    limbs, largest = no_sums(len(tensors))
    seconds, isas, threads = 0.0, set[str](), 0
    found: dict[int, str] = {}
    for path in paths:
        part = load(path)
        number, parts, _ = part.which
        if differs := _difference(part.which, which):
            raise FileFault(path, f"no part of what {paths[0]} is a part of: {differs}")
        if number in found:
            both = dict.fromkeys([found[number], path])
            raise FileFault(f"part {number} of {parts} was given twice", " and ".join(both))
        found[number] = path
        places = [place for place, _, _ in share(tensors, number, parts)]
        limbs[places] += part.read.sums.limbs
        largest[places] = larger(largest[places], largest_of(part.read.sums))
        seconds += part.read.seconds
        isas.add(part.read.isa)
        threads = max(threads, part.read.threads)
    if lacking := which.parts - len(found):
        missing = (str(number) for number in range(1, which.parts + 1) if number not in found)
        some = ", ".join(islice(missing, 10)) + (", …" if lacking > 10 else "")
        raise FileFault(f"part{'s' * (lacking > 1)} {some} of {which.parts}", "missing")
    return read._replace(
        sums=PartialSums(limbs, largest=largest),
        seconds=seconds,
        isa=" and ".join(sorted(isas)),
        threads=threads,
    )


def _difference(one: Which, other: Which) -> str:
    if one.parts != other.parts:
        return f"it is one of {one.parts} parts, not of {other.parts}"
    ours, theirs = one.checkpoint, other.checkpoint
    names, others = ({tensor[0] for tensor in each["tensors"]} for each in (ours, theirs))
    for mine, its in zip_longest(ours["tensors"], theirs["tensors"]):
        if mine == its:
            continue
        if its and its[0] not in names:
            return f"it has no tensor {its[0]!r}"
        if mine and mine[0] not in others:
            return f"it has a tensor {mine[0]!r} too"
        if mine and its and mine[0] == its[0]:
            shapes, dtypes = (tuple(mine[1]), tuple(its[1])), mine[2:3] + its[2:3]
            for what, (here, there) in ("shape", shapes), ("dtype", dtypes):
                if here != there:
                    return f"tensor {mine[0]!r} has the {what} {here}, not {there}"
        return f"tensor {(mine or its)[0]!r} lies elsewhere in its files"
    return "" if ours == theirs else "tensors of the same names and sizes, but other files"
