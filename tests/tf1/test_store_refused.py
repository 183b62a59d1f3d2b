"""What a store refuses, and that it is then as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fused_penalties import contrib
from fused_penalties.tf1.store import GraphKeys, VariableStore
from messages import exactly

W = np.array([[1, -2], [-3, 4]], np.float32)
L1 = contrib.l1_regularizer(0.5)
L2 = contrib.l2_regularizer(0.5)


def state(store: VariableStore) -> Any:
    """All that a store holds."""
    keys = [value for key, value in vars(GraphKeys).items() if key.isupper()]
    collections = {key: [id(x) for x in store.get_collection(key)] for key in keys}
    return copy.copy(dict(store.variables)), collections


def vector(x: np.ndarray) -> np.ndarray:
    return np.ones(2)


BAD: dict[str, tuple[Callable[[VariableStore], object], type[Exception], str]] = {
    "a name used twice": (
        lambda store: store.get_variable("v", [2, 2], regularizer=L1),
        ValueError,
        "Variable v already exists, disallowed. Did you mean to set reuse=True or "
        "reuse=AUTO_REUSE in variable_scope?",
    ),
    "reuse of a missing name": (
        lambda store: reused(store, "missing", [2]),
        ValueError,
        "Variable missing does not exist. Did you mean to set reuse=AUTO_REUSE in variable_scope?",
    ),
    "another shape": (
        lambda store: reused(store, "v", [3, 2]),
        ValueError,
        "Trying to share variable v, but specified shape (3, 2) and found shape (2, 2).",
    ),
    "another dtype": (
        lambda store: reused(store, "v", [2, 2], np.float64),
        ValueError,
        "Trying to share variable v, but specified dtype float64 and found dtype float32.",
    ),
    "a regularizer that is not scalar": (
        lambda store: store.get_variable("x", W, regularizer=vector),
        ValueError,
        "regularizer must return a scalar Tensor instead of a Tensor with rank 1.",
    ),
    "a regularizer that is none": (
        lambda store: store.get_variable("x", W, regularizer="l2"),
        TypeError,
        "regularizer: got str; wanted a regularizer or None",
    ),
    "a regularized array of integers": (
        lambda store: store.get_variable("x", np.ones(3, int), regularizer=L1),
        TypeError,
        "variable x: dtype int64 is not supported; wanted float16, bfloat16, float32 or float64",
    ),
    "no shape": (
        lambda store: store.get_variable("x"),
        ValueError,
        "Variable x was given neither a shape nor an array.",
    ),
    "a negative size": (
        lambda store: store.get_variable("x", [2, -1]),
        ValueError,
        "Variable x was given the shape [2, -1]; wanted sizes of at least 0",
    ),
    "sizes that are not integers": (
        lambda store: store.get_variable("x", [[1.0, 2.0]]),
        ValueError,
        "Variable x was given the shape [[1.0, 2.0]]; wanted sizes of at least 0",
    ),
    "a shape beside a constant": (
        lambda store: store.get_variable("x", [2, 2], initializer=W),
        ValueError,
        "If initializer is a constant, do not specify shape.",
    ),
    "an array and an initializer": (
        lambda store: store.get_variable("x", W, initializer=np.zeros),
        ValueError,
        "Variable x was given both an array and an initializer.",
    ),
    "an array of another dtype": (
        lambda store: store.get_variable("x", W, dtype=np.float64),
        ValueError,
        "Variable x was given an array of dtype float32; wanted float64",
    ),
    "an initializer of another shape": (
        lambda store: store.get_variable("x", [2], initializer=lambda shape, dtype: W),
        ValueError,
        "Variable x: the initializer returned an array of shape (2, 2); wanted (2,)",
    ),
    "no name": (
        lambda store: store.get_variable("", W),
        TypeError,
        "name: got ''; wanted a string that is not empty",
    ),
    "a scope without a name": (
        lambda store: store.variable_scope(None).__enter__(),
        TypeError,
        "name: got NoneType; wanted a string",
    ),
    "a scope with a bad regularizer": (
        lambda store: store.variable_scope("sc", regularizer=0.1).__enter__(),
        TypeError,
        "regularizer: got float; wanted a regularizer or None",
    ),
    "a scope with a bad reuse": (
        lambda store: store.variable_scope("sc", reuse="yes").__enter__(),
        ValueError,
        "reuse: got 'yes'; wanted True, False, None or AUTO_REUSE",
    ),
    "a collection without a name": (
        lambda store: store.add_to_collection(3, W),
        TypeError,
        "name: got int; wanted a string",
    ),
    "a scope that is no pattern": (
        lambda store: store.get_regularization_losses("("),
        ValueError,
        "scope: got '('; wanted a regular expression: missing ), unterminated subpattern at "
        "position 0",
    ),
    "applied to nothing": (
        lambda store: store.apply_regularization(L1),
        ValueError,
        "No weights to regularize.",
    ),
    "applied and not scalar": (
        lambda store: store.apply_regularization(vector, [W]),
        ValueError,
        "regularizer must return a scalar Tensor instead of a Tensor with rank 1.",
    ),
    "applied to integers": (
        lambda store: store.apply_regularization(L1, [W, np.ones(3, int)]),
        TypeError,
        "weights[1]: dtype int64 is not supported; wanted float16, bfloat16, float32 or float64",
    ),
}


def reused(store: VariableStore, *args: Any) -> None:
    with store.variable_scope("", reuse=True):
        store.get_variable(*args)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_leaves_the_store_unchanged(store: VariableStore, case: str) -> None:
    call, error, message = BAD[case]
    store.get_variable("v", W, regularizer=L2)
    before = state(store)
    with pytest.raises(error, match=exactly(message)):
        call(store)
    assert state(store) == before
    with store.variable_scope("after"):
        store.get_variable("w", [1])
    assert list(store.variables) == ["v", "after/w"]
