"""SciPy's BLAS, which is OpenBLAS in its wheels: asum, and the dot product with itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scipy.linalg import blas
from threadpoolctl import ThreadpoolController

from bench.peers import Buffers, Peer, pairs

CONTROLLER = ThreadpoolController()


def prepare(buffers: Buffers, threads: int) -> Callable[[], Any]:
    CONTROLLER.limit(limits=threads, user_api="blas")
    single = buffers[0].dtype == "float32"
    asum, dot = (blas.sasum, blas.sdot) if single else (blas.dasum, blas.ddot)
    return lambda: [(asum(buffer), dot(buffer, buffer)) for buffer in buffers]


PEERS = [Peer("BLAS asum + dot", frozenset({"float32", "float64"}), prepare, pairs)]
