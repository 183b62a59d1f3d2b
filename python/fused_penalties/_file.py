"""A weight file and its tensors, and what is said of one that cannot be read."""

from __future__ import annotations

import math
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CHANGED = "it was changed while it was read"


class FileFault(Exception):
    """A file that cannot be reported on; the message is one line, `FILE: fault`."""

    def __init__(self, path: str, fault: object) -> None:
        self.path = path
        self.fault = " ".join(str(fault).split())
        super().__init__(f"{path}: {self.fault}")


class Unfit(ValueError):
    """What is wrong with a file; `faults_of` makes it a FileFault, with the file's name."""


class Corrupt(Unfit):
    """What shows that a file is not whole."""


class Source(NamedTuple):
    """A file as it was when its tensors were listed; a write to it makes it another."""

    path: str
    device: int
    inode: int
    size: int
    changed_ns: int

    @classmethod
    def of(cls, path: str, status: os.stat_result) -> Source:
        return cls(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class Stored(NamedTuple):
    """Where the elements of a tensor lie, one after the other in the order of the file.

    Where they do not, or not in a file, `read` gives those of the bytes from a begin to an end.
    """

    source: Source
    begin: int  # counted from the start of the file, or of the archive's member
    dtype: np.dtype[Any]
    member: zipfile.ZipInfo | None = None
    read: Callable[[int, int], NDArray[Any]] | None = None
    goes_on: bool = False  # behind it, as a portion of a tensor may


class Tensor(NamedTuple):
    """One array of a file.

    `dtype` is NumPy's name for it, or the format's own word ("I64", "F8_E4M3", "<f1"). `stored` is
    None for what is not summed: all but float16, bfloat16, float32 and float64.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    stored: Stored | None

    @property
    def size(self) -> int:
        # Without a zero among them: the product of the others may be a number without end.
        return 0 if 0 in self.shape else math.prod(self.shape)


def shortened(texts: Sequence[str], most: int) -> list[str]:
    """The first ones, and how many more there are."""
    more = len(texts) - most
    return [*texts[:most], *[f"{more} more"] * (more > 0)]


def natural(name: str) -> list[Any]:
    """What names are sorted by: numbers within them by their size, layers.2 before layers.10."""
    parts: list[Any] = re.split(r"(\d+)", name, flags=re.ASCII)
    # By length first, since a number may have more digits than Python makes an int of.
    parts[1::2] = [(len(digits.lstrip("0")), digits.lstrip("0")) for digits in parts[1::2]]
    return parts


@contextmanager
def opened(path: str) -> Iterator[tuple[BufferedReader, Source]]:
    """The file, if it is a regular one: a pipe can keep one waiting, and a device has no end."""

    def without_waiting(path: str, flags: int) -> int:
        return os.open(path, flags | os.O_NONBLOCK)

    with faults_of(path), open(path, "rb", opener=without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise Unfit("not a regular file")
        yield file, Source.of(path, status)


@contextmanager
def faults_of(path: str, part: str = "") -> Iterator[None]:
    # Exception, because zipfile and its decompressors meet hostile bytes and raise a dozen types
    # between them, by no list that they promise.
    try:
        yield
    except FileFault:
        raise
    except Exception as error:
        raise FileFault(path, part + _fault(error)) from error


def _fault(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "does not fit in memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, Unfit) and not isinstance(error, Corrupt):
        return str(error)
    what = "it ends too early" if isinstance(error, EOFError) else str(error)
    return f"truncated or corrupt: {what}"


def fill(data: NDArray[np.uint8], source: Source, begin: int) -> None:
    """Reads as many bytes of the file, which must not have changed."""
    with opened(source.path) as (file, now):
        file.seek(begin)
        if file.readinto(data.data) < len(data) or now != source:
            raise Unfit(CHANGED)


def exactly(file: IO[bytes], count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise EOFError
    return data
