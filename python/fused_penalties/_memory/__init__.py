"""Where memory and streams on a GPU come from: from torch for torch's tensors, else from CuPy.

Both have a pool that hands memory on in the order of a stream, so that nothing is waited for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import _core


class Memory(Protocol):
    """One library's. The device that a method is given is the current one."""

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        """An array that holds anything, in the order of the current stream."""

    def current_stream(self, device: int) -> int:
        """The handle of the stream that the library works on now."""

    def on(self, device: int, stream: int) -> AbstractContextManager[Any]:
        """Makes this stream the library's current one meanwhile."""

    def to_device(self, array: Any, device: int) -> Any:
        """A copy of a NumPy array or scalar, made in the order of the stream."""

    def to_host(self, array: Any) -> NDArray[Any]:
        """A copy as a NumPy array, for which the stream is waited for."""

    def is_number(self, value: Any, device: int) -> bool:
        """True for one float32 or float64 in an array of the library's on this device."""

    def cast(self, array: Any, dtype: str) -> Any:
        """The same elements as another dtype."""


def of(arrays: Iterable[Any]) -> Memory:
    """That of torch if a torch tensor is among them, else CuPy's. RuntimeError without CuPy."""
    torch = sys.modules.get("torch")
    if torch is not None and any(isinstance(array, torch.Tensor) for array in arrays):
        from ._torch import TorchMemory

        return TorchMemory()
    try:
        from ._cupy import CupyMemory
    except ImportError as error:
        raise RuntimeError(
            "CuPy, which gives the memory on a GPU but for torch's tensors, cannot be imported "
            f"({error}); pip install 'fused-penalties[cuda]'"
        ) from error
    return CupyMemory()


def ready_stream(device: int) -> int:
    """The stream that other libraries are asked to have their arrays ready on.

    CuPy's current one if CuPy is in use, else torch's, else the default stream.
    """
    if sys.modules.get("cupy") is not None:
        from ._cupy import CupyMemory

        return CupyMemory().current_stream(device)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        from ._torch import TorchMemory

        return TorchMemory().current_stream(device)
    return 0


def beside(array: NDArray[Any], other: Any) -> Any:
    """A NumPy array where another one is, which may be on a GPU."""
    if isinstance(other, np.ndarray):
        return array
    device = int(other.__dlpack_device__()[1])
    with _core.OnDevice(device):
        return of([other]).to_device(array, device)
