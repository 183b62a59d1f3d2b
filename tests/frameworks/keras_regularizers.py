"""What the regularizers of `fused_penalties.keras` are by themselves, on this process' backend.

`test_keras.py` runs this file once for each backend, in a Python of its own.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from fused_penalties import regularizers
from fused_penalties.keras import L1, L1L2, L2, OrthogonalRegularizer
from keras_cases import RANDOM, number, value_and_gradient

REGULARIZERS = {
    "l1": (L1(0.3), keras.regularizers.L1(0.3)),
    "l2": (L2(0.3), keras.regularizers.L2(0.3)),
    "both": (L1L2(0.1, 0.2), keras.regularizers.L1L2(0.1, 0.2)),
    "zero": (L1L2(), keras.regularizers.L1L2()),
    "rows": (OrthogonalRegularizer(0.1), keras.regularizers.OrthogonalRegularizer(0.1)),
    "columns": (
        OrthogonalRegularizer(0.1, "columns"),
        keras.regularizers.OrthogonalRegularizer(0.1, "columns"),
    ),
}


@pytest.mark.parametrize("name", REGULARIZERS)
def test_a_regularizer_alone(name: str) -> None:
    ours, theirs = REGULARIZERS[name]
    x = RANDOM.normal(size=(5, 4)).astype(np.float32)
    assert number(ours(x)) == pytest.approx(number(theirs(ops.convert_to_tensor(x))), rel=1e-5)
    if name == "zero":
        return
    value, gradient = value_and_gradient(ours, x)
    wanted, slope = value_and_gradient(theirs, x)
    assert number(value) == pytest.approx(number(wanted), rel=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


def test_numbers_every_user_knows() -> None:
    w = np.array([[1, -2], [-3, 4]], np.float32)
    assert number(L1(0.5)(w)) == 5.0
    assert number(L2(0.5)(w)) == 15.0
    assert number(L1()(w)) == float.fromhex("0x1.999998p-4")
    assert number(L1L2(1, 1)(w)) == 40.0
    assert repr(L1L2(1, 2)) == "L1L2(l1=1.0, l2=2.0)"


def test_orthogonal_special_cases() -> None:
    regularizer = OrthogonalRegularizer(1.0)
    value, gradient = value_and_gradient(regularizer, np.ones((1, 4), np.float32))
    assert number(value) == 0.0
    zeros = np.array([[0, 0], [3, 4], [4, 3]], np.float32)
    value, gradient = value_and_gradient(regularizer, zeros)
    assert number(value) == pytest.approx(24 / 25 / 3, rel=1e-6)
    assert np.isfinite(gradient).all()
    with pytest.raises(ValueError, match=r"must have rank 2. Received: inputs.shape=\(2, 2, 2\)"):
        regularizer(np.ones((2, 2, 2), np.float32))


def test_bad_factors() -> None:
    with pytest.raises(ValueError, match="expected a non-negative float"):
        L1(-1.0)
    with pytest.raises(ValueError, match="expected a non-negative float"):
        L1L2(l2=float("nan"))
    with pytest.raises(ValueError, match="mode=x"):
        OrthogonalRegularizer(0.1, "x")


def test_integers() -> None:
    assert number(L1(1.0)(np.array([3, -4]))) == 7.0


def test_keras_knows_them() -> None:
    for regularizer in (L1(0.1), L2(0.2), L1L2(0.3, 0.4), OrthogonalRegularizer(0.5, "columns")):
        config = keras.regularizers.serialize(regularizer)
        again = keras.regularizers.deserialize(config)
        assert type(again) is type(regularizer)
        assert again.get_config() == regularizer.get_config()
        assert isinstance(regularizer, keras.regularizers.Regularizer)
        assert isinstance(regularizer, regularizers.Regularizer)
