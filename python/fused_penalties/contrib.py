"""The regularizers of `tf.contrib.layers`, with its formulas, checks and messages.

The L2 penalty of contrib is scale * sum(w**2) / 2, **with** the factor 1/2: `l2_regularizer(s)` has
the coefficients (0, s / 2), as `regularizers.L2(s / 2)` has.

A scale is a finite float of at least 0; an integer is refused, as contrib refuses it, and so are
NaN and inf, which contrib takes. A scale of 0.0 switches the penalty off: the regularizer then
returns None, not 0.0. `scope` is the name under which a loss made with the regularizer is listed.
"""

from __future__ import annotations

import logging
import math
import numbers
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

from ._evaluate import Parts, one_penalty
from ._resolve import check, resolve
from ._weights import collect
from .penalties import penalty_of
from .regularizers import Regularizer, parts_of
from .tf1.losses import Loss
from .typing import Array, Numbers, RegularizerLike, Regularizers, Scalar, Weights

__all__ = [
    "apply_regularization",
    "l1_l2_regularizer",
    "l1_regularizer",
    "l2_regularizer",
    "sum_regularizer",
]


def __dir__() -> list[str]:
    return __all__


_log = logging.getLogger("fused_penalties")
_NO_PARTS = Parts(None, ())

PENALTY_OF_PENALTIES = (
    "apply_regularization was given regularization losses, and computes the penalty of penalties; "
    "give it the weights, or add up the losses with get_regularization_loss()"
)


class Scaled(Regularizer):
    """l1 * sum(|w|) + l2 * sum(w**2), with a name; contrib's factor 1/2 is already in l2."""

    def __init__(self, l1: float, l2: float, name: str) -> None:
        self.l1 = l1
        self.l2 = l2
        self.name = name

    @property
    def coefficients(self) -> tuple[float, float]:
        return self.l1, self.l2

    def __repr__(self) -> str:
        return f"<{self.name}: {self.l1:g}*sum(|w|) + {self.l2:g}*sum(w**2)>"


class Sum(Regularizer):
    """The sum of some regularizers and functions, with a name; it reads the weights once.

    The members' coefficients add up as float64 numbers and are then rounded to the weights' dtype,
    so two L1 regularizers are the L1 regularizer of the sum of their scales. Without members, or
    with members that all return None, it returns None.
    """

    def __init__(self, members: Iterable[RegularizerLike], name: str) -> None:
        self.members = tuple(members)
        self.name = name

    @property
    def parts(self) -> Parts:
        linear = None
        others: tuple[RegularizerLike, ...] = ()
        for part in map(parts_of, self.members):
            if part.linear is not None:
                l1, l2 = linear or (0.0, 0.0)
                linear = (l1 + part.linear[0], l2 + part.linear[1])
            others += part.others
        return Parts(linear, others)

    @property
    def coefficients(self) -> tuple[float, float] | None:
        linear, others = self.parts
        return None if others else linear or (0.0, 0.0)

    def __repr__(self) -> str:
        return f"<{self.name}: sum of {list(self.members)}>" if self.members else f"<{self.name}>"

    def __call__(self, x: Array | Numbers) -> Scalar | None:
        """The penalty of one buffer `x`, as `penalty` gives it, or None."""
        parts = parts_of(self)
        return None if parts == _NO_PARTS else one_penalty(x, parts)


def l1_regularizer(scale: float, scope: str | None = None) -> Regularizer:
    """scale * sum(|w|); switched off by 0.0.

    Raises ValueError for a scale that is an integer, negative or not finite, TypeError for what is
    no number.
    """
    return l1_of(scale, scope, _log)


def l2_regularizer(scale: float, scope: str | None = None) -> Regularizer:
    """scale * sum(w**2) / 2, **with** the factor 1/2; switched off by 0.0.

    Raises ValueError for a scale that is an integer, negative or not finite, TypeError for what is
    no number.
    """
    return l2_of(scale, scope, _log)


def l1_l2_regularizer(
    scale_l1: float = 1.0, scale_l2: float = 1.0, scope: str | None = None
) -> Regularizer:
    """scale_l1 * sum(|w|) + scale_l2 * sum(w**2) / 2, **with** the factor 1/2 in the second.

    One scale of 0.0 leaves the other penalty, two switch it off. Raises ValueError for a
    scale that is an integer, negative or not finite, TypeError for what is no number.
    """
    return l1_l2_of(scale_l1, scale_l2, scope, _log)


