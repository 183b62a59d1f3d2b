"""fused_penalties.tensorflow: the penalty in a loss, against the expression.

Forward and backward of the penalty alone, in eager mode and in tf.function; and in a step of
tf.function that subtracts the gradients from the variables, as an optimizer does. The expression
sums the terms of each variable as Keras writes them; by hand tf.nn.l2_loss, which is one operation,
takes the place of the squares; and XLA compiles the expression. Values and gradients, and a step's
value, are checked against the expression before they are timed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # where there is a GPU the penalty is plain operations

import numpy as np
import tensorflow as tf

from fused_penalties.regularizers import L1L2
from fused_penalties.tensorflow import penalty
from reporting import Report
from shapes import L1, L2, WORKS, buffers

Call = Callable[[], Any]


class Work:
    """Variables, and the ways to the penalty of all of them."""

    def __init__(self, name: str, l1: float) -> None:
        self.variables = variables = list(map(tf.Variable, buffers(name)))
        self.ways: dict[str, Call] = {
            "penalty": lambda: penalty(variables, L1L2(l1, L2)),
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
                    sys.exit(f"wrong result: {way}: a gradient is not that of the expression")


def check_value(way: str, value: Any, wanted: Any) -> None:
    if not np.isclose(value, wanted, rtol=1e-4, atol=0.0):
        sys.exit(f"wrong result: {way}: {value!r}, the expression says {wanted!r}")


def measure(report: Report, name: str, l1: float) -> None:
    work = Work(name, l1)
    eager = {way: work.forward_and_backward(loss) for way, loss in work.ways.items()}
    graph = work.traced(work.forward_and_backward)
    work.check(eager)
    work.check(graph)
    in_eager, in_graph = targets(name)
    title = name if l1 else f"{name}, L2 alone"
    report.run(f"{title}, forward and backward, eager", eager, {"the expression": in_eager})
    report.run(f"{title}, forward and backward, graph", graph, {"the expression": in_graph})
    step = work.traced(work.step)
    wanted = work.ways["the expression"]()
    for way, call in step.items():
        check_value(way, call(), wanted)
    report.run(f"{title}, a step in a graph", step, {"the expression": in_graph})


def targets(name: str) -> Any:
    """What is wanted at least, and aimed for, of each row."""
    if name == "200 x 64":
        return (8.0, 11.0), ()
    if name == "ResNet-50":
        return (2.5, 3.0), (1.2, 1.5)
    return (), ()  # nothing is promised


def main() -> None:
    report = Report(__doc__)
    for name in "200 x 64", *WORKS:
        measure(report, name, L1)
    for name in "200 x 64", "ResNet-50":
        measure(report, name, 0.0)
    report.write()


if __name__ == "__main__":
    main()
