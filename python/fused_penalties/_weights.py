"""What counts as weights: an array, a sequence of arrays, or a mapping of names to arrays."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core, _memory, cuda

_DLPACK_CPU = (1, 3, 11)  # host memory: plain, pinned for CUDA, pinned for ROCm
_DLPACK_CUDA = (2, 13)  # device memory, managed memory
_ARRAY_ATTRIBUTES = (
    "__dlpack__",
    "__array__",
    "__array_interface__",
    "__cuda_array_interface__",
    "data_ptr",  # torch's storages, which are no arrays but look like lists of numbers
)


def collect(weights: Any) -> tuple[list[Any], tuple[str, ...] | None]:
    """The buffers in ``weights`` as a list, and their names if it is a mapping.

    A (nested) list of plain numbers is one float32 array, as it is in Keras.
    """
    # The common cases, worth no more than these looks.
    if type(weights) is list and weights and type(weights[0]) is np.ndarray:
        return weights, None
    if type(weights) is np.ndarray:
        return [weights], None
    if weights is None or isinstance(weights, (str, bytes)):
        raise TypeError(
            f"weights: got {_describe(weights)}; wanted an array, a sequence of arrays or a mapping"
        )
    if _is_sparse(weights):  # some of them can be iterated over, or are mappings
        return [weights], None
    # What dict() takes for a mapping, as torch's ParameterDict is.
    if not _is_array(weights) and hasattr(weights, "keys") and hasattr(weights, "__getitem__"):
        weights = dict(weights)
    if isinstance(weights, Mapping):
        names = tuple(str(name) for name in weights)
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"weights: two keys read {twice!r}; wanted different names")
        return list(weights.values()), names
    if _is_array(weights) or _is_number(weights):
        return [weights], None
    if isinstance(weights, Iterable):
        items = list(weights)
        if items and all(_is_nested_numbers(item) for item in items):
            return [weights if isinstance(weights, (list, tuple)) else items], None
        return items, None
    raise TypeError(
        f"weights: got {_describe(weights)}; wanted an array, a sequence of arrays or a mapping"
    )


def adapt(item: Any, label: str) -> Any:
    """What stands in for an item that is neither a NumPy array nor has a DLPack exchange table.

    A NumPy array of the same elements; a DLPack capsule; a CuPy array and whether it may be
    written; or the (type, id) of a device that cannot be read. The extension calls this; ``label``
    says in errors which item it is.
    """
    refuse_without_values(item, label)
    if isinstance(item, np.ndarray):
        return np.ndarray.view(item, np.ndarray)  # a subclass's own view may return anything
    if isinstance(item, np.generic):
        return np.asarray(item)
    if hasattr(item, "__dlpack_device__"):
        return _from_dlpack(item, label)
    if hasattr(item, "__cuda_array_interface__"):
        return _from_cuda_array_interface(item) if cuda.is_available() else (2, 0)
    if hasattr(item, "__array__") or hasattr(item, "__array_interface__"):
        return _from_array(item, label)
    if _is_nested_numbers(item):
        return _array_of_numbers(item, label)
    if _has_buffer(item) and not isinstance(item, bytes):
        return np.asarray(memoryview(item))
    pair = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)
    hint = " (a mapping of names to arrays is made with dict())" if pair else ""
    raise TypeError(f"{label}: got {_describe(item)}; wanted an array{hint}")


def refuse_without_values(item: Any, label: str) -> None:
    """TypeError for an array whose elements are not there to be read, or not all of them."""
    got = f"{label}: got {_describe(item)}"
    if isinstance(item, np.ma.MaskedArray) or hasattr(item, "get_mask"):  # NumPy's and torch's
        kind = type(item).__name__
        raise TypeError(f"{label}: got a masked array, a {kind}; wanted one without a mask")
    if _is_sparse(item):
        raise TypeError(
            f"{got}, which is sparse; wanted a dense array, or that of its stored values"
        )
    if not hasattr(item, "__torch_dispatch__"):
        return
    if hasattr(item, "materialize"):
        raise TypeError(
            f"{got}, which has no values until its module has seen data; wanted a tensor"
        )
    if hasattr(item, "to_local") or hasattr(item, "local_shards"):
        raise TypeError(
            f"{got}, which is distributed; wanted a tensor of this process (to_local())"
        )
    if item.layout != sys.modules["torch"].strided:
        raise TypeError(f"{got} of layout {item.layout}; wanted a dense one, or its values")
    if item.device.type == "meta" or type(item).__name__ == "FakeTensor":
        raise TypeError(f"{got} that has a shape but no values; wanted a tensor with values")
    if inspect.ismethod(item.__torch_dispatch__):
        raise TypeError(f"{got}, whose values are made when torch asks; wanted a plain tensor")


def _is_sparse(value: Any) -> bool:
    """True for the sparse arrays of SciPy, CuPy, JAX, PyData and TensorFlow."""
    return hasattr(value, "todense") or hasattr(value, "dense_shape")


def _from_array(item: Any, label: str) -> NDArray[Any]:
    try:
        return np.asarray(item)
    except MemoryError:
        raise
    except Exception as error:  # whatever its library raises
        raise TypeError(
            f"{label}: NumPy cannot read {_describe(item)}: {error}; wanted an array with values"
        ) from error


def _from_dlpack(item: Any, label: str) -> Any:
    try:
        kind, number = (int(part) for part in item.__dlpack_device__())
        if not all(-(2**31) <= part < 2**31 for part in (kind, number)):
            raise ValueError(f"there is no device {(kind, number)}")
        if kind not in _DLPACK_CPU and not (kind in _DLPACK_CUDA and cuda.is_available()):
            return (kind, number)
        if getattr(item, "requires_grad", False):
            item = item.detach()  # DLPack refuses what records its history; only values are read
        on = {}
        if kind in _DLPACK_CUDA:
            _memory.of([item])  # it may import CuPy, whose stream it is then
            on["stream"] = _memory.ready_stream(number) or 1  # as DLPack calls the default one
        try:
            made = item.__dlpack__(max_version=(1, 3), **on)
        except TypeError:  # a producer older than DLPack 1.0
            made = item.__dlpack__(**on)
        if isinstance(made, tuple):  # which means something else to the extension
            raise TypeError(f"it returned {made!r}")
        return made
    except (BufferError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            f"{label}: DLPack cannot export this {type(item).__name__}: {error}; "
            "wanted a plain array of floats"
        ) from error


class _Unordered:
    """Memory under CUDA's array interface, for CuPy to take without a wait for its stream."""

    def __init__(self, item: Any, interface: dict[str, Any]) -> None:
        self.item = item  # kept alive
        self.__cuda_array_interface__ = {**interface, "stream": None}


