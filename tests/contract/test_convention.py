"""Which number of a penalty is rounded, to what, and when."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import convention_oracle
import oracle
from fused_penalties import _core
from fused_penalties._bind import bind
from fused_penalties._weights import dtype_name

DTYPES = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}
numbers = st.floats(min_value=0.0, max_value=1e30)
finite = st.floats(min_value=-1e300, max_value=1e300)


class ForeignDtype:
    """A dtype as torch has it: no name, only a str()."""

    def __init__(self, name: str) -> None:
        self.text = f"torch.{name}"

    def __str__(self) -> str:
        return self.text


def penalty(
    dtype: str, sum_abs: float, sum_square: float, l1: float = 0.0, l2: float = 0.0
) -> np.floating:
    """One buffer's penalty as users see it."""
    return _core.scalar(
        _core.term(dtype, sum_abs, sum_square, l1, l2), _core.RESULT_IS_FLOAT64[dtype]
    )


@pytest.mark.parametrize("name", DTYPES)
def test_dtypes_by_their_names(name: str) -> None:
    scalar_type = getattr(ml_dtypes if name == "bfloat16" else np, name)
    for dtype in (name, scalar_type, np.dtype(scalar_type), ForeignDtype(name)):
        assert dtype_name(dtype) == name
    assert dtype_name(np.dtype(">f4")) == "float32"


def test_the_dtypes_of_results() -> None:
    assert {
        name: "float64" if wide else "float32" for name, wide in _core.RESULT_IS_FLOAT64.items()
    } == DTYPES
    for several, result in (
        ([], "float32"),
        (["float16", "bfloat16"], "float32"),
        (["float16", "float64", "float32"], "float64"),
    ):
        arrays = [oracle.DTYPES[name] for name in several]
        plan = bind([np.zeros(1, dtype) for dtype in arrays])
        assert plan.rounded_total([0.5]).dtype == result


@pytest.mark.parametrize("dtype", ["int64", np.bool_, np.dtype("c8"), np.dtype("U3"), None])
def test_other_dtypes_are_refused(dtype: object) -> None:
    with pytest.raises(TypeError, match="is not supported; wanted float16, bfloat16, float32 or"):
        dtype_name(dtype)


@given(
    dtype=st.sampled_from(list(DTYPES)), sum_abs=numbers, sum_square=numbers, l1=numbers, l2=numbers
)
def test_penalty_rounds_where_the_rules_say(
    dtype: str, sum_abs: float, sum_square: float, l1: float, l2: float
) -> None:
    expected = convention_oracle.term(dtype, sum_abs, sum_square, l1, l2)
    assert _core.term(dtype, sum_abs, sum_square, l1, l2) == expected
    value = penalty(dtype, sum_abs, sum_square, l1, l2)
    assert value.dtype == np.dtype(DTYPES[dtype])
    assert float(value) == convention_oracle.narrowed(dtype, expected)


def test_the_coefficient_is_rounded_before_it_multiplies() -> None:
    assert penalty("float32", 10.0, 0.0, l1=0.01) == np.float32(0.099999994)
    assert np.float32(0.01 * 10.0) == np.float32(0.1) != np.float32(0.099999994)


def test_16_bit_coefficients_are_float32() -> None:
    assert _core.coefficient("float16", 1e-6) == float(np.float32(1e-6))
    assert _core.coefficient("bfloat16", 0.1) == float(np.float32(0.1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_coefficient_of_zero_leaves_its_term_out(dtype: str) -> None:
    assert penalty(dtype, math.inf, 3.0, l1=0.0, l2=2.0) == 6.0
    assert penalty(dtype, 3.0, math.nan, l1=2.0, l2=-0.0) == 6.0
    assert penalty(dtype, math.nan, math.inf) == 0.0


def test_a_coefficient_too_small_for_float32_is_zero() -> None:
    assert penalty("float32", math.inf, 0.0, l1=1e-50) == 0.0
    assert penalty("float64", 1.0, 0.0, l1=1e-50) == 1e-50


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_that_are_not_finite_come_through(dtype: str) -> None:
    assert penalty(dtype, math.inf, 1.0, l1=0.5, l2=0.5) == math.inf
    assert np.isnan(penalty(dtype, math.nan, math.inf, l1=0.5, l2=0.5))


def test_overflow_gives_infinity_whatever_numpy_does_about_errors() -> None:
    with np.errstate(all="raise"):
        assert penalty("float32", 1e300, 0.0, l1=1.0) == math.inf
        assert penalty("float32", 1.0, 0.0, l1=1e39) == math.inf
        assert penalty("float64", np.float64(1e300), 0.0, l1=1e300) == math.inf
        assert penalty("float32", 1e-300, 0.0, l1=1.0) == 0.0


@given(values=st.lists(finite), order=st.randoms(use_true_random=False))
def test_total_is_the_exact_sum_rounded_once_in_any_order(
    values: list[float], order: random.Random
) -> None:
    expected = oracle.nearest(sum(map(Fraction, values), Fraction(0)))
    assert _core.total(values) == expected
    order.shuffle(values)
    assert _core.total(values) == expected


def test_total_of_partial_sums_that_overflow() -> None:
    assert _core.total([1e308, 1e308, -1e308]) == 1e308
    assert _core.total([1e308, 1e308]) == math.inf
    assert _core.total([-1e308, -1e308, 1.0]) == -math.inf


def test_total_of_what_is_not_finite() -> None:
    assert _core.total([1.0, math.inf, math.inf]) == math.inf
    assert _core.total([-math.inf, 1e308, 1e308]) == -math.inf
    assert math.isnan(_core.total([math.inf, -math.inf]))
    assert math.isnan(_core.total([math.nan, math.inf]))
    assert math.isnan(_core.total([math.nan, float("nan")]))
