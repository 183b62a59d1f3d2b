"""What each format's header says: the tensors in it, without a look at the weights."""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from ._file import Corrupt, Source, Stored, Tensor, Unfit, exactly, faults_of

Wanted = Callable[[str], bool]
Note = Callable[[str], None]

# What the safetensors format allows. It also bounds the memory that a hostile header can take.
MOST_HEADER = 100_000_000

EXPANDS = "it expands past what its header says"


def _nbytes(shape: Sequence[int], bits: int, most: int) -> int | None:
    """How many bytes an array takes; None if it is more than `most`."""
    size = 0 if 0 in shape else 1
    for length in shape if size else ():
        size *= length
        if size * bits > 8 * most:
            return None
    return (size * bits + 7) // 8


# .npy and .npz


def list_npy(file: IO[bytes], source: Source, wanted: Wanted, note: Note) -> Iterator[Tensor]:
    name = Path(source.path).stem
    if not wanted(name):
        return
    tensor, left_over = _npy_tensor(name, file, source.size, source)
    if tensor.dtype == "object":
        raise Unfit(f"{name!r} is a pickled array of Python objects, never loaded")
    if left_over:
        note(f"{left_over:,} bytes behind the array are not read")
    yield tensor


def list_npz(file: IO[bytes], source: Source, wanted: Wanted, note: Note) -> Iterator[Tensor]:
    if not _ZIP.startswith(file.read(len(_ZIP))):
        raise Unfit("not a .npz file: it is no zip archive")
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if wanted(name):
                with faults_of(source.path, f"member {name!r}: "):
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
    nbytes = _nbytes(shape, 8 * dtype.itemsize, held)
    if nbytes is None:
        raise Corrupt(f"{held:,} bytes of data are less than its header says")
    summed = dtype.newbyteorder("=") in _SUMMED.values()
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
    if max(shape, default=0) >= 2**63 or _nbytes(shape, 8, 2**63) is None:
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


def bounded(length: int) -> int:
    if length > MOST_HEADER:
        raise Unfit(f"a header of {length:,} bytes; at most {MOST_HEADER:,} are read")
    return length


# .safetensors


_SUMMED: dict[str, np.dtype[Any]] = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
_BITS = {"BOOL": 8, "F4": 4, "BF16": 16, "C64": 64} | {
    f"{kind}{bits}": bits for kind in "IUF" for bits in (8, 16, 32, 64) if (kind, bits) != ("F", 8)
}


def list_safetensors(
    file: IO[bytes], source: Source, wanted: Wanted, note: Note
) -> Iterator[Tensor]:
    length = int.from_bytes(exactly(file, 8), "little")
    if length > source.size - 8:
        raise Corrupt(f"a header of {length:,} bytes in a file of {source.size:,}")
    header = parsed(exactly(file, bounded(length)).decode())
    if not isinstance(header, dict):
        raise Corrupt("its header is no JSON object")
    header.pop("__metadata__", None)
    start = 8 + length
    at = 0
    entries = [_entry(name, entry) for name, entry in header.items()]
    for name, shape, dtype, begin, end in sorted(entries, key=lambda entry: entry[3:]):
        if begin != at:
            raise Corrupt(f"{name!r} begins at {begin:,}, where {at:,} was to be expected")
        at = end
        bits = _BITS.get(dtype)  # None: a dtype newer than this list, of one bit at the least
        nbytes = _nbytes(shape, bits or 1, end - begin)
        if nbytes is None or (bits and nbytes < end - begin):
            raise Corrupt(f"{name!r} has {end - begin:,} bytes, which its shape does not take")
        if wanted(name):
            if summed := _SUMMED.get(dtype):
                little = summed if summed.kind == "V" else summed.newbyteorder("<")
                stored = Stored(source, start + begin, little)
                yield Tensor(name, shape, summed.name, end - begin, stored)
            else:
                yield Tensor(name, shape, dtype, end - begin, None)
    if start + at != source.size:
        raise Corrupt(f"{source.size:,} bytes, where its header says {start + at:,}")


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], str, int, int]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sound = isinstance(dtype, str) and begin <= end
        if sound and all(type(n) is int and 0 <= n < 2**64 for n in [*shape, begin, end]):
            return name, tuple(shape), dtype, begin, end
    except (KeyError, TypeError, ValueError):
        pass
    raise Corrupt(f"{name!r} has no dtype, shape and data_offsets of the format")


def parsed(text: str | bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
            raise Unfit(f"the key {twice!r} occurs twice")
        return fields

    return json.loads(text, object_pairs_hook=unique)
