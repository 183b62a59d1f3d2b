"""`fused_penalties.keras.fuse` against Keras alone, on the backend that KERAS_BACKEND names.

`model.losses` of many variables, with its backward where the backend is torch, and a whole step of
`fit`, on models with the same weights. Losses, gradients and the weights after a step are compared
before they are timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from bench.cases.frameworks.buffers import buffers, keys, models
from bench.settings import Settings
from bench.timing import Contenders
from bench.work import Row, Work
from bench.work import rows as measured_rows
from fused_penalties.keras import fuse

BACKEND = keras.backend.backend()
FUSED, UNFUSED = "fused_penalties", "Keras alone"


class Weights(layers.Layer):
    """Variables under a penalty, and nothing else."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        super().__init__()
        l2 = keras.regularizers.L2(1e-4)
        for array in arrays:
            self.add_weight(shape=array.shape, initializer="zeros", regularizer=l2)
        self.set_weights(arrays)


def narrow() -> Any:
    """Where the penalties' many small operations count."""
    return [layers.Dense(64, "relu", kernel_regularizer="l2") for _ in range(80)], 64


def wide() -> Any:
    """Where reading the weights counts."""
    return [layers.Dense(2048, "relu", kernel_regularizer="l2") for _ in range(4)], 1024


def twice(make: Callable[[], Any]) -> dict[str, Any]:
    """The same model, fused and unfused."""
    made = {}
    for name in (FUSED, UNFUSED):
        keras.utils.set_random_seed(1)
        made[name] = make()
    fuse(made[FUSED])
    return made


def number(loss: Any) -> float:
    return float(ops.convert_to_numpy(loss))


def losses(model: Any) -> Any:
    return ops.sum(ops.stack(model.losses))


def losses_and_backward(model: Any) -> None:
    model.zero_grad()
    losses(model).backward()


def of_losses(
    arrays: list[np.ndarray], call: Callable[[Any], Any], errors: dict[str, float]
) -> Contenders:
    models = twice(lambda: Weights(arrays))
    values = {name: sum(map(number, model.losses)) for name, model in models.items()}
    np.testing.assert_allclose(values[FUSED], values[UNFUSED], rtol=1e-5)
    if call is losses_and_backward:
        for model in models.values():
            call(model)
        weights = zip(*(model.trainable_weights for model in models.values()), strict=True)
        for fused, unfused in weights:
            slope, wanted = (w.value.grad.numpy(force=True) for w in (fused, unfused))
            np.testing.assert_allclose(slope, wanted, rtol=1e-5)
    return {name: partial(call, model) for name, model in models.items()}


def steps(make: Callable[[], Any], errors: dict[str, float]) -> Contenders:
    def model() -> Any:
        dense, inputs = make()
        built = keras.Sequential([layers.Input((inputs,)), *dense, layers.Dense(10)])
        built.compile(keras.optimizers.SGD(1e-3), "mse")
        return built

    models = twice(model)
    x = np.random.default_rng(0).standard_normal((32, models[FUSED].input_shape[1]))
    x, y = x.astype(np.float32), np.zeros((32, 10), np.float32)
    values = {name: float(one.train_on_batch(x, y)) for name, one in models.items()}
    np.testing.assert_allclose(values[FUSED], values[UNFUSED], rtol=1e-5)
    stepped = zip(*(one.get_weights() for one in models.values()), strict=True)
    for fused, unfused in stepped:
        # The penalty moves the largest weights by 7e-7 and more.
        np.testing.assert_allclose(fused, unfused, rtol=0.0, atol=5e-8)
    return {
        name: (lambda model=model: model.train_on_batch(x, y)) for name, model in models.items()
    }


def rows(settings: Settings) -> Iterator[Row]:
    framework = f"Keras on {BACKEND}"
    works = []
    for name in ("159 x 4096", *models(settings)):
        arrays = buffers(name)
        calls = {"model.losses": losses}
        if BACKEND == "torch":
            calls["model.losses and backward"] = losses_and_backward
        works += [
            Work(keys(framework, what, name, arrays), partial(of_losses, arrays, call))
            for what, call in calls.items()
        ]
    for make in narrow, wide:
        dense, inputs = make()
        count, units = len(dense), dense[0].units
        kernels = [
            np.empty((inputs if at == 0 else units, units), np.float32) for at in range(count)
        ]
        model = f"{count} {make.__name__} layers"
        works.append(Work(keys(framework, "a fit step", model, kernels), partial(steps, make)))
    return measured_rows("frameworks", works, settings)
