"""The expression in float64, differentiated by TensorFlow: what penalties are held to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

DTYPES = (tf.float16, tf.bfloat16, tf.float32, tf.float64)
EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}


def values(*shape: int, dtype: Any = tf.float32, seed: int = 0) -> Any:
    """Numbers with some zeros among them, at which |w| has no derivative."""
    found = np.random.default_rng(seed).standard_normal(shape)
    found[np.abs(found) < 0.1] = 0.0
    return tf.cast(found, dtype)


def expression(weights: Sequence[Any], l1: float, l2: float) -> Any:
    wide = [tf.cast(w, tf.float64) for w in weights]
    return sum(l1 * tf.reduce_sum(tf.abs(w)) + l2 * tf.reduce_sum(w * w) for w in wide)


def value_and_grads(weights: Sequence[Any], l1: float, l2: float) -> tuple[Any, list[Any]]:
    wide = [tf.cast(w, tf.float64) for w in weights]
    with tf.GradientTape() as tape:
        tape.watch(wide)
        value = expression(wide, l1, l2)
    return value.numpy(), [grad.numpy() for grad in tape.gradient(value, wide)]


def close(got: Any, wanted: Any, dtype: Any) -> None:
    np.testing.assert_allclose(
        tf.cast(got, tf.float64).numpy(), wanted, rtol=4 * EPSILON[dtype.name], atol=1e-30
    )
