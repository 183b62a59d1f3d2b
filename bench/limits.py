"""The limits that benchmarks on the CPU compare with: a pure read, and a pure exchange.

limits.cpp, compiled at first use by $CXX, c++ or g++, for the instruction set that the package
uses: reads of several widths, with prefetches and without. The fastest over the memory and with the
threads at hand is the limit.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

import fused_penalties as fp
from timing import interleaved

SOURCE = Path(__file__).with_name("limits.cpp")
# A thread takes a 128th of the bytes at a time, but within these: small enough that all end
# together, large enough that the change from one piece to the next costs nothing.
LEAST_PIECE, MOST_PIECE = 256 << 10, 4 << 20
ROUNDS = 15  # to choose by: with fewer, a slow moment decides
# The other sets need none: the compiler's default is the baseline, or NEON. "scalar" is measured
# against that, too.
FLAGS = {"avx2": ["-mavx2"], "avx512": ["-mavx512f"]}


class Piece(ctypes.Structure):
    _fields_ = [
        ("source", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
    ]


def read(buffers: Sequence[np.ndarray], threads: int) -> Callable[[], int]:
    """Reads contiguous buffers, at the speed of the fastest variant, and returns their XOR."""
    return _fastest(reads(buffers, threads))


def exchange(
    weights: Sequence[np.ndarray], grads: Sequence[np.ndarray], threads: int
) -> Callable[[], None]:
    """Reads both and writes the second, at the speed of the fastest variant: grads ^= weights."""
    return _fastest(exchanges(weights, grads, threads))


def reads(buffers: Sequence[np.ndarray], threads: int) -> dict[str, Callable[[], int]]:
    """Every variant of the read, by name."""
    return _variants("read_all", buffers, buffers, threads)


def exchanges(
    weights: Sequence[np.ndarray], grads: Sequence[np.ndarray], threads: int
) -> dict[str, Callable[[], None]]:
    """Every variant of the exchange, by name."""
    return _variants("exchange_all", weights, grads, threads)


def _fastest(variants: dict[str, Callable[[], Any]]) -> Callable[[], Any]:
    times = interleaved(variants, ROUNDS)
    return variants[min(times, key=lambda name: statistics.median(times[name]))]


def _variants(
    function: str, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray], threads: int
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
    call = getattr(built, function)

    def run(variant: int, _keep: Any) -> Any:  # what it has the addresses of must not go away
        return call(variant, table, len(pieces), threads)

    names = iter(map(built.variant_name, count()).__next__, None)
    return {
        name.decode(): partial(run, variant, (sources, targets))
        for variant, name in enumerate(names)
    }


@cache
def library(isa: str) -> Any:
    """limits.cpp, compiled for one instruction set."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        sys.exit("bench/limits.py needs a C++ compiler: $CXX, c++ or g++")
    with tempfile.TemporaryDirectory() as folder:  # once loaded, the file need not be there
        path = Path(folder) / "limits.so"
        flags = ["-std=c++17", "-O3", "-shared", "-fPIC", "-pthread", *FLAGS.get(isa, [])]
        subprocess.run([*compiler.split(), *flags, SOURCE, "-o", path], check=True)
        built = ctypes.CDLL(str(path))
    arguments = [ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    built.read_all.argtypes = built.exchange_all.argtypes = arguments
    built.read_all.restype = ctypes.c_uint64
    built.exchange_all.restype = None
    built.variant_name.argtypes = [ctypes.c_size_t]
    built.variant_name.restype = ctypes.c_char_p
    return built
