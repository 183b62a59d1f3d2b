"""The regularizers of tf.contrib.layers: values, checks, messages, and what switches them off."""

from __future__ import annotations

import logging
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import convention_oracle
import values
from fused_penalties import contrib, regularizers
from fused_penalties.tf1.losses import Loss
from messages import exactly

W = np.array([[1, -2], [-3, 4]], np.float32)
ONES = np.ones((5, 5, 5), np.float32)
scales = st.floats(min_value=1e-30, max_value=1e3)


LESS = "Setting a scale less than 0 on a regularizer"


def refused(message: str) -> Any:
    return pytest.raises(ValueError, match=exactly(message))


# The unit tests of the original, made again from what they check.


def test_l1_refuses_bad_scales() -> None:
    with refused(f"{LESS}: -1"):
        contrib.l1_regularizer(-1.0)
    with refused("scale cannot be an integer: 0"):
        contrib.l1_regularizer(0)


def test_l1_of_scale_zero_gives_none_for_none() -> None:
    assert contrib.l1_regularizer(0.0)(None) is None


def test_l1_value() -> None:
    assert contrib.l1_regularizer(0.5)(np.array([1.0, -1.0, 4.0, 2.0])) == 4.0


def test_l2_refuses_bad_scales() -> None:
    with refused(f"{LESS}: -1."):
        contrib.l2_regularizer(-1.0)
    with refused("scale cannot be an integer: 0"):
        contrib.l2_regularizer(0)


def test_l2_of_scale_zero_gives_none_for_none() -> None:
    assert contrib.l2_regularizer(0.0)(None) is None


def test_l2_value() -> None:
    x = np.array([1.0, -1.0, 4.0, 2.0])
    assert contrib.l2_regularizer(0.42)(x) == pytest.approx(0.42 * 11, rel=1e-15)


def test_l1_l2_refuses_bad_scales() -> None:
    with refused("scale_l1 cannot be an integer: 0"):
        contrib.l1_l2_regularizer(0, 0.5)
    with refused("scale_l2 cannot be an integer: 0"):
        contrib.l1_l2_regularizer(0.5, 0)
    with refused(f"{LESS}: -0.5"):
        contrib.l1_l2_regularizer(-0.5, 0.5)
    with refused(f"{LESS}: -0.5."):
        contrib.l1_l2_regularizer(0.5, -0.5)


def test_l1_l2_values() -> None:
    assert contrib.l1_l2_regularizer(1.0, 1.0)(ONES) == 187.5
    assert contrib.l1_l2_regularizer(0.0, 1.0)(ONES) == 62.5
    assert contrib.l1_l2_regularizer(1.0, 0.0)(ONES) == 125.0
    assert contrib.l1_l2_regularizer(0.0, 0.0)(ONES) is None


def test_l1_l2_with_a_scope() -> None:
    assert contrib.l1_l2_regularizer(1.0, 1.0, scope="l1_l2")(ONES) == 187.5


def test_sum_of_nothing() -> None:
    assert contrib.sum_regularizer([]) is None
    assert contrib.sum_regularizer([None]) is None
    assert contrib.sum_regularizer([contrib.l1_regularizer(0.0)] * 3)(None) is None


def test_sum_values_with_none_and_zero_members() -> None:
    l1, l2, off = (
        contrib.l1_regularizer(0.5),
        contrib.l2_regularizer(0.5),
        contrib.l1_regularizer(0.0),
    )
    x = np.full((5, 5, 5), -2, np.float32)
    assert contrib.sum_regularizer([l1, None, l2])(x) == 125 + 125
    assert contrib.sum_regularizer([l1, None])(x) == 125
    assert contrib.sum_regularizer([off, l2, off])(x) == 125
    assert contrib.sum_regularizer([contrib.sum_regularizer([l1, l2]), l2, lambda x: 1.0])(x) == 376


def test_apply_a_dummy() -> None:
    arrays = [np.array(2.0), np.array([1.0, -3.0]), np.array([[1.0, 2.0], [4.0, 6.5]])]
    assert contrib.apply_regularization(lambda x: np.sum(2 * x), arrays) == 27.0
    assert contrib.apply_regularization(lambda x: None, arrays) == 0.0


