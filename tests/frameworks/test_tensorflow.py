"""`fused_penalties.tensorflow`, in a Python of its own, which TensorFlow changes."""

from __future__ import annotations

import importlib.util
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
    file = Path(__file__).with_name(f"tensorflow_{cases}.py")
    fresh.run_cases([file], SURROUNDINGS, THEIRS)


def test_nothing_imports_tensorflow() -> None:
    found = fresh.output(
        """
        import sys
        import fused_penalties

        print({"tensorflow", "keras"} & {*sys.modules})
        """
    )
    assert found == "set()"
