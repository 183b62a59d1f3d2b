"""The L1 and L2 penalties of many weight buffers in one read, with the same bits everywhere."""

from __future__ import annotations

from . import _core, contrib, cuda, regularizers, typing
from ._build import build_info
from ._streaming import StreamingSums
from ._sums import PartialSums, Sums, partial_sums, sums
from .penalties import l2_loss, penalty
from .plan import Plan
from .tf1.losses import add_n
from .tf1.store import AUTO_REUSE, GraphKeys, VariableStore, no_regularizer
from .typing import RegularizerLike

__version__ = _core.__version__

__all__ = [
    "AUTO_REUSE",
    "GraphKeys",
    "PartialSums",
    "Plan",
    "RegularizerLike",
    "StreamingSums",
    "Sums",
    "VariableStore",
    "add_n",
    "build_info",
    "contrib",
    "cuda",
    "l2_loss",
    "no_regularizer",
    "partial_sums",
    "penalty",
    "regularizers",
    "sums",
    "typing",
]


def __dir__() -> list[str]:
    """What users need: not the modules that it is made of."""
    return [*__all__, "__version__"]
