"""What the readers of all formats share."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from .._file import Source, Tensor, Unfit, opened

Wanted = Callable[[str], bool]
Note = Callable[[str], None]


class Reader(Protocol):
    """What a format needs to have: it finds the tensors of a file, without a look at the weights.

    Tensors whose names are not wanted are left out. `note` is told of what is odd but no fault;
    what is one is raised, as a FileFault.
    """

    def __call__(self, path: str, wanted: Wanted, note: Note) -> Iterable[Tensor]: ...


# The four that are summed, under the names that safetensors and GGUF have for them.
SUMMED: dict[str, np.dtype[Any]] = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}

# What the safetensors format allows. It also bounds the memory that a hostile header can take.
MOST_HEADER = 100_000_000

_GIT_LFS = b"version https://git-lfs"


@contextmanager
def weight_file(path: str) -> Iterator[tuple[BufferedReader, Source]]:
    """The file, if there is something in it."""
    with opened(path) as (file, source):
        first = file.read(len(_GIT_LFS))
        if not first:
            raise Unfit("the file is empty")
        if first == _GIT_LFS:
            raise Unfit("a pointer of Git LFS; the file itself was not fetched")
        file.seek(0)
        yield file, source


def little_endian(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype if dtype.kind == "V" else dtype.newbyteorder("<")  # bfloat16 has only its own


def nbytes_of(shape: Sequence[int], bits: int, most: int) -> int | None:
    """How many bytes an array takes; None if it is more than `most`."""
    size = 0 if 0 in shape else 1
    for length in shape if size else ():
        size *= length
        if size * bits > 8 * most:
            return None
    return (size * bits + 7) // 8


def bounded(length: int) -> int:
    if length > MOST_HEADER:
        raise Unfit(f"a header of {length:,} bytes; at most {MOST_HEADER:,} are read")
    return length


def parsed(text: str | bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
            raise Unfit(f"the key {twice!r} occurs twice")
        return fields

    return json.loads(text, object_pairs_hook=unique)
