"""What ranks agree on before the first call: who holds what, and who sums which blocks.

Every rank makes it from the same tables, so nothing of it has to be sent.

A box is the part of a tensor that a rank holds. The lowest rank that holds a box owns it; other
holders are replicas and sum nothing. Boxes must tile their tensor. A box that is one run of the
tensor's elements in C order is cut at multiples of 8 KiB: its owner sums the whole blocks. A block
that spans boxes goes to the owner of its first element, to whom the others send the raw elements.
If one box of a tensor is no such run (a matrix that is sharded by columns), each box of it is
summed as a sequence of its own: within the error bounds, but not with the whole tensor's bits.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ._shards import Layout, numpy_dtype

BLOCK = 8192  # bytes

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offset and shape."""


class Piece(NamedTuple):
    """A run of the elements that this rank holds of a tensor, counted from its box's first one."""

    tensor: int
    start: int
    stop: int


class Parts(NamedTuple):
    """Pieces of blocks that span boxes, as this rank sends, receives and assembles them.

    `sent[rank]` are what this rank sends, and `received[rank]` says where in the assembled blocks,
    in bytes, lies what comes from there, in the order in which it comes.
    """

    sent: list[list[Piece]]
    received: list[list[tuple[int, int]]]
    kept: list[tuple[Piece, int]]
    blocks: list[tuple[int, int]]
    """Of each block that is assembled here: its tensor, and how many bytes it has."""


class Agreement(NamedTuple):
    names: tuple[str, ...]
    layouts: list[Layout]
    """A layout of each tensor, whose name, shape and dtype are everyone's."""
    sizes: list[int]
    inexact: tuple[str, ...]
    mine: dict[int, Layout]
    """What this rank holds, by the tensors' places."""
    pieces: list[Piece]
    parts: Parts
    spread: frozenset[int]
    """The tensors of which some rank has to send a part of a block."""
    replicas: list[tuple[int, int, int]]
    """Boxes of this rank that others hold too: the tensor, how many hold it, and who owns it."""
    digest: bytes


def agree(
    rank: int, tables: Sequence[Sequence[Layout]], argument: str = "named_shards"
) -> Agreement:
    """The agreement as this rank sees it. ValueError, the same on all ranks, if there is none.

    `argument` is what users call that of which the tables are.
    """
    size = len(tables)
    places: dict[str, int] = {}
    layouts: list[Layout] = []
    holders: list[dict[Box, list[int]]] = []
    first: list[int] = []
    for at, table in enumerate(tables):
        for layout in table:
            tensor = places.setdefault(layout.name, len(places))
            if tensor == len(layouts):
                layouts.append(layout)
                holders.append({})
                first.append(at)
            known = layouts[tensor]
            if layout.shape != known.shape or layout.dtype != known.dtype:
                _refuse_other(f"{argument}[{layout.name!r}]", known, first[tensor], layout, at)
            if math.prod(layout.local):
                holders[tensor].setdefault((layout.offset, layout.local), []).append(at)
    mine = {places[layout.name]: layout for layout in tables[rank]}
    parts = Parts([[] for _ in tables], [[] for _ in tables], [], [])
    pieces: list[Piece] = []
    inexact = []
    spread = set()
    run_of = functools.cache(_run)  # layers have shapes in common
    for tensor, (layout, boxes) in enumerate(zip(layouts, holders, strict=True)):
        label = f"{argument}[{layout.name!r}]"
        runs = [(run_of(box, layout.shape), owners[0]) for box, owners in boxes.items()]
        if any(run is None for run, _ in runs):
            _check_boxes(label, layout, boxes)
            inexact.append(layout.name)
            for (_, shape), owners in boxes.items():
                if owners[0] == rank:
                    pieces.append(Piece(tensor, 0, math.prod(shape)))
            continue
        ordered = sorted((*run, owner) for run, owner in runs if run is not None)
        _check_runs(label, layout, ordered)
        if _share_out(tensor, layout, ordered, rank, pieces, parts):
            spread.add(tensor)
    replicated = [
        (tensor, len(owners), owners[0])
        for tensor, boxes in enumerate(holders)
        for owners in boxes.values()
        if len(owners) > 1 and rank in owners
    ]
    digest = hashlib.blake2b(
        repr((size, layouts, [list(boxes.items()) for boxes in holders])).encode()
    ).digest()
    return Agreement(
        tuple(places),
        layouts,
        [math.prod(layout.shape) for layout in layouts],
        tuple(inexact),
        mine,
        pieces,
        parts,
        frozenset(spread),
        replicated,
        digest,
    )


