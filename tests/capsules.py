"""Arrays of other libraries with memory on a GPU: DLPack, and CUDA's array interface, by hand."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

CUDA, CUDA_MANAGED, READ_ONLY = 2, 13, 1
CODES = {
    "float16": 2,
    "bfloat16": 4,
    "float32": 2,
    "float64": 2,
    "int32": 0,
    "int64": 0,
    "uint8": 1,
}


class Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", Device),
        ("ndim", ctypes.c_int32),
        ("dtype", DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Managed(ctypes.Structure):
    _fields_ = (("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


class ExchangeApi(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("previous", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("managed_from_object", ctypes.c_void_p),
        ("managed_to_object", ctypes.c_void_p),
        (
            "tensor_from_object",
            ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(Tensor)),
        ),
        (
            "current_stream",
            ctypes.PYFUNCTYPE(
                ctypes.c_int, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p)
            ),
        ),
    )


# Functions of our own: those of ctypes.pythonapi are shared, and others give them types of theirs.
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
# By address: a capsule that is being destroyed is no object any more.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_NAMES = b"dltensor", b"dltensor_versioned", b"dlpack_exchange_api"  # capsules point to them
_alive: dict[int, Any] = {}  # what was handed out, by its address


def _released(address: int) -> None:
    del _alive[address]


def _destroyed(capsule: int) -> None:
    for name in _NAMES[:2]:
        if _is_valid(capsule, name):  # else a consumer renamed it, and will release it
            _released(_pointer(capsule, name))


_deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_released)
_destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(_destroyed)


def alive() -> int:
    """How many tensors that were handed out have not been released."""
    return len(_alive)


def tensor(array: Any, kind: int = CUDA) -> tuple[Tensor, Any]:
    """A CuPy array as DLPack describes it, and what has to stay alive meanwhile."""
    shape = (ctypes.c_int64 * array.ndim)(*array.shape)
    itemsize = array.dtype.itemsize
    strides = (ctypes.c_int64 * array.ndim)(*(step // itemsize for step in array.strides))
    dtype = DataType(CODES[array.dtype.name], 8 * itemsize, 1)
    pointers = (ctypes.cast(part, ctypes.POINTER(ctypes.c_int64)) for part in (shape, strides))
    device = Device(kind, array.data.device_id)
    made = Tensor(array.data.ptr, device, array.ndim, dtype, *pointers, 0)
    return made, (array, shape, strides)


def capsule(array: Any, *, versioned: bool = True, flags: int = 0, kind: int = CUDA) -> Any:
    """The memory of a CuPy array in a capsule of DLPack 1 or, not `versioned`, DLPack 0."""
    described, kept = tensor(array, kind)
    return wrapped(described, kept, versioned=versioned, flags=flags)


def wrapped(
    described: Tensor, kept: Any, *, versioned: bool = True, flags: int = 0, major: int = 1
) -> Any:
    """A capsule with a tensor whose fields are whatever they are."""
    deleter = ctypes.cast(_deleter, ctypes.c_void_p)
    managed: Any = Managed(described, None, deleter)
    if versioned:
        managed = Versioned(major, 0, None, deleter, flags, described)
    address = ctypes.addressof(managed)
    _alive[address] = managed, kept
    return _new(address, _NAMES[versioned], ctypes.cast(_destructor, ctypes.c_void_p))


def original(made: Any) -> Any:
    """The CuPy array whose memory is in a capsule."""
    name = next(name for name in _NAMES[:2] if _is_valid(id(made), name))
    return _alive[_pointer(id(made), name)][1][0]


class Producer:
    """An array of a library that offers DLPack; `asked` has the streams it was asked for.

    `arrives`, if given, makes a stream wait until what the library does to the memory is done.
    """

    def __init__(self, array: Any, arrives: Callable[[int], None] | None = None, **options: Any):
        self.array, self.arrives, self.options = array, arrives, options
        self.dtype, self.shape = array.dtype, array.shape
        self.asked: list[Any] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.options.get("kind", CUDA), self.array.data.device_id)

    def __dlpack__(self, *, stream: Any = None, max_version: Any = None) -> Any:
        self.asked.append(stream)
        if self.arrives:
            self.arrives(stream)
        return capsule(self.array, **self.options)


class OldProducer(Producer):
    """As before DLPack 1.0: knows no argument but the stream."""

    def __dlpack__(self, stream: Any = None) -> Any:  # type: ignore[override]
        self.asked.append(stream)
        return capsule(self.array, versioned=False)


class Framework:
    """An array of a library with the exchange table of DLPack 1.3, and a stream of its own.

    As torch's tensors: they are found without a capsule, and work happens on `stream`.
    """

    stream: Any = None  # CuPy's object for the library's current one; None for the default stream

    def __init__(self, array: Any) -> None:
        self.array, self.dtype, self.shape = array, array.dtype, array.shape

    def __dlpack_device__(self) -> tuple[int, int]:
        return (CUDA, self.array.data.device_id)

    def __dlpack__(self, *, stream: Any = None, max_version: Any = None) -> Any:
        assert stream in (None, self._handle() or 1), "there is a faster way"
        return capsule(self.array)

    @classmethod
    def _handle(cls) -> int:
        return cls.stream.ptr if cls.stream else 0

    @staticmethod
    def _tensor_from_object(found: Any, out: Any) -> int:
        described, found._kept = tensor(found.array)
        ctypes.memmove(out, ctypes.addressof(described), ctypes.sizeof(described))
        return 0

    @classmethod
    def _current_stream(cls, kind: int, device: int, out: Any) -> int:
        assert kind == CUDA
        out[0] = cls._handle()
        return 0


class OnlyInterface:
    """An array with the CUDA array interface and without DLPack, as Numba's are."""

    def __init__(self, array: Any, stream: Any = None, read_only: bool = False) -> None:
        self.array, self.stream, self.read_only = array, stream, read_only
        self.dtype, self.shape = array.dtype, array.shape

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.array.shape,
            "typestr": self.array.dtype.str,
            "strides": self.array.strides,
            "data": (self.array.data.ptr, self.read_only),
            "stream": self.stream,
        }


_fields = dict(ExchangeApi._fields_)
_table = ExchangeApi(
    1, 3, None, None, None, None,
    _fields["tensor_from_object"](Framework._tensor_from_object),
    _fields["current_stream"](lambda *given: Framework._current_stream(*given)),
)  # fmt: skip
Framework.__dlpack_c_exchange_api__ = _new(  # type: ignore[attr-defined]
    ctypes.addressof(_table), _NAMES[2], None
)
