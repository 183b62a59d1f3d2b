"""JAX: the expression, compiled by XLA ahead of the calls. Narrow dtypes are added in float32.

XLA makes as many threads as the process may use cores, at its start; fewer cannot be asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bench.peers import Buffers, Peer, pairs

jax.config.update("jax_enable_x64", True)  # or float64 would become float32
jax.config.update("jax_platforms", "cpu")


def sums(weights: list[jax.Array]) -> Any:
    wide = jnp.float32 if weights[0].itemsize == 2 else weights[0].dtype
    return [(jnp.abs(w).sum(dtype=wide), jnp.square(w.astype(wide)).sum()) for w in weights]


def prepare(buffers: Buffers, threads: int) -> Callable[[], Any]:
    weights = [jnp.asarray(buffer) for buffer in buffers]
    function = jax.jit(sums).lower(weights).compile()
    return lambda: jax.block_until_ready(function(weights))


DTYPES = frozenset({"float16", "bfloat16", "float32", "float64"})
PEERS = [Peer("JAX jit", DTYPES, prepare, pairs, most_buffers=20)]
