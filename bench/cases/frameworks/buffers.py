"""The buffers that every framework is measured on, and a row's keys."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import machine
from bench.settings import Settings
from bench.weights import STANDARD_DEVIATION, values

L1, L2 = 1e-5, 1e-4


def models(settings: Settings) -> tuple[str, ...]:
    every = ("1000 x 64", "ResNet-50", "BERT-base")
    return every[:2] if settings.quick else every


def buffers(model: str) -> list[NDArray[np.float32]]:
    """Normal values; "N x M" is N buffers of M."""
    if model == "ResNet-50":
        return list(values("resnet50", "float32", 0).values())
    if model == "BERT-base":
        return list(values("bert-base", "float32", 0).values())
    count, each = map(int, model.split(" x "))
    rng = np.random.default_rng(0)
    return list(STANDARD_DEVIATION * rng.standard_normal((count, each), np.float32))


def keys(
    framework: str, what: str, model: str, arrays: list[NDArray[np.float32]]
) -> dict[str, Any]:
    nbytes = sum(x.nbytes for x in arrays)
    return {
        "what": f"{framework}, {what}",
        "model": model,
        "dtype": "float32",
        "bytes": nbytes,
        "buffers": len(arrays),
        "threads": machine.threads(),
        "offset": 0,  # where the framework puts it
        "where": machine.where(nbytes),
    }
