"""Keras 3: regularizers that models are saved with, and all penalties of a model in one operation.

`fuse(model)` makes one operation of all L1 and L2 penalties of a model's weights, those of Keras'
own regularizers and of these, in `fit`, in `evaluate` and as `model.losses`::

    model = keras.Sequential([..., keras.layers.Dense(10, kernel_regularizer="l2")])
    fuse(model)
    model.compile("sgd", "mse")
    model.fit(x, y)

On torch, and on TensorFlow in eager mode, it reads each weight once, and once more for its
gradient; in TensorFlow's graphs it reads each once for the value. Plain operations of Keras' own
backend give the value on JAX, and on TensorFlow under XLA, on a GPU or under a strategy; a compiler
can join these with the operations around them.

The L2 penalty of Keras is l2 * sum(w**2): **no factor 1/2**.

Import this module before `keras.models.load_model` reads a model that has these regularizers: the
import makes their names known to Keras, which loads no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, TypeAlias

import keras
from keras import ops

from . import _core, regularizers
from ._resolve import resolve
from .typing import RegularizerLike, Regularizers

__all__ = ["L1", "L1L2", "L2", "OrthogonalRegularizer", "fuse", "unfuse"]

Tensor: TypeAlias = Any
"""A tensor of the backend: torch's, TensorFlow's or JAX's."""


def __dir__() -> list[str]:
    return __all__


_registered = keras.saving.register_keras_serializable(package="fused_penalties")


@_registered
class L1(regularizers.L1, keras.regularizers.Regularizer):  # type: ignore[misc]
    """l1 * sum(|w|), as `fused_penalties.regularizers.L1`, of tensors and with a gradient.

    float32 for 16-bit weights, whose squares and sums overflow where Keras' own stay 16-bit.
    """

    def __call__(self, x: Tensor) -> Tensor:
        return _of_one(x, self.coefficients)


@_registered
class L2(regularizers.L2, keras.regularizers.Regularizer):  # type: ignore[misc]
    """l2 * sum(w**2), **without** a factor 1/2, of tensors and with a gradient.

    float32 for 16-bit weights, whose squares and sums overflow where Keras' own stay 16-bit.
    """

    def __call__(self, x: Tensor) -> Tensor:
        return _of_one(x, self.coefficients)


@_registered
class L1L2(regularizers.L1L2, keras.regularizers.Regularizer):  # type: ignore[misc]
    """l1 * sum(|w|) + l2 * sum(w**2), **without** a factor 1/2, of tensors and with a gradient.

    float32 for 16-bit weights, whose squares and sums overflow where Keras' own stay 16-bit.
    """

    def __call__(self, x: Tensor) -> Tensor:
        return _of_one(x, self.coefficients)


@_registered
class OrthogonalRegularizer(
    regularizers.OrthogonalRegularizer,
    keras.regularizers.Regularizer,  # type: ignore[misc]
):
    """factor times the mean |cosine| between the rows, or columns, of a matrix, over all pairs.

    As Keras', but 0.0 for a matrix without a pair, and without a NaN in the gradient of a row of
    zeros; float32 for 16-bit weights. `fuse` leaves it beside the fused sums.
    """

    def __call__(self, x: Tensor) -> Tensor:
        x = _widened(x)
        if len(x.shape) != 2:
            raise ValueError(
                "Inputs to OrthogonalRegularizer must have rank 2. Received: "
                f"inputs.shape={tuple(x.shape)}"
            )
        if self.mode == "columns":
            x = ops.transpose(x)
        squares = ops.sum(ops.square(x), axis=1, keepdims=True)
        unit = x / ops.sqrt(ops.maximum(squares, 1e-14))  # a norm of at least 1e-7, as in Keras
        cosines = ops.tril(ops.absolute(ops.matmul(unit, ops.transpose(unit))), -1)
        count = x.shape[0]
        return ops.cast(self.factor / max(count * (count - 1) / 2, 1), x.dtype) * ops.sum(cosines)


