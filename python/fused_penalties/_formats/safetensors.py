"""Safetensors files: a JSON header, and the weights one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .._file import Corrupt, Stored, Tensor, exactly, natural
from .common import SUMMED, Note, Wanted, bounded, little_endian, nbytes_of, parsed, weight_file

_BITS = {"BOOL": 8, "F4": 4, "BF16": 16, "C64": 64} | {
    f"{kind}{bits}": bits for kind in "IUF" for bits in (8, 16, 32, 64) if (kind, bits) != ("F", 8)
}


def list_safetensors(path: str, wanted: Wanted, note: Note) -> Iterator[Tensor]:
    in_parts = Path(path).name.startswith("shard-")  # as torch.distributed.checkpoint names them
    said = False
    # The file has them by dtype and alphabet, which says nothing.
    for tensor, offsets in sorted(list_parts(path, wanted), key=lambda part: natural(part[0].name)):
        if offsets is not None and (in_parts or any(offsets)) and not said:
            note(
                f"{tensor.name!r} may be one part of a tensor that torch.distributed.checkpoint "
                "saved; its folder has the whole"
            )
            said = True
        yield tensor


def list_parts(path: str, wanted: Wanted) -> Iterator[tuple[Tensor, tuple[int, ...] | None]]:
    """The tensors, and where in a larger one each begins, if the file says that it may be a part.

    This is what torch.distributed.checkpoint writes, a file or more for each process.
    """
    with weight_file(path) as (file, source):
        length = int.from_bytes(exactly(file, 8), "little")
        if length > source.size - 8:
            raise Corrupt(f"a header of {length:,} bytes in a file of {source.size:,}")
        header = parsed(exactly(file, bounded(length)).decode())
        if not isinstance(header, dict):
            raise Corrupt("its header is no JSON object")
        metadata = header.pop("__metadata__", None)
        offsets = _Offsets(metadata)
        start = 8 + length
        at = 0
        entries = [_entry(name, entry) for name, entry in header.items()]
        for name, shape, dtype, begin, end in sorted(entries, key=lambda entry: entry[3:]):
            if begin != at:
                raise Corrupt(f"{name!r} begins at {begin:,}, where {at:,} was to be expected")
            at = end
            bits = _BITS.get(dtype)  # None: a dtype newer than this list, of one bit at the least
            nbytes = nbytes_of(shape, bits or 1, end - begin)
            if nbytes is None or (bits and nbytes < end - begin):
                raise Corrupt(f"{name!r} has {end - begin:,} bytes, which its shape does not take")
            if wanted(name):
                summed = SUMMED.get(dtype)
                stored = summed and Stored(source, start + begin, little_endian(summed))
                word = summed.name if summed else dtype
                yield Tensor(name, shape, word, end - begin, stored), offsets.of(name, shape)
        if start + at != source.size:
            raise Corrupt(f"{source.size:,} bytes, where its header says {start + at:,}")


class _Offsets:
    """What the metadata of torch.distributed.checkpoint says, which is JSON once more."""

    def __init__(self, metadata: Any) -> None:
        text = metadata.get("DCP_SHARDING_INFO") if isinstance(metadata, dict) else None
        self._parts = parsed(text) if isinstance(text, str) else None

    def of(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        if self._parts is None:
            return None
        try:
            offsets = self._parts[name]["saved_offsets"]
            if len(offsets) == len(shape) and all(type(n) is int and n >= 0 for n in offsets):
                return tuple(offsets)
        except (KeyError, TypeError):
            pass
        raise Corrupt(f"its DCP_SHARDING_INFO does not say where {name!r} begins")


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], str, int, int]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sound = isinstance(dtype, str) and begin <= end
        if sound and all(type(n) is int and 0 <= n < 2**64 for n in [*shape, begin, end]):
            return name, tuple(shape), dtype, begin, end
    except (KeyError, TypeError, ValueError):
        pass
    raise Corrupt(f"{name!r} has no dtype, shape and data_offsets of the format")
