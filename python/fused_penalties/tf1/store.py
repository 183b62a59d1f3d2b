"""The workflow of TensorFlow 1 on plain arrays: named variables, scopes, collections and losses."""

from __future__ import annotations

import itertools
import math
import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from .. import contrib
from .._evaluate import called
from .._resolve import check, resolve
from .._weights import refuse_without_values, with_dtype
from ..penalties import penalty_of
from ..plan import Plan
from ..regularizers import parts_of
from ..typing import RegularizerLike, Regularizers, Scalar, Weights
from .losses import Loss, add_n

AUTO_REUSE: Final = "auto_reuse"
"""`reuse=AUTO_REUSE`: get the variable if there is one, else make it."""

no_regularizer: Final = contrib.Sum([], "no_regularizer")
"""Switches an inherited regularizer off, for a variable or a scope."""

Reuse = bool | Literal["auto_reuse"] | None


class GraphKeys:
    """The names of the collections, as in TensorFlow."""

    REGULARIZATION_LOSSES: Final = "regularization_losses"
    WEIGHTS: Final = "weights"
    TRAINABLE_VARIABLES: Final = "trainable_variables"
    LOSSES: Final = "losses"


class _Scope(NamedTuple):
    name: str
    regularizer: RegularizerLike | None
    reuse: Reuse


