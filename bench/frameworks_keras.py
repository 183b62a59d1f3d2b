"""`fused_penalties.keras.fuse` against Keras alone, on one backend.

    pip install ".[keras,bench]"
    KERAS_BACKEND=torch python bench/frameworks_keras.py [--rounds N]

Each work is timed in turns with and without `fuse`, on models with the same weights; each ratio is
taken within a round, and the median over the rounds is printed. Losses are compared before.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from fused_penalties.keras import fuse
from timing import interleaved, ratio
from weights import shapes

BACKEND = keras.backend.backend()
SHAPES = {
    "159 variables of 64x64": [(64, 64)] * 159,
    "ResNet-50's 161 variables": list(shapes("resnet50").values()),
}


class Weights(layers.Layer):
    """Variables under a penalty, and nothing else."""

    def __init__(self, all_shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        l2 = keras.regularizers.L2(1e-4)
        for shape in all_shapes:
            self.add_weight(shape=shape, initializer="random_normal", regularizer=l2)


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


def losses(all_shapes: list[tuple[int, ...]]) -> dict[str, dict[str, Callable[[], Any]]]:
    models = twice(lambda: Weights(all_shapes))
    values = {name: sum(map(number, model.losses)) for name, model in models.items()}
    np.testing.assert_allclose(values["fused"], values["unfused"], rtol=1e-5)

    def with_backward(model: Any) -> None:
        model.zero_grad()
        ops.sum(ops.stack(model.losses)).backward()

    works = {"model.losses": lambda model: ops.sum(ops.stack(model.losses))}
    if BACKEND == "torch":
        works["model.losses and backward"] = with_backward
    return {
        work: {name: (lambda model=model, call=call: call(model)) for name, model in models.items()}
        for work, call in works.items()
    }


def steps(make: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
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
    return {
        name: (lambda model=model: model.train_on_batch(x, y)) for name, model in models.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    works = {
        f"{work}, {name}": contenders
        for name, all_shapes in SHAPES.items()
        for work, contenders in losses(all_shapes).items()
    }
    works |= {f"a fit step, {make.__name__} layers": steps(make) for make in (narrow, wide)}
    print(f"Keras {keras.__version__} on {BACKEND}")
    for work, contenders in works.items():
        times = interleaved(contenders, rounds)
        ms = {name: 1e3 * float(np.median(one)) for name, one in times.items()}
        print(
            f"{work:55} fused {ms['fused']:8.3f} ms, unfused {ms['unfused']:8.3f} ms: "
            f"{ratio(times, 'unfused', 'fused'):5.2f} times as fast"
        )


if __name__ == "__main__":
    main()
