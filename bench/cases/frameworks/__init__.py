"""The penalty inside each framework, against what people write in it.

Forward and backward alone and inside a step that has gradients, on the shapes of ResNet-50, of
BERT-base and of 1000 buffers of 64. Each framework has a process of its own, Keras one for each
backend. Values, and gradients where there are some, are checked before they are timed.

Run it with nothing else beside it. Where other work takes one of the cores, torch's threads spin
while they wait for each other, and the expression alone was seen to take twenty times as long with
two threads as with one: a ratio of then says nothing about the penalty.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence

from bench import child, machine
from bench.settings import Settings
from bench.work import Row

PARTS = {
    "torch": "Penalty, and Penalty attached to an optimizer, in torch",
    "jax": "compiled functions of JAX",
    "tensorflow": "TensorFlow, eager and in tf.function",
    "keras-torch": "losses and steps of Keras on torch",
    "keras-tensorflow": "losses and steps of Keras on TensorFlow",
    "keras-jax": "losses and steps of Keras on JAX",
}
PACKAGES = {"jax": ("jax", "optax")}  # beside those that a part's name has


def run(parts: Sequence[str], settings: Settings) -> Iterator[Row]:
    for part in parts:
        framework, _, backend = part.partition("-")
        needed = PACKAGES.get(part, tuple(part.split("-")))
        if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
            settings.leave_out(f"frameworks/{part}", f"not installed: {', '.join(missing)}")
        elif settings.quick and part != "torch":
            settings.leave_out(f"frameworks/{part}", "it takes seconds to start; not with --quick")
        else:
            environment = {"TF_CPP_MIN_LOG_LEVEL": "3"}
            if backend:
                environment["KERAS_BACKEND"] = backend
            module = f"bench.cases.frameworks.with_{framework}"
            yield from child.rows(module, settings, machine.threads(), environment)
