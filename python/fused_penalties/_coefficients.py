"""The l1 and the l2 of a list of tensors: one for each, or a single one in the list for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def for_each(coefficients: Sequence[float], count: int) -> Sequence[float]:
    """One for each of so many tensors."""
    return coefficients if len(coefficients) != 1 else [coefficients[0]] * count


def picked(coefficients: Sequence[float], at: Sequence[int]) -> Sequence[float]:
    """Those of the tensors at these places of the list."""
    return coefficients if len(coefficients) == 1 else [coefficients[k] for k in at]


def strengths_of(plan: Any, l1: Sequence[float], l2: Sequence[float]) -> Any:
    """What a plan makes of them."""
    return plan.strengths(*(each[0] if len(each) == 1 else list(each) for each in (l1, l2)))
