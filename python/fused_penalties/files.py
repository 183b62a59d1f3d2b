"""Weight files: their tensors are listed without reading the weights, and mapped when asked for."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from safetensors import safe_open

Wanted = Callable[[str], bool]


class FileFault(Exception):
    """A file that cannot be reported on; the message is one line, `FILE: fault`."""

    def __init__(self, path: str, fault: object) -> None:
        self.fault = " ".join(str(fault).split())
        super().__init__(f"{path}: {self.fault}")


class Tensor(NamedTuple):
    """One array of a file.

    `dtype` is NumPy's name for it, or the format's own word ("I64", "F8_E4M3") for a safetensors
    dtype that is not summed. `load()` maps the array, or reads it if it is a member of an archive;
    it is None where the dtype is not float16, bfloat16, float32 or float64.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    load: Callable[[], NDArray[Any]] | None

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def open_tensors(path: str, wanted: Wanted = lambda name: True) -> list[Tensor]:
    """The tensors of a file whose names are wanted, in the order in which the file stores them.

    A `.npy` holds one array, which takes the file's name; a `.safetensors.index.json` stands for
    the tensors that it names in the shards beside it. Only headers are read. Raises FileFault,
    here or in `load()`, for what is not a whole file of these formats. Pickles are never loaded:
    an array of Python objects is a fault, and pickled formats are not opened at all.
    """
    found = [list_tensors for suffix, list_tensors in _FORMATS.items() if _ends(path, suffix)]
    with _faults_of(path):
        with open(path, "rb") as file:
            if found and not file.read(1):
                raise FileFault(path, "the file is empty")
        if not found:
            raise FileFault(
                path,
                f"not a supported format ({', '.join(_FORMATS)}); "
                "pickled files (.pt, .pth, .bin, .pkl) are never loaded",
            )
        return list(found[0](path, wanted))


def _ends(path: str, suffix: str) -> bool:
    return path.lower().endswith(suffix)


@contextmanager
def _faults_of(path: str, part: str = "") -> Iterator[None]:
    # Exception, because the parsers meet hostile bytes and raise a dozen types between them, by no
    # list that they promise.
    try:
        yield
    except FileFault:
        raise
    except OSError as error:
        raise FileFault(path, error.strerror or error) from error
    except MemoryError as error:
        raise FileFault(path, f"{part}does not fit in memory") from error
    except Exception as error:
        raise FileFault(path, f"{part}truncated or corrupt: {error}") from error


def _list_npy(path: str, wanted: Wanted) -> Iterator[Tensor]:
    name = Path(path).stem
    if wanted(name):
        with open(path, "rb") as file:
            tensor = _of_header(path, name, file, partial(_map_npy, path))
        # Only to see that the file is whole. It is not kept: a mapping holds a file descriptor, and
        # a command line may name more files than a process may open.
        _map_npy(path)
        yield tensor


def _map_npy(path: str) -> NDArray[Any]:
    with _faults_of(path):
        return npy.open_memmap(path, mode="r")


def _list_npz(path: str, wanted: Wanted) -> Iterator[Tensor]:
    archive = zipfile.ZipFile(path)
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if wanted(name):
            with _faults_of(path, f"member {name!r}: "), archive.open(member) as file:
                load = partial(_read_member, path, name, archive, member)
                tensor = _of_header(path, name, file, load)
            yield tensor


def _read_member(
    path: str, name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo
) -> NDArray[Any]:
    with _faults_of(path, f"member {name!r}: "), archive.open(member) as file:
        array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
        return array


def _of_header(path: str, name: str, file: IO[bytes], load: Callable[[], NDArray[Any]]) -> Tensor:
    # Format 3.0 differs from 2.0 only in the encoding of field names, which are not used here.
    version_1 = npy.read_magic(file) == (1, 0)
    read = npy.read_array_header_1_0 if version_1 else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise FileFault(path, f"{name!r} is a pickled array of Python objects, never loaded")
    summed = dtype.newbyteorder("=") in _SUMMED.values()
    nbytes = math.prod(shape) * dtype.itemsize
    return Tensor(name, shape, dtype.name, nbytes, load if summed else None)


_SUMMED: dict[str, np.dtype[Any]] = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}


def _list_safetensors(path: str, wanted: Wanted) -> Iterator[Tensor]:
    # The library checks the header (dtypes, sizes, offsets without gaps, the file's length) but
    # hands out copies, so the bytes are mapped here, at the offsets in the header it has checked.
    with safe_open(path, framework="numpy"):
        pass
    file = np.memmap(path, np.uint8, "r").view(np.ndarray)
    start = 8 + int.from_bytes(file[:8].tobytes(), "little")
    header = json.loads(file[8:start].tobytes())
    header.pop("__metadata__", None)
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if wanted(name):
            begin, end = entry["data_offsets"]
            shape = tuple(entry["shape"])
            dtype = _SUMMED.get(entry["dtype"])
            if dtype:
                little = dtype if dtype.kind == "V" else dtype.newbyteorder("<")
                array = file[start + begin : start + end].view(little)
                load = partial(array.reshape, shape)
                yield Tensor(name, shape, dtype.name, end - begin, load)
            else:
                yield Tensor(name, shape, entry["dtype"], end - begin, None)


def _list_index(path: str, wanted: Wanted) -> Iterator[Tensor]:
    index = json.loads(Path(path).read_bytes())
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict):
        raise FileFault(path, "it has no weight_map")
    names_in: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        # With a folder in it, the name could lead anywhere on the disk.
        beside = isinstance(shard, str) and Path(shard).name == shard
        if not beside or not _ends(shard, ".safetensors"):
            raise FileFault(path, f"weight_map[{name!r}]: {shard!r} is no .safetensors beside it")
        if wanted(name):
            names_in.setdefault(shard, set()).add(name)
    for shard, names in names_in.items():
        try:
            tensors = open_tensors(str(Path(path).with_name(shard)), names.__contains__)
        except FileFault as error:
            raise FileFault(path, f"shard {shard!r}: {error.fault}") from error
        missing = names.difference(tensor.name for tensor in tensors)
        if missing:
            raise FileFault(path, f"shard {shard!r} has no tensor {min(missing)!r}")
        yield from tensors


_FORMATS = {
    ".npy": _list_npy,
    ".npz": _list_npz,
    ".safetensors": _list_safetensors,
    ".safetensors.index.json": _list_index,
}
