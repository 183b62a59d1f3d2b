"""The limits that benchmarks on the CPU compare with: a pure read, and a pure exchange.

limits.cpp, compiled at first use by $CXX, c++ or g++, for the instruction set that the package
uses: reads of several widths, with prefetches and without. All are timed beside what they are
compared with, and the fastest one is the limit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

import fused_penalties as fp
from bench import compiled

LIMITS = ("read", "exchange")
SOURCE = Path(__file__).with_name("limits.cpp")
# A thread takes a 128th of the bytes at a time, but within these: small enough that all end
# together, large enough that the change from one piece to the next costs nothing.
LEAST_PIECE, MOST_PIECE = 256 << 10, 4 << 20
# With fewer bytes one thread may be faster than several, which are made anew at each call.
WORTH_THREADS = 16 << 20
# The other sets need none: the compiler's default is the baseline, or NEON. "scalar" is measured
# against that, too.
FLAGS = {"avx2": ["-mavx2"], "avx512": ["-mavx512f"]}


class Piece(ctypes.Structure):
    _fields_ = [
        ("source", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
    ]


def reads(buffers: Sequence[np.ndarray], threads: int) -> dict[str, Callable[[], int]]:
    """Every variant of the read of contiguous buffers, by name; it returns their exclusive or."""
    return _variants("read", buffers, buffers, threads)


def exchanges(
    weights: Sequence[np.ndarray], grads: Sequence[np.ndarray], threads: int
) -> dict[str, Callable[[], None]]:
    """Every variant of the exchange, by name: it reads both, and writes grads ^= weights."""
    return _variants("exchange", weights, grads, threads)


def fastest(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was measured, with the fastest variant of each limit alone, under the limit's name."""
    result = {}
    for name in found:
        limit, _, variant = name.partition(": ")
        if limit not in LIMITS:
            result[name] = found[name]
        elif limit not in result or found[name]["median"] < result[limit]["median"]:
            result[limit] = {**found[name], "variant": variant}
    return result


def _variants(
    limit: str, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray], threads: int
) -> dict[str, Callable[[], Any]]:
    built = library(fp._core.active_isa())
    piece = sum(source.nbytes for source in sources) // 128 // 4096 * 4096
    piece = min(max(piece, LEAST_PIECE), MOST_PIECE)
    pieces = []
    for source, target in zip(sources, targets, strict=True):
        assert source.flags.c_contiguous
        assert target.flags.c_contiguous
        assert source.nbytes == target.nbytes
        for start in range(0, source.nbytes, piece):
            size = min(piece, source.nbytes - start)
            pieces.append((source.ctypes.data + start, target.ctypes.data + start, size))
    table = (Piece * len(pieces))(*pieces)
    call = getattr(built, f"{limit}_all")

    def run(variant: int, count: int, _keep: Any) -> Any:  # what it points to must not go away
        return call(variant, table, len(pieces), count)

    counts = {f", {threads} threads" if threads > 1 else "": threads}
    if sum(source.nbytes for source in sources) < WORTH_THREADS:
        counts[""] = 1
    names = [name.decode() for name in iter(map(built.variant_name, count()).__next__, None)]
    return {
        f"{limit}: {name}{with_threads}": partial(run, variant, number, (sources, targets))
        for variant, name in enumerate(names)
        for with_threads, number in counts.items()
    }


@cache
def library(isa: str) -> Any:
    """limits.cpp, compiled for one instruction set."""
    built = compiled.library(SOURCE, "-pthread", *FLAGS.get(isa, []))
    arguments = [ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    built.read_all.argtypes = built.exchange_all.argtypes = arguments
    built.read_all.restype = ctypes.c_uint64
    built.exchange_all.restype = None
    built.variant_name.argtypes = [ctypes.c_size_t]
    built.variant_name.restype = ctypes.c_char_p
    return built
