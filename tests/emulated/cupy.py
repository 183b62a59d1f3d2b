"""The part of CuPy that the package and its GPU tests use, over the host's memory.

With an extension built with ``FUSED_PENALTIES_CUDA=EMULATED`` it lets the tests of the `cuda`
marker run without a GPU: the same Python, the same binding, the same source of the kernels. As on a
GPU, work waits on its stream until somebody synchronizes, and fresh memory holds nothing useful.
"""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import numpy as np

from fused_penalties import _core

__version__ = "emulated"

_lib = ctypes.CDLL(_core.__file__)
for _name in ("synchronize", "begin_capture", "end_capture"):
    getattr(_lib, f"emulated_{_name}").argtypes = [ctypes.c_void_p]
_lib.emulated_copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_lib.emulated_launch_graph.argtypes = [ctypes.c_void_p, ctypes.c_int]

_in_use: list[np.ndarray[Any, Any]] = []  # what work that still waits may read or write


class _Memory:
    def __init__(self, ptr: int, device_id: int) -> None:
        self.ptr = ptr
        self.device_id = device_id


class ndarray:
    def __init__(self, array: np.ndarray[Any, Any], device: int) -> None:
        self._array = array
        self._device = device

    shape = property(lambda self: self._array.shape)
    strides = property(lambda self: self._array.strides)
    dtype = property(lambda self: self._array.dtype)
    ndim = property(lambda self: self._array.ndim)
    size = property(lambda self: self._array.size)
    nbytes = property(lambda self: self._array.nbytes)
    T = property(lambda self: ndarray(self._array.T, self._device))

    @property
    def data(self) -> _Memory:
        return _Memory(self._array.ctypes.data if self.size else 0, self._device)

    @property
    def device(self) -> Any:
        return cuda.Device(self._device)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self._device)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        stream = cuda.get_current_stream().ptr or 1
        interface = dict(self._array.__array_interface__)
        return {**interface, "version": 3, "stream": stream}

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        host = [x.get() if isinstance(x, ndarray) else x for x in inputs]
        return asarray(getattr(ufunc, method)(*host, **options))

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Any:
        return (self[k] for k in range(len(self)))

    def __getitem__(self, key: Any) -> ndarray:
        view = self._array[key]
        if not isinstance(view, np.ndarray):
            view = self._array[(*np.atleast_1d(key), ...)]
        return ndarray(view, self._device)

    def __setitem__(self, key: Any, value: Any) -> None:
        """A copy in the order of the stream, for contiguous targets."""
        target = self._array[key]
        assert target.flags.c_contiguous
        source = value._array if isinstance(value, ndarray) else value
        source = np.ascontiguousarray(np.broadcast_to(source, target.shape).astype(target.dtype))
        _in_use.append(source)
        stream = cuda.get_current_stream().ptr
        _lib.emulated_copy(stream, target.ctypes.data, source.ctypes.data, source.nbytes)

    def reshape(self, *shape: Any) -> ndarray:
        return ndarray(self._array.reshape(*shape), self._device)

    def astype(self, dtype: Any, copy: bool = True) -> ndarray:
        return self if self.dtype == dtype and not copy else asarray(self.get().astype(dtype))

    def copy(self) -> ndarray:
        return asarray(self.get())

    def get(self) -> Any:
        cuda.get_current_stream().synchronize()
        return self._array.copy() if self._array.ndim else self._array[()]

    def item(self) -> Any:
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __float__(self) -> float:
        return float(self.get())

    def __eq__(self, other: object) -> Any:
        return self.get() == (other.get() if isinstance(other, ndarray) else other)

    __hash__ = None  # type: ignore[assignment]


def empty(shape: Any, dtype: Any = np.float64) -> ndarray:
    array = np.empty(shape, dtype)
    array.reshape(-1).view(np.uint8)[...] = 0xAB
    _in_use.append(array)
    return ndarray(array, cuda.current)


def asarray(value: Any, dtype: Any = None) -> ndarray:
    if isinstance(value, ndarray):
        return value
    if hasattr(value, "__cuda_array_interface__"):
        interface = value.__cuda_array_interface__

        class Host:
            __array_interface__ = interface

        return ndarray(np.asarray(Host()), cuda.current)
    array = np.array(value, dtype)
    _in_use.append(array)
    return ndarray(array, cuda.current)


def zeros_like(like: ndarray) -> ndarray:
    return asarray(np.zeros_like(like._array))


def asnumpy(value: ndarray) -> Any:
    return value.get()


class _Stream:
    _pointers = itertools.count(1000)

    def __init__(self, ptr: int | None = None, non_blocking: bool = False) -> None:
        self.ptr = next(self._pointers) if ptr is None else ptr
        self._before: list[_Stream] = []

    def __enter__(self) -> _Stream:
        self._before.append(cuda.stream)
        cuda.stream = self
        return self

    def __exit__(self, *_: Any) -> None:
        cuda.stream = self._before.pop()

    def synchronize(self) -> None:
        _lib.emulated_synchronize(self.ptr)

    def begin_capture(self) -> None:
        _lib.emulated_begin_capture(self.ptr)

    def end_capture(self) -> _Graph:
        return _Graph(_lib.emulated_end_capture(self.ptr))


class _Graph:
    def __init__(self, number: int) -> None:
        self._number = number
        self._in_use = list(_in_use)  # for as long as it may run

    def launch(self, stream: _Stream | None = None) -> None:
        _lib.emulated_launch_graph((stream or cuda.stream).ptr, self._number)


class _Device:
    def __init__(self, number: int) -> None:
        self.id = number

    def __enter__(self) -> _Device:
        self._before, cuda.current = cuda.current, self.id
        return self

    def __exit__(self, *_: Any) -> None:
        cuda.current = self._before


class cuda:
    current = 0
    Device = _Device
    Stream = _Stream
    stream = _Stream(0)

    @staticmethod
    def ExternalStream(ptr: int, device_id: int = -1) -> _Stream:
        return _Stream(ptr)

    @staticmethod
    def get_current_stream(device_id: int = -1) -> _Stream:
        return cuda.stream
