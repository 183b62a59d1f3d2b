"""Sums, penalties and norms of tensors that are spread over many processes, bit by bit as in one.

`Plan` is agreed upon once by all ranks of a group of torch.distributed, or of an mpi4py
communicator, and called at every step; `sums`, `penalty`, `grad_norm` and `clip_grad_norm_` are the
same for one call. Nothing else of the package needs torch.distributed or mpi4py.
"""

from __future__ import annotations

from ._engine import RankError
from ._plan import DistributedSums, Plan, clip_grad_norm_, grad_norm, penalty, sums
from ._shards import Shard

__all__ = [
    "DistributedSums",
    "Plan",
    "RankError",
    "Shard",
    "clip_grad_norm_",
    "grad_norm",
    "penalty",
    "sums",
]


def __dir__() -> list[str]:
    return __all__