def test_apply_a_scale_of_zero() -> None:
    arrays = [np.array(2.0), np.array([1.0, -3.0])]
    assert contrib.apply_regularization(contrib.l1_regularizer(0.0), arrays) == 0.0


def test_apply_what_is_not_scalar() -> None:
    arrays = [np.array(2.0), np.array([1.0, -3.0])]
    with refused("regularizer must return a scalar Tensor instead of a Tensor with rank 1."):
        contrib.apply_regularization(lambda x: np.tile(np.sum(x), 2), arrays)


# And what else their users rely on.


@pytest.mark.parametrize(
    ("regularizer", "expected"),
    [
        (contrib.l1_regularizer(0.5), 5.0),
        (contrib.l2_regularizer(0.5), 7.5),
        (contrib.l2_regularizer(1.0), 15.0),
        (contrib.l2_regularizer(0.01), 0.14999999),
        (contrib.l1_l2_regularizer(), 25.0),
    ],
)
def test_numbers_every_user_knows(regularizer: regularizers.Regularizer, expected: float) -> None:
    value = regularizer(W)
    assert isinstance(value, np.float32)
    assert value == np.float32(expected)


@given(scale_l1=scales, scale_l2=scales, seed=st.integers(0, 9))
def test_values_of_any_scale(scale_l1: float, scale_l2: float, seed: int) -> None:
    x = values.make("normal", "float32", 333, seed)
    for regularizer, pair in {
        contrib.l1_regularizer(scale_l1): (scale_l1, 0.0),
        contrib.l2_regularizer(scale_l2): (0.0, scale_l2 / 2),
        contrib.l1_l2_regularizer(scale_l1, scale_l2): (scale_l1, scale_l2 / 2),
    }.items():
        assert regularizer.coefficients == pair
        assert float(regularizer(x)) == convention_oracle.penalty([x], [pair])


def test_half_of_keras() -> None:
    x = values.make("normal", "float64", 100)
    assert contrib.l2_regularizer(0.3)(x) == regularizers.L2(0.15)(x)


@pytest.mark.parametrize("scale", [0, 1, -1, True, np.int32(3), np.uint8(0), np.True_])
def test_an_integer_is_no_scale(scale: Any) -> None:
    for make in (contrib.l1_regularizer, contrib.l2_regularizer):
        with refused(f"scale cannot be an integer: {scale}"):
            make(scale)
    with refused(f"scale_l1 cannot be an integer: {scale}"):
        contrib.l1_l2_regularizer(scale, 1.0)
    with refused(f"scale_l2 cannot be an integer: {scale}"):
        contrib.l1_l2_regularizer(0.0, scale)


@pytest.mark.parametrize(
    ("scale", "shown"), [(-1e-7, "-1e-07"), (-math.inf, "-inf"), (np.float32(-0.1), "-0.1")]
)
def test_a_negative_scale_is_shown_short(scale: float, shown: str) -> None:
    with refused(f"{LESS}: {shown}"):
        contrib.l1_regularizer(scale)
    with refused(f"{LESS}: {shown}."):
        contrib.l2_regularizer(scale)


@pytest.mark.parametrize("scale", ["0.5", None, [0.5], 1j])
def test_what_is_no_number_is_no_scale(scale: object) -> None:
    with pytest.raises(TypeError, match=r"^scale: got .*; wanted a float"):
        contrib.l1_regularizer(scale)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^scale_l2: got .*; wanted a float"):
        contrib.l1_l2_regularizer(0.5, scale)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "scale",
    [math.nan, math.inf, np.float32("nan"), Decimal("NaN"), Decimal("1e999"), Fraction(10**400, 3)],
)
def test_a_scale_that_is_not_finite_is_refused(scale: Any) -> None:
    """contrib itself takes them; the words are ours, since it has none."""
    for make in (
        contrib.l1_regularizer,
        contrib.l2_regularizer,
        lambda scale: contrib.l1_l2_regularizer(scale, 0.5),
        lambda scale: contrib.l1_l2_regularizer(0.5, scale),
        lambda scale: contrib.l1_l2_regularizer(0.0, scale),
    ):
        with pytest.raises(ValueError, match=r"^scale: got (nan|inf); wanted a finite number"):
            make(scale)


