"""numexpr: the two reductions, each compiled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numexpr
import numpy as np

from bench.peers import Buffers, Peer, pairs


def prepare(buffers: Buffers, threads: int) -> Callable[[], Any]:
    numexpr.set_num_threads(threads)
    # numexpr's word for float32 is Python's float.
    signature = [("x", float if buffers[0].dtype == "float32" else np.float64)]
    sum_abs = numexpr.NumExpr("sum(abs(x))", signature)
    sum_square = numexpr.NumExpr("sum(x * x)", signature)
    return lambda: [(sum_abs(buffer), sum_square(buffer)) for buffer in buffers]


PEERS = [Peer("numexpr", frozenset({"float32", "float64"}), prepare, pairs)]
