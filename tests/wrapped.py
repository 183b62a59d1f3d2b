"""Arrays of other libraries, as far as a protocol shows them: by DLPack, by NumPy's, on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np


class OnlyDLPack:
    """What the DLPack protocol asks of an array on the CPU, and nothing else."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __dlpack__(self, **arguments: Any) -> Any:
        return self.x.__dlpack__(**arguments)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class OldDLPack(OnlyDLPack):
    """As before DLPack 1.0: knows no argument but the stream."""

    def __dlpack__(self, stream: Any = None) -> Any:  # type: ignore[override]
        return self.x.__dlpack__(stream=stream)


class OnlyArray:
    """What NumPy's own protocol asks."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.x if dtype is None else self.x.astype(dtype)


class FakeCuda:
    """An array that says that it lies on a GPU; whoever reads it anyway would crash."""

    shape = (4,)
    dtype = np.dtype(np.float32)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, **arguments: Any) -> Any:
        raise AssertionError("the device should have been asked first")

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": (4,), "typestr": "<f4", "data": (16, False), "version": 3, "strides": None}


class FakeCudaInterface:
    """The same without DLPack, as Numba and older libraries have it."""

    __cuda_array_interface__ = FakeCuda.__cuda_array_interface__


class OtherDevice(FakeCuda):
    """A device of which this library knows nothing (7 is Vulkan)."""

    __cuda_array_interface__ = property()  # type: ignore[assignment]

    def __dlpack_device__(self) -> tuple[int, int]:
        return (7, 0)
