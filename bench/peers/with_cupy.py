"""CuPy: the expression, on the GPU, over copies of the buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy

from bench.peers import Buffers, Peer, pairs

if not cupy.cuda.is_available():
    raise ImportError("no GPU here that CuPy can use")


def prepare(buffers: Buffers, threads: int) -> Callable[[], Any]:
    arrays = [cupy.asarray(buffer) for buffer in buffers]
    wide = cupy.float32 if buffers[0].itemsize == 2 else buffers[0].dtype

    def call() -> Any:
        found = [(cupy.abs(a).sum(dtype=wide), cupy.square(a).sum(dtype=wide)) for a in arrays]
        cupy.cuda.get_current_stream().synchronize()
        return found

    return call


DTYPES = frozenset({"float16", "float32", "float64"})
PEERS = [Peer("CuPy", DTYPES, prepare, pairs, on_gpu=True)]