def _refuse_other(label: str, one: Layout, rank: int, other: Layout, at: int) -> None:
    for what, here, there in (
        ("shape", one.shape, other.shape),
        ("dtype", one.dtype, other.dtype),
    ):
        if here != there:
            hint = "" if one.declared and other.declared else " (shards are DTensors, or Shard)"
            raise ValueError(
                f"{label}: its {what} is {here} on rank {rank} but {there} on rank {at}; wanted "
                f"the same everywhere{hint}"
            )


def _run(box: Box, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """From where to where its elements go in the tensor's C order; None if they are no one run."""
    offset, sizes = box
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    inner = next((axis for axis, size in enumerate(sizes) if size > 1), len(sizes))
    if any(sizes[axis] != shape[axis] for axis in range(inner + 1, len(shape))):
        return None
    start = sum(first * stride for first, stride in zip(offset, strides, strict=True))
    return start, start + math.prod(sizes)


def _check_runs(label: str, layout: Layout, runs: Sequence[tuple[int, int, int]]) -> None:
    end, last = 0, -1
    for start, stop, owner in runs:
        if start > end:
            _refuse(label, layout, f"elements {end} to {start - 1} are on no rank")
        if start < end:
            _refuse(label, layout, f"the different shards of ranks {last} and {owner} overlap")
        end, last = stop, owner
    if end != math.prod(layout.shape):
        _refuse(label, layout, f"elements {end} to {math.prod(layout.shape) - 1} are on no rank")


def _check_boxes(label: str, layout: Layout, boxes: dict[Box, list[int]]) -> None:
    low = np.array([offset for offset, _ in boxes], np.int64)
    high = low + np.array([sizes for _, sizes in boxes], np.int64)
    owners = [ranks[0] for ranks in boxes.values()]
    for at in range(1, len(boxes)):
        meet = (np.maximum(low[:at], low[at]) < np.minimum(high[:at], high[at])).all(axis=1)
        if meet.any():
            other = owners[int(meet.argmax())]
            _refuse(
                label, layout, f"the different shards of ranks {other} and {owners[at]} overlap"
            )
    held = sum(math.prod(sizes) for _, sizes in boxes)
    if held != math.prod(layout.shape):
        _refuse(label, layout, f"{math.prod(layout.shape) - held} of its elements are on no rank")


def _refuse(label: str, layout: Layout, why: str) -> None:
    raise ValueError(
        f"{label}: {why}; wanted shards that make up the whole tensor of shape {layout.shape}"
    )


def _share_out(
    tensor: int,
    layout: Layout,
    runs: Sequence[tuple[int, int, int]],
    rank: int,
    pieces: list[Piece],
    parts: Parts,
) -> bool:
    """Gives each block of a tensor to a rank; True if parts of blocks have to be sent."""
    itemsize = numpy_dtype(layout.dtype).itemsize
    block = BLOCK // itemsize
    whole = math.prod(layout.shape)
    spanning: dict[int, list[tuple[int, int, int]]] = {}  # by block: owner, and a part of its run
    for start, stop, owner in runs:
        inner = min(-(-start // block) * block, stop)
        end = stop if stop == whole else max(stop // block * block, inner)
        if start < inner:
            spanning.setdefault(start // block, []).append((owner, 0, inner - start))
        if end < stop:
            spanning.setdefault(end // block, []).append((owner, end - start, stop - start))
        if inner < end and owner == rank:
            pieces.append(Piece(tensor, inner - start, end - start))
    sends = False
    for shares in spanning.values():
        summing = shares[0][0]
        here = len(parts.blocks) * BLOCK
        to = here
        for owner, first, last in shares:
            count = (last - first) * itemsize
            sends |= owner != summing
            if owner == rank == summing:
                parts.kept.append((Piece(tensor, first, last), to))
            elif owner == rank:
                parts.sent[summing].append(Piece(tensor, first, last))
            elif rank == summing:
                parts.received[owner].append((to, count))
            to += count
        if rank == summing:
            parts.blocks.append((tensor, to - here))
    return sends


Pair = tuple[float, float]


def merged(tables: Iterable[dict[str, Pair]]) -> dict[str, Pair]:
    """The strengths of each tensor, of which ranks know those that they hold."""
    found: dict[str, tuple[Pair, int]] = {}
    for rank, table in enumerate(tables):
        for name, pair in table.items():
            there, at = found.setdefault(name, (pair, rank))
            if there != pair:
                raise ValueError(
                    f"regularizer: {name!r} has l1 = {there[0]:g} and l2 = {there[1]:g} on rank "
                    f"{at} but {pair[0]:g} and {pair[1]:g} on rank {rank}; wanted the same "
                    "everywhere"
                )
    return {name: pair for name, (pair, _) in found.items()}
