"""`tf.contrib.layers`' regularizers of TensorFlow's tensors, for code whose tf.contrib is gone.

In a script of TensorFlow 1 the import is all that changes::

    import tensorflow.compat.v1 as tf
    from fused_penalties.tensorflow import contrib  # for tf.contrib.layers, or tf_slim's

    w = tf.get_variable("w", [784, 200], regularizer=contrib.l2_regularizer(1e-4))
    loss = cross_entropy + tf.losses.get_regularization_loss()

Names, checks, messages and values are those of `tf.contrib.layers`, in graphs and eagerly. Its L2
penalty is scale * sum(w**2) / 2, **with** the factor 1/2. A scale that is a tensor is taken as it
is; any other is a finite float of at least 0, and NaN and inf, which contrib takes, are refused.

A penalty has its weights' dtype, as `add_n` of a graph's losses wants it, but 16-bit weights are
added up in float32: where the sum fits, no square overflows. Of weights of several dtypes it is
float64 if one of them is, else float32.

`apply_regularization` reads all of a list in one operation. In a graph that is a call of Python:
it runs in the process that made the graph, and not in another that imports the graph. The
regularizer of one weight is, in a graph, operations of TensorFlow alone, which run anywhere; one
by one they are quicker than calls of Python.

A model of Keras is saved with these regularizers, and loads with
``custom_objects={"ContribRegularizer": ContribRegularizer}``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from .. import _core, contrib
from .._evaluate import Parts
from .._resolve import check, name_of
from ..regularizers import Regularizer, parts_of
from ..typing import RegularizerLike
from ._ops import expression, fused_penalty

__all__ = [
    "ContribRegularizer",
    "apply_regularization",
    "l1_l2_regularizer",
    "l1_regularizer",
    "l2_regularizer",
    "sum_regularizer",
]

Tensor: TypeAlias = Any
"""A tensor or a variable of TensorFlow."""

Scale: TypeAlias = Any
"""A float, or a tensor of rank 0."""

v1 = tf.compat.v1


def __dir__() -> list[str]:
    return __all__


class ContribRegularizer(Regularizer):
    """From a tensor to its penalty, an operation of this name, or to None for no penalty."""

    def __init__(self, name: str, parts: Parts) -> None:
        self.name = name
        self._parts = parts

    @property
    def parts(self) -> Parts:
        return self._parts

    @property
    def coefficients(self) -> tuple[float, float] | None:
        return None if self._parts.others else self._parts.linear or (0.0, 0.0)

    def __call__(self, x: Tensor) -> Tensor:
        if not any(self._parts):
            return None
        with v1.name_scope(self.name, values=[x]) as scope:
            found = _penalties([x], self._parts)
            return tf.add_n(found, name=scope) if found else None

    def get_config(self) -> dict[str, Any]:
        """Its name and its (l1, l2), with the factor 1/2 in it; the names of functions in a sum."""
        linear, others = self._parts
        return {"name": self.name, "linear": linear, "others": [name_of(one) for one in others]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ContribRegularizer:
        """ValueError for one that had functions, or tensors as scales, in it."""
        if config["others"]:
            raise ValueError(
                f"config: got a regularizer that calls {', '.join(config['others'])}; "
                "wanted one that is made of floats alone"
            )
        linear = config["linear"]
        return cls(config["name"], Parts(linear and (float(linear[0]), float(linear[1])), ()))


def l1_regularizer(scale: Scale, scope: str | None = None) -> ContribRegularizer:
    """scale * sum(|w|); switched off by 0.0.

    Raises ValueError for a scale that is an integer, negative or not finite, TypeError for what is
    no number.
    """
    if tf.is_tensor(scale):
        return _scaled(scale, 1.0, 0.0, scope or "l1_regularizer")
    return _of_tensors(contrib.l1_of(scale, scope, tf.get_logger()))


def l2_regularizer(scale: Scale, scope: str | None = None) -> ContribRegularizer:
    """scale * sum(w**2) / 2, **with** the factor 1/2; switched off by 0.0.

    Raises ValueError for a scale that is an integer, negative or not finite, TypeError for what is
    no number.
    """
    if tf.is_tensor(scale):
        return _scaled(scale, 0.0, 0.5, scope or "l2_regularizer")
    return _of_tensors(contrib.l2_of(scale, scope, tf.get_logger()))


def l1_l2_regularizer(
    scale_l1: Scale = 1.0, scale_l2: Scale = 1.0, scope: str | None = None
) -> ContribRegularizer:
    """scale_l1 * sum(|w|) + scale_l2 * sum(w**2) / 2, **with** the factor 1/2 in the second.

    One scale of 0.0 leaves the other penalty, two switch it off. Raises ValueError for a scale that
    is an integer, negative or not finite, TypeError for what is no number.
    """
    l1 = 1.0 if tf.is_tensor(scale_l1) else scale_l1
    l2 = 1.0 if tf.is_tensor(scale_l2) else scale_l2
    made = contrib.l1_l2_of(l1, l2, scope, tf.get_logger())  # which checks the numbers
    given = ((scale_l1, l1_regularizer), (scale_l2, l2_regularizer))
    if not any(tf.is_tensor(scale) for scale, _ in given):
        return _of_tensors(made)
    terms = [kind(scale) for scale, kind in given if tf.is_tensor(scale) or scale]
    return _of_tensors(contrib.Sum(terms, made.name))


def sum_regularizer(
    regularizer_list: Iterable[RegularizerLike | None], scope: str | None = None
) -> ContribRegularizer | None:
    """The sum of regularizers, without the Nones among them; None if nothing is left.

    A member may be any function from a tensor to a scalar or None. TypeError for anything else.
    """
    made = contrib.sum_regularizer(regularizer_list, scope)
    if made is None:
        return None
    return ContribRegularizer(scope or "sum_regularizer", parts_of(made))


def apply_regularization(
    regularizer: RegularizerLike, weights_list: Sequence[Tensor] | Tensor | None = None
) -> Tensor:
    """The sum of `regularizer` over all weights, each read once, by one operation.

    It is added to the collection REGULARIZATION_LOSSES. No `weights_list` means the collection
    WEIGHTS. A regularizer that returns None counts 0.0; a function is called for each weight.

    Warns (UserWarning) when it is given losses: the penalty of penalties is hardly what is meant.

    Raises:
        ValueError: no weights, or a regularizer that does not return a scalar.
        TypeError: something that is no regularizer, or weights of another dtype.
    """
    keys = v1.GraphKeys
    single = tf.is_tensor(weights_list)
    weights = [weights_list] if single else list(weights_list or v1.get_collection(keys.WEIGHTS))
    if not weights:
        raise ValueError("No weights to regularize.")
    check(regularizer, "regularizer")
    losses = {id(loss) for loss in v1.losses.get_regularization_losses()}
    if any(id(x) in losses for x in weights):
        warnings.warn(contrib.PENALTY_OF_PENALTIES, UserWarning, stacklevel=2)
    with v1.name_scope("get_regularization_penalty", values=weights) as scope:
        found = _penalties(weights, parts_of(regularizer))
        for one in found:
            if one.shape.rank != 0:
                raise ValueError(
                    "regularizer must return a scalar Tensor instead of a Tensor with rank "
                    f"{one.shape.rank}."
                )
        total = tf.add_n(found or [tf.constant(0.0)], name=scope)
        v1.add_to_collection(keys.REGULARIZATION_LOSSES, total)
    return total


def _of_tensors(made: contrib.Scaled | contrib.Sum) -> ContribRegularizer:
    return ContribRegularizer(made.name, parts_of(made))


def _scaled(scale: Tensor, l1: float, l2: float, name: str) -> ContribRegularizer:
    """`scale` times the penalty of (l1, l2)."""

    def scaled(x: Tensor) -> Tensor:
        weight = _weight(x)
        factor = tf.convert_to_tensor(scale, weight.dtype, name="scale")
        wide = _linear([weight], l1, l2)
        return tf.cast(tf.cast(factor, wide.dtype) * wide, weight.dtype)

    return ContribRegularizer(name, Parts(None, (scaled,)))


def _penalties(weights: Sequence[Tensor], parts: Parts) -> list[Tensor]:
    """The terms of their penalty: a fused one, and one for each call of a function."""
    found = []
    if parts.linear is not None:
        taken = [_weight(x) for x in weights]
        dtypes = {x.dtype for x in taken}
        total = _linear(taken, *parts.linear)
        found.append(tf.cast(total, dtypes.pop() if len(dtypes) == 1 else total.dtype))
    values = [function(x) for function in parts.others for x in weights]
    return found + [tf.convert_to_tensor(value) for value in values if value is not None]


def _linear(weights: Sequence[Tensor], l1: float, l2: float) -> Tensor:
    """In float64 if one of the weights is, else in float32."""
    if len(weights) == 1 and not tf.executing_eagerly():
        return expression([l1], [l2], weights)
    return fused_penalty([l1], [l2], weights)


def _weight(x: Tensor) -> Tensor:
    """An eager variable as it is, since many are read at once."""
    if not (tf.executing_eagerly() and isinstance(x, tf.Variable)):
        x = tf.convert_to_tensor(x)
    if x.dtype.name not in _core.RESULT_IS_FLOAT64:
        raise TypeError(
            f"weights: dtype {x.dtype.name} is not supported; wanted float16, bfloat16, float32 or "
            "float64"
        )
    return x
