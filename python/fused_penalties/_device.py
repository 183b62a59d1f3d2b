"""Weights on a GPU: the memory and the streams that the core's plans there are given.

Results are CuPy arrays, on the device of the weights and on the caller's stream: the current one
of the weights' library if that says which it is (torch does), else CuPy's. All memory is CuPy's,
whose pool hands it on in the order of the stream, so that nothing is waited for; only an upload may
have to, where more memory must be pinned for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _core
from ._convention import FLOAT64, coefficient, widest
from .cuda import cupy, cupy_stream

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

    def addresses(self) -> list[int]:
        return [part.data.ptr for part in self.memory]


class DevicePlan:
    """What `_core.Plan` is on the CPU: the same methods, whose results are CuPy arrays.

    `threads`, which those of the CPU take, means nothing here.
    """

    def __init__(self, core: Any, dtype: np.dtype[Any] | None = None) -> None:
        self._core = core
        self._cupy = cupy()
        self.dtypes: list[str] = core.dtypes
        self._dtype = widest(self.dtypes) if dtype is None else dtype
        self._wide = self._dtype == FLOAT64
        self._remembered: list[_Uploaded] = []
        self._captured: list[_Uploaded] = []
        self._foreign: Any = None
        _let_go()
        with self.stream(after_cupy=True) as stream:
            self._refuse_capture(stream, "a plan cannot be made")
            sizes = core.table_bytes, 16 * len(self.dtypes), *[core.workspace_bytes] * 2
            self._memory = tuple(map(self._bytes, sizes))
            core.attach(stream, *(part.data.ptr for part in self._memory))

    def __del__(self) -> None:
        if hasattr(self, "_memory"):
            parts = [known.memory for known in (*self._remembered, *self._captured)]
            _left.append((self._core.turns, (*self._memory, *parts)))
            _let_go()

    @contextmanager
    def stream(self, after_cupy: bool = False) -> Iterator[int]:
        """The caller's stream, made CuPy's current one, of the weights' device, in the meantime.

        With `after_cupy` it waits for what is on CuPy's own: there other libraries were asked to
        have their arrays ready.
        """
        cuda, device = self._cupy.cuda, self._core.device
        handle = self._core.stream()
        with _core.OnDevice(device):
            current = cuda.get_current_stream(device)
            if handle is None or handle == current.ptr:
                handle, other = current.ptr, None
            else:
                other = self._other_stream(handle)
            if after_cupy:
                _core.wait_for_stream(device, handle, current.ptr)
            captured = self._core.capturing(handle)
            with other or nullcontext():
                if not captured:
                    yield handle
                    return
                # CuPy may have to get more memory for a result, which a graph has no part in.
                mode = _core.exchange_capture_mode(_core.RELAXED_CAPTURE)
                try:
                    yield handle
                finally:
                    _core.exchange_capture_mode(mode)

    def strengths(self, l1: list[float], l2: list[float]) -> int:
        """Puts them on the device, and returns their number. Calls with another are refused."""
        with self.stream() as stream:
            self._refuse_capture(stream, "the strengths cannot be set")
            generation: int = self._core.set_coefficients(stream, l1, l2)
        return generation

    def sums(self, threads: int | None = None) -> tuple[Any, Any, Any, Any, Any]:
        with self.stream() as stream:
            n = len(self.dtypes)
            abs_square = self._cupy.empty((2, n), np.float64)
            totals = self._cupy.empty(2, np.float64)
            address = abs_square.data.ptr
            self._core.sums(stream, address, address + 8 * n, totals.data.ptr)
        return abs_square[0], abs_square[1], totals[0], totals[1], self._core.sizes

    def host_sums(self) -> tuple[Any, Any]:
        """Both sums of each buffer as NumPy arrays, which are waited for."""
        with self.stream():
            sum_abs, sum_square, *_ = self.sums()
            return sum_abs.get(), sum_square.get()

    def norm(self) -> Any:
        """The L2 norm over all buffers."""
        with self.stream() as stream:
            norm = self._cupy.empty(2, np.float64)
            self._core.norm(stream, norm.data.ptr)
        return norm[0]

    def limbs(self) -> Any:
        """Those of every buffer as a NumPy array, which is waited for."""
        with self.stream() as stream:
            limbs = self._cupy.empty((len(self.dtypes), 2, _core.LIMBS), np.int64)
            self._core.limbs(stream, limbs.data.ptr)
            return limbs.get()

    def value(self, strengths: int, threads: int | None = None) -> Any:
        with self.stream() as stream:
            value = self._cupy.empty((), self._dtype)
            self._core.value(stream, strengths, value.data.ptr, 0, self._wide)
        return value

    def values(self, strengths: int, threads: int | None = None) -> Any:
        """Each of the dtype that is `value`'s, rounded as that of the buffer alone."""
        with self.stream() as stream:
            values = self._cupy.empty(len(self.dtypes), self._dtype)
            self._core.value(stream, strengths, 0, values.data.ptr, self._wide)
        return values

    def asarray(self, value: Any) -> Any:
        """A NumPy result as a CuPy array where all other results are."""
        with self.stream():
            return self._cupy.asarray(value)

    def add_grad(
        self, strengths: int, grads: list[Any], upstream: float, threads: int | None = None
    ) -> None:
        found = self._find(grads, workspaces=False)
        with self.stream(after_cupy=True) as stream:
            uploaded = self._uploaded(found, grads, stream, workspaces=False)
            self._core.add_grad(stream, strengths, found, *uploaded.addresses(), upstream)

    def value_and_grad(
        self, strengths: int, grads: list[Any], upstream: float, threads: int | None = None
    ) -> Any:
        found = self._find(grads, workspaces=False)
        with self.stream(after_cupy=True) as stream:
            uploaded = self._uploaded(found, grads, stream, workspaces=False)
            value = self._cupy.empty((), self._dtype)
            self._core.value_and_grad(
                stream,
                strengths,
                found,
                *uploaded.addresses(),
                upstream,
                value.data.ptr,
                self._wide,
            )
        return value

    def prox(self, strengths: int, step: float, threads: int | None = None) -> None:
        with self.stream() as stream:
            self._core.prox(stream, strengths, step)

    def decay(self, strengths: int, rate: float, threads: int | None = None) -> None:
        with self.stream() as stream:
            self._core.decay(stream, strengths, rate)

    def clip_grad_norm(self, grads: list[Any], max_norm: float, threads: int | None = None) -> Any:
        found = self._find(grads, workspaces=True)
        with self.stream(after_cupy=True) as stream:
            uploaded = self._uploaded(found, grads, stream, workspaces=True)
            norm = self._cupy.empty(2, np.float64)
            self._core.clip(stream, found, *uploaded.addresses(), max_norm, norm.data.ptr)
        return norm[0]

    def _other_stream(self, handle: int) -> Any:
        if self._foreign is None or self._foreign.ptr != handle:
            self._foreign = cupy_stream(handle)
        return self._foreign

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

    def _find(self, grads: list[Any], workspaces: bool) -> Any:
        """The table of these gradients; with workspaces, that of all for their norm."""
        known = self._known(workspaces, lambda one: self._core.again(one.grads, grads))
        if known:
            return known.grads
        return (self._core.norm_table if workspaces else self._core.gradient_table)(grads)

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
        self._core.upload(stream, grads, found.memory[0].data.ptr)
        grads.see(arrays)
        remembered = [*self._remembered, found]
        while len(remembered) > _MOST_REMEMBERED:
            # The plan's own turns would not do: its next work may always be under way.
            _left.append((self._core.until_now(stream), remembered.pop(0).memory))
        self._remembered = remembered
        return found

    def _bytes(self, count: int) -> Any:
        return self._cupy.empty(count, np.uint8)


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