class VariableStore:
    """Named arrays, the scopes they are made in, and the collections they and their losses are in.

    A variable is the array itself: it is stored, never copied, and what is written into it is
    seen. A loss in a collection is a `Loss`: it has a name, and is computed from the variable's
    values whenever it is used. The errors that a call raises leave the store as it was.

    A store is built by one thread at a time.
    """

    def __init__(self) -> None:
        self._variables: dict[str, Any] = {}
        self._collections: dict[str, list[tuple[str | None, Any]]] = {}
        self._scopes = [_Scope("", None, None)]

    def __repr__(self) -> str:
        return f"<VariableStore of {len(self._variables)} variables>"

    @property
    def variables(self) -> Mapping[str, Any]:
        """All variables by name, in the order they were made; a view that cannot be written to."""
        return MappingProxyType(self._variables)

    @property
    def regularizers(self) -> Mapping[str, RegularizerLike | None]:
        """The regularizer of each variable by name, None for no penalty: what `plan` is made of.

        They are those of the losses in REGULARIZATION_LOSSES, summed for a variable that has
        several. Numbers in that collection, such as activity losses, are of no variable and are
        left out. ValueError for a loss of an array that is no variable of this store.
        """
        names: dict[int, str] = {}
        for name, variable in self._variables.items():
            names.setdefault(id(variable), name)
        found: dict[str, list[RegularizerLike]] = {name: [] for name in self._variables}
        for loss in self.get_regularization_losses():
            if not isinstance(loss, Loss):
                continue
            for array, regularizer in zip(loss.weights, loss.regularizers, strict=True):
                if regularizer is None:
                    continue
                if id(array) not in names:
                    raise ValueError(
                        f"regularizers: {loss.name!r} is the loss of an array that is no variable "
                        "of this store; wanted losses of variables only"
                    )
                found[names[id(array)]].append(regularizer)
        return {
            name: several[0] if len(several) == 1 else contrib.sum_regularizer(several)
            for name, several in found.items()
        }

    def plan(self, *, threads: int | None = None) -> Plan:
        """A `Plan` of the variables with their `regularizers`, for a training loop.

        Its value is that of `get_regularization_loss` without the numbers that are in the
        collection, such as activity losses. The last digit may differ in two cases: of a variable
        with several losses the plan adds the strengths first; and its values are float64 if any
        variable is, also one without a loss. Variables that are made later are not in it.
        """
        return Plan(self, threads=threads)

    @contextmanager
    def variable_scope(
        self, name: str, regularizer: RegularizerLike | None = None, reuse: Reuse = None
    ) -> Iterator[str]:
        """A scope for `get_variable`: its name and a slash begin the names of its variables.

        Its full name is what ``with ... as`` gives. The empty name stays in the scope around it.

        Args:
            name: the name within the scope around this one.
            regularizer: for all variables made in it that have none of their own, biases too.
                None takes that of the scope around it; `no_regularizer` switches that off.
            reuse: True, variables have to exist; AUTO_REUSE, they may; None or False, as in the
                scope around it, where at first they must not.
        """
        outer = self._scopes[-1]
        if not isinstance(name, str):
            raise TypeError(f"name: got {type(name).__name__}; wanted a string")
        check(regularizer, "regularizer")
        if reuse not in (None, False, True, AUTO_REUSE):
            raise ValueError(f"reuse: got {reuse!r}; wanted True, False, None or AUTO_REUSE")
        full_name = _joined(outer.name, name)
        self._scopes.append(
            _Scope(
                full_name,
                outer.regularizer if regularizer is None else regularizer,
                reuse or outer.reuse,
            )
        )
        try:
            yield full_name
        finally:
            self._scopes.pop()

    def get_variable(
        self,
        name: str,
        shape_or_array: Any = None,
        dtype: Any = None,
        initializer: Any = None,
        regularizer: RegularizerLike | None = None,
        trainable: bool = True,
    ) -> Any:
        """Makes the variable `name` of the current scope, or gets it again where it is reused.

        A new variable with a regularizer, its own or the scope's, adds one loss, named
        ``v/Regularizer/l2_regularizer:0``, to REGULARIZATION_LOSSES, unless the regularizer returns
        None. Getting a variable again never adds one.

        Args:
            name: the name within the scope.
            shape_or_array: an int or a sequence of ints; or an array, which becomes the variable
                and is not copied.
            dtype: of a new variable, float32 unless given; of one that exists or is given, checked.
            initializer: a function of (shape, dtype) that returns the first values, such as
                `numpy.zeros`; or the array, in place of `shape_or_array`. None draws from the
                uniform distribution of Glorot and Bengio, as TensorFlow does.
            regularizer: None takes that of the scope.
            trainable: whether it is in TRAINABLE_VARIABLES.

        Returns:
            The stored array itself.

        Raises:
            ValueError: a name used twice without reuse, reuse of a missing name, another shape or
                dtype than that of the variable, neither a shape nor an array, a regularizer that
                does not return a scalar.
            TypeError: arguments of the wrong kind; a regularized array that is not floating.
        """
        scope = self._scopes[-1]
        if not isinstance(name, str) or not name:
            raise TypeError(f"name: got {name!r}; wanted a string that is not empty")
        full_name = _joined(scope.name, name)
        if regularizer is None:
            regularizer = scope.regularizer
        check(regularizer, "regularizer")
        array, shape = _array_or_shape(full_name, shape_or_array, dtype, initializer)
        if full_name in self._variables:
            if not scope.reuse:
                raise ValueError(
                    f"Variable {full_name} already exists, disallowed. Did you mean to set "
                    "reuse=True or reuse=AUTO_REUSE in variable_scope?"
                )
            return self._shared(full_name, shape, dtype if array is None else array.dtype)
        if scope.reuse is True:
            raise ValueError(
                f"Variable {full_name} does not exist. Did you mean to set reuse=AUTO_REUSE in "
                "variable_scope?"
            )
        if array is None:
            array = _initial(full_name, shape, dtype, initializer)
        loss = _loss(full_name, array, regularizer)

        self._variables[full_name] = array
        if trainable:
            self._add(GraphKeys.TRAINABLE_VARIABLES, f"{full_name}:0", array)
        if loss is not None:
            self._add(GraphKeys.REGULARIZATION_LOSSES, loss.name, loss)
        return array

    def add_to_collection(self, name: str, value: Any) -> None:
        """Appends anything to the collection `name`: variables to WEIGHTS, numbers to the losses.

        A variable of this store is known by its name there. A number that is added to
        REGULARIZATION_LOSSES, such as an activity loss, stays what it was when it was added.
        """
        if not isinstance(name, str):
            raise TypeError(f"name: got {type(name).__name__}; wanted a string")
        own_name = next((f"{key}:0" for key, v in self._variables.items() if v is value), None)
        if isinstance(value, Loss):
            own_name = value.name
        self._add(name, own_name, value)

    def get_collection(self, name: str, scope: str | None = None) -> list[Any]:
        """A new list of what is in the collection `name`; empty for an unknown one.

        `scope` is a regular expression, as in TensorFlow: only what it matches at the beginning of
        the name (`re.match`) is listed, so "sc/inner" lists "sc/inner2/w:0" too, and what has no
        name drops out. The name of a variable ends with ":0", as that of a loss does.
        """
        collection = self._collections.get(name, [])
        if not scope:
            return [value for _, value in collection]
        try:
            match = re.compile(scope).match
        except (TypeError, re.error) as error:
            raise ValueError(
                f"scope: got {scope!r}; wanted a regular expression: {error}"
            ) from None
        return [value for own_name, value in collection if own_name is not None and match(own_name)]

    def get_regularization_losses(self, scope: str | None = None) -> list[Any]:
        """The losses in REGULARIZATION_LOSSES, as `get_collection` lists them: not yet computed."""
        return self.get_collection(GraphKeys.REGULARIZATION_LOSSES, scope)

    def get_regularization_loss(self, scope: str | None = None) -> np.floating[Any]:
        """The sum of the losses in REGULARIZATION_LOSSES, computed in one pass.

        A NumPy scalar, float64 if one of them is, else float32; 0.0 if there are none.
        """
        losses = self.get_regularization_losses(scope)
        return add_n(losses) if losses else np.float32(0.0)

    def apply_regularization(
        self, regularizer: Regularizers, weights_list: Weights | None = None
    ) -> Scalar:
        """The sum of `regularizer` over the weights, each read once, which is also added as a loss.

        As `contrib.apply_regularization`, but without weights, None or an empty list, it takes the
        collection WEIGHTS. Each call appends one loss to REGULARIZATION_LOSSES, which is computed
        from the weights whenever it is used; the sum returned is the one now.
        """
        items, names = contrib.weights_to_regularize(weights_list)
        if not items:
            items, names = contrib.weights_to_regularize(self.get_collection(GraphKeys.WEIGHTS))
        if not items:
            raise ValueError("No weights to regularize.")
        regularizers = resolve(regularizer, items, names)
        value = penalty_of(items, names, regularizers)
        name = self._unused(_joined(self._scopes[-1].name, "get_regularization_penalty"))
        self._add(GraphKeys.REGULARIZATION_LOSSES, name, Loss(name, items, regularizers))
        return value

    def _shared(self, name: str, shape: tuple[int, ...] | None, dtype: Any) -> Any:
        array = self._variables[name]
        found = tuple(array.shape)
        if shape is not None and shape != found:
            raise ValueError(
                f"Trying to share variable {name}, but specified shape {shape} and found shape "
                f"{found}."
            )
        if dtype is not None and np.dtype(dtype) != array.dtype:
            raise ValueError(
                f"Trying to share variable {name}, but specified dtype {np.dtype(dtype)} and found "
                f"dtype {array.dtype}."
            )
        return array

    def _add(self, key: str, name: str | None, value: Any) -> None:
        self._collections.setdefault(key, []).append((name, value))

    def _unused(self, name: str) -> str:
        losses = self._collections.get(GraphKeys.REGULARIZATION_LOSSES, [])
        taken = {own_name for own_name, _ in losses}
        candidates = itertools.chain([name], (f"{name}_{k}" for k in itertools.count(1)))
        return next(f"{c}:0" for c in candidates if f"{c}:0" not in taken)


