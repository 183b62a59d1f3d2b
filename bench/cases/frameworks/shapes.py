"""The buffers that every framework is measured on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from weights import STANDARD_DEVIATION, values

L1, L2 = 1e-5, 1e-4
WORKS = "1000 x 64", "ResNet-50", "BERT-base"


def buffers(work: str) -> list[NDArray[np.float32]]:
    """Normal values; "N x M" is N buffers of M."""
    if work == "ResNet-50":
        return list(values("resnet50", "float32", 0).values())
    if work == "BERT-base":
        return list(values("bert-base", "float32", 0).values())
    count, each = map(int, work.split(" x "))
    rng = np.random.default_rng(0)
    return list(STANDARD_DEVIATION * rng.standard_normal((count, each), np.float32))
