"""`fused_penalties.keras.fuse` against Keras alone, on the backend that KERAS_BACKEND names.

`model.losses` of many variables, with its backward where the backend is torch, and a whole step of
`fit`, on models with the same weights. Losses, gradients and the weights after a step are compared
before they are timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from fused_penalties.keras import fuse
from reporting import Contenders, Report
from shapes import WORKS, buffers

BACKEND = keras.backend.backend()


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
    for name in ("fused", "unfused"):
        keras.utils.set_random_seed(1)
        made[name] = make()
    fuse(made["fused"])
    return made


def number(loss: Any) -> float:
    return float(ops.convert_to_numpy(loss))


def losses(arrays: list[np.ndarray]) -> dict[str, Contenders]:
    models = twice(lambda: Weights(arrays))
    values = {name: sum(map(number, model.losses)) for name, model in models.items()}
    np.testing.assert_allclose(values["fused"], values["unfused"], rtol=1e-5)

    def with_backward(model: Any) -> None:
        model.zero_grad()
        ops.sum(ops.stack(model.losses)).backward()

    works = {"model.losses": lambda model: ops.sum(ops.stack(model.losses))}
    if BACKEND == "torch":
        works["model.losses and backward"] = with_backward
        for model in models.values():
            with_backward(model)
        weights = zip(*(model.trainable_weights for model in models.values()), strict=True)
        for fused, unfused in weights:
            slope, wanted = (w.value.grad.numpy(force=True) for w in (fused, unfused))
            np.testing.assert_allclose(slope, wanted, rtol=1e-5)
    return {
        work: {name: (lambda model=model, call=call: call(model)) for name, model in models.items()}
        for work, call in works.items()
    }


def steps(make: Callable[[], Any]) -> Contenders:
    def model() -> Any:
        dense, inputs = make()
        built = keras.Sequential([layers.Input((inputs,)), *dense, layers.Dense(10)])
        built.compile(keras.optimizers.SGD(1e-3), "mse")
        return built

    models = twice(model)
    x = np.random.default_rng(0).standard_normal((32, models["fused"].input_shape[1]))
    x, y = x.astype(np.float32), np.zeros((32, 10), np.float32)
    values = {name: float(one.train_on_batch(x, y)) for name, one in models.items()}
    np.testing.assert_allclose(values["fused"], values["unfused"], rtol=1e-5)
    stepped = zip(*(one.get_weights() for one in models.values()), strict=True)
    for fused, unfused in stepped:
        # The penalty moves the largest weights by 7e-7 and more.
        np.testing.assert_allclose(fused, unfused, rtol=0.0, atol=5e-8)
    return {
        name: (lambda model=model: model.train_on_batch(x, y)) for name, model in models.items()
    }


def targets(work: str, shapes: str) -> Any:
    """What is wanted at least, and aimed for, of a row."""
    if BACKEND != "torch" or shapes != "159 x 4096":
        return ()
    return (10.0, 13.0) if work == "model.losses" else (6.0, 8.0)


def main() -> None:
    report = Report(__doc__)
    for name in ("159 x 4096", *WORKS):
        for work, contenders in losses(buffers(name)).items():
            title = f"{name}, {BACKEND}, {work}"
            report.run(title, contenders, {"unfused": targets(work, name)})
    for make in narrow, wide:
        wanted = {} if BACKEND == "torch" else {"unfused": (0.95, 1.1)}
        report.run(f"{make.__name__} layers, {BACKEND}, a fit step", steps(make), wanted)
    report.write()


if __name__ == "__main__":
    main()
