"""tf.contrib's regularizers in TensorFlow, and recipes; which TensorFlow it is, is chosen once."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

import pytest

import fresh


class Process(NamedTuple):
    files: tuple[str, ...]
    needed: tuple[str, ...]
    environment: dict[str, str]


PROCESSES = {
    "TensorFlow 2": Process(
        ("tensorflow_contrib.py", "tensorflow_contrib_eager.py"), ("tf_slim",), {}
    ),
    # Where the first file is a script of TensorFlow 1, which switches off what is newer.
    "TensorFlow 1": Process(
        ("tensorflow_recipes.py", "tensorflow_contrib.py"), ("tf_slim", "sklearn"), {}
    ),
    "tf.layers": Process(
        ("tensorflow_layers.py",), ("tf_slim", "tf_keras"), {"TF_USE_LEGACY_KERAS": "1"}
    ),
    "Keras 3": Process(("keras_recipes.py",), ("keras",), {"KERAS_BACKEND": "tensorflow"}),
}
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
THEIR_WARNINGS = (
    "ignore:__array__ implementation doesn't accept:DeprecationWarning",  # Keras', with NumPy 2
    "ignore:`layer.apply` is deprecated:UserWarning",  # tf_slim's
    "ignore:`tf.layers.:UserWarning",  # TensorFlow's
)


@pytest.mark.parametrize("name", PROCESSES)
def test_every_promise(name: str) -> None:
    files, needed, environment = PROCESSES[name]
    missing = [one for one in ("tensorflow", *needed) if importlib.util.find_spec(one) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    paths = [Path(__file__).with_name(file) for file in files]
    fresh.run_cases(paths, {**QUIET, **environment}, THEIR_WARNINGS)
