"""Σ|w| and Σw² of a buffer that comes piece by piece."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _core
from ._numbers import flag
from ._sums import PartialSums, Sums
from ._weights import dtype_name
from .typing import Array, Numbers


class StreamingSums:
    """The sums of one buffer whose elements come in chunks, with the bits of `sums` of the whole.

    ::

        stream = StreamingSums()
        for chunk in chunks:
            stream.update(chunk)
        stream.sums().abs

    Chunks may have any sizes, also smaller than a block of 8 KiB: the sums are those of
    ``np.concatenate`` of the chunks, each flat. Nothing is kept of them but the elements of a block
    that is not full yet. One call at a time may change a stream: while `update` or `merge` is at
    work, another one raises RuntimeError, and other methods see the state from before it.

    Several streams may each take a part of one buffer: give each the `start` of its part, and merge
    neighbours, from the first to the last or in any grouping. Parts may be cut anywhere; a stream
    that starts in the middle of a block keeps the elements of that block until it is merged.

    Args:
        dtype: of the elements: "float16", "bfloat16", "float32" or "float64", or a dtype of
            NumPy, torch or others that has this name. None leaves it to the first chunk that has
            elements.
        start: how many elements of the buffer come before the first one of this stream.
        largest: find the largest magnitude too.
    """

    def __init__(self, dtype: Any = None, *, start: int = 0, largest: bool = False) -> None:
        if hasattr(dtype, "shape") and not isinstance(dtype, np.dtype | type):
            raise TypeError(f"dtype: got {type(dtype).__name__}; wanted a dtype, or None")
        name = "" if dtype is None else dtype_name(dtype)
        self._core = _core.Stream(name, _count("start", start), flag(largest, "largest"))

    @property
    def dtype(self) -> str | None:
        """ "float16", "bfloat16", "float32" or "float64"; None if it is not known yet."""
        return self._core.dtype

    @property
    def start(self) -> int:
        """How many elements of the buffer come before those of this stream."""
        return self._core.start

    @property
    def size(self) -> int:
        """How many elements have come."""
        return self._core.size

    def update(self, chunk: Array | Numbers, *, threads: int | None = None) -> None:
        """Takes the next elements: those of one array on the CPU, of any size and layout.

        What is an array, and the order of its elements, are those of :func:`sums`: increasing
        addresses, whatever the axes. A chunk of the stream's dtype without elements changes
        nothing, nor does a call that raises. A view that is not contiguous is read by one thread.

        Args:
            chunk: an array; a (nested) list of numbers is one of float32.
            threads: as in :func:`sums`. Chunks below 2 MiB are read by the calling thread.

        Raises:
            TypeError: another dtype than the stream's, or what `sums` refuses.
            ValueError: an array on a GPU.
            RuntimeError: another call changes the stream at this moment.
            KeyboardInterrupt: as in :func:`sums`; the chunk then counts as not taken.
        """
        self._core.update(chunk, threads)

    def merge(self, other: StreamingSums) -> None:
        """Takes all elements of another stream, which starts where this one ends, and stays.

        Raises:
            TypeError: a stream of another dtype.
            ValueError: one that starts elsewhere; one with the largest magnitude and one without.
            RuntimeError: another call changes this stream at this moment.
        """
        if not isinstance(other, StreamingSums):
            raise TypeError(f"other: got {type(other).__name__}; wanted StreamingSums")
        self._core.merge(other._core)

    def partial_sums(self) -> PartialSums:
        """The exact sums of the elements so far, for merges and all-reduces with those of others.

        As with all partial sums, parts of one buffer must then be cut at multiples of 8 KiB.
        ValueError for a stream that starts in the middle of a block and has elements; `merge` has
        no such limits.
        """
        return self._partial_sums()[0]

    def _partial_sums(self) -> tuple[PartialSums, int]:
        """And how many elements these are the sums of."""
        limbs, largest, size = self._core.limbs()
        return PartialSums(limbs, largest=None if largest is None else [largest]), size

    def sums(self) -> Sums:
        """The sums of the elements so far, as those of one buffer; updates may go on.

        ValueError for a stream that starts in the middle of a block and has elements, which alone
        are no buffer: it is to be merged into the stream of those before. Without elements all sums
        are zero, wherever it starts.
        """
        exact, size = self._partial_sums()
        sums = exact.sums()
        sums.sizes = np.array([size], np.int64)
        return sums

    def state(self) -> dict[str, Any]:
        """All that the stream knows, as strings, integers and lists of them.

        For ``json.dumps(state)``, ``np.savez(file, **state)`` or a checkpoint, and `from_state`:

        - "dtype": its name, "" if it is not known yet
        - "start", "size": integers, as the properties
        - "limbs": the exact sums of the whole blocks, two lists of 70, as `PartialSums` has
        - "largest": their largest magnitude, as `float.hex` writes it; "" if it is not looked for
        - "head", "tail": the bytes, in hexadecimal, of the elements of a block that the stream
          starts or ends in the middle of; at most 8 KiB each
        """
        dtype, start, size, limbs, largest, head, tail = self._core.parts()
        return {
            "dtype": dtype,
            "start": start,
            "size": size,
            "limbs": limbs[0].tolist(),
            "largest": "" if largest is None else largest.hex(),
            "head": head.hex(),
            "tail": tail.hex(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> StreamingSums:
        """The stream whose `state` this is, also as ``np.load`` or ``json.loads`` gives it.

        ValueError or TypeError, which say what is wrong, for anything else.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state: got {type(state).__name__}; wanted a mapping")
        if set(state) != set(_PARTS):
            raise ValueError(f"state: got {sorted(map(str, state))}; wanted {sorted(_PARTS)}")
        dtype = _text("dtype", state["dtype"])
        stream = cls(dtype or None, start=_plain(state["start"]))
        size = _count("size", _plain(state["size"]))
        try:
            limbs = np.asarray(state["limbs"])
        except ValueError as error:
            raise ValueError(f"limbs: {error}") from error
        text = _text("largest", state["largest"])
        try:
            largest = float.fromhex(text) if text else None
        except (ValueError, OverflowError) as error:
            raise ValueError(f"largest: got {text!r}; wanted what float.hex gives") from error
        # Which checks them.
        exact = PartialSums(limbs[np.newaxis], largest=None if largest is None else [largest])
        edges = [_bytes(part, state[part]) for part in ("head", "tail")]
        stream._core = _core.Stream.from_parts(
            dtype, stream.start, size, exact.limbs, largest, *edges
        )
        return stream

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_state, (self.state(),)

    def __repr__(self) -> str:
        after = f" after {self.start}" if self.start else ""
        return f"<StreamingSums of {self.size} elements{after}, {self.dtype or 'of any dtype'}>"


_PARTS = ("dtype", "start", "size", "limbs", "largest", "head", "tail")


def _plain(value: Any) -> Any:
    """What np.load made an array of rank 0 of."""
    return value.item() if isinstance(value, (np.ndarray, np.generic)) and not value.ndim else value


def _count(label: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{label}: got {value!r}; wanted an integer")
    count = operator.index(value)
    if not 0 <= count < 2**63:
        raise ValueError(f"{label}: got {count}; wanted one from 0 to 2**63 - 1")
    return count


def _text(label: str, value: Any) -> str:
    text = _plain(value)
    if not isinstance(text, str):
        raise TypeError(f"{label}: got {type(text).__name__}; wanted a string")
    return text


def _bytes(label: str, value: Any) -> bytes:
    try:
        return bytes.fromhex(_text(label, value))
    except ValueError as error:
        raise ValueError(f"{label}: {error}; wanted bytes in hexadecimal") from error
