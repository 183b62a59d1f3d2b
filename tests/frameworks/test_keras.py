"""Keras 3 on each of its backends, each in a Python of its own: a backend is chosen once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import fresh

if importlib.util.find_spec("keras") is None:
    pytest.skip("not installed: keras", allow_module_level=True)

BACKENDS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(name) is None, reason=f"not installed: {name}"
        ),
    )
    for name in ("torch", "tensorflow", "jax")
]
# Keras' variables, read by NumPy 2.
KERAS_WARNS = ("ignore:__array__ implementation doesn't accept:DeprecationWarning",)
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_promise(backend: str) -> None:
    cases = [Path(__file__).with_name(f"keras_{name}.py") for name in ("models", "regularizers")]
    fresh.run_cases(cases, {**QUIET, "KERAS_BACKEND": backend}, KERAS_WARNS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_saved_model_in_a_fresh_process(backend: str, tmp_path: Path) -> None:
    file = tmp_path / "model.keras"
    saved = fresh.output(
        f"""
        import keras
        from keras import layers
        from fused_penalties.keras import L1, L1L2, L2, OrthogonalRegularizer, fuse

        kinds = L1(0.1), L2(0.2), L1L2(0.3, 0.4), OrthogonalRegularizer(0.5)
        model = keras.Sequential(
            [layers.Input((3,)), *[layers.Dense(3, kernel_regularizer=kind) for kind in kinds]]
        )
        fuse(model)
        model.compile("sgd", "mse")
        model.save({str(file)!r})
        print(float(sum(keras.ops.convert_to_numpy(loss) for loss in model.losses)))
        """,
        KERAS_BACKEND=backend,
        **QUIET,
    )
    loaded = fresh.output(
        f"""
        import keras
        import fused_penalties.keras

        model = keras.saving.load_model({str(file)!r})
        for layer in model.layers:
            print(type(layer.kernel_regularizer).__module__, layer.kernel_regularizer)
        print(float(sum(keras.ops.convert_to_numpy(loss) for loss in model.losses)))
        """,
        KERAS_BACKEND=backend,
        **QUIET,
    ).splitlines()
    assert loaded[:-1] == [
        f"fused_penalties.keras {kind}"
        for kind in (
            "L1(l1=0.1)",
            "L2(l2=0.2)",
            "L1L2(l1=0.3, l2=0.4)",
            "OrthogonalRegularizer(factor=0.5, mode='rows')",
        )
    ]
    assert float(loaded[-1]) == pytest.approx(float(saved), rel=1e-6)


def test_nothing_imports_keras() -> None:
    found = fresh.output(
        """
        import sys
        import fused_penalties

        print({"keras", "torch", "tensorflow", "jax"} & {*sys.modules})
        """
    )
    assert found == "set()"
