"""GGUF files, whose headers the package gguf reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .._file import Corrupt, Stored, Tensor, Unfit
from .common import SUMMED, Note, Wanted, little_endian, nbytes_of, weight_file

# A vocabulary of 256,000 words takes two millions.
_MOST_PARTS = 5_000_000


def list_gguf(path: str, wanted: Wanted, note: Note) -> Iterator[Tensor]:
    with weight_file(path) as (file, source):
        if file.read(4) != b"GGUF":
            raise Unfit("not a GGUF file: it does not begin with GGUF")
        for tensor in _header(path):
            shape = tuple(
                map(int, reversed(tensor.shape))
            )  # the axis that varies quickest is first
            begin, word = int(tensor.data_offset), tensor.tensor_type.name
            nbytes = int(tensor.n_bytes)
            summed = SUMMED.get(word)
            if summed and nbytes != nbytes_of(shape, 8 * summed.itemsize, source.size):
                raise Corrupt(f"{tensor.name!r} has a shape that does not fit the file")
            if begin + nbytes > source.size:
                raise Corrupt(f"{tensor.name!r} ends behind the end of the file")
            if wanted(tensor.name):
                stored = summed and Stored(source, begin, little_endian(summed))
                yield Tensor(tensor.name, shape, summed.name if summed else word, nbytes, stored)


def _header(path: str) -> list[Any]:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise Unfit(
            f"the package gguf, which reads it, cannot be imported ({error}); "
            "pip install 'fused-penalties[gguf]'"
        ) from error

    class Reader(GGUFReader):  # type: ignore[misc]
        """Behind the end it would read less than it is told, or as many empty parts; this one stops
        there."""

        parts = 0

        def _get(self, offset: int, dtype: Any, count: int = 1, *rest: Any, **named: Any) -> Any:
            if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
                raise EOFError
            self.parts += 1
            if self.parts > _MOST_PARTS:
                raise Unfit(f"a header of more than {_MOST_PARTS:,} parts")
            return super()._get(offset, dtype, count, *rest, **named)

    try:
        reader = Reader(path)
    except (MemoryError, OSError, EOFError, Unfit):
        raise
    except Exception as error:
        raise Corrupt(f"{error}") from error
    if reader.byte_order != "I":
        raise Unfit("its numbers are big-endian, which is not read")
    tensors: list[Any] = reader.tensors
    return tensors
