"""What the files share that are run once for each backend of Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from fused_penalties.keras import L1, L1L2, L2, OrthogonalRegularizer

BACKEND = keras.backend.backend()
RANDOM = np.random.default_rng(7)
X = RANDOM.normal(size=(64, 6)).astype(np.float32)
Y = X[:, :3] * 2


def number(tensor: Any) -> float:
    return float(ops.convert_to_numpy(tensor))


def total(model: Any) -> float:
    return sum(number(loss) for loss in model.losses)


def history(model: Any, **way: Any) -> list[float]:
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", **way)
    fit = model.fit(X, Y, epochs=4, batch_size=16, verbose=0, shuffle=False).history
    return [*fit["loss"], model.evaluate(X, Y, verbose=0)]


def gradients(model: Any) -> list[np.ndarray]:
    """Of the sum of the model's losses, for its trainable weights; zeros where it has none."""
    weights = model.trainable_weights
    if BACKEND == "torch":
        model.zero_grad()
        sum(model.losses).backward()
        found = [w.value.grad for w in weights]
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = tf.add_n(model.losses)
        found = tape.gradient(loss, [w.value for w in weights])
    else:
        import jax

        def loss_of(values: list[Any]) -> Any:
            with keras.StatelessScope(state_mapping=list(zip(weights, values, strict=True))):
                return sum(model.losses)

        found = jax.jit(jax.grad(loss_of))([w.value for w in weights])
    return [
        np.zeros(w.shape) if g is None else ops.convert_to_numpy(g)
        for w, g in zip(weights, found, strict=True)
    ]


def dense(regularizer: Any = None, units: int = 6, **options: Any) -> Any:
    return layers.Dense(units, kernel_regularizer=regularizer, **options)


def small(*regularizers_: Any) -> Any:
    model = keras.Sequential([layers.Input((6,)), *map(dense, regularizers_), dense(None, 3)])
    # Biases are zeros at first, where |w| has no derivative.
    for weight in model.weights:
        weight.assign(RANDOM.normal(size=weight.shape).astype(np.float32) / 2)
    return model


def cube(w: Any) -> Any:
    return 0.01 * ops.sum(ops.absolute(w) ** 3)


@keras.saving.register_keras_serializable(package="tests")
class Double(L2):
    """A subclass that computes something else than what its factor says."""

    def __call__(self, x: Any) -> Any:
        return 2.0 * super().__call__(x)


def everything() -> Any:
    """Nested, shared and frozen layers, activities, functions, a norm, attention."""
    shared = dense("l1", bias_regularizer=L1L2(0.01, 0.02))
    frozen = dense(L2(100.0), trainable=False)
    active = dense(keras.regularizers.L1L2(0.01, 0.02), activity_regularizer=L2(0.1))
    inner = keras.Sequential([layers.Input((6,)), shared, active, shared])
    inputs = keras.Input((6,))
    x = frozen(inner(inputs))
    x = layers.BatchNormalization(gamma_regularizer=L2(0.1))(x)
    x = layers.Reshape((2, 3))(x)
    x = layers.MultiHeadAttention(2, 3, kernel_regularizer=L1())(x, x)
    x = layers.Flatten()(x)
    x = dense(cube, bias_regularizer=Double(0.1))(x)
    x = dense(OrthogonalRegularizer(0.1))(x)
    return keras.Model(inputs, dense(L1(0.001), units=3)(x))


def value_and_gradient(function: Callable[[Any], Any], x: Any) -> tuple[Any, np.ndarray]:
    """Of a function of one tensor, by the backend's own means."""
    tensor = ops.convert_to_tensor(x)
    if BACKEND == "torch":
        tensor.requires_grad_()
        value = function(tensor)
        value.backward()
        return value.detach(), ops.convert_to_numpy(tensor.grad)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(tensor)
            value = function(tensor)
        return value, ops.convert_to_numpy(tape.gradient(value, tensor))
    import jax

    value, gradient = jax.value_and_grad(function)(tensor)
    return value, np.asarray(gradient)