@pytest.mark.parametrize("scale", [0.0, -0.0, np.float32(0)])
def test_a_scale_of_zero_says_so(scale: float, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fused_penalties"):
        for make in (contrib.l1_regularizer, contrib.l2_regularizer):
            regularizer = make(scale)
            assert regularizer(W) is None
            assert regularizer.coefficients == (0.0, 0.0)
        assert contrib.l1_l2_regularizer(scale, scale)(W) is None
    line = ("fused_penalties", logging.INFO, "Scale of 0 disables regularizer.")
    assert caplog.record_tuples == [line] * 3


def test_a_scale_that_is_not_zero_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        contrib.l1_l2_regularizer(0.5, 0.5)(W)
    assert not caplog.records


def test_scopes_are_names() -> None:
    assert contrib.l1_regularizer(0.5).name == "l1_regularizer"
    assert contrib.l2_regularizer(0.5).name == "l2_regularizer"
    assert contrib.l1_l2_regularizer().name == "l1_l2_regularizer"
    assert contrib.l1_l2_regularizer(0.0, 0.5).name == "l1_l2_regularizer"
    assert contrib.sum_regularizer([np.sum]).name == "sum_regularizer"
    for regularizer in (
        contrib.l1_regularizer(0.0, "mine"),
        contrib.l1_regularizer(0.5, "mine"),
        contrib.l2_regularizer(0.5, scope="mine"),
        contrib.l1_l2_regularizer(scope="mine"),
        contrib.l1_l2_regularizer(0.5, 0.0, "mine"),
        contrib.sum_regularizer([np.sum], "mine"),
    ):
        assert regularizer.name == "mine"


def test_a_sum_of_coefficients_is_one_regularizer() -> None:
    total = contrib.sum_regularizer(
        [regularizers.L1(0.25), contrib.l2_regularizer(0.5), contrib.l1_regularizer(0.5)]
    )
    assert total.coefficients == (0.75, 0.25)
    assert total(W) == 7.5 + 7.5


def test_a_sum_with_a_function_has_no_coefficients() -> None:
    total = contrib.sum_regularizer([regularizers.L1(0.5), np.max, lambda x: None])
    assert total.coefficients is None
    assert total(W) == 5.0 + 4.0


def test_a_sum_of_functions_that_return_none() -> None:
    assert contrib.sum_regularizer([lambda x: None, contrib.l1_regularizer(0.0)])(W) is None


def test_a_sum_of_what_is_no_regularizer() -> None:
    with pytest.raises(TypeError, match=r"^regularizer_list\[1\]: got str; wanted a regularizer"):
        contrib.sum_regularizer([None, "l2"])  # type: ignore[list-item]


def test_a_sum_sees_a_strength_that_changes() -> None:
    l1 = regularizers.L1(0.5)
    total = contrib.sum_regularizer([l1])
    l1.l1 = 1.0
    assert total(W) == 10.0


@pytest.mark.parametrize("weights", [None, [], (), {}])
def test_apply_to_nothing(weights: object) -> None:
    with refused("No weights to regularize."):
        contrib.apply_regularization(contrib.l1_regularizer(0.5), weights)


def test_apply_takes_what_penalty_takes() -> None:
    l1 = contrib.l1_regularizer(0.5)
    assert contrib.apply_regularization(l1, [W, W]) == 10.0
    assert contrib.apply_regularization(l1, W) == 5.0
    assert contrib.apply_regularization(l1, W.tolist()) == 5.0
    assert contrib.apply_regularization(l1, {"a": W, "b": W}) == 10.0
    assert contrib.apply_regularization(l1, (w for w in (W, W))) == 10.0


def test_apply_to_losses_warns() -> None:
    losses = [Loss("a", [W], [contrib.l2_regularizer(0.1)])]
    with pytest.warns(UserWarning, match="given regularization losses") as caught:
        value = contrib.apply_regularization(contrib.l2_regularizer(0.1), losses)
    assert value == pytest.approx(0.05 * 1.5**2)
    assert caught[0].filename == __file__
