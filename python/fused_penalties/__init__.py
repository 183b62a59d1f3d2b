"""The L1 and L2 penalties of many weight buffers in one read, with the same bits everywhere."""

from __future__ import annotations

from . import _core
from ._build import build_info
from ._sums import PartialSums, Sums, partial_sums, sums

__version__ = _core.__version__

__all__ = ["PartialSums", "Sums", "build_info", "partial_sums", "sums"]