def _joined(scope: str, name: str) -> str:
    return f"{scope}/{name}" if scope and name else scope or name


def _loss(name: str, array: Any, regularizer: RegularizerLike | None) -> Loss | None:
    """The loss of a new variable; None if its regularizer gives none, found out by calling it."""
    linear, others = parts_of(regularizer)
    if linear is None and not others:
        return None
    with_dtype(array, f"variable {name}")
    if not called(others, array) and linear is None:
        return None
    kind = getattr(regularizer, "name", None) or getattr(
        regularizer, "__name__", type(regularizer).__name__
    )
    return Loss(f"{name}/Regularizer/{kind}:0", [array], [regularizer])


def _array_or_shape(
    name: str, shape_or_array: Any, dtype: Any, initializer: Any
) -> tuple[Any, tuple[int, ...] | None]:
    """The array that was given, if one was, and the shape, if one is known."""
    constant = initializer is not None and not callable(initializer)
    given = hasattr(shape_or_array, "dtype") and not isinstance(shape_or_array, np.generic)
    if constant and shape_or_array is not None:
        raise ValueError("If initializer is a constant, do not specify shape.")
    if given and initializer is not None:
        raise ValueError(f"Variable {name} was given both an array and an initializer.")
    if given or constant:
        array = shape_or_array if given else initializer
        refuse_without_values(array, f"variable {name}")
        if not hasattr(array, "dtype"):
            array = np.array(array, dtype=np.float32 if dtype is None else dtype)
        if dtype is not None and np.dtype(dtype) != array.dtype:
            raise ValueError(
                f"Variable {name} was given an array of dtype {array.dtype}; "
                f"wanted {np.dtype(dtype)}"
            )
        return array, tuple(array.shape)
    if shape_or_array is None:
        return None, None
    sizes = shape_or_array if isinstance(shape_or_array, Iterable) else (shape_or_array,)
    try:
        shape = tuple(map(operator.index, sizes))
    except TypeError:
        shape = (-1,)
    if any(size < 0 for size in shape):
        raise ValueError(
            f"Variable {name} was given the shape {shape_or_array!r}; wanted sizes of at least 0"
        )
    return None, shape


def _initial(name: str, shape: tuple[int, ...] | None, dtype: Any, initializer: Any) -> Any:
    """The first values of a variable that is made from a shape."""
    if shape is None:
        raise ValueError(f"Variable {name} was given neither a shape nor an array.")
    dtype = np.dtype(np.float32 if dtype is None else dtype)
    array = np.asarray((initializer or _glorot_uniform)(shape, dtype), dtype=dtype)
    if array.shape != shape:
        raise ValueError(
            f"Variable {name}: the initializer returned an array of shape {array.shape}; "
            f"wanted {shape}"
        )
    return array


def _glorot_uniform(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    # The last two axes are inputs and outputs; those before them are a convolution's window.
    fans = sum((shape * 2)[-2:]) * math.prod(shape[:-2])
    limit = math.sqrt(6.0 / max(fans, 2))
    return np.random.default_rng().uniform(-limit, limit, shape)
