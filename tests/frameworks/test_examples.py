"""The README's examples of each framework, before and after: both train to the same loss.

Each is a diff. What stands before it there, and what it is given, is small here: a network with
ResNet's names in place of torchvision's, and a few batches of random data.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import pytest

import fresh

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
TOLERANCE = 1e-5  # of the final loss, relative; the README says it

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
EXAMPLES = re.findall(r"```diff\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


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
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"not installed: {package}")
    (example,) = (one for one in EXAMPLES if framework_of(one) == framework)
    code = f"""
import json, textwrap
given = textwrap.dedent({given!r})
losses = []
for side in {side(example, "-")!r}, {side(example, "+")!r}:
    names = {{}}
    exec(given + side, names)
    losses.append(float(names["loss"]))
print(json.dumps(losses))
"""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "KERAS_BACKEND": "torch"}
    printed = fresh.output(code, PYTHONPATH=os.pathsep.join([str(HERE), *sys.path]), **quiet)
    before, after = json.loads(printed.splitlines()[-1])
    assert after == pytest.approx(before, rel=TOLERANCE)