def sums(items: Any, names: Any, single: bool, unique: bool) -> tuple[Any, Any, Any, Any, Any]:
    """What `_core.sums` does for weights on a GPU."""
    return DevicePlan(_core.make_plan(items, names, single, unique)).sums()


def partial_sums(items: Any, names: Any, single: bool) -> Any:
    """What `_core.partial_sums` does for weights on a GPU: limbs on the host."""
    return DevicePlan(_core.make_plan(items, names, single)).limbs()


def plan_of(
    items: Sequence[Any], names: Sequence[Any], single: bool, dtype: np.dtype[Any] | None
) -> DevicePlan | None:
    """A plan with results of this dtype, or their own; None if the weights are on the CPU, where
    empty ones from a GPU may be too."""
    core = _core.make_plan(items, names, single)
    return None if isinstance(core, _core.Plan) else DevicePlan(core, dtype)


def beside(value: np.generic | NDArray[Any], array: Any) -> Any:
    """A NumPy scalar or array as a CuPy array on the device of another array."""
    known = hasattr(array, "__dlpack_device__")
    with _core.OnDevice(int(array.__dlpack_device__()[1])) if known else nullcontext():
        return cupy().asarray(value)


def penalty(plan: DevicePlan, coefficients: Sequence[tuple[float, float]]) -> Any:
    """The penalty under coefficients that are not rounded yet."""
    rounded = [
        [coefficient(dtype, one) for dtype, one in zip(plan.dtypes, ones, strict=True)]
        for ones in zip(*coefficients, strict=True)
    ]
    return plan.value(plan.strengths(*rounded))
