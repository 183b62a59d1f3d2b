"""`tf.compat.v1.layers`, which TF_USE_LEGACY_KERAS=1 and tf_keras bring back, and tf_keras' models.

`test_tensorflow_contrib.py` runs this file in a Python of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_slim.layers import regularizers as slim

from fused_penalties.tensorflow import contrib as ours

v1 = tf.compat.v1
RANDOM = np.random.default_rng(2)
X = RANDOM.normal(size=(5, 6)).astype(np.float32)
IMAGES = RANDOM.normal(size=(5, 8, 8, 1)).astype(np.float32)


def dense(contrib: Any) -> Any:
    net = v1.layers.dense(
        X,
        5,
        tf.nn.relu,
        kernel_initializer=v1.constant_initializer(0.25),
        bias_initializer=v1.constant_initializer(0.5),
        kernel_regularizer=contrib.l2_regularizer(0.1),
        bias_regularizer=contrib.l1_regularizer(0.1),
        activity_regularizer=contrib.l2_regularizer(0.01),
    )
    return v1.layers.dense(
        net,
        3,
        kernel_initializer=v1.constant_initializer(0.25),
        kernel_regularizer=contrib.l1_regularizer(0.0),
    )


def conv2d(contrib: Any) -> Any:
    net = v1.layers.conv2d(
        IMAGES,
        4,
        3,
        kernel_initializer=v1.constant_initializer(0.25),
        kernel_regularizer=contrib.l1_l2_regularizer(0.1, 0.2),
        activity_regularizer=contrib.l1_regularizer(0.01),
    )
    return v1.layers.flatten(net)


def under_a_scope(contrib: Any) -> Any:
    with v1.variable_scope("net", regularizer=contrib.l2_regularizer(0.5), reuse=v1.AUTO_REUSE):
        constant = v1.constant_initializer(0.25)
        v1.layers.dense(X, 5, kernel_initializer=constant, name="fc")
        return v1.layers.dense(X, 5, kernel_initializer=constant, name="fc")


@pytest.mark.parametrize("build", [dense, conv2d, under_a_scope])
def test_layers(build: Callable[[Any], Any]) -> None:
    found = []
    for contrib in (ours, slim):
        with tf.Graph().as_default(), v1.Session() as session:
            loss = tf.reduce_mean(build(contrib))
            losses = v1.losses.get_regularization_losses()
            total = loss + v1.losses.get_regularization_loss()
            step = v1.train.GradientDescentOptimizer(0.01).minimize(total)
            session.run(v1.global_variables_initializer())
            values = list(session.run(losses))
            for _ in range(5):
                values.append(session.run(total))
                session.run(step)
            found.append(([one.name for one in losses], values))
    assert found[0][0] == found[1][0]
    assert found[0][0]
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


def model(contrib: Any) -> Any:
    made = tf_keras.Sequential(
        [
            tf_keras.layers.Dense(
                4, kernel_regularizer=contrib.l1_l2_regularizer(0.1, 0.2), input_shape=(6,)
            ),
            tf_keras.layers.Dense(
                2,
                bias_regularizer=contrib.l1_regularizer(0.1),
                activity_regularizer=contrib.l2_regularizer(0.1),
            ),
        ]
    )
    made.set_weights([np.full(w.shape, 0.25, np.float32) for w in made.get_weights()])
    return made


@pytest.mark.parametrize("way", [{}, {"run_eagerly": True}, {"jit_compile": True}])
def test_models(way: dict[str, bool]) -> None:
    def history(contrib: Any) -> Any:
        made = model(contrib)
        made.compile(tf_keras.optimizers.SGD(0.01), "mse", **way)
        return made.fit(X, X[:, :2], epochs=3, verbose=0, shuffle=False).history["loss"]

    assert history(ours) == pytest.approx(history(slim), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*keras.regularizers.serialize:UserWarning")
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")
@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_saved_models(ending: str, tmp_path: Path) -> None:
    made, file = model(ours), tmp_path / f"model.{ending}"
    made.save(file)
    known = {"ContribRegularizer": ours.ContribRegularizer}
    loaded = tf_keras.models.load_model(file, custom_objects=known)
    made(X), loaded(X)
    assert [float(x) for x in loaded.losses] == [float(x) for x in made.losses]