def fuse(model: keras.Layer, regularizer: Regularizers = None) -> None:
    """Makes all L1 and L2 penalties of the model's weights one operation, until `unfuse`.

    `model.losses` then has one loss in their place, float64 if one of the weights is and else
    float32, before those of other regularizers. Its value and its gradient are theirs within their
    rounding, at every step: which weights are trained, and what their regularizers are, is asked
    each time. Penalties of activities, regularizers that are functions or classes of your own, and
    all else that Keras calls losses stay as they are.

    Fuse the model that is trained, not one inside of it: Keras asks the outermost alone. What is
    saved, loaded or cloned has its regularizers and is not fused; its losses are the same, but for
    what `regularizer` adds.

    Args:
        model: a model, or a layer that is trained without one.
        regularizer: to be added to those that the weights have, until `unfuse`; what
            `fused_penalties.penalty` takes: one for all weights, or rules over their paths
            (`weight.path`: ``sequential/dense/kernel``) and the weights themselves::

                {r"bias|gamma|beta": None, r".*": L2(1e-4)}

            They are regularizers of this module, of `fused_penalties`, of Keras, or functions of a
            tensor. Weights that are not trained have no penalty, whatever the rules say. Weights
            that the model gets later have none of the rules': fuse it again. They are not saved
            with the model: fuse it again, with the same regularizer, when it is loaded.

    A model that is fused already is fused anew, with this regularizer alone.

    Raises, with the model as it was:
        TypeError: what is no model or layer; one with a way of its own to find its penalties;
            something that is no regularizer.
        ValueError: rules for a model that has no weights yet; a rule that holds for no weight.
        RuntimeError: a version of Keras which finds the penalties in some other way.
    """
    if not isinstance(model, keras.Layer):
        raise TypeError(f"model: got {type(model).__name__}; wanted a Keras model")
    own = getattr(keras.Layer, _HOOK, None)
    if own is None:
        raise RuntimeError(
            f"Keras {keras.__version__} has no Layer.{_HOOK}, in whose place fuse() puts its own; "
            "wanted another version of Keras, such as 3.15"
        )
    if getattr(type(model), _HOOK) is not own:
        raise TypeError(
            f"model: got {type(model).__name__}, which has a {_HOOK} of its own, and would lose "
            "what that finds; wanted a model with Keras'"
        )
    terms = _terms_to_add(model, regularizer)
    if _fusion_of(model) is not None:
        unfuse(model)
    added = [(variable, _Added(variable.regularizer, more)) for variable, more in terms]
    for variable, regularizer in added:
        variable.regularizer = regularizer
    # Past Keras' own __setattr__, which looks for layers and weights in what a model is given.
    object.__setattr__(model, _HOOK, _Fusion(model, added))


def unfuse(model: keras.Layer) -> None:
    """Leaves the model as it was before `fuse`, without what `regularizer` had added.

    ValueError for a model that is not fused.
    """
    fusion = _fusion_of(model)
    if fusion is None:
        raise ValueError(f"model: got {model!r}, which is not fused")
    object.__delattr__(model, _HOOK)
    for variable, added in fusion.added:
        variable.regularizer = _without(added, variable.regularizer)


_HOOK = "_get_regularization_losses"
"""Keras' method that finds the penalties of weights; private, so a test says what it has to do."""


class _Fusion:
    """What stands on a fused model in the place of Keras' method."""

    def __init__(self, model: keras.Layer, added: list[tuple[Any, _Added]]) -> None:
        self.model = model
        self.added = added
        self.strengths = _Strengths()
        self.dtypes: dict[int, tuple[Any, str]] = {}

    def dtype(self, variable: Any) -> str:
        """A variable keeps its dtype, and Keras takes its time to say it."""
        known = self.dtypes.get(id(variable))
        if known is None:
            known = self.dtypes[id(variable)] = variable, variable.dtype
        return known[1]

    def __call__(self) -> list[Tensor]:
        fused, pairs, rest = [], [], []
        regularizer = coefficients = None
        weights = self.model.trainable_weights
        self.strengths.start_step()
        if len(self.dtypes) > len(weights):  # some are no longer the model's
            self.dtypes.clear()
        for variable in weights:
            if variable.regularizer is not regularizer:  # many follow each other with the same
                regularizer = variable.regularizer
                coefficients = self.strengths(regularizer)
            if regularizer is None:
                continue
            if coefficients is None or self.dtype(variable) not in _core.RESULT_IS_FLOAT64:
                rest.append(variable)
            else:
                fused.append(variable)
                pairs.append(coefficients)
        losses = [_penalty(_values(fused), pairs, self.model)] if fused else []
        if rest:
            # Keras' own method, of these weights alone.
            of_rest = SimpleNamespace(trainable_weights=rest)
            losses += getattr(keras.Layer, _HOOK)(of_rest)
        return losses


def _fusion_of(model: Any) -> _Fusion | None:
    found = getattr(model, "__dict__", {}).get(_HOOK)
    return found if isinstance(found, _Fusion) else None


