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
from fused_penalties import contrib, regularizers
from fused_penalties.penalties import l2_loss
from fused_penalties.tf1 import store
from fused_penalties.tf1.losses import add_n

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
def inside_tensorflow() -> dict[str, Any]:
    """From a Python of its own: TensorFlow would not leave this one as it was."""
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
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def theirs(inside_tensorflow: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = inside_tensorflow["theirs"]
    return found


@pytest.fixture(scope="module")
def of_tensors(inside_tensorflow: dict[str, Any]) -> dict[str, Any]:
    """Those of `fused_penalties.tensorflow.contrib`, on the same tensors."""
    found: dict[str, Any] = inside_tensorflow["of tensors"]
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


CONTRIB = [
    one
    for one in (*peer_cases.SAME_NUMBERS, *peer_cases.SAME_OTHERWISE)
    if one.startswith("contrib.")
]


def test_on_tensors(of_tensors: dict[str, Any], theirs: dict[str, Any]) -> None:
    for case in (*CONTRIB, *peer_cases.WORKFLOWS):
        our, their = of_tensors[case], theirs[case]
        if isinstance(their, dict) and "dtype" in their:
            relative = RELATIVE[their["dtype"]]
            their["value"] = pytest.approx(their["value"], rel=relative, abs=0.0)
        assert our == their, case


@pytest.mark.parametrize("expression", [e for e in peer_cases.DIFFERENT if "contrib" in e])
def test_differences_on_purpose_on_tensors(
    expression: str, ours: dict[str, Any], of_tensors: dict[str, Any]
) -> None:
    assert of_tensors[expression] == ours[expression]