def _from_cuda_array_interface(item: Any) -> tuple[Any, bool]:
    """A CuPy array of the same memory, and whether it may be written.

    CuPy alone would copy it to its current device and wait for its stream.
    """
    try:
        import cupy
    except ImportError as error:
        raise RuntimeError(f"a {type(item).__name__} on a GPU is read by CuPy: {error}") from error
    interface = item.__cuda_array_interface__
    pointer, read_only = interface["data"]
    device = cupy.cuda.runtime.pointerGetAttributes(pointer).device if pointer else 0
    with _core.OnDevice(device):
        stream = interface.get("stream")
        if stream is not None:
            current = cupy.cuda.get_current_stream(device).ptr
            _core.wait_for_stream(device, current or 1, stream)
        return cupy.asarray(_Unordered(item, interface)), not read_only


def on_cuda(item: Any) -> bool:
    """True for an array that lies on a CUDA device."""
    if isinstance(item, np.ndarray):
        return False
    if not hasattr(item, "__dlpack_device__"):
        return hasattr(item, "__cuda_array_interface__")
    try:
        return item.__dlpack_device__()[0] in _DLPACK_CUDA
    except (BufferError, LookupError, RuntimeError, TypeError, ValueError):  # nowhere that is known
        return False


def on_host(x: Any) -> Any:
    """An array that NumPy can read: a copy of one on a GPU, which is waited for."""
    if hasattr(x, "resolve_neg"):  # torch's: NumPy has no bfloat16, nor signs that come later
        return x.detach().resolve_neg().double().cpu()
    if not on_cuda(x):
        return x if hasattr(x, "__array__") or _has_buffer(x) else np.from_dlpack(x)
    import cupy

    foreign = hasattr(x, "__dlpack__") and not isinstance(x, cupy.ndarray)
    return cupy.asnumpy(cupy.from_dlpack(x) if foreign else cupy.asarray(x))


def dtype_name(dtype: Any) -> str:
    """The name of a dtype, NumPy's or another library's, that the core reads; else TypeError."""
    # NumPy, JAX and TensorFlow dtypes carry a name, scalar types a __name__, torch's only a str().
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None)
    name = str(name or dtype).rpartition(".")[2]
    if name not in _core.RESULT_IS_FLOAT64:
        raise TypeError(
            f"dtype {name} is not supported; wanted float16, bfloat16, float32 or float64"
        )
    return name


def is_weight(item: Any) -> bool:
    """True if it has a dtype that the core reads."""
    with contextlib.suppress(TypeError):
        dtype_name(getattr(item, "dtype", None))
        return True
    return False


def with_dtype(item: Any, label: str) -> tuple[Any, str]:
    """The item as something that has a dtype, and the name of that, one which the core reads."""
    dtype = getattr(item, "dtype", None)
    with contextlib.suppress(TypeError):
        return item, dtype_name(dtype)
    if dtype is None or not hasattr(item, "__dlpack__"):
        buffer = adapt(item, label)  # what pandas calls Float32 is float32 in NumPy
        if isinstance(buffer, np.ndarray):
            item, dtype = buffer, buffer.dtype
        elif dtype is None:
            dtype = _core.dtype_of(item, label)
    try:
        return item, dtype_name(dtype)
    except TypeError as error:
        raise TypeError(f"{label}: {error}") from None


def _is_array(value: Any) -> bool:
    return any(hasattr(value, name) for name in _ARRAY_ATTRIBUTES) or _has_buffer(value)


def _has_buffer(value: Any) -> bool:
    try:
        memoryview(value)
    except TypeError:
        return False
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_nested_numbers(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_nested_numbers(item) for item in value)
    return _is_number(value)


def _array_of_numbers(values: Any, label: str) -> NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):  # what does not fit is inf, as everywhere
            array = np.array(values, dtype=np.float32)
    except OverflowError as error:
        raise ValueError(f"{label}: got an integer beyond any float; wanted numbers") from error
    except ValueError as error:
        raise ValueError(
            f"{label}: got nested lists of unequal length; wanted a rectangular array"
        ) from error
    array.flags.writeable = False  # nobody would see what was written into a copy
    return array


def _describe(value: Any) -> str:
    return "None" if value is None else type(value).__name__