class _Strengths:
    """From a regularizer to its (l1, l2); to None for one that has to be called."""

    def __init__(self) -> None:
        # By the id of a tensor, which is kept so that its id stays its own.
        self.numbers: dict[int, tuple[Tensor, int, float]] = {}
        self.last_numbers = self.numbers

    def start_step(self) -> None:
        """Forgets what the last step did not use."""
        self.last_numbers, self.numbers = self.numbers, {}

    def __call__(self, regularizer: Any) -> tuple[float, float] | None:
        factors = _FACTORS.get(type(regularizer))
        if factors is None:  # a subclass may compute anything
            return regularizer.coefficients(self) if type(regularizer) is _Added else None
        l1 = self.number(regularizer.l1) if "l1" in factors else 0.0
        l2 = self.number(regularizer.l2) if "l2" in factors else 0.0
        return None if l1 is None or l2 is None else (l1, l2)

    def number(self, factor: Any) -> float | None:
        """None for what may change without notice, or is not known yet: a variable, say."""
        if type(factor) is float:
            return factor
        if isinstance(factor, float | int):
            return float(factor)
        # Keras keeps that of its L1 as a tensor, which may be on a GPU: it is waited for once.
        if getattr(factor, "requires_grad", False):
            return None
        try:
            version = getattr(factor, "_version", 0)  # only torch's tensors change in place
        except RuntimeError:  # torch's inference tensors do not count their changes
            return None
        key = id(factor)
        known = self.numbers.get(key) or self.last_numbers.get(key)
        if known is None or known[1] != version:
            # Variables, Keras' and TensorFlow's, have `assign`.
            if hasattr(factor, "assign") or not ops.is_tensor(factor):
                return None
            try:
                known = factor, version, float(factor)
            except (TypeError, ValueError):  # of a graph
                return None
        self.numbers[key] = known
        return known[2]


_FACTORS = {
    L1: ("l1",),
    L2: ("l2",),
    L1L2: ("l1", "l2"),
    keras.regularizers.L1: ("l1",),
    keras.regularizers.L2: ("l2",),
    keras.regularizers.L1L2: ("l1", "l2"),
}


class _Added(keras.regularizers.Regularizer):  # type: ignore[misc]
    """A weight's own regularizer, or None, and what a rule adds to it."""

    def __init__(self, own: Any, more: Sequence[Any]) -> None:
        self.own = own
        self.more = more

    @property
    def terms(self) -> list[Any]:
        return [*([] if self.own is None else [self.own]), *self.more]

    def coefficients(self, strengths: _Strengths) -> tuple[float, float] | None:
        pairs = [strengths(term) for term in self.terms]
        known = [pair for pair in pairs if pair is not None]
        if len(known) < len(pairs):
            return None
        return sum(l1 for l1, _ in known), sum(l2 for _, l2 in known)

    def __call__(self, x: Tensor) -> Tensor:
        found = [value for term in self.terms if (value := term(x)) is not None]
        wide = _wide(found)
        return sum((ops.cast(value, wide) for value in found), start=ops.zeros((), wide))


def _without(added: _Added, regularizer: Any) -> Any:
    """The regularizer less what a fusion added, on which that of another model may stand."""
    if regularizer is added:
        return added.own
    if isinstance(regularizer, _Added):
        regularizer.own = _without(added, regularizer.own)
    return regularizer  # as it is if somebody has set another since


def _terms_to_add(model: keras.Layer, regularizer: Regularizers) -> list[tuple[Any, list[Any]]]:
    """The weights that get a penalty more, and the regularizers that are added to each."""
    if regularizer is None:
        return []
    weights = [w for w in model.weights if w.dtype in _core.RESULT_IS_FLOAT64]
    if not weights:
        raise ValueError(
            f"model: {model.name!r} has no weights yet that a regularizer could be for; wanted one "
            "that is built, as model.build(input_shape) does"
        )
    found = resolve(regularizer, weights, [w.path for w in weights])
    terms = [(w, list(_with_gradient(rule))) for w, rule in zip(weights, found, strict=True)]
    return [(weight, more) for weight, more in terms if more]


def _with_gradient(rule: RegularizerLike | None) -> Iterator[RegularizerLike]:
    """The regularizers of this module or functions that a rule's regularizer is the sum of.

    Those of `fused_penalties` give plain numbers, which no backend differentiates.
    """
    if rule is None:
        return
    if isinstance(rule, keras.regularizers.Regularizer):
        yield rule
        return
    if isinstance(rule, regularizers.OrthogonalRegularizer):
        yield OrthogonalRegularizer(rule.factor, rule.mode)
        return
    linear, others = regularizers.parts_of(rule)
    if linear is not None:
        yield L1L2(*linear)
    for other in others:
        if other is rule:
            yield other
        else:
            yield from _with_gradient(other)


