"""What torch.save writes, read by torch.load: only tensors, numbers and what holds them.

PyTorch maps the file. What a pickle asks for beyond that is refused, by PyTorch, by its name.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .._file import CHANGED, Corrupt, Source, Stored, Tensor, Unfit, opened
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


def list_pytorch(path: str, wanted: Wanted, note: Note) -> Iterator[Tensor]:
    with weight_file(path) as (file, source):
        first = file.read(32)
        mapped = first.startswith(_ZIP)
        if mapped:
            with zipfile.ZipFile(file) as archive:
                _check_archive(archive)
        elif not _BEFORE_ZIP.match(first):
            raise Unfit("not a file of torch.save; pickles of others are never loaded")
        else:
            note("in the format before zip, which cannot be mapped: it is loaded whole")
        loaded = _load(path, mapped)

        seen: dict[tuple[int, int], str] = {}
        tied = []
        for name, value in _leaves(loaded, Path(path).stem):
            if not wanted(name):
                continue
            if isinstance(value, int):
                yield Tensor(name, (), "int", 0, None)  # a counter, such as the number of the step
                continue
            tensor = _tensor(name, value, source, mapped)
            if tensor.stored and tensor.nbytes:
                memory = (value.data_ptr(), tensor.nbytes)
                if memory in seen:
                    tied.append(f"{name!r} with {seen[memory]!r}")
                seen.setdefault(memory, name)
            yield tensor
        if tied:
            note(f"{len(tied)} share their weights, {tied[0]} first; each is counted")


def _check_archive(archive: zipfile.ZipFile) -> None:
    names = {member.filename.partition("/")[2] for member in archive.infolist()}
    if "constants.pkl" in names:
        raise Unfit("a TorchScript archive, whose code is never loaded; save its state_dict()")
    if "data.pkl" not in names:
        raise Unfit("not a file of torch.save: no data.pkl in it")
    # torch.load would map them as they are.
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
        raise Unfit("its members are compressed, so it cannot be mapped; torch.save does not do so")


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
                f"refused: it holds {refused[1]}, which torch.load(weights_only=True) does not load"
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
        if isinstance(value, torch.Tensor) or (counts and type(value) is int):
            yield name or alone, value
        elif isinstance(value, (dict, list, tuple)):
            counts = counts and isinstance(value, dict)  # lists have numbers that are none
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                yield from walk(f"{name}.{key}" if depth else str(key), inner, depth + 1, counts)

    return walk("", value, 0, isinstance(value, dict))


def _tensor(name: str, tensor: torch.Tensor, source: Source, mapped: bool) -> Tensor:
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_nested:
        return Tensor(name, (), f"nested {dtype}", 0, None)
    shape, nbytes = tuple(tensor.shape), tensor.numel() * tensor.element_size()
    if tensor.layout != torch.strided:
        return Tensor(name, shape, f"{str(tensor.layout).removeprefix('torch.')} {dtype}", 0, None)
    if tensor.is_meta:
        return Tensor(name, shape, f"meta {dtype}", 0, None)
    if dtype not in _SUMMED:
        return Tensor(name, shape, dtype, nbytes, None)
    view = View(in_order(_array(tensor)))

    def read(begin: int, end: int) -> NDArray[Any]:
        if mapped:
            with opened(source.path) as (_, now):
                if now != source:
                    raise Unfit(CHANGED)
        return view.read(begin, end)

    return Tensor(name, shape, dtype, nbytes, Stored(source, 0, view.array.dtype, read=read))


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    import torch

    tensor = tensor.detach().resolve_neg()
    if tensor.dtype == torch.bfloat16:  # for which torch knows no type of NumPy's
        return np.asarray(tensor.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
    return np.asarray(tensor.numpy())
