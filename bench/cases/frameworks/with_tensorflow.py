"""fused_penalties.tensorflow: the penalty in a loss, against the expression.

Forward and backward of the penalty alone, in eager mode and in tf.function; and in a step of
tf.function that subtracts the gradients from the variables, as an optimizer does. The expression
sums the terms of each variable as Keras writes them; by hand tf.nn.l2_loss, which is one operation,
takes the place of the squares; and XLA compiles the expression. Values and gradients, and a step's
value, are checked against the expression before they are timed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # where there is a GPU the penalty is plain operations

import numpy as np
import tensorflow as tf

from bench.cases.frameworks.buffers import L1, L2, buffers, keys, models
from bench.settings import Settings
from bench.timing import Contenders
from bench.work import Row, Work
from bench.work import rows as measured_rows
from fused_penalties.regularizers import L1L2
from fused_penalties.tensorflow import penalty

Call = Callable[[], Any]


class Model:
    """Variables, and the ways to the penalty of all of them."""

    def __init__(self, arrays: list[np.ndarray], l1: float) -> None:
        self.variables = variables = list(map(tf.Variable, arrays))
        self.ways: dict[str, Call] = {
            "fused_penalties": lambda: penalty(variables, L1L2(l1, L2)),
            "the expression": lambda: tf.add_n(
                [L2 * tf.reduce_sum(tf.square(v)) for v in variables]
                + [l1 * tf.reduce_sum(tf.abs(v)) for v in variables if l1]
            ),
            "tf.nn.l2_loss by hand": lambda: (
                2 * L2 * tf.add_n([tf.nn.l2_loss(v) for v in variables])
                + (l1 * tf.add_n([tf.reduce_sum(tf.abs(v)) for v in variables]) if l1 else 0)
            ),
        }

    def forward_and_backward(self, loss: Call) -> Call:
        def call() -> Any:
            with tf.GradientTape() as tape:
                value = loss()
            return value, tape.gradient(value, self.variables)

        return call

    def step(self, loss: Call) -> Call:
        both = self.forward_and_backward(loss)

        def call() -> Any:
            value, grads = both()
            for variable, grad in zip(self.variables, grads, strict=True):
                variable.assign_sub(0.0 * grad)
            return value

        return call

    def traced(self, make: Callable[[Call], Call]) -> dict[str, Call]:
        found = {way: tf.function(make(loss)) for way, loss in self.ways.items()}
        if len(self.variables) < 500:  # compiling an expression of 1000 tensors takes minutes
            compiled = tf.function(make(self.ways["the expression"]), jit_compile=True)
            found["XLA of the expression"] = compiled
        return found

    def check(self, ways: dict[str, Call]) -> None:
        """A wrong result must not be timed."""
        wanted, slopes = ways["the expression"]()
        for way, call in ways.items():
            value, grads = call()
            check_value(way, value, wanted)
            for grad, slope in zip(grads, slopes, strict=True):
                if not np.allclose(grad, slope, rtol=1e-5, atol=0.0):
                    raise ValueError(f"{way}: a gradient is not that of the expression")


def check_value(way: str, value: Any, wanted: Any) -> None:
    if not np.isclose(value, wanted, rtol=1e-4, atol=0.0):
        raise ValueError(f"{way}: got {value!r}; the expression says {wanted!r}")


def eager(arrays: list[np.ndarray], l1: float, errors: dict[str, float]) -> Contenders:
    model = Model(arrays, l1)
    found = {way: model.forward_and_backward(loss) for way, loss in model.ways.items()}
    model.check(found)
    return found


def graph(arrays: list[np.ndarray], l1: float, errors: dict[str, float]) -> Contenders:
    model = Model(arrays, l1)
    found = model.traced(model.forward_and_backward)
    model.check(found)
    return found


def step(arrays: list[np.ndarray], l1: float, errors: dict[str, float]) -> Contenders:
    model = Model(arrays, l1)
    found = model.traced(model.step)
    wanted = model.ways["the expression"]()
    for way, call in found.items():
        check_value(way, call(), wanted)
    return found


def rows(settings: Settings) -> Iterator[Row]:
    few = "200 x 64"
    works = []
    for l1, names in ((L1, (few, *models(settings))), (0.0, (few, "ResNet-50"))):
        for name in names:
            arrays = buffers(name)
            works += [
                Work(
                    keys("TensorFlow", what if l1 else f"L2 alone, {what}", name, arrays),
                    partial(prepare, arrays, l1),
                )
                for what, prepare in (
                    ("forward and backward, eager", eager),
                    ("forward and backward, graph", graph),
                    ("a step in a graph", step),
                )
            ]
    return measured_rows("frameworks", works, settings)
