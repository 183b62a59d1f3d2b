"""What torch.save writes, read by torch.load: only tensors, numbers and what holds them.

PyTorch maps the file. What a pickle asks for beyond that is refused, by PyTorch, by its name.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._file import CHANGED, Corrupt, Source, Stored, Tensor, Unfit, opened, shortened
from .boxes import View, in_order
from .common import SUMMED, Note, Wanted, weight_file

if TYPE_CHECKING:
    import torch

_ZIP = b"PK\3\4"
# Before zip a file began with a number, which torch.save pickled.
_BEFORE_ZIP = re.compile(rb"\x80.\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)
_SUMMED = {dtype.name for dtype in SUMMED.values()}

# What a file may hold that was made to have no end: a list within itself, and many of them.
_MOST_DEEP = 64
_MOST_ENTRIES = 10_000_000

_MOST_NUMBERS = 4  # that a note shows
_MOST_NEAR = 16  # tensors in the memory of a tensor with which it is compared


def list_pytorch(path: str, wanted: Wanted, note: Note) -> Iterator[Tensor]:
    with weight_file(path) as (file, source):
        first = file.read(32)
        mapped = first.startswith(_ZIP)
        swapped = False
        if mapped:
            with zipfile.ZipFile(file) as archive:
                swapped = _check_archive(archive)
        elif not _BEFORE_ZIP.match(first):
            raise Unfit("not a file of torch.save; pickles of others are never loaded")
        else:
            note("in the format before zip, which cannot be mapped: it is loaded whole")
        loaded = _load(path, mapped)

        # PyTorch swaps the bytes in its map, which then is not what the file holds.
        places = _Map(source, mapped, [] if swapped else _maps_of(source))
        numbers: list[str] = []
        arrays: list[tuple[str, NDArray[Any]]] = []
        for name, value in _leaves(loaded, Path(path).stem):
            if not wanted(name):
                continue
            if isinstance(value, (int, float)):
                numbers.append(f"{name} = {value!r}")
                continue
            tensor, array = _tensor(name, value, places)
            if array is not None and array.size:
                arrays.append((name, array))
            yield tensor
        if numbers:
            said = ", ".join(shortened(numbers, _MOST_NUMBERS))
            note(f"numbers beside the tensors: {said}")
        if tied := _tied(arrays):
            name, other = tied[0]
            note(f"{len(tied)} share their weights, {name!r} with {other!r} first; each is counted")


def _check_archive(archive: zipfile.ZipFile) -> bool:
    """Whether its numbers are big-endian."""
    names = {member.filename.partition("/")[2]: member for member in archive.infolist()}
    if "constants.pkl" in names:
        raise Unfit("a TorchScript archive, whose code is never loaded; save its state_dict()")
    if "data.pkl" not in names:
        raise Unfit("not a file of torch.save: no data.pkl in it")
    # torch.load would map them as they are.
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
        raise Unfit("its members are compressed, so it cannot be mapped; torch.save does not do so")
    return "byteorder" in names and archive.read(names["byteorder"]) == b"big"


def _load(path: str, mapped: bool) -> Any:
    try:
        import torch
    except ImportError as error:
        raise Unfit(
            f"PyTorch, which reads it, cannot be imported ({error}); "
            "pip install 'fused-penalties[torch]'"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
    except (MemoryError, OSError):
        raise
    except Exception as error:
        # What its loader of weights says comes after advice on how to load the file all the same.
        text = str(error).rpartition("WeightsUnpickler error:")[2]
        if refused := re.search(r"GLOBAL (\S+)", text):
            raise Unfit(
                f"refused: it holds {refused[1]}, which torch.load(weights_only=True) does not "
                "load; if you trust the file, save its state_dict alone"
            ) from error
        lines = [line for line in text.splitlines() if line and not _ADVICE.search(line)]
        said = lines[0] if lines else type(error).__name__
        raise Corrupt(f"{type(error).__name__}: {said[:200]}") from error


_ADVICE = re.compile("Weights only load failed|Check the documentation|Please file an issue")


def _leaves(value: Any, alone: str) -> Iterator[tuple[str, Any]]:
    """The tensors, and the numbers that dicts hold, under their keys joined by dots."""
    import torch

    entries = 0

    def walk(name: str, value: Any, depth: int, counts: bool) -> Iterator[tuple[str, Any]]:
        nonlocal entries
        entries += 1
        if depth > _MOST_DEEP or entries > _MOST_ENTRIES:
            raise Unfit("nested without an end")
        if isinstance(value, torch.Tensor) or (counts and type(value) in (int, float)):
            yield name or alone, value
        elif isinstance(value, (dict, list, tuple)):
            counts = counts and isinstance(value, dict)  # lists have numbers that are none
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                yield from walk(f"{name}.{key}" if depth else str(key), inner, depth + 1, counts)

    return walk("", value, 0, isinstance(value, dict))


def _tensor(name: str, tensor: torch.Tensor, places: _Map) -> tuple[Tensor, NDArray[Any] | None]:
    """What is listed, and the elements if they are summed."""
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_nested:
        return Tensor(name, (), f"nested {dtype}", 0, None), None
    shape, nbytes = tuple(tensor.shape), tensor.numel() * tensor.element_size()
    if tensor.layout != torch.strided:
        dtype = f"{str(tensor.layout).removeprefix('torch.')} {dtype}"
        return Tensor(name, shape, dtype, 0, None), None
    if tensor.is_meta:
        return Tensor(name, shape, f"meta {dtype}", 0, None), None
    if dtype not in _SUMMED:
        return Tensor(name, shape, dtype, nbytes, None), None
    array = _array(tensor)
    return Tensor(name, shape, dtype, nbytes, places.stored(in_order(array))), array


class _Map(NamedTuple):
    """Where in the file the elements lie that torch.load has mapped.

    They are read from there. PyTorch's own map would keep in memory what was read, and end the
    process if the file were made shorter.
    """

    source: Source
    mapped: bool
    stretches: list[tuple[int, int, int]]  # of memory: its begin and end, and the begin in the file

    def stored(self, array: NDArray[Any]) -> Stored:
        at = array.ctypes.data
        begin = next((at - low + file for low, high, file in self.stretches if low <= at < high), 0)
        if begin and array.flags.c_contiguous:
            return Stored(self.source, begin, array.dtype)
        nbytes = array.itemsize + sum(
            (size - 1) * stride for size, stride in zip(array.shape, array.strides, strict=True)
        )

        def read(first: int, last: int) -> NDArray[Any]:
            if not self.mapped:
                return View(array).read(first, last)
            with opened(self.source.path) as (file, now):
                if now != self.source:
                    raise Unfit(CHANGED)
                if not begin:
                    return View(array).read(first, last)
                memory = _core.FileMap(file.fileno(), begin, nbytes)
                view = np.ndarray(
                    array.shape, array.dtype, memoryview(memory), strides=array.strides
                )
                piece = View(view).read(first, last)
                if memory.torn:
                    raise Unfit(CHANGED)
                return piece

        return Stored(self.source, 0, array.dtype, read=read)


def _maps_of(source: Source) -> list[tuple[int, int, int]]:
    """Where in memory the file is mapped, as far as Linux tells."""
    found = []
    with suppress(OSError), open("/proc/self/maps", errors="replace") as lines:
        for line in lines:
            memory, _, begin, _, inode = line.split(maxsplit=5)[:5]
            if int(inode) == source.inode:
                low, high = (int(address, 16) for address in memory.split("-"))
                found.append((low, high, int(begin, 16)))
    return found


def _tied(arrays: list[tuple[str, NDArray[Any]]]) -> list[tuple[str, str]]:
    """Those with elements of another that is listed before them, and with which."""
    tied: dict[int, int] = {}
    near: list[int] = []  # those that end behind the begin of the next
    for place in sorted(range(len(arrays)), key=lambda place: arrays[place][1].ctypes.data):
        array = arrays[place][1]
        near = [other for other in near if np.may_share_memory(arrays[other][1], array)]
        for other in near:
            if _share(arrays[other][1], array):
                later, earlier = max(place, other), min(place, other)
                tied[later] = min(earlier, tied.get(later, earlier))
        near = [*near[:_MOST_NEAR], place]
    return [(arrays[later][0], arrays[earlier][0]) for later, earlier in sorted(tied.items())]


def _share(one: NDArray[Any], another: NDArray[Any]) -> bool:
    try:
        return np.shares_memory(one, another, max_work=10_000)  # type: ignore[arg-type]
    except RuntimeError:  # np.exceptions.TooHardError, in older NumPy np.TooHardError
        return True  # it is not known, but the memory is the same


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    import torch

    tensor = tensor.detach().resolve_neg()
    if tensor.dtype == torch.bfloat16:  # for which torch knows no type of NumPy's
        return np.asarray(tensor.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
    return np.asarray(tensor.numpy())
