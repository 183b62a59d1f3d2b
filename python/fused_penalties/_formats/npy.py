"""NumPy's files: one array, or a zip archive of many."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from .._file import Corrupt, Source, Stored, Tensor, Unfit, exactly, faults_of
from .common import SUMMED, Note, Wanted, bounded, nbytes_of, weight_file

_PART = {"about.npy", "limbs.npy"}  # what _parts.py writes
EXPANDS = "it expands past what its header says"


def list_npy(path: str, wanted: Wanted, note: Note) -> Iterator[Tensor]:
    with weight_file(path) as (file, source):
        name = Path(path).stem
        if not wanted(name):
            return
        tensor, left_over = _npy_tensor(name, file, source.size, source)
        if tensor.dtype == "object":
            raise Unfit(f"{name!r} is a pickled array of Python objects, never loaded")
        if left_over:
            note(f"{left_over:,} bytes behind the array are not read")
        yield tensor


def list_npz(path: str, wanted: Wanted, note: Note) -> Iterator[Tensor]:
    with weight_file(path) as (file, source):
        if not _ZIP.startswith(file.read(len(_ZIP))):
            raise Unfit("not a .npz file: it is no zip archive")
        with zipfile.ZipFile(file) as archive:
            if _PART.issubset(archive.namelist()):
                raise Unfit(
                    "a part that report --save wrote; fused-penalties merge takes all parts"
                )
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if wanted(name):
                    with faults_of(path, f"member {name!r}: "):
                        yield _npz_tensor(name, archive, member, source)


def _npz_tensor(
    name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo, source: Source
) -> Tensor:
    no_array = Tensor(name, (member.file_size,), "no array", member.file_size, None)
    if member.is_dir():
        return no_array
    try:
        file = archive.open(member)
    except RuntimeError:  # encrypted, or compressed in a way that zipfile does not know
        return no_array._replace(dtype="unreadable")
    with file:
        if not member.filename.endswith(".npy"):
            if file.read(len(_NPY)) != _NPY:
                return no_array
            file.seek(0)
        tensor, left_over = _npy_tensor(name, file, member.file_size, source, member)
    if left_over and tensor.stored:
        raise Corrupt(EXPANDS)
    # zipfile stops at this size. With more it shows whether the member goes on behind it: more
    # than it unpacks at a time, since at the end it checks the whole first.
    member.file_size += 1 << 16
    return tensor


_ZIP = b"PK"
_NPY = b"\x93NUMPY"


def _npy_tensor(
    name: str, file: IO[bytes], size: int, source: Source, member: zipfile.ZipInfo | None = None
) -> tuple[Tensor, int]:
    """The array that begins here, in a file or member of that size, and how much is behind it."""
    shape, descr, begin = _npy_header(file)
    held = size - begin
    dtype = _npy_dtype(descr)
    if dtype is None or dtype.hasobject:
        return Tensor(name, shape, "object" if dtype else descr, held, None), 0
    nbytes = nbytes_of(shape, 8 * dtype.itemsize, held)
    if nbytes is None:
        raise Corrupt(f"{held:,} bytes of data are less than its header says")
    summed = dtype.newbyteorder("=") in SUMMED.values()
    stored = Stored(source, begin, dtype, member) if summed else None
    return Tensor(name, shape, dtype.name, nbytes, stored), held - nbytes


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], str, int]:
    """The shape, the `descr` (the dtype in NumPy's words) and where the data begin.

    NumPy's own reader is not used: it refuses a dtype that it does not know, a header of more than
    10,000 bytes and one of Python 2 without a warning, all of which can be read or listed.
    """
    magic = file.read(len(_NPY))
    if not _NPY.startswith(magic):
        raise Unfit("not a .npy file: it does not begin with \\x93NUMPY")
    major, minor = exactly(file, 2)
    if (major, minor) not in ((1, 0), (2, 0), (3, 0)):
        raise Unfit(f"version {major}.{minor} of the .npy format is not known")
    width = 2 if major == 1 else 4
    length = int.from_bytes(exactly(file, width), "little")
    text = exactly(file, bounded(length)).decode("latin-1")
    # The fields of a structured array, which is not summed, can hold anything.
    if fields := re.search(r":\s*\[", text):
        text = f"{text[: fields.end() - 1]}'structured'{text[text.rfind(']') + 1 :]}"
    entries = {match[2]: match[3] for match in _NPY_ENTRY.finditer(text)}
    around = _NPY_ENTRY.sub("", text).encode("latin-1").split()  # at ASCII's spaces only
    if b"".join(around) != b"{}" or len(entries) != 3 or entries["shape"][0] != "(":
        raise Corrupt("its header is not one of a .npy file")
    lengths = re.findall(r"\d+", entries["shape"])
    shape = tuple(int(digits[:20]) for digits in lengths)
    if max(shape, default=0) >= 2**63 or nbytes_of(shape, 8, 2**63) is None:
        raise Corrupt("its header has a shape that no array has")
    return shape, entries["descr"][1:-1], len(_NPY) + 2 + width + length


# Lengths such as 10L are those of Python 2.
_NPY_ENTRY = re.compile(
    r"""(['"])(descr|fortran_order|shape)\1\s*:\s*"""
    r"""('[^']*'|"[^"]*"|True|False|\((?:\s*\d+L?\s*,)*\s*(?:\d+L?\s*)?\))\s*(?:,|(?=\}))""",
    re.ASCII,
)


def _npy_dtype(descr: str) -> np.dtype[Any] | None:
    # Not everything that np.dtype takes: it parses whole structures, and warns of old names.
    if not re.fullmatch(r"[<>|=]?[?b-zA-Z]\d{,9}(\[\w+\])?", descr):
        return None
    try:
        return np.dtype(descr)
    except (OverflowError, TypeError, ValueError):
        return None
