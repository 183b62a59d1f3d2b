"""The READMEs' examples of each framework, before and after: both train to the same loss.

Those of the folders are diffs. What stands before an example there, and what it is given, is small
here: a network with ResNet's names in place of torchvision's, and a few batches of random data.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import fresh
import readmes

HERE = Path(__file__).parent
TOLERANCE = 1e-5  # of the final loss, relative; the READMEs say it

# By the import that an example begins with: what is needed, and what it is given.
GIVEN = {
    "torch": (
        ("torch",),
        """
        import sys, types
        import torch
        import small_resnet
        torch.manual_seed(0)
        models = types.SimpleNamespace(resnet18=small_resnet.make)
        sys.modules["torchvision"] = types.SimpleNamespace(models=models)
        loader = [
            (torch.randn(8, 3, 16, 16), torch.randint(10, (8,))) for _ in range(5)
        ]
        """,
    ),
    "jax": (
        ("jax", "optax"),
        """
        import jax
        import numpy as np
        rng = np.random.default_rng(0)
        def layer(inputs, outputs):
            kernel = rng.standard_normal((inputs, outputs)).astype(np.float32) / 4
            return {"kernel": kernel, "bias": np.ones(outputs, np.float32)}
        params = {"dense": layer(16, 32), "out": layer(32, 10)}
        def apply(params, x):
            for name in "dense", "out":
                x = jax.nn.tanh(x @ params[name]["kernel"] + params[name]["bias"])
            return x
        loader = [
            (rng.standard_normal((8, 16), np.float32), rng.integers(10, size=8)) for _ in range(5)
        ]
        """,
    ),
    "keras": (
        ("keras", "torch"),
        """
        import keras
        import numpy as np
        keras.utils.set_random_seed(0)
        rng = np.random.default_rng(0)
        x, y = rng.random((64, 784), np.float32), rng.integers(10, size=64)
        """,
    ),
    "tensorflow": (
        ("tensorflow",),
        """
        import os
        os.environ["KERAS_BACKEND"] = "tensorflow"
        import numpy as np
        import tensorflow as tf
        tf.keras.utils.set_random_seed(0)
        rng = np.random.default_rng(0)
        batches = [(rng.random((16, 784), np.float32), rng.integers(10, size=16)) for _ in range(5)]
        """,
    ),
}
EXAMPLES = [
    block
    for folder in ("", "/torch", "/tensorflow", "/jax")
    for block in readmes.blocks(readmes.PACKAGE + folder, "diff")
]


def side(example: str, sign: str) -> str:
    """The code before, "-", or after, "+"."""
    return "\n".join(line[1:] for line in example.splitlines() if line[:1] in ("", " ", sign))


def framework_of(example: str) -> str:
    return re.search(r"^[ +-]import (\w+)", example, re.MULTILINE)[1]  # type: ignore[index]


def test_there_is_one_for_each() -> None:
    assert sorted(map(framework_of, EXAMPLES)) == sorted(GIVEN)
    for example in EXAMPLES:
        assert re.search(r"^\+", example, re.MULTILINE), "nothing changes in it"


@pytest.mark.parametrize("framework", GIVEN)
def test_the_same_final_loss(framework: str) -> None:
    packages, given = GIVEN[framework]
    need(packages)
    (example,) = (one for one in EXAMPLES if framework_of(one) == framework)
    before, after = losses(given, side(example, "-"), side(example, "+"), "loss")
    assert after == pytest.approx(before, rel=TOLERANCE)


def test_keras_in_the_main_readme() -> None:
    (example,) = (one for one in readmes.blocks("", "python") if "keras" in one)
    packages, given = GIVEN["keras"]
    need(packages)
    given = textwrap.dedent(given) + textwrap.dedent(
        """
        layers = [keras.layers.Dense(10, kernel_regularizer="l1l2") for _ in range(2)]
        model = keras.Sequential([keras.Input((784,)), *layers])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        """
    )
    without = "\n".join(line for line in example.splitlines() if "fuse" not in line)
    before, after = losses(given, without, example, "model.history.history['loss'][-1]")
    assert after == pytest.approx(before, rel=TOLERANCE)


def test_torch_in_the_main_readme() -> None:
    """The gradients of its one step are those of the loss with the expression in it."""
    (example,) = (one for one in readmes.blocks("", "python") if "import torch" in one)
    need(["torch"])
    import torch

    names: dict[str, Any] = {}
    exec(example, names)
    model, x, y = names["model"], names["x"], names["y"]
    params = list(model.parameters())
    with torch.no_grad():
        for param in params:
            param += 0.1 * param.grad  # back to before the step
    penalty = 1e-4 * sum(param.square().sum() for param in params if param.ndim > 1)
    wanted = torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), y) + penalty, params)
    for param, grad in zip(params, wanted, strict=True):
        torch.testing.assert_close(param.grad, grad)
    torch.testing.assert_close(names["handle"].value(), penalty.detach())


def need(packages: Iterable[str]) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"not installed: {package}")


def losses(given: str, before: str, after: str, loss: str) -> list[float]:
    """What `loss` is after each of two programs, which are given the same, in a fresh Python."""
    code = f"""
import json, textwrap
given = textwrap.dedent({given!r})
losses = []
for program in {before!r}, {after!r}:
    names = {{}}
    exec(given + program, names)
    losses.append(float(eval({loss!r}, names)))
print(json.dumps(losses))
"""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "KERAS_BACKEND": "torch"}
    printed = fresh.output(code, PYTHONPATH=os.pathsep.join([str(HERE), *sys.path]), **quiet)
    found: list[float] = json.loads(printed.splitlines()[-1])
    return found
