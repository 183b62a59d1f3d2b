"""The same answers as Keras 3, tf-slim (the regularizers of tf.contrib.layers) and TensorFlow."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import peer_cases
from fused_penalties import contrib, regularizers, store
from fused_penalties.losses import add_n
from fused_penalties.penalties import l2_loss

MISSING = [n for n in ("tensorflow", "keras", "tf_slim") if importlib.util.find_spec(n) is None]
if MISSING:
    pytest.skip(f"not installed: {', '.join(MISSING)}", allow_module_level=True)

# TensorFlow adds up in the weights' dtype, in an order of its own.
RELATIVE = {"float32": 8 * 2.0**-23, "float64": 8 * 2.0**-52}


class Ours:
    names = {  # noqa: RUF012 - read only
        "contrib": contrib,
        "regularizers": regularizers,
        "l2_loss": l2_loss,
        "add_n": add_n,
        "array": peer_cases.as_numpy,
    }

    @contextmanager
    def store(self) -> Iterator[SimpleNamespace]:
        made = store.VariableStore()
        public = {name: getattr(made, name) for name in dir(made) if not name.startswith("_")}
        yield SimpleNamespace(
            AUTO_REUSE=store.AUTO_REUSE, no_regularizer=store.no_regularizer, **public
        )

    def number(self, loss: Any) -> float:
        return float(loss)


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    """Their outcomes, from a Python of its own: TensorFlow would not leave this one as it was."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("peer_tensorflow.py")],
        env={
            **os.environ,
            "KERAS_BACKEND": "tensorflow",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["outcomes"]
    return found


@pytest.fixture(scope="module")
def ours() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(peer_cases.outcomes(Ours())))
    return found


@pytest.mark.parametrize("expression", peer_cases.SAME_NUMBERS)
def test_values(expression: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    our, their = ours[expression], theirs[expression]
    assert (our["dtype"], our["shape"]) == (their["dtype"], their["shape"])
    assert our["value"] == pytest.approx(their["value"], rel=RELATIVE[our["dtype"]], abs=0.0)


@pytest.mark.parametrize("expression", peer_cases.SAME_OTHERWISE)
def test_messages_configs_and_special_cases(
    expression: str, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    assert ours[expression] == theirs[expression]


@pytest.mark.parametrize("expression", peer_cases.DIFFERENT)
def test_differences_on_purpose(
    expression: str, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    assert (theirs[expression], ours[expression]) == peer_cases.DIFFERENT[expression]


@pytest.mark.parametrize("workflow", peer_cases.WORKFLOWS)
def test_workflows(workflow: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours[workflow] == theirs[workflow]
