"""Whether weights on NVIDIA GPUs can be read here, and if not, why."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

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

    That takes a build with CUDA (``build_info()["cuda"]``), a driver that is new enough for it, and
    a GPU of compute capability 7.5 or more. The memory of results comes from torch for torch's
    tensors, else from CuPy. Never raises.
    """
    if not hasattr(_core, "cuda_unavailable"):
        return Availability("this build of fused-penalties has no CUDA")
    return Availability(_core.cuda_unavailable())


def refusal(device: int) -> str:
    """Why memory on a device of this DLPack type cannot be read: the end of an error's message."""
    if device == _CUDA and not is_available():
        return f"{is_available()}; wanted memory of the CPU"
    return "wanted memory of the CPU or of a CUDA device"