def _of_one(x: Tensor, coefficients: tuple[float, float]) -> Tensor:
    x = x.value if isinstance(x, keras.Variable) else ops.convert_to_tensor(x)
    if _dtype(x) not in _core.RESULT_IS_FLOAT64:
        return _plain([x], [coefficients])
    return _penalty([x], [coefficients])


def _widened(x: Tensor) -> Tensor:
    """float32 for what has 16 bits, in which sums overflow."""
    x, wide = ops.convert_to_tensor(x), _wide([x])
    return x if _dtype(x) == wide else ops.cast(x, wide)


def _dtype(x: Tensor) -> str:
    name: str = keras.backend.standardize_dtype(x.dtype)
    return name


def _wide(tensors: Sequence[Tensor]) -> str:
    """The dtype of the sum of such penalties."""
    return "float64" if "float64" in {_dtype(x) for x in tensors} else "float32"


def _plain(
    tensors: Sequence[Tensor], coefficients: Sequence[tuple[float, float]], model: Any = None
) -> Tensor:
    """Operations that a compiler fuses, with the backend's own gradients."""
    wide = _wide(tensors)
    terms = []
    for x, (l1, l2) in zip(tensors, coefficients, strict=True):
        x = _widened(x)
        found = [l1 * ops.sum(ops.absolute(x))] if l1 else []
        found += [l2 * ops.sum(ops.square(x))] if l2 else []
        terms += found if _dtype(x) == wide else [ops.cast(term, wide) for term in found]
    return sum(terms[1:], start=terms[0]) if terms else ops.zeros((), wide)


_Penalty: TypeAlias = Callable[..., Tensor]
"""From tensors, the (l1, l2) of each, and their model to a loss that the backend differentiates."""


def _each_of(coefficients: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Every l1 and every l2; only one if all are the same."""
    if len(set(coefficients)) == 1:
        coefficients = coefficients[:1]
    return [l1 for l1, _ in coefficients], [l2 for _, l2 in coefficients]


_Values: TypeAlias = Callable[[Sequence[Any]], list[Tensor]]
"""From variables to `variable.value` of each."""


def _plain_values(variables: Sequence[Any]) -> list[Tensor]:
    return [variable.value for variable in variables]


def _torch_values() -> _Values:
    try:
        from keras.src.backend import get_autocast_scope, in_stateless_scope
        from keras.src.backend.torch.core import get_device
    except ImportError:  # another version of Keras
        return _plain_values
    kind = keras.Variable

    def values(variables: Sequence[Any]) -> list[Tensor]:
        """Asks once for all whether a scope has a say in the values.

        `variable.value` asks each time, which takes as long as the penalty of small weights.
        """
        if in_stateless_scope() or get_autocast_scope() is not None or str(get_device()) == "meta":
            return _plain_values(variables)
        return [
            v._value if type(v) is kind and v._value is not None else v.value for v in variables
        ]

    return values


def _torch_penalty() -> _Penalty:
    import torch

    from . import cuda
    from .torch._ops import fused_penalty

    plain = (torch.Tensor, torch.nn.Parameter)

    def is_read(x: Tensor, device: Any) -> bool:
        return type(x) in plain and x.layout == torch.strided and x.device == device

    def penalty(
        tensors: Sequence[Tensor], coefficients: Sequence[tuple[float, float]], model: Any = None
    ) -> Tensor:
        device = tensors[0].device
        # "meta" is where Keras asks for shapes alone.
        known = device.type in ("cpu", "meta") or (device.type == "cuda" and cuda.is_available())
        if not known or not all(is_read(x, device) for x in tensors):
            return _plain(tensors, coefficients)
        l1, l2 = _each_of(coefficients)
        return fused_penalty(l1, l2, tensors)

    return penalty


def _tensorflow_penalty() -> _Penalty:
    import tensorflow as tf

    from .tensorflow._ops import fused_penalty

    def penalty(
        tensors: Sequence[Tensor], coefficients: Sequence[tuple[float, float]], model: Any = None
    ) -> Tensor:
        # What is traced without XLA can be called by a function that is compiled with it later, so
        # in a graph Keras must have been told not to use XLA for the model.
        without_xla = getattr(model, "compiled", False) and not model.jit_compile
        if not (tf.executing_eagerly() or without_xla):
            return _plain(tensors, coefficients)
        l1, l2 = _each_of(coefficients)
        return fused_penalty(l1, l2, tensors)

    return penalty


_makers = {"torch": _torch_penalty, "tensorflow": _tensorflow_penalty}
_maker = _makers.get(keras.backend.backend())
_penalty: _Penalty = _plain if _maker is None else _maker()
_values = _torch_values() if keras.backend.backend() == "torch" else _plain_values
