"""`penalty`: which variables are meant, what their penalties are, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from .. import _core
from .._evaluate import of_each
from .._resolve import name_of, resolve
from ..regularizers import parts_of_each
from ..typing import RegularizerLike, Regularizers
from ._ops import fused_penalty

_DENSE = (tf.Variable, tf.Tensor)
_SPARSE = (tf.SparseTensor, tf.RaggedTensor, tf.IndexedSlices)


@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
def penalty(variables: Any, regularizer: Regularizers) -> Any:
    """The penalty of many variables as one operation, to be added to a loss.

    Args:
        variables: a variable or tensor, an iterable of them, or a mapping of names to them; or a
            `tf.Module`, a Keras model or a layer, whose `trainable_variables` are meant. Variables
            of TensorFlow, of Keras 3 on TensorFlow and of tf_keras: float16, bfloat16, float32 or
            float64.
        regularizer: as `fused_penalties.penalty` takes it: one for all, a sequence with one for
            each, or rules over names and variables. The names are the mapping's keys, else those of
            the variables: `path` of Keras 3's (``dense/kernel``), `name` of others, which ends in
            ``:0`` (``dense/kernel:0``). A function among the regularizers is called with the
            tensor and returns one of rank 0, or None; Keras' regularizers are such functions.

    Returns:
        A tensor of rank 0, float64 if a variable is and else float32. Variables without a penalty
        do not come into it.

    Derivatives of any order are right, backward and forward. What is listed twice counts twice.

    In eager mode, in `tf.function` and in graphs of TensorFlow 1 the value has the bits of
    `fused_penalties.penalty`. Where TensorFlow cannot call Python it comes from plain operations of
    TensorFlow, within their rounding: in `tf.function(jit_compile=True)`, in what
    `tf.saved_model.save` saves, under a `tf.distribute` strategy, and where there is a GPU. Which
    of the two it is, is decided when a function is traced. So a `tf.function` that was first called
    without XLA cannot be called by one that is compiled with it; and what `get_concrete_function`
    has traced keeps its call of Python when it is saved, and raises in another process.

    AutoGraph does not look into it: a function among the regularizers whose `if` or `for` depends
    on tensors has to be a `tf.function`.

    Raises:
        TypeError: what is no variable or tensor of TensorFlow's, or none of floats; a function that
            returns something else.
        ValueError: a model without trainable variables, and what `fused_penalties.penalty` says of
            rules.
    """
    items, names = _collect(variables)
    regularizers = resolve(regularizer, items, names)
    single = names is None and len(items) == 1 and items[0] is variables

    def label(at: int) -> str:
        return "variables" if single else f"variables[{at if names is None else names[at]!r}]"

    linear: list[Any] = []
    pairs: list[tuple[float, float]] = []
    terms: list[Any] = []
    for at, (item, parts) in enumerate(
        zip(items, of_each(parts_of_each(regularizers), len(items)), strict=True)
    ):
        if not any(parts):
            continue
        weight = _checked(item, label(at))
        if parts.linear is not None:
            linear.append(weight)
            pairs.append(parts.linear)
        for function in parts.others:
            terms += _called(label(at), tf.convert_to_tensor(weight), function)
    if linear:
        if all(pair == pairs[0] for pair in pairs):
            pairs = pairs[:1]
        l1, l2 = zip(*pairs, strict=True)
        terms.insert(0, fused_penalty(l1, l2, linear))
    if len(terms) == 1:
        return terms[0]
    wide = tf.float64 if any(term.dtype == tf.float64 for term in terms) else tf.float32
    return tf.add_n([tf.cast(term, wide) for term in terms]) if terms else tf.zeros((), wide)


def _collect(variables: Any) -> tuple[list[Any], list[str] | None]:
    """The variables, and their names if all have one."""
    if isinstance(variables, Mapping):
        return list(variables.values()), [str(name) for name in variables]
    if hasattr(variables, "trainable_variables"):
        items = list(variables.trainable_variables)
        if not items:
            raise ValueError(
                f"variables: this {type(variables).__name__} has no trainable variables; wanted a "
                "model that is built and trained"
            )
    elif hasattr(variables, "dtype") and hasattr(variables, "shape"):
        items = [variables]
    else:
        if isinstance(variables, str | bytes) or not hasattr(variables, "__iter__"):
            raise TypeError(
                f"variables: got {_described(variables)}; wanted a variable, an iterable or a "
                "mapping of variables, or a model"
            )
        items = list(variables)
    names = [name for item in items if (name := _own_name(item)) is not None]
    return items, names if len(names) == len(items) else None


def _own_name(item: Any) -> str | None:
    """None for a tensor: in eager mode it has no name, and one that says nothing in a graph."""
    if isinstance(item, tf.Tensor) and not isinstance(item, tf.Variable):
        return None
    name = getattr(item, "path", None) or getattr(item, "name", None)
    return name if isinstance(name, str) else None


def _checked(item: Any, label: str) -> Any:
    """The TensorFlow variable or tensor that an item is."""
    weight = item
    if not isinstance(item, _DENSE):
        weight = getattr(item, "value", None)  # of a variable of Keras 3's
    if not isinstance(weight, _DENSE):
        if isinstance(item, _SPARSE):
            raise TypeError(f"{label}: got {type(item).__name__}; wanted a dense tensor")
        raise TypeError(f"{label}: got {_described(item)}; wanted a TensorFlow variable or tensor")
    dtype = weight.dtype.base_dtype.name  # without the "_ref" of TensorFlow 1
    if dtype not in _core.RESULT_IS_FLOAT64:
        raise TypeError(
            f"{label}: dtype {dtype} is not supported; wanted float16, bfloat16, float32 or float64"
        )
    return weight


def _called(label: str, tensor: Any, function: RegularizerLike) -> list[Any]:
    """What a function makes of a tensor, and nothing if that is None."""
    result: Any = function(tensor)
    if result is None:
        return []
    if not isinstance(result, tf.Tensor):
        raise TypeError(
            f"{label}: {name_of(function)} returned {_described(result)}, which TensorFlow cannot "
            "differentiate; wanted a tensor of rank 0"
        )
    if result.shape.rank:
        raise ValueError(
            f"{label}: {name_of(function)} returned a tensor of rank {result.shape.rank}; wanted "
            "rank 0"
        )
    return [result]


def _described(value: Any) -> str:
    return "None" if value is None else type(value).__name__
