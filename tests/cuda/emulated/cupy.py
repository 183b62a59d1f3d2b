"""The part of CuPy that the package and its GPU tests use, over the host's memory.

With an extension built with ``FUSED_PENALTIES_CUDA=EMULATED`` it lets the tests of the `cuda`
marker run without a GPU: the same Python, the same binding, the same source of the kernels. As on a
GPU, work waits on its stream until somebody synchronizes, copies from the host do too, fresh memory
holds nothing useful, and memory that is given back may be written by its stream's next work. There
are two devices.
"""

from __future__ import annotations

import ctypes
import threading
import warnings
import weakref
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from fused_penalties import _core

__version__ = "14.emulated"

FRESH, FREED = 0xAB, 0xEF  # what fills memory that nobody wrote yet, and that of nobody any more

_lib = ctypes.CDLL(_core.__file__)
_on_stream = [ctypes.c_int, ctypes.c_void_p]
_pointer, _size, _number, _truth = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_bool
_callback = ctypes.CFUNCTYPE(None)
for _name, _arguments, _result in (
    ("get_device", [], _number),
    ("set_device", [_number], None),
    ("has_context", [_number], _truth),
    ("forget_context", [_number], None),
    ("new_stream", [_number, _truth], _pointer),
    ("destroy_stream", [_pointer], None),
    ("synchronize", _on_stream, _truth),
    ("synchronize_device", [_number], None),
    ("step", [*_on_stream, _number], None),
    ("waiting", _on_stream, _size),
    ("idle", [], _truth),
    ("copy", [*_on_stream, _pointer, _pointer, _size], None),
    ("release", [*_on_stream, _pointer, _size], None),
    ("sqrt", [*_on_stream, _pointer, _pointer], None),
    ("call", [*_on_stream, _callback], None),
    ("record", _on_stream, _number),
    ("wait", [*_on_stream, _number], _number),
    ("error", [_number], ctypes.c_char_p),
    ("begin_capture", [*_on_stream, _number], None),
    ("may_allocate", [], _truth),
    ("end_capture", _on_stream, _number),
    ("launch_graph", [*_on_stream, _number], None),
    ("fail", [_number], None),
    ("has_failed", [], _truth),
    ("launches", [], _number),
    ("driver", [_number], _number),
    ("under_lock", [], _number),
    ("pinned", [], _size),
):
    _function = getattr(_lib, f"emulated_{_name}")
    _function.argtypes, _function.restype = _arguments, _result

# What work that still waits may read or write though nobody else has it any more.
_given_back: list[Any] = []


class _Local(threading.local):
    def __init__(self) -> None:
        self.streams: dict[int, Any] = {}


_local = _Local()


def _keep(*objects: Any) -> None:
    _given_back.extend(objects)


_settling = threading.Lock()


def _settled() -> None:
    with _settling:
        count = len(_given_back)  # the work of these is on its stream by now
        if not _Graph.alive and _lib.emulated_idle():
            del _given_back[:count]


# Memory.


class _Block:
    """One allocation, of the current device and in the order of its current stream."""

    alive: ClassVar[weakref.WeakSet[_Block]] = weakref.WeakSet()

    def __init__(self, size: int) -> None:
        if not _lib.emulated_may_allocate():
            raise RuntimeError(
                "cudaErrorStreamCaptureUnsupported: no memory while this is captured"
            )
        room = np.full(size + 512, FRESH, np.uint8)
        start = -room.ctypes.data % 512
        self.bytes = room[start : start + size]
        stream = get_current_stream()
        where = stream._device, stream.ptr, self.bytes.ctypes.data, size
        self.device = stream._device
        _Block.alive.add(self)
        weakref.finalize(self, self._release, room, where).atexit = False

    @staticmethod
    def _release(room: Any, where: tuple[int, int, int, int]) -> None:
        _lib.emulated_release(*where)
        _keep(room)


class MemoryPointer:
    def __init__(self, mem: Any, offset: int) -> None:
        self.mem = mem
        self.device_id: int = mem.device_id
        self.ptr: int = mem.ptr + offset

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)

    def memset(self, value: int, size: int) -> None:
        ndarray(size, np.uint8, self).set(np.full(size, value, np.uint8))


