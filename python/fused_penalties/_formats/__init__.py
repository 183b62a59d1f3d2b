"""Which reader takes which file. A format more is one line of the table, and its reader."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import NamedTuple

from .._file import Tensor, Unfit, faults_of, natural, opened
from .common import Note, Reader, Wanted
from .gguf import list_gguf
from .npy import EXPANDS, list_npy, list_npz
from .pytorch import list_pytorch
from .safetensors import list_safetensors
from .sharded import DISTCP, INDEX, indices_in, list_folder, list_index, safetensors_in

__all__ = ["EXPANDS", "Note", "Wanted", "files_in", "list_tensors"]


class Format(NamedTuple):
    name: str
    matches: Callable[[str], object]  # of the file's path
    read: Reader


def _suffix(*names: str) -> Callable[[str], object]:
    return re.compile(rf"({'|'.join(map(re.escape, names))})\Z", re.IGNORECASE).search


def _weight_files(folder: str, names: list[str]) -> list[str]:
    """Those of the names in a folder, in their natural order."""
    return [
        name
        for name in sorted(names, key=natural)
        if not os.path.isdir(os.path.join(folder, name))
        and any(one.matches(name) for one in FORMATS[:-1])
    ]


def _list_folder(path: str, wanted: Wanted, note: Note) -> list[Tensor]:
    # It says which weight files it leaves; which files are, the table below knows.
    return list_folder(path, wanted, note, _weight_files)


# The first that matches has the file.
FORMATS = [
    Format(".npy", _suffix(".npy"), list_npy),
    Format(".npz", _suffix(".npz"), list_npz),
    Format(".safetensors", _suffix(".safetensors"), list_safetensors),
    Format(".safetensors.index.json, .bin.index.json", INDEX.search, list_index),
    Format(".pt, .pth, .bin, .ckpt", _suffix(".pt", ".pth", ".bin", ".ckpt"), list_pytorch),
    Format(".gguf", _suffix(".gguf"), list_gguf),
    Format("a folder of them", os.path.isdir, _list_folder),
]


def list_tensors(path: str, wanted: Wanted, note: Note) -> list[Tensor]:
    for one in FORMATS:
        if one.matches(path):
            return list(one.read(path, wanted, note))
    with opened(path):  # first of all it must be there
        if path.endswith(".distcp"):
            raise Unfit(DISTCP)
        names = ", ".join(one.name for one in FORMATS)
        raise Unfit(f"not a supported format ({names}); pickles (.pkl) are never loaded")


def files_in(path: str) -> list[str]:
    """What a path stands for: a folder is one model if it has an index or .safetensors, else all
    weight files in it, each for itself; all else is one file."""
    if not os.path.isdir(path):
        return [path]
    with faults_of(path):
        names = os.listdir(path)
    if indices_in(names) or safetensors_in(names):
        return [path]
    return [os.path.join(path, name) for name in _weight_files(path, names)] or [path]
