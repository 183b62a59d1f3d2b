"""`fused_penalties.tensorflow`, in a Python of its own, which TensorFlow changes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fresh

MISSING = [n for n in ("tensorflow", "keras", "tf_keras") if importlib.util.find_spec(n) is None]
if MISSING:
    pytest.skip(f"not installed: {', '.join(MISSING)}", allow_module_level=True)

SURROUNDINGS = {
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",
}
# What TensorFlow and Keras warn of themselves.
THEIRS = ("ignore:__array__ implementation doesn't accept:DeprecationWarning",)


@pytest.mark.parametrize("cases", ["eager", "graphs"])
def test_every_promise(cases: str) -> None:
    surroundings = {**os.environ, **SURROUNDINGS}
    surroundings.pop("PYTEST_ADDOPTS", None)
    ignored = [word for warning in THEIRS for word in ("-W", warning)]
    file = Path(__file__).with_name(f"tensorflow_{cases}.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *ignored, file],
        env=surroundings,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]


def test_nothing_imports_tensorflow() -> None:
    found = fresh.output(
        """
        import sys
        import fused_penalties

        print({"tensorflow", "keras"} & {*sys.modules})
        """
    )
    assert found == "set()"