class UnownedMemory:
    def __init__(self, ptr: int, size: int, owner: Any, device_id: int = -1) -> None:
        self.ptr, self.size, self.owner = ptr, size, owner
        self.device_id = _lib.emulated_get_device() if device_id < 0 else device_id


class ndarray:
    """As CuPy's, its memory may be of any owner."""

    def __init__(
        self, shape: Any, dtype: Any = float, memptr: Any = None, strides: Any = None
    ) -> None:
        dtype = np.dtype(dtype)
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if memptr is None:
            block = _Block(int(np.prod(shape)) * dtype.itemsize)
            memory = UnownedMemory(block.bytes.ctypes.data, block.bytes.size, block)
            memptr = MemoryPointer(memory, 0)
        self.data: MemoryPointer = memptr
        # NumPy wants to see all of the memory that a view may reach.
        self._array = np.empty(shape, dtype)
        steps = self._array.strides if strides is None else tuple(strides)
        if self._array.size == 0:
            return
        ends = [(n - 1) * step for n, step in zip(shape, steps, strict=True)]
        low, high = sum(min(end, 0) for end in ends), sum(max(end, 0) for end in ends)
        seen = (ctypes.c_char * (high - low + dtype.itemsize)).from_address(memptr.ptr + low)
        self._array = np.ndarray(shape, dtype, seen, -low, steps)

    strides = property(lambda self: self._array.strides)
    dtype = property(lambda self: self._array.dtype)
    ndim = property(lambda self: self._array.ndim)
    size = property(lambda self: self._array.size)
    nbytes = property(lambda self: self._array.nbytes)
    T = property(lambda self: self._view(self._array.T))

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @shape.setter
    def shape(self, shape: tuple[int, ...]) -> None:
        self._array = self.reshape(shape)._array

    @property
    def device(self) -> Device:
        return Device(self.data.device_id)

    def _view(self, array: np.ndarray[Any, Any]) -> ndarray:
        offset = array.ctypes.data - self._array.ctypes.data if array.size else 0
        return ndarray(array.shape, array.dtype, self.data + offset, array.strides)

    def __getitem__(self, key: Any) -> ndarray:
        key = key if isinstance(key, tuple) else (key,)
        return self._view(self._array[key if Ellipsis in key else (*key, ...)])

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Any:
        return (self[k] for k in range(len(self)))

    def reshape(self, *shape: Any) -> ndarray:
        view = self._array.reshape(*shape)
        assert np.may_share_memory(view, self._array) or not view.size, "copies are not played"
        return self._view(view)

    def view(self, dtype: Any = None) -> ndarray:
        if isinstance(dtype, type) and issubclass(dtype, ndarray):
            return dtype(self.shape, self.dtype, self.data, self.strides)
        return self._view(self._array.view(dtype))

    def astype(self, dtype: Any, copy: bool = True) -> ndarray:
        return self if self.dtype == dtype and not copy else asarray(self.get().astype(dtype))

    def copy(self) -> ndarray:
        return asarray(self.get())

    # Between the host and the device, in the order of the current stream.

    def set(self, arr: Any) -> None:
        if not (self._array.flags.c_contiguous or self._array.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        order = "C" if self._array.flags.c_contiguous else "F"
        assert (arr.dtype, arr.shape) == (self.dtype, self.shape)
        source = np.array(arr, order=order)
        stream = get_current_stream()
        _lib.emulated_copy(
            stream._device, stream.ptr, self.data.ptr, source.ctypes.data, self.nbytes
        )
        _keep(source)

    def get(self) -> Any:
        get_current_stream().synchronize()
        return self._array.copy()

    def item(self) -> Any:
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __float__(self) -> float:
        return float(self.get())

    def __eq__(self, other: object) -> Any:
        return asarray(self.get() == (other.get() if isinstance(other, ndarray) else other))

    def __bool__(self) -> bool:
        return bool(self.get())

    __hash__ = None  # type: ignore[assignment]

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        assert (ufunc, method, self.dtype) == (np.sqrt, "__call__", np.float64)
        assert self._array.flags.c_contiguous
        root, stream = empty(self.shape, np.float64), get_current_stream()
        for at in range(0, self.nbytes, 8):
            addresses = root.data.ptr + at, self.data.ptr + at
            _lib.emulated_sqrt(stream._device, stream.ptr, *addresses)
        return root

    def __truediv__(self, other: ndarray | int) -> ndarray:
        if isinstance(other, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        return asarray(self.get() / (other.get() if isinstance(other, ndarray) else other))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "strides": None if self._array.flags.c_contiguous else self.strides,
            "data": (self.data.ptr, False),
            "stream": get_current_stream().ptr or 1,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self.data.device_id)

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        import capsules

        if self.dtype.kind != "f":
            raise BufferError("dtype is not supported for dlpack export")
        if stream is not None and stream != (get_current_stream().ptr or 1):
            event = get_current_stream().record()
            _wait(self.data.device_id, 0 if stream == 1 else stream, event)
        return capsules.capsule(self)


def empty(shape: Any, dtype: Any = float) -> ndarray:
    return ndarray(shape, dtype)


def asarray(value: Any, dtype: Any = None) -> ndarray:
    if isinstance(value, ndarray):
        return value
    if hasattr(value, "__cuda_array_interface__"):
        interface = value.__cuda_array_interface__
        if (stream := interface.get("stream")) is not None:
            assert stream != 0, "as the interface says"
            _synchronize(_lib.emulated_get_device(), stream)
        pointer = MemoryPointer(UnownedMemory(interface["data"][0], 0, value), 0)
        return ndarray(interface["shape"], interface["typestr"], pointer, interface.get("strides"))
    source = np.asarray(value, dtype)
    array = empty(source.shape, source.dtype)
    array.set(source)
    return array


def from_dlpack(array: Any) -> ndarray:
    """Of what tests/capsules.py made, whose memory is that of an array of this module."""
    import capsules

    device = array.__dlpack_device__()[1]
    handle = get_current_stream(device).ptr or 1
    return capsules.original(array.__dlpack__(stream=handle))[...]


def zeros_like(like: ndarray) -> ndarray:
    return asarray(np.zeros_like(like._array))


def broadcast_to(array: ndarray, shape: Any) -> ndarray:
    return array._view(np.broadcast_to(array._array, shape))


def asnumpy(value: ndarray) -> Any:
    return value.get()


# Devices and streams.


class Device:
    def __init__(self, device: int | None = None) -> None:
        self.id = _lib.emulated_get_device() if device is None else int(device)
        self._before: list[int] = []

    def __enter__(self) -> Device:
        self._before.append(_lib.emulated_get_device())
        if self.id != self._before[-1]:
            _lib.emulated_set_device(self.id)
        return self

    def __exit__(self, *_: Any) -> None:
        _lib.emulated_set_device(self._before.pop())

    def synchronize(self) -> None:
        _lib.emulated_synchronize_device(self.id)
        _settled()


def _synchronize(device: int, handle: int) -> None:
    if not _lib.emulated_synchronize(device, handle):
        raise RuntimeError("cudaErrorStreamCaptureUnsupported: it is captured")
    _settled()


def _check(error: int) -> None:
    if error:
        raise RuntimeError(f"{_lib.emulated_error(error).decode()}: an error of the emulation")


def _wait(device: int, handle: int, event: Event) -> None:
    _check(_lib.emulated_wait(device, handle, event._number))


class _BaseStream:
    def __init__(self, ptr: int, device_id: int) -> None:
        self.ptr, self.device_id = ptr, device_id
        self._before: list[tuple[int, _BaseStream]] = []

    @property
    def _device(self) -> int:
        return _lib.emulated_get_device() if self.device_id < 0 else self.device_id

    def __enter__(self) -> Any:
        device = _lib.emulated_get_device()
        if self._device != device:
            raise RuntimeError("The device that the stream is created on does not match")
        self._before.append((device, get_current_stream()))
        _local.streams[device] = self
        return self

    def __exit__(self, *_: Any) -> None:
        device, before = self._before.pop()
        _local.streams[device] = before

    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, self.ptr)

    @property
    def done(self) -> bool:
        return not _lib.emulated_waiting(self._device, self.ptr)

    def synchronize(self) -> None:
        _synchronize(self._device, self.ptr)

    def launch_host_func(self, callback: Any, arg: Any) -> None:
        function = _callback(lambda: callback(arg))
        _lib.emulated_call(self._device, self.ptr, function)
        _keep(function)

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        _wait(self._device, self.ptr, event)

    def begin_capture(self, mode: int | None = None) -> None:
        if self.ptr in (0, 1):
            raise RuntimeError("cannot capture on the default (legacy) stream")
        mode = runtime.streamCaptureModeRelaxed if mode is None else mode
        _lib.emulated_begin_capture(self._device, self.ptr, mode)

    def end_capture(self) -> _Graph:
        graph = _lib.emulated_end_capture(self._device, self.ptr)
        if graph < 0:
            raise RuntimeError("cudaErrorStreamCaptureUnjoined: a stream's work was not waited for")
        return _Graph(graph)


