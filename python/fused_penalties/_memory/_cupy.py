"""CuPy's memory and streams."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import cupy
from numpy.typing import NDArray


class _Foreign:
    """A stream of another library, under CUDA's stream protocol."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


class CupyMemory:
    """As `Memory` says."""

    def __init__(self) -> None:
        self._foreign: Any = None  # the last other stream, as CuPy's object

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        return cupy.empty(shape, dtype)

    def current_stream(self, device: int) -> int:
        handle: int = cupy.cuda.get_current_stream(device).ptr
        return handle

    def on(self, device: int, stream: int) -> AbstractContextManager[Any]:
        if stream == self.current_stream(device):
            return nullcontext()
        if self._foreign is None or self._foreign.ptr != stream:
            kind = cupy.cuda.Stream
            self._foreign = kind.null if stream == 0 else kind.from_external(_Foreign(stream))
        foreign: AbstractContextManager[Any] = self._foreign
        return foreign

    def to_device(self, array: Any, device: int) -> Any:
        return cupy.asarray(array)

    def to_host(self, array: Any) -> NDArray[Any]:
        host: NDArray[Any] = array.get()
        return host

    def is_number(self, value: Any, device: int) -> bool:
        return (
            type(value) is cupy.ndarray
            and value.device.id == device
            and value.size == 1
            and value.dtype.name in ("float32", "float64")
        )

    def cast(self, array: Any, dtype: str) -> Any:
        return array.astype(dtype, copy=False)
