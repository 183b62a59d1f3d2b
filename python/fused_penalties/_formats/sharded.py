"""Models in many files: by an index, or all that lie in a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path

from .._file import FileFault, Stored, Tensor, Unfit, faults_of, natural, shortened
from .boxes import Part, Parts, tile
from .common import Note, Reader, Wanted, bounded, parsed, weight_file
from .pytorch import list_pytorch
from .safetensors import list_parts, list_safetensors

# A variant of the model has one more word: model.safetensors.index.fp16.json
INDEX = re.compile(r"\.(safetensors|bin)\.index(\.[^/]+)?\.json\Z", re.IGNORECASE | re.DOTALL)
DISTCP = (
    "in the own format of torch.distributed.checkpoint (.distcp), which is not read; save with its "
    "HuggingFaceStorageWriter, or convert: "
    "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pt"
)
_MOST_NAMES = 5  # of files beside those that are read, in a note

_SHARDS: dict[str, Reader] = {"safetensors": list_safetensors, "bin": list_pytorch}


def list_index(
    path: str, wanted: Wanted, note: Note, neighbours: Sequence[str] = ()
) -> list[Tensor]:
    """`neighbours` are weight files in its folder: told of are those that are no shards of it."""
    # An index is sorted by the alphabet, which says nothing.
    return sorted(_indexed(path, wanted, note, neighbours), key=lambda tensor: natural(tensor.name))


def _indexed(path: str, wanted: Wanted, note: Note, neighbours: Sequence[str]) -> Iterator[Tensor]:
    with weight_file(path) as (file, source):
        index = parsed(file.read(bounded(source.size)))
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict):
            raise Unfit("it has no weight_map")
        found = INDEX.search(path)
        assert found
        suffix = found[1].lower()
        names_in: dict[str, set[str]] = {}
        for name, shard in weight_map.items():
            # With a folder in it, the name could lead anywhere on the disk.
            beside = isinstance(shard, str) and Path(shard).name == shard and shard.isprintable()
            if not beside or not shard.lower().endswith(f".{suffix}"):
                raise Unfit(f"weight_map[{name!r}]: {shard!r} is no .{suffix} beside it")
            names_in.setdefault(shard, set()).add(name)
        _note_unread("the shards of its index", neighbours, names_in, note)
        total: int | None = 0
        for shard, names in names_in.items():
            if not any(map(wanted, names)):
                total = None  # not known: the shard is not opened
                continue
            try:
                shard_path = str(Path(path).with_name(shard))
                tensors = list(_SHARDS[suffix](shard_path, lambda name: True, lambda text: None))
            except FileFault as error:
                raise FileFault(path, f"shard {shard!r}: {error.fault}") from error
            held = {tensor.name for tensor in tensors}
            if missing := names - held:
                raise Unfit(f"shard {shard!r} has no tensor {min(missing)!r}")
            if unlisted := held - names:
                note(
                    f"shard {shard!r}: {len(unlisted)} left out that weight_map does not list, "
                    f"{min(unlisted)!r} first"
                )
            listed = [tensor for tensor in tensors if tensor.name in names]
            if total is not None:
                total += sum(tensor.nbytes for tensor in listed)
            yield from (tensor for tensor in listed if wanted(tensor.name))
        metadata = index.get("metadata")
        claimed = metadata.get("total_size") if isinstance(metadata, dict) else None
        if None not in (claimed, total) and claimed != total:
            note(f"total_size is {claimed!r}, but the tensors have {total} bytes")


def _note_unread(what: str, neighbours: Sequence[str], read: Container[str], note: Note) -> None:
    if unread := [name for name in neighbours if name not in read]:
        note(f"not read beside {what}: {', '.join(shortened(unread, _MOST_NAMES))}")


def list_folder(
    path: str, wanted: Wanted, note: Note, weight_files: Callable[[str, list[str]], list[str]]
) -> list[Tensor]:
    """By its index where it has one, else all safetensors, the parts of a tensor as one."""
    with faults_of(path):
        names = os.listdir(path)
        neighbours = [name for name in weight_files(path, names) if not INDEX.search(name)]
        indices, shards = indices_in(names), safetensors_in(names)
        if len(indices) > 1:
            raise Unfit(f"it has {len(indices)} indices, {indices[0]!r} first; give one of them")
        if any(name.endswith(".distcp") for name in names):
            raise Unfit(DISTCP)
        if not indices and not shards:
            raise Unfit("a folder without weight files in it")
        try:
            if indices:
                return list_index(os.path.join(path, indices[0]), wanted, note, neighbours)
            _note_unread("its .safetensors", neighbours, shards, note)
            return sorted(_whole(path, shards, wanted), key=lambda tensor: natural(tensor.name))
        except FileFault as error:
            inside = error.path.removeprefix(os.path.join(path, ""))
            raise FileFault(path, f"{inside!r}: {error.fault}") from error


def indices_in(names: list[str]) -> list[str]:
    """Those of .safetensors if there are any, since a model may be there in both formats."""
    found = [(match[1].lower(), name) for name in sorted(names) if (match := INDEX.search(name))]
    kind = max((kind for kind, _ in found), default="")
    return [name for own, name in found if own == kind]


def safetensors_in(names: list[str]) -> list[str]:
    return [name for name in sorted(names) if name.lower().endswith(".safetensors")]


def _whole(path: str, shards: list[str], wanted: Wanted) -> Iterator[Tensor]:
    found: dict[str, list[tuple[str, Tensor, tuple[int, ...] | None]]] = {}
    for shard in shards:
        for tensor, offsets in list_parts(os.path.join(path, shard), wanted):
            found.setdefault(tensor.name, []).append((shard, tensor, offsets))
    for name, parts in found.items():
        tensors = [tensor for _, tensor, _ in parts]
        if len(parts) == 1 and not any(parts[0][2] or ()):
            yield tensors[0]
            continue
        if whole := [shard for shard, _, offsets in parts if offsets is None]:
            other = next(shard for shard, _, _ in parts if shard != whole[0])
            raise Unfit(f"{name!r} is in {whole[0]!r} and in {other!r}")
        yield _joined(
            name, [(tensor, offsets) for _, tensor, offsets in parts if offsets is not None]
        )


def _joined(name: str, parts: list[tuple[Tensor, tuple[int, ...]]]) -> Tensor:
    kinds = {(tensor.dtype, len(tensor.shape)) for tensor, _ in parts}
    if len(kinds) > 1:
        raise Unfit(f"the parts of {name!r} are not of one kind")
    dtype = parts[0][0].dtype
    ends = [
        tuple(first + size for first, size in zip(offsets, tensor.shape, strict=True))
        for tensor, offsets in parts
    ]
    shape = tuple(max(axis) for axis in zip(*ends, strict=True))
    if not tile(shape, [(offsets, end) for (_, offsets), end in zip(parts, ends, strict=True)]):
        raise Unfit(
            f"the parts of {name!r} ({len(parts)}) overlap, or leave a gap: is a file missing?"
        )
    nbytes = sum(tensor.nbytes for tensor, _ in parts)
    held = [
        Part(offsets, tensor.shape, tensor.stored)
        for tensor, offsets in parts
        if tensor.stored and tensor.nbytes
    ]
    if not held:
        stored = parts[0][0].stored
        return Tensor(name, shape, dtype, nbytes, stored)
    first = held[0].stored
    native = first.dtype.newbyteorder("=")
    reads = Parts(shape, native, held).read
    return Tensor(name, shape, dtype, nbytes, Stored(first.source, 0, native, read=reads))
