"""What Keras' tutorials publish, on Keras 3 and TensorFlow: their regularizers, fused, and ours.

`test_tensorflow_contrib.py` runs this file in a Python of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from fused_penalties import keras as ours
from fused_penalties.tensorflow import contrib

RANDOM = np.random.default_rng(4)
X = RANDOM.normal(size=(256, 28)).astype(np.float32)
IMAGES = RANDOM.normal(size=(64, 8, 8, 1)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.float32)


def tutorial(kernel: Any, activity: Any) -> Any:
    """Overfit and underfit: three layers of 16, L2 of 0.001."""
    del activity
    return keras.Sequential(
        [layers.Input((28,))]
        + [layers.Dense(16, "elu", kernel_regularizer=kernel(0.001)) for _ in range(3)]
        + [layers.Dense(1)]
    )


def dense_with_activity(kernel: Any, activity: Any) -> Any:
    return keras.Sequential(
        [
            layers.Input((28,)),
            layers.Dense(16, kernel_regularizer=kernel(0.01), activity_regularizer=activity(0.01)),
            layers.Dense(1, bias_regularizer=kernel(0.01)),
        ]
    )


def conv2d_with_activity(kernel: Any, activity: Any) -> Any:
    return keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(
                4, 3, kernel_regularizer=kernel(0.01), activity_regularizer=activity(0.01)
            ),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )


RECIPES = [tutorial, dense_with_activity, conv2d_with_activity]
BOTH = {
    "Keras' own, fused": (keras.regularizers.L2, keras.regularizers.L1, True),
    "ours": (ours.L2, ours.L1, False),
    "ours, fused": (ours.L2, ours.L1, True),
    # The factor 1/2 is contrib's.
    "contrib's": (lambda l2: contrib.l2_regularizer(2 * l2), contrib.l1_regularizer, False),
}


def history(made: Any) -> list[float]:
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    made.compile(keras.optimizers.SGD(0.05), loss)
    x = X if made.input_shape[1] == 28 else IMAGES
    fit = made.fit(x, Y[: len(x)], epochs=3, batch_size=32, verbose=0, shuffle=False)
    return [*fit.history["loss"], made.evaluate(x, Y[: len(x)], verbose=0)]


@pytest.fixture(scope="module")
def theirs() -> dict[Any, list[float]]:
    found = {}
    for recipe in RECIPES:
        keras.utils.set_random_seed(11)
        found[recipe] = history(recipe(keras.regularizers.L2, keras.regularizers.L1))
    return found


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("recipe", RECIPES)
def test_histories(recipe: Callable[..., Any], kind: str, theirs: dict[Any, list[float]]) -> None:
    kernel, activity, fused = BOTH[kind]
    keras.utils.set_random_seed(11)
    made = recipe(kernel, activity)
    if fused:
        ours.fuse(made)
    assert history(made) == pytest.approx(theirs[recipe], rel=1e-5)


def test_contribs_in_a_saved_model(tmp_path: Path) -> None:
    made = dense_with_activity(contrib.l2_regularizer, contrib.l1_regularizer)
    made.save(tmp_path / "model.keras")
    known = {"ContribRegularizer": contrib.ContribRegularizer}
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects=known)
    made(X), loaded(X)
    assert [float(x) for x in loaded.losses] == [float(x) for x in made.losses]
