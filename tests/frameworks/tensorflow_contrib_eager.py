"""`fused_penalties.tensorflow.contrib` outside of TensorFlow 1's graphs, next to tf_slim's.

`test_tensorflow_contrib.py` runs this file in a Python of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tf_slim.layers import regularizers as slim

import fused_penalties as fp
from fused_penalties import contrib as on_arrays
from fused_penalties import regularizers
from fused_penalties.tensorflow import contrib as ours
from fused_penalties.tensorflow import penalty

v1 = tf.compat.v1
W = np.array([[1, -2], [-3, 4]], np.float32)
X = np.random.default_rng(3).normal(size=(7, 5)).astype(np.float32)


@pytest.fixture(autouse=True)
def _no_losses_of_others() -> Iterator[None]:
    """Eager losses are kept by the default graph, as tf_slim's are."""
    yield
    v1.get_default_graph().clear_collection(v1.GraphKeys.REGULARIZATION_LOSSES)


EAGER = [
    "l1_regularizer(0.5)",
    "l2_regularizer(0.5)",
    "l1_l2_regularizer(0.1, 0.2)",
    "sum_regularizer([contrib.l1_regularizer(0.5), tf.nn.l2_loss])",
    "l1_regularizer(tf.constant(0.5))",
]


@pytest.mark.parametrize("made", EAGER)
@pytest.mark.parametrize("way", ["eager", "function", "xla"])
def test_outside_of_graphs(made: str, way: str) -> None:
    variables = [tf.Variable(X), tf.Variable(2 * X)]

    def run(contrib: Any) -> Any:
        regularizer = eval(f"contrib.{made}", {"contrib": contrib, "tf": tf})
        with tf.GradientTape() as tape:
            one = regularizer(variables[0])
            many = contrib.apply_regularization(regularizer, variables)
            total = one + 2 * many
        return one, many, tape.gradient(total, variables)

    if way == "eager":
        our, their = run(ours), run(slim)
    else:
        our, their = (
            tf.function(lambda contrib=contrib: run(contrib), jit_compile=way == "xla")()
            for contrib in (ours, slim)
        )
    for x, wanted in zip(tf.nest.flatten(our), tf.nest.flatten(their), strict=True):
        assert x.dtype == wanted.dtype
        np.testing.assert_allclose(x, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("contrib", [ours, slim])
def test_get_variable(contrib: Any) -> None:
    with v1.variable_scope("eager"):
        made = v1.get_variable("w", initializer=W, regularizer=contrib.l2_regularizer(0.5))
    contrib.apply_regularization(contrib.l1_regularizer(0.5), [made])
    assert v1.losses.get_regularization_loss().numpy() == 7.5 + 5.0


def test_lists_of_several_dtypes() -> None:
    for dtypes, wanted in (
        (("float16", "float32"), "float32"),
        (("float16", "float64"), "float64"),
    ):
        tensors = [tf.constant(W, dtype) for dtype in dtypes]
        total = ours.apply_regularization(ours.l2_regularizer(0.5), tensors)
        assert (total.dtype.name, float(total)) == (wanted, 15.0)


def test_the_rest_of_the_package_takes_them() -> None:
    members = [ours.l1_regularizer(0.5), on_arrays.l2_regularizer(0.5)]
    regularizer = ours.sum_regularizer(members)
    assert fp.penalty([W, W], regularizer) == 25.0
    assert regularizer.coefficients == (0.5, 0.25)
    assert float(penalty([tf.constant(W)] * 2, regularizer)) == 25.0
    assert float(ours.apply_regularization(regularizers.L2(0.5), [tf.constant(W)] * 2)) == 30.0
