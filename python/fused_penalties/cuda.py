"""Whether weights on NVIDIA GPUs can be read here, and if not, why."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from . import _core

__all__ = ["Availability", "is_available"]

_CUDA = 2  # DLPack's number


def __dir__() -> list[str]:
    return __all__


@dataclass(frozen=True, slots=True)
class Availability:
    """True or false in a condition; as a string, what is missing.

    Attributes:
        reason: what is missing, "" if nothing is.
    """

    reason: str

    def __bool__(self) -> bool:
        return not self.reason

    def __str__(self) -> str:
        return self.reason or "available"


@lru_cache(maxsize=1)
def is_available() -> Availability:
    """Whether arrays on a GPU can be read: true or false, and ``str()`` of it says why not.

    That takes a build with CUDA (``build_info()["cuda"]``), a driver that is new enough for it, a
    GPU of compute capability 7.5 or more, and CuPy, whose arrays the results are. Never raises.
    """
    if not hasattr(_core, "cuda_unavailable"):
        return Availability("this build of fused-penalties has no CUDA")
    if error := _core.cuda_unavailable():
        return Availability(error)
    try:
        import cupy  # noqa: F401
    except ImportError as error:
        return Availability(
            f"CuPy, which holds the results, cannot be imported ({error}); "
            "pip install 'fused-penalties[cuda]'"
        )
    return Availability("")


def refusal(device: int) -> str:
    """Why memory on a device of this DLPack type cannot be read: the end of an error's message."""
    if device == _CUDA and not is_available():
        return f"{is_available()}; wanted memory of the CPU"
    return "wanted memory of the CPU or of a CUDA device"


class _Foreign:
    """A stream of another library, under CUDA's stream protocol."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


def cupy_stream(handle: int) -> Any:
    """A stream of another library, of the current device, as CuPy's."""
    stream = cupy().cuda.Stream
    return stream.null if handle == 0 else stream.from_external(_Foreign(handle))


def cupy() -> Any:
    """The module. RuntimeError if it is not installed."""
    if not (available := is_available()):
        raise RuntimeError(str(available))
    import cupy

    return cupy