def sum_regularizer(
    regularizer_list: Iterable[RegularizerLike | None], scope: str | None = None
) -> Regularizer | None:
    """The sum of regularizers, without the Nones among them; None if nothing is left.

    A member may be any function from an array to a scalar or None. TypeError for anything else.
    """
    given: Any = regularizer_list
    if not isinstance(given, Iterable):
        raise TypeError(
            f"regularizer_list: got {type(given).__name__}; wanted a sequence of regularizers"
        )
    members = []
    for position, member in enumerate(given):
        check(member, f"regularizer_list[{position}]")
        if member is not None:
            members.append(member)
    return Sum(members, scope or "sum_regularizer") if members else None


def apply_regularization(regularizer: Regularizers, weights_list: Weights | None = None) -> Scalar:
    """The sum of `regularizer` over all weights, each read once: `penalty`, in contrib's words.

    `weights_list` is an array, a sequence or a mapping of arrays; `VariableStore` has a method of
    this name that takes its collection of weights by default. The result is that of `penalty`:
    float64 if a buffer is, else float32; a regularizer that returns None counts 0.0.

    Warns (UserWarning) when it is given losses: the penalty of penalties is hardly what is meant.

    Raises:
        ValueError: no weights, or a regularizer that does not return a scalar.
        TypeError: something that is no regularizer, or weights of another dtype.
    """
    items, names = weights_to_regularize(weights_list)
    if not items:
        raise ValueError("No weights to regularize.")
    single = len(items) == 1 and items[0] is weights_list
    return penalty_of(items, names, resolve(regularizer, items, names), single)


def weights_to_regularize(weights_list: Any) -> tuple[list[Any], tuple[str, ...] | None]:
    """The buffers of an argument of `apply_regularization` and their names; none for None.

    Warns its caller's caller when there are losses among them, and takes their values.
    """
    if weights_list is None:
        return [], None
    items, names = collect(weights_list)
    if any(isinstance(item, Loss) for item in items):
        warnings.warn(PENALTY_OF_PENALTIES, UserWarning, stacklevel=3)
        items = [np.asarray(item) if isinstance(item, Loss) else item for item in items]
    return items, names


# `tensorflow.contrib` shares these, and says in TensorFlow's own log what is switched off.


def l1_of(scale: Any, scope: str | None, log: logging.Logger) -> Scaled | Sum:
    value = _scale(scale, "scale", "Setting a scale less than 0 on a regularizer: {:g}")
    name = scope or "l1_regularizer"
    return Scaled(value, 0.0, name) if value else _switched_off(name, log)


def l2_of(scale: Any, scope: str | None, log: logging.Logger) -> Scaled | Sum:
    value = _scale(scale, "scale", "Setting a scale less than 0 on a regularizer: {:g}.")
    name = scope or "l2_regularizer"
    return Scaled(0.0, value / 2, name) if value else _switched_off(name, log)


def l1_l2_of(scale_l1: Any, scale_l2: Any, scope: str | None, log: logging.Logger) -> Scaled | Sum:
    _refuse_integer(scale_l1, "scale_l1")
    _refuse_integer(scale_l2, "scale_l2")
    scope = scope or "l1_l2_regularizer"
    l1, l2 = _float(scale_l1, "scale_l1"), _float(scale_l2, "scale_l2")
    if l1 == 0.0:
        return l2_of(l2, scope, log)
    if l2 == 0.0:
        return l1_of(l1, scope, log)
    return Sum([l1_of(l1, None, log), l2_of(l2, None, log)], scope)


def _switched_off(name: str, log: logging.Logger) -> Sum:
    log.info("Scale of 0 disables regularizer.")
    return Sum([], name)


def _scale(scale: Any, name: str, negative: str) -> float:
    _refuse_integer(scale, name)
    value = _float(scale, name)
    if value < 0.0:
        raise ValueError(negative.format(value))
    if not value < math.inf:
        raise ValueError(f"{name}: got {value}; wanted a finite number of at least 0")
    return value


def _float(scale: Any, name: str) -> float:
    if rank := np.ndim(scale):  # weights, where the regularizer was to be made first
        raise TypeError(f"{name}: got an array of rank {rank}; wanted a float")
    if not hasattr(scale, "__float__"):
        raise TypeError(f"{name}: got {scale!r}; wanted a float")
    try:
        return float(scale)
    except OverflowError:  # a fraction, say, which is no integer
        return math.inf


def _refuse_integer(scale: Any, name: str) -> None:
    if isinstance(scale, numbers.Integral | np.bool_):
        raise ValueError(f"{name} cannot be an integer: {scale}")
