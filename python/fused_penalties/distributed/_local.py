"""The part of the sums that one rank makes: of the blocks that are its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._bind import BoundPlan, bind
from .._sums import larger
from .._weights import dtype_name
from ._agreement import BLOCK, Agreement, Piece
from ._shards import is_tensor, numpy_dtype
from ._wire import LIMBS, hash_of


class LocalSums:
    """Sums of what this rank holds of some of the tensors, at each call.

    Elements that are not there, as of a gradient that is None, count as zeros.
    """

    def __init__(self, agreement: Agreement, tensors: Sequence[int]) -> None:
        self.rows = {tensor: row for row, tensor in enumerate(tensors)}
        self._agreement = agreement
        parts = agreement.parts
        self._pieces = [one for one in agreement.pieces if one.tensor in self.rows]
        # A rank has at most one piece of each tensor.
        self._in_order = [self.rows[one.tensor] for one in self._pieces] == list(self.rows.values())
        # All edges of a plan are sent, as zeros where they are not of these tensors: so messages
        # have one length, also on ranks that are at calls of different kinds by mistake.
        self._sent, self._received, self._kept = parts.sent, parts.received, parts.kept
        self._blocks = [
            (at, tensor, count)
            for at, (tensor, count) in enumerate(parts.blocks)
            if tensor in self.rows
        ]
        self.received_bytes = [sum(count for _, count in some) for some in self._received]
        self.sent_bytes = [sum(self._bytes(piece) for piece in some) for some in self._sent]
        self._known: Any = None
        self._plan: BoundPlan | None = None
        self._summed: list[Piece] = []  # those that the plan is of
        self._arrays: dict[int, Any] = {}
        self._flat: dict[int, Any] = {}
        self._scratch: Any = None
        self._device: Any = None  # where it is; None for the CPU
        self._assembled: BoundPlan | None = None
        self.largest: NDArray[np.float64] | None = None  # of the last call, if it was to find them

    def take(self, arrays: dict[int, Any]) -> None:
        """Finds the memory of these arrays, unless it is where it was."""
        known = _places(list(arrays.values()))
        if known is not None and known == self._known:
            return
        self._known = None
        layouts = self._agreement.mine
        copied = False
        self._flat = {}
        for tensor, array in arrays.items():
            layout = layouts[tensor]
            if tuple(array.shape) != layout.local and (
                math.prod(array.shape) or math.prod(layout.local)
            ):
                raise ValueError(
                    f"{layout.name!r}: has the shape {tuple(array.shape)} on this rank; wanted "
                    f"{layout.local}, as when the plan was made"
                )
            if dtype_name(array.dtype) != layout.dtype:
                raise ValueError(
                    f"{layout.name!r}: has the dtype {dtype_name(array.dtype)} on this rank; "
                    f"wanted {layout.dtype}, as when the plan was made"
                )
            if is_tensor(array):
                array = array.detach()  # which keeps the memory, and is not recorded
            if not self._is_whole(tensor):
                array, is_copy = _run_of(array)
                copied |= is_copy
            self._flat[tensor] = array
        self._arrays = arrays  # which keeps their memory
        self._summed = [one for one in self._pieces if one.tensor in arrays]
        items = [self._elements(piece) for piece in self._summed]
        self._plan = bind(items, None, keep=True) if items else None
        self._prepare(next(iter(arrays.values()), None))
        self._known = None if copied else known

    def release(self) -> None:
        """Lets go of the arrays."""
        self._known = self._plan = None
        self._arrays, self._flat = {}, {}

    def digest_of(self, tensor: int) -> int:
        """A number that stands for the sums of what lies here of a tensor."""
        limbs = np.zeros((1, 2, LIMBS), np.int64)
        if tensor in self._flat:
            limbs = bind([self._flat[tensor]], None).limbs()
        return hash_of(limbs.tobytes())

    def to_send(self) -> Any:
        """The raw elements that other ranks sum, in the order of the ranks."""
        pieces = [piece for some in self._sent for piece in some]
        rows = {
            at: _bytes_of(self._elements(piece))
            for at, piece in enumerate(pieces)
            if piece.tensor in self._flat
        }
        like = next(iter(rows.values()), None)
        if like is None:
            return self.nothing_to_send()
        on_gpu = is_tensor(like)
        zeros: Any = np.zeros(BLOCK, np.uint8)
        if on_gpu:
            import torch

            zeros = torch.zeros(BLOCK, dtype=torch.uint8, device=like.device)
        found = [
            rows[at] if at in rows else zeros[: self._bytes(piece)]
            for at, piece in enumerate(pieces)
        ]
        return torch.cat(found) if on_gpu else np.concatenate(found)

    def nothing_to_send(self) -> NDArray[np.uint8]:
        return np.zeros(sum(self.sent_bytes), np.uint8)

    def limbs(self, with_largest: bool = False) -> NDArray[np.int64]:
        """Of the blocks that lie here, each tensor's in its row, in their canonical form.

        `with_largest` finds the largest magnitudes too, in the same read.
        """
        self.largest = np.zeros(len(self.rows)) if with_largest else None
        found = None if self._plan is None else self._summed_by(self._plan, self._summed_rows())
        if found is not None and self._in_order and len(found) == len(self.rows):
            return found
        limbs = np.zeros((len(self.rows), 2, LIMBS), np.int64)
        if found is not None:
            limbs[self._summed_rows()] = found
        return limbs

    def _summed_rows(self) -> list[int]:
        return [self.rows[piece.tensor] for piece in self._summed]

    def _summed_by(self, plan: BoundPlan, rows: list[int]) -> NDArray[np.int64]:
        """The limbs of a plan's buffers, one of each row; if wanted their largest magnitudes."""
        if self.largest is None:
            return plan.limbs()
        limbs, found = plan.limbs_and_largest()
        self.largest[rows] = larger(self.largest[rows], found)
        return limbs

    def add_assembled(self, limbs: NDArray[np.int64], received: Any) -> NDArray[np.int64]:
        """With those of the blocks that span boxes, of which other ranks have sent a part."""
        if self._assembled is None:
            return limbs
        for piece, to in self._kept:
            if piece.tensor in self._flat:
                self._put(to, _bytes_of(self._elements(piece)))
            else:
                self._scratch[to : to + self._bytes(piece)] = 0
        at = 0
        if is_tensor(received) and not is_tensor(self._scratch):
            received = received.cpu().numpy()
        elif is_tensor(self._scratch) and not is_tensor(received):
            import torch

            received = torch.from_numpy(received).to(self._scratch.device)
        for some in self._received:
            for to, count in some:
                self._put(to, received[at : at + count])
                at += count
        rows = [self.rows[tensor] for _, tensor, _ in self._blocks]
        # One block of a tensor at most: where a box ends.
        limbs[rows] += self._summed_by(self._assembled, rows)
        return _core.canonical_limbs(limbs)

    def _put(self, to: int, raw: Any) -> None:
        self._scratch[to : to + len(raw)] = raw

    def _is_whole(self, tensor: int) -> bool:
        """True if it is summed as it lies here, in the order of its addresses, and never cut.

        What says that it is a part is taken in C order, also where the part is all.
        """
        layout = self._agreement.mine[tensor]
        return not layout.declared or layout.name in self._agreement.inexact

    def _elements(self, piece: Piece) -> Any:
        array = self._flat[piece.tensor]
        return array if self._is_whole(piece.tensor) else array[piece.start : piece.stop]

    def _bytes(self, piece: Piece) -> int:
        itemsize: int = numpy_dtype(self._agreement.layouts[piece.tensor].dtype).itemsize
        return (piece.stop - piece.start) * itemsize

    def _prepare(self, like: Any) -> None:
        """Room for the blocks that are assembled here, beside these arrays."""
        device = like.device if is_tensor(like) and like.device.type != "cpu" else None
        if not self._blocks or (self._assembled is not None and device == self._device):
            return
        self._device = device
        count = BLOCK * len(self._agreement.parts.blocks)
        layouts = self._agreement.layouts
        items = []
        if device is not None:
            import torch

            self._scratch = torch.zeros(count, dtype=torch.uint8, device=device)
            for at, tensor, size in self._blocks:
                raw = self._scratch[at * BLOCK : at * BLOCK + size]
                items.append(raw.view(getattr(torch, layouts[tensor].dtype)))
        else:
            self._scratch = np.zeros(count, np.uint8)
            for at, tensor, size in self._blocks:
                raw = self._scratch[at * BLOCK : at * BLOCK + size]
                items.append(raw.view(numpy_dtype(layouts[tensor].dtype)))
        self._assembled = bind(items, None, keep=True)


def _places(arrays: list[Any]) -> Any:
    """Where tensors are, and which other arrays these are; None if that is not known.

    Those stay where they are, or the core finds out.
    """
    tensors, others = [], []
    for one in arrays:
        if is_tensor(one):
            tensors.append(one)
        else:
            others.append(id(one))
    place = _core.place_of(tensors)
    return None if place is None else (place, others)


def _run_of(array: Any) -> tuple[Any, bool]:
    """Its elements in C order as one row, and whether that is a copy."""
    if is_tensor(array):
        contiguous = array.is_contiguous()
        return array.reshape(-1), not contiguous
    native = array.dtype.newbyteorder("=")
    found = np.ascontiguousarray(array, native).reshape(-1)
    return found, not np.shares_memory(found, array) and array.size > 0


def _bytes_of(run: Any) -> Any:
    if is_tensor(run):
        import torch

        raw = run.view(torch.uint8)
        return raw.numpy() if raw.device.type == "cpu" else raw
    return run.view(np.uint8)
