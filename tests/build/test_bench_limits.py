"""The limits that benchmarks compare with pass over every byte, with any width and any threads."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SIZES = [0, 1, 7, 8, 255, 256, 300, 4096 + 33, (1 << 20) + 13]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("bench.limits")


def random_bytes(size: int) -> np.ndarray:
    """Not on a boundary of any vector."""
    return np.random.default_rng(size).integers(0, 256, size + 3, np.uint8)[3:]


def exclusive_or(x: np.ndarray) -> int:
    return int(np.bitwise_xor.reduce(np.pad(x, (0, -x.size % 8)).view(np.uint64), initial=0))


@pytest.mark.parametrize("threads", [1, 3])
def test_a_read_reads_all(limits: ModuleType, isa: str, threads: int) -> None:
    buffers = [random_bytes(size) for size in SIZES]
    expected = 0
    for x in buffers:
        expected ^= exclusive_or(x)
    variants = limits.reads(buffers, threads)
    assert len(variants) == len(limits.reads(buffers, 1)) * (1 if threads == 1 else 2)
    for name, read in variants.items():
        assert read() == expected, name


@pytest.mark.parametrize("threads", [1, 3])
def test_an_exchange_writes_all(limits: ModuleType, isa: str, threads: int) -> None:
    weights = [random_bytes(size) for size in SIZES]
    grads = [np.zeros(size + 5, np.uint8)[5:] for size in SIZES]
    for name, exchange in limits.exchanges(weights, grads, threads).items():
        exchange()
        assert all(map(np.array_equal, grads, weights)), name
        exchange()
        assert not any(map(np.any, grads)), name


def test_wide_reads_are_there(limits: ModuleType, isa: str) -> None:
    """Each instruction set's own width is among them, each with prefetches and without."""
    widest = {"avx512": 64, "avx2": 32}.get(isa, 16)
    names = limits.reads([random_bytes(8)], 1).keys()
    widths = [width for width in (16, 32, 64) if width <= widest]
    assert names == {
        f"read: Bytes{w}, prefetch {ahead}" for w in widths for ahead in (0, 512, 4096)
    }


def test_the_fastest_variant_is_the_limit(limits: ModuleType) -> None:
    found = {
        "fused_penalties": {"median": 1.0},
        "read: wide": {"median": 3.0},
        "read: wide, prefetch": {"median": 2.0},
        "read: narrow": {"median": 4.0},
        "exchange: wide": {"median": 5.0},
    }
    assert limits.fastest(found) == {
        "fused_penalties": {"median": 1.0},
        "read": {"median": 2.0, "variant": "wide, prefetch"},
        "exchange": {"median": 5.0, "variant": "wide"},
    }