class Stream(_BaseStream):
    null: Stream
    ptds: Stream

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False) -> None:
        if null or ptds:
            super().__init__(0 if null else 2, -1)
        else:
            device = _lib.emulated_get_device()
            super().__init__(_lib.emulated_new_stream(device, not non_blocking), device)

            weakref.finalize(self, _lib.emulated_destroy_stream, self.ptr).atexit = False

    @classmethod
    def from_external(cls, obj: Any) -> Stream:
        stream = cls.__new__(cls)
        _BaseStream.__init__(stream, obj.__cuda_stream__()[1], _lib.emulated_get_device())
        return stream


class ExternalStream(_BaseStream):
    def __init__(self, ptr: int, device_id: int = -1) -> None:
        warnings.warn("ExternalStream is deprecated.", DeprecationWarning, stacklevel=2)
        super().__init__(ptr, device_id)


Stream.null, Stream.ptds = Stream(null=True), Stream(ptds=True)


class Event:
    _number: int

    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        pass

    def record(self, stream: _BaseStream | None = None) -> None:
        stream = stream or get_current_stream()
        self._number = _lib.emulated_record(stream._device, stream.ptr)
        _check(max(0, -self._number))


class _Graph:
    alive = 0

    def __init__(self, number: int) -> None:
        self._number = number
        _Graph.alive += 1

    def __del__(self) -> None:
        _Graph.alive -= 1

    def launch(self, stream: _BaseStream | None = None) -> None:
        stream = stream or get_current_stream()
        _lib.emulated_launch_graph(stream._device, stream.ptr, self._number)


def get_current_stream(device_id: int = -1) -> _BaseStream:
    return _local.streams.get(
        _lib.emulated_get_device() if device_id < 0 else device_id, Stream.null
    )


class runtime:
    streamCaptureModeGlobal, streamCaptureModeThreadLocal, streamCaptureModeRelaxed = range(3)

    @staticmethod
    def getDeviceCount() -> int:
        return 2

    @staticmethod
    def getDevice() -> int:
        return int(_lib.emulated_get_device())

    @staticmethod
    def setDevice(device: int) -> None:
        _lib.emulated_set_device(device)

    @staticmethod
    def pointerGetAttributes(ptr: int) -> Any:
        for block in _Block.alive:
            if 0 <= ptr - block.bytes.ctypes.data < block.bytes.size:
                return SimpleNamespace(device=block.device)
        raise RuntimeError("cudaErrorInvalidValue: no memory of a device")


class cuda:
    _BaseStream = _BaseStream
    Device = Device
    Event = Event
    ExternalStream = ExternalStream
    MemoryPointer = MemoryPointer
    Stream = Stream
    UnownedMemory = UnownedMemory
    get_current_stream = staticmethod(get_current_stream)
    runtime = runtime
