"""TensorFlow: the expression in a tf.function, which XLA compiles unless there are many buffers.

TensorFlow makes as many threads as the process may use cores, at its start.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

from bench.peers import Buffers, Peer, pairs

MOST_COMPILED = 20  # buffers; with more XLA takes too long

tf.config.set_visible_devices([], "GPU")


def prepare(buffers: Buffers, threads: int) -> Callable[[], Any]:
    weights = [tf.constant(buffer) for buffer in buffers]
    wide = tf.float32 if buffers[0].itemsize == 2 else weights[0].dtype

    @tf.function(jit_compile=len(buffers) <= MOST_COMPILED)
    def sums() -> Any:
        found = [tf.cast(w, wide) for w in weights]
        return [(tf.reduce_sum(tf.abs(w)), tf.reduce_sum(tf.square(w))) for w in found]

    return sums


DTYPES = frozenset({"float16", "bfloat16", "float32", "float64"})
PEERS = [Peer("TensorFlow", DTYPES, prepare, pairs, most_buffers=1000)]
