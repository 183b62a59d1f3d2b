"""The plan of weights on a GPU: which memory and which stream each call of the core's is given.

Results are arrays of the weights' library, torch's tensors or CuPy's arrays, on the device of the
weights and on the caller's stream: the current one of that library. Memory comes from its pool,
which hands it on in the order of the stream, so that nothing is waited for; only an upload may have
to, where more memory must be pinned for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _core, _memory

if TYPE_CHECKING:
    from ._bind import FoundSums

_MOST_REMEMBERED = 8  # lists of gradients

# Memory that nobody needs any more but work that may still be under way, with what tells when that
# is done. The pool would hand it on in the order of the stream that it was taken on, which may be
# gone by then, and its handle another one's.
_left: deque[tuple[_core.Turns, tuple[Any, ...]]] = deque()


class _Uploaded(NamedTuple):
    """Gradients whose table is on the device, with workspaces if it needs its own."""

    grads: Any
    stream: int
    memory: tuple[Any, ...]


class DevicePlan:
    """A `BoundPlan`."""

    def __init__(self, core: Any, items: Sequence[Any]) -> None:
        self._core = core
        ready = _memory.ready_stream(core.device)  # before CuPy is imported for this
        self._library = _memory.of(items)
        self.dtypes: list[str] = core.dtypes
        self.wide: bool = core.wide
        self._dtype = "float64" if core.wide else "float32"
        self._remembered: list[_Uploaded] = []
        self._captured: list[_Uploaded] = []
        _let_go()
        with self._stream(beside=ready) as stream:
            self._refuse_capture(stream, "a plan cannot be made")
            sizes = core.table_bytes, 16 * len(self.dtypes), *[core.workspace_bytes] * 2
            self._memory = tuple(map(self._bytes, sizes))
            core.attach(stream, *self._memory)

    def __del__(self) -> None:
        if hasattr(self, "_memory"):
            parts = [known.memory for known in (*self._remembered, *self._captured)]
            _left.append((self._core.turns, (*self._memory, *parts)))
            _let_go()

    @contextmanager
    def _stream(self, beside: int | None = None) -> Iterator[int]:
        """The caller's stream, the current one of the weights' library and device in the meantime.

        It waits for the stream `beside` at first, and that one for it in the end.
        """
        device, library = self._core.device, self._library
        handle = self._core.stream()
        with _core.OnDevice(device):
            if handle is None:
                handle = library.current_stream(device)
            waited = beside is not None and _core.wait_for_stream(device, handle, beside)
            captured = self._core.capturing(handle)
            with library.on(device, handle):
                # The pool may have to get more memory for a result, which a graph has no part in.
                mode = _core.exchange_capture_mode(_core.RELAXED_CAPTURE) if captured else None
                try:
                    yield handle
                finally:
                    if mode is not None:
                        _core.exchange_capture_mode(mode)
                    if beside is not None and waited:
                        _core.wait_for_stream(device, beside, handle)

    def _beside_others(self) -> AbstractContextManager[int]:
        """The caller's stream for changes, of arrays that may be other libraries' too.

        These were asked to have theirs ready on a stream that now comes before, and after, this.
        """
        return self._stream(beside=_memory.ready_stream(self._core.device))

    def strengths(self, l1: float | list[float], l2: float | list[float]) -> Any:
        """Puts them on the device."""
        with self._stream() as stream:
            self._refuse_capture(stream, "the strengths cannot be set")
            return self._core.strengths(stream, l1, l2)

    def sums(self, largest: bool) -> FoundSums:
        n = len(self.dtypes)
        with self._stream() as stream:
            each, totals = self._empty(2, n), self._empty(2)
            found = self._empty(n + 1) if largest else None
            self._core.sums(stream, each, totals, found)
        sums = each[0], each[1], totals[0], totals[1], self._core.sizes
        return (*sums, None, None) if found is None else (*sums, found[:n], found[n])

    def l2_norm(self) -> Any:
        with self._stream() as stream:
            norm = self._empty(2)
            self._core.norm(stream, norm)
        return norm[0]

    def limbs(self) -> NDArray[np.int64]:
        with self._stream() as stream:
            limbs = self._empty(len(self.dtypes), 2, _core.LIMBS, dtype="int64")
            self._core.limbs(stream, limbs, None)
            return self._library.to_host(limbs)

    def limbs_and_largest(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        n = len(self.dtypes)
        with self._stream() as stream:
            limbs = self._empty(n, 2, _core.LIMBS, dtype="int64")
            largest = self._empty(n + 1)
            self._core.limbs(stream, limbs, largest)
            return self._library.to_host(limbs), self._library.to_host(largest)[:n]

    def value(self, strengths: Any) -> Any:
        with self._stream() as stream:
            value = self._empty(dtype=self._dtype)
            self._core.value(stream, strengths, value, None)
        return value

    def values(self, strengths: Any) -> Any:
        with self._stream() as stream:
            values = self._empty(len(self.dtypes), dtype=self._dtype)
            self._core.value(stream, strengths, None, values)
        return values

    def terms(self, strengths: Any) -> NDArray[np.float64]:
        if not (any(strengths.l1) or any(strengths.l2)):
            return np.zeros(len(self.dtypes))
        with self._stream():
            sum_abs, sum_square, *_ = self.sums(False)
            sums = self._library.to_host(sum_abs), self._library.to_host(sum_square)
        return _core.terms(*sums, strengths.l1, strengths.l2)

    def rounded_total(self, terms: list[float]) -> Any:
        return self._to_device(self._core.rounded_total(terms))

    def rounded_each(self, terms: NDArray[np.float64]) -> Any:
        return self._to_device(self._core.rounded_each(terms))

    def scalars(self, values: Any) -> list[Any]:
        with self._stream():
            if not self.wide:
                return list(values)
            return [
                self._library.cast(
                    value, "float64" if _core.RESULT_IS_FLOAT64[dtype] else "float32"
                )
                for value, dtype in zip(values, self.dtypes, strict=True)
            ]

    def add_grad(self, strengths: Any, grads: list[Any], upstream: Any) -> None:
        found = self._find(strengths, grads)
        with self._beside_others() as stream:
            uploaded = self._uploaded(found, grads, stream, workspaces=False)
            factor = self._number(upstream)
            self._core.add_grad(stream, strengths, found, *uploaded.memory, factor)

    def write_grad(self, strengths: Any, grads: list[Any], upstream: Any) -> None:
        found = self._find(strengths, grads)
        with self._beside_others() as stream:
            uploaded = self._uploaded(found, grads, stream, workspaces=False)
            factor = self._number(upstream)
            self._core.write_grad(stream, strengths, found, *uploaded.memory, factor)

    def value_and_grad(self, strengths: Any, grads: list[Any], upstream: Any) -> Any:
        found = self._find(strengths, grads)
        with self._beside_others() as stream:
            uploaded = self._uploaded(found, grads, stream, workspaces=False)
            factor, value = self._number(upstream), self._empty(dtype=self._dtype)
            self._core.value_and_grad(stream, strengths, found, *uploaded.memory, factor, value)
        return value

    def prox(self, strengths: Any, step: float) -> None:
        with self._beside_others() as stream:
            self._core.prox(stream, strengths, step)

    def decay(self, strengths: Any, rate: float) -> None:
        with self._beside_others() as stream:
            self._core.decay(stream, strengths, rate)

    def clip_grad_norm(self, grads: list[Any], max_norm: float) -> Any:
        found = self._find(None, grads)
        with self._beside_others() as stream:
            uploaded = self._uploaded(found, grads, stream, workspaces=True)
            norm = self._empty(2)
            self._core.clip(stream, found, *uploaded.memory, max_norm, norm)
        return norm[0]

    def _refuse_capture(self, stream: int, what: str) -> None:
        if self._core.capturing(stream):
            raise RuntimeError(f"{what} while the stream is captured into a graph")

    def _known(self, workspaces: bool, fits: Callable[[_Uploaded], bool]) -> _Uploaded | None:
        """The last of the remembered ones, with workspaces or without, that fits."""
        known: _Uploaded
        for known in reversed(self._remembered):
            if (len(known.memory) > 1) == workspaces and fits(known):
                return known
        return None

    def _find(self, strengths: Any, grads: list[Any]) -> Any:
        """The table of these gradients; without strengths, that of all for their norm."""
        known = self._known(
            strengths is None, lambda one: self._core.again(one.grads, strengths, grads)
        )
        if known:
            return known.grads
        if strengths is None:
            return self._core.norm_table(grads)
        return self._core.gradient_table(strengths, grads)

    def _uploaded(self, grads: Any, arrays: list[Any], stream: int, workspaces: bool) -> _Uploaded:
        """Puts the table on the device, unless it is there: the same gradients may come again.

        The memory is another one for each stream, since it goes back to the pool in the order of
        the one that it was taken on. What a graph has captured is kept as long as the plan.
        """
        captured = self._core.capturing(stream)
        known = self._known(
            workspaces,
            lambda one: (captured or one.stream == stream) and bool(one.grads.same(grads)),
        )
        if known:
            if captured:
                self._captured.append(known)
            return known
        self._refuse_capture(
            stream,
            "grads: these are new to the plan (a call before the capture makes them known), and "
            "nothing can be uploaded",
        )
        _let_go()
        sizes = [grads.bytes, *[grads.workspace_bytes] * 2][: 3 if workspaces else 1]
        found = _Uploaded(grads, stream, tuple(map(self._bytes, sizes)))
        self._core.upload(stream, grads, found.memory[0])
        grads.see(arrays)
        remembered = [*self._remembered, found]
        while len(remembered) > _MOST_REMEMBERED:
            # The plan's own turns would not do: its next work may always be under way.
            _left.append((self._core.until_now(stream), remembered.pop(0).memory))
        self._remembered = remembered
        return found

    def _number(self, given: Any) -> Any:
        """What a kernel reads by itself; else a float, which may have to be waited for."""
        return given if self._library.is_number(given, self._core.device) else float(given)

    def _empty(self, *shape: int, dtype: str = "float64") -> Any:
        return self._library.empty(shape, dtype, self._core.device)

    def _bytes(self, count: int) -> Any:
        return self._empty(count, dtype="uint8")

    def _to_device(self, result: Any) -> Any:
        with self._stream():
            return self._library.to_device(result, self._core.device)


def _let_go() -> None:
    """Gives back what is left, the oldest first, up to the first whose work is not done."""
    while _left:
        try:
            oldest = _left.popleft()
        except IndexError:  # another thread has it
            return
        try:
            done = oldest[0].passed()
        except RuntimeError:  # not an error of this call, but of whatever is under way
            done = False
        if not done:
            _left.append(oldest)  # the next time others are looked at
            return
