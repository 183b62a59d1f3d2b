"""The part of torch that the package uses for tensors on a GPU, over the emulated CuPy's memory.

With the emulated GPU only: on a real one the tests of torch run with torch. As the real ones,
tensors are found by the exchange table of DLPack 1.3, and torch has a current stream of its own.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cupy
import numpy as np

import capsules

uint8, int64 = "uint8", "int64"
float16, bfloat16, float32, float64 = "float16", "bfloat16", "float32", "float64"


class _Local(threading.local):
    def __init__(self) -> None:
        self.streams: dict[int, Any] = {}


_local = _Local()


class Tensor(capsules.Framework):
    requires_grad = False

    def __init__(self, array: Any) -> None:
        super().__init__(array)
        self.dtype = f"torch.{array.dtype.name}"

    def detach(self) -> Tensor:
        return Tensor(self.array)

    def get_device(self) -> int:
        device: int = self.array.data.device_id
        return device

    def numel(self) -> int:
        return int(self.array.size)

    def element_size(self) -> int:
        return int(self.array.dtype.itemsize)

    def is_floating_point(self) -> bool:
        return self.array.dtype.kind == "f"

    def is_neg(self) -> bool:
        return False

    def __getitem__(self, key: Any) -> Tensor:
        return Tensor(self.array[key])

    def __len__(self) -> int:
        return len(self.array)

    def __iter__(self) -> Any:
        return (self[k] for k in range(len(self)))

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("there is a faster way")

    # In the order of torch's current stream.

    def _now(self) -> Any:
        with _on(self.array.data.device_id):
            return self.array.get()

    def cpu(self) -> Any:
        return _Host(self._now())

    def to(self, dtype: str) -> Tensor:
        return as_tensor(self._now().astype(dtype), f"cuda:{self.array.data.device_id}")

    def sqrt(self) -> Tensor:
        with _on(self.array.data.device_id):
            return Tensor(np.sqrt(self.array))

    def __truediv__(self, other: Any) -> Tensor:
        by = other._now() if isinstance(other, Tensor) else other
        assert not isinstance(other, np.ndarray), "torch divides by no NumPy array"
        return as_tensor(self._now() / by, f"cuda:{self.array.data.device_id}")

    def __float__(self) -> float:
        return float(self._now())

    def tolist(self) -> Any:
        return self._now().tolist()

    @staticmethod
    def _current_stream_of(kind: int, device: int, out: Any) -> int:
        out[0] = cuda.current_stream(device).cuda_stream
        return 0


class _Host:
    def __init__(self, array: Any) -> None:
        self.array = array

    def numpy(self) -> Any:
        return self.array


_fields = dict(capsules.ExchangeApi._fields_)
_table = capsules.ExchangeApi(
    1, 3, None, None, None, None,
    _fields["tensor_from_object"](Tensor._tensor_from_object),
    _fields["current_stream"](Tensor._current_stream_of),
)  # fmt: skip
Tensor.__dlpack_c_exchange_api__ = capsules._new(  # type: ignore[attr-defined]
    ctypes.addressof(_table), capsules._NAMES[2], None
)


@contextmanager
def _on(device: int) -> Iterator[None]:
    with cupy.cuda.Device(device), cuda.current_stream(device).stream:
        yield


def _number(device: str) -> int:
    kind, _, number = device.partition(":")
    assert kind == "cuda"
    return int(number) if number else cupy.cuda.runtime.getDevice()


def empty(shape: Any, *, dtype: str, device: str) -> Tensor:
    with _on(_number(device)):
        return Tensor(cupy.empty(shape, dtype))


def as_tensor(array: Any, device: str) -> Tensor:
    with _on(_number(device)):
        return Tensor(cupy.asarray(array))


class _Stream:
    def __init__(self, stream: Any) -> None:
        self.stream, self.cuda_stream = stream, stream.ptr

    def synchronize(self) -> None:
        self.stream.synchronize()


class cuda:
    @staticmethod
    def is_available() -> bool:
        return True

    is_initialized = is_available

    @staticmethod
    def Stream() -> _Stream:
        return _Stream(cupy.cuda.Stream(non_blocking=True))

    @staticmethod
    def ExternalStream(handle: int, device: int) -> _Stream:
        stream = cupy.cuda._BaseStream(handle, device)
        return _Stream(stream)

    @staticmethod
    def current_stream(device: int) -> _Stream:
        return _local.streams.get(device, _Stream(cupy.cuda.Stream.null))

    @staticmethod
    @contextmanager
    def stream(stream: _Stream) -> Iterator[None]:
        device = stream.stream._device
        before = cuda.current_stream(device)
        _local.streams[device] = stream
        try:
            yield
        finally:
            _local.streams[device] = before

    @staticmethod
    def synchronize() -> None:
        cupy.cuda.Device().synchronize()
