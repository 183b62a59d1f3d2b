"""A plain loop in C++, loop.cpp: added in float64, vectorised, with OpenMP's threads."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import compiled
from bench.peers import Buffers, Numbers, Peer

# What lets the compiler reorder a sum, without what -ffast-math does to the whole process.
REORDER = ("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno")
LIBRARY = compiled.library(
    Path(__file__).with_name("loop.cpp"), "-march=native", "-fopenmp", *REORDER
)


def prepare(buffers: Buffers, threads: int) -> Callable[[], Any]:
    count = len(buffers)
    function = getattr(LIBRARY, f"sums_{buffers[0].dtype.name}")
    function.restype = None
    pointers = (ctypes.c_void_p * count)(*(buffer.ctypes.data for buffer in buffers))
    sizes = (ctypes.c_size_t * count)(*(buffer.size for buffer in buffers))
    found = np.empty((2, count))
    sums = [ctypes.c_void_p(row.ctypes.data) for row in found]

    def call() -> np.ndarray:
        function(pointers, sizes, ctypes.c_size_t(count), threads, *sums)
        return found

    call.buffers = buffers  # whose addresses it has
    return call


def numbers(result: np.ndarray) -> Numbers:
    sum_abs, sum_square = result.tolist()
    return sum_abs, sum_square


PEERS = [Peer("C++ loop", frozenset({"float32", "float64"}), prepare, numbers)]
