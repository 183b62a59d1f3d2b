"""Strengths that no penalty has, wherever they come from, and the largest that one can have."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fused_penalties as fp
from fused_penalties import contrib, regularizers
from fused_penalties.tf1.losses import Loss

W = np.array([1.0, -2.0, 3.0], np.float32)


class Mine(regularizers.Regularizer):
    """A user's own class, which checks nothing."""

    def __init__(self, l1: Any, l2: Any) -> None:
        self.pair = l1, l2

    @property
    def coefficients(self) -> Any:
        return self.pair


def spoiled(one: Any, name: str, value: float) -> Any:
    setattr(one, name, value)
    return one


MAKE: dict[str, Callable[[float], Any]] = {
    "of a user's class": lambda bad: Mine(0.5, bad),
    "l1 of a user's class": lambda bad: Mine(bad, 0.5),
    "L1 set later": lambda bad: spoiled(regularizers.L1(0.5), "l1", bad),
    "L2 set later": lambda bad: spoiled(regularizers.L2(0.5), "l2", bad),
    "contrib set later": lambda bad: spoiled(contrib.l1_regularizer(0.5), "l1", bad),
    "in a sum": lambda bad: contrib.sum_regularizer([regularizers.L2(0.5), Mine(bad, 0.0)]),
}
USE: dict[str, Callable[[Any, np.ndarray], Any]] = {
    "called": lambda one, w: one(w),
    "penalty": lambda one, w: fp.penalty([w], one),
    "apply_regularization": lambda one, w: contrib.apply_regularization(one, [w]),
    "loss": lambda one, w: float(Loss("loss", [w], [one])),
    "plan": lambda one, w: fp.Plan([w], one).prox(0.1),
    "set_regularizer": lambda one, w: fp.Plan([w], None).set_regularizer(one),
}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.5, -math.inf])
@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize("use", USE)
def test_strengths_that_no_penalty_has(use: str, make: str, bad: float) -> None:
    w = W.copy()
    with pytest.raises(ValueError, match=rf"^regularizer: .* has the coefficients .*{bad}"):
        USE[use](MAKE[make](bad), w)
    assert np.array_equal(w, W)


def test_a_plan_keeps_its_strengths_when_others_are_refused() -> None:
    plan = fp.Plan([W], regularizers.L1(0.5))
    with pytest.raises(ValueError, match="coefficients"):
        plan.set_regularizer(Mine(math.nan, 0.0))
    assert plan.value() == 3.0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_no_step_and_no_rate_change_nothing(dtype: type) -> None:
    """Also with strengths that float32 has no room for, where 0 * inf would be NaN."""
    w = np.array([1.0, -2.0, np.inf, np.nan], dtype)
    before = w.tobytes()
    plan = fp.Plan([w], regularizers.L1L2(1e300, 1e300))
    plan.prox(0.0)
    plan.decay(0.0)
    assert w.tobytes() == before


def test_the_largest_step_of_a_penalty_without_l2() -> None:
    """Twice this step is no float64, but there is nothing that it would multiply."""
    w = np.array([1.0, -2.0, 0.25])
    fp.Plan([w], regularizers.L1(0.5 / sys.float_info.max)).prox(sys.float_info.max)
    assert w.tolist() == [0.5, -1.5, 0.0]


@pytest.mark.parametrize("bad", [math.nan, -1.0])
def test_the_core_itself_refuses_them(bad: float) -> None:
    core = fp._core.bind([W], None, False, None, True, False, False)
    for pair in ([bad], [0.0]), ([0.0], [bad]):
        with pytest.raises(ValueError, match=r"^weights\[0\]: got a coefficient"):
            core.strengths(*pair)
