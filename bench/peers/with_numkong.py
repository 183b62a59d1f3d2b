"""NumKong's moments: one read, added in float64, on one thread.

They are the sums of the weights and of their squares, the nearest thing that there is: it does not
add magnitudes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numkong
import numpy as np

from bench.peers import Buffers, Numbers, Peer


def prepare(buffers: Buffers, threads: int) -> Callable[[], Any]:
    moments = numkong.moments
    if buffers[0].dtype.name == "bfloat16":  # whose buffers Python cannot describe
        words = [buffer.view(np.uint16) for buffer in buffers]
        return lambda: [moments(word, dtype="bfloat16") for word in words]
    return lambda: [moments(buffer) for buffer in buffers]


def numbers(result: Any) -> Numbers:
    return None, [float(square) for _, square in result]


DTYPES = frozenset({"float16", "bfloat16", "float32", "float64"})
PEERS = [Peer("NumKong moments", DTYPES, prepare, numbers)]
