"""Weights on a GPU: the memory and the streams that the core's plans there are given.

Results are CuPy arrays, on the device of the weights and on the caller's stream: the current one
of the weights' library if that says which it is (torch does), else CuPy's. All memory is CuPy's,
whose pool hands it on in the order of the stream, so that nothing is waited for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np

from . import _core
from ._convention import FLOAT64, coefficient, widest
from .cuda import cupy

_TABLES = 8  # lists of gradients that a plan remembers


class _Uploaded(NamedTuple):
    """A table of buffers on the device, with its workspaces if it has its own."""

    table: Any
    address: int
    workspaces: tuple[int, int]
    memory: tuple[Any, ...]


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
        self._grads: OrderedDict[tuple[bool, int, bytes], _Uploaded] = OrderedDict()
        self._captured: list[_Uploaded] = []
        with self._stream() as stream:
            self._refuse_capture(stream, "a plan cannot be made")
            # Held, so that it outlives the memory that is taken on it.
            self._home = self._cupy.cuda.get_current_stream(core.device)
            n = len(self.dtypes)
            self._weights = self._allocate(core.table, own_workspaces=True)
            self._coefficients = self._cupy.empty((2, n), np.float64)
            core.attach(
                stream,
                self._weights.address,
                self._coefficients.data.ptr,
                *self._weights.workspaces,
            )

    def __del__(self) -> None:
        # The memory goes back to the pool in the order of the stream that it was taken on.
        if hasattr(self, "_home"):
            with suppress(RuntimeError):  # an error here has nobody to hear it
                self._core.settle(self._home.ptr)

    def set_coefficients(self, l1: list[float], l2: list[float]) -> None:
        with self._stream() as stream:
            self._refuse_capture(stream, "the strengths cannot be set")
            self._core.set_coefficients(stream, l1, l2)

    def sums(self, threads: int | None = None) -> tuple[Any, Any, Any, Any]:
        with self._stream() as stream:
            n = len(self.dtypes)
            abs_square = self._cupy.empty((2, n), np.float64)
            totals = self._cupy.empty(2, np.float64)
            address = abs_square.data.ptr
            self._core.sums(stream, address, address + 8 * n, totals.data.ptr)
        return abs_square[0], abs_square[1], totals[0], totals[1]

    def limbs(self) -> Any:
        with self._stream() as stream:
            limbs = self._cupy.empty((len(self.dtypes), 2, _core.LIMBS), np.int64)
            self._core.limbs(stream, limbs.data.ptr)
            return limbs.get()

    def value(self, threads: int | None = None) -> Any:
        with self._stream() as stream:
            value = self._cupy.empty((), self._dtype)
            self._core.value(stream, value.data.ptr, 0, self._wide)
        return value

    def values(self, threads: int | None = None) -> Any:
        """Each of the dtype that is `value`'s, rounded as that of the buffer alone."""
        with self._stream() as stream:
            values = self._cupy.empty(len(self.dtypes), self._dtype)
            self._core.value(stream, 0, values.data.ptr, self._wide)
        return values

    def add_grad(self, grads: list[Any], upstream: float, threads: int | None = None) -> None:
        table = self._core.gradient_table(grads)
        with self._stream() as stream:
            at = self._uploaded(table, stream, own_workspaces=False)
            self._core.add_grad(stream, at.table, at.address, upstream)

    def value_and_grad(self, grads: list[Any], upstream: float, threads: int | None = None) -> Any:
        table = self._core.gradient_table(grads)
        with self._stream() as stream:
            at = self._uploaded(table, stream, own_workspaces=False)
            value = self._cupy.empty((), self._dtype)
            self._core.value_and_grad(
                stream, at.table, at.address, upstream, value.data.ptr, self._wide
            )
        return value

    def prox(self, step: float, threads: int | None = None) -> None:
        with self._stream() as stream:
            self._core.prox(stream, step)

    def decay(self, rate: float, threads: int | None = None) -> None:
        with self._stream() as stream:
            self._core.decay(stream, rate)

    def clip_grad_norm(self, grads: list[Any], max_norm: float, threads: int | None = None) -> Any:
        table = self._core.norm_table(grads)
        with self._stream() as stream:
            at = self._uploaded(table, stream, own_workspaces=True)
            norm = self._cupy.empty(2, np.float64)
            self._core.clip(stream, at.table, at.address, *at.workspaces, max_norm, norm.data.ptr)
        return norm[0]

    @contextmanager
    def _stream(self) -> Iterator[int]:
        """The caller's stream, where CuPy takes memory from in the meantime."""
        cuda, device = self._cupy.cuda, self._core.device
        stream = self._core.stream()
        with cuda.Device(device):
            current = cuda.get_current_stream(device).ptr
            if stream is None or stream == current:
                yield current
            else:
                with cuda.ExternalStream(stream, device):
                    yield stream

    def _refuse_capture(self, stream: int, what: str) -> None:
        if self._core.capturing(stream):
            raise RuntimeError(f"{what} while the stream is captured into a graph")

    def _uploaded(self, table: Any, stream: int, own_workspaces: bool) -> _Uploaded:
        """The table on the device: it is there already if the same gradients come again."""
        # Of each stream, since its memory goes back to the pool in the order of that one.
        key = own_workspaces, stream, table.bytes
        found = self._grads.get(key)
        if found is None:
            self._refuse_capture(
                stream,
                "grads: these are new to the plan (a call before the capture makes them known), "
                "and nothing can be uploaded",
            )
            found = self._allocate(table, own_workspaces)
            self._core.upload(stream, table, found.address)
            self._grads[key] = found
            if len(self._grads) > _TABLES:
                self._grads.popitem(last=False)
        else:
            self._grads.move_to_end(key)
            if self._core.capturing(stream):
                self._captured.append(found)  # for as long as the graph may run
        return found

    def _allocate(self, table: Any, own_workspaces: bool) -> _Uploaded:
        memory = [self._cupy.empty(len(table.bytes), np.uint8)]
        if own_workspaces:
            memory += [self._cupy.empty(table.workspace_bytes, np.uint8) for _ in range(2)]
        address, *workspaces = (part.data.ptr for part in memory)
        first, second = workspaces or (0, 0)
        return _Uploaded(table, address, (first, second), tuple(memory))


def sums(items: Any, names: Any, single: bool, unique: bool) -> tuple[Any, Any, Any, Any]:
    """What `_core.sums` does for weights on a GPU."""
    return DevicePlan(_core.make_plan(items, names, single, unique)).sums()


def partial_sums(items: Any, names: Any, single: bool) -> Any:
    """What `_core.partial_sums` does for weights on a GPU: limbs on the host."""
    return DevicePlan(_core.make_plan(items, names, single)).limbs()


def penalty(
    items: Sequence[Any],
    names: Sequence[Any],
    single: bool,
    coefficients: Sequence[tuple[float, float]],
    dtype: np.dtype[Any],
) -> Any:
    """The penalty of weights on a GPU, with coefficients that are not rounded yet."""
    plan = DevicePlan(_core.make_plan(items, names, single), dtype)
    rounded = [
        [coefficient(dtype, one) for dtype, one in zip(plan.dtypes, ones, strict=True)]
        for ones in zip(*coefficients, strict=True)
    ]
    plan.set_coefficients(*rounded)
    return plan.value()
