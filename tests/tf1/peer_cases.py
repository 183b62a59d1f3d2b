"""What the peers and this package both have to answer: expressions, and workflows with a store.

`Library` is what either side offers under the same names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np


class Library(Protocol):
    names: dict[str, Any]
    """contrib, regularizers, l2_loss and add_n, and an `array` that makes its kind of weights."""

    def store(self) -> Any:
        """An empty store, as a context: get_variable, variable_scope, and the other functions."""

    def number(self, loss: Any) -> float:
        """The value of a loss of the store that is open."""


def _same_numbers() -> list[str]:
    found = []
    for x in ("W", "X32", "Y32", "WIDE32", "ZEROS", "X64", "SIGNED"):
        for scale in (0.5, 1.0, 0.01, 1e-4):
            found += [
                f"contrib.l1_regularizer({scale})({x})",
                f"contrib.l2_regularizer({scale})({x})",
                f"contrib.l1_l2_regularizer({scale}, 0.3)({x})",
            ]
        found += [
            f"contrib.l1_l2_regularizer()({x})",
            f"contrib.l1_l2_regularizer(0.0, 0.5)({x})",
            f"contrib.l1_l2_regularizer(0.5, 0.0)({x})",
            f"regularizers.l1(0.5)({x})",
            f"regularizers.l1_l2(0.5, 0.25)({x})",
            f"regularizers.l1(1)({x})",
            f"regularizers.l2(1)({x})",
            f"regularizers.l1_l2()({x})",
            f"l2_loss({x})",
            f"add_n([l2_loss({x})] * 3)",
            f"contrib.sum_regularizer([contrib.l1_regularizer(.1), None,"
            f" contrib.l2_regularizer(.2), contrib.l1_regularizer(0.)])({x})",
            f"contrib.apply_regularization(contrib.l1_regularizer(0.1), [{x}, {x}])",
        ]
    for x in ("W", "X32", "Y32", "WIDE32", "ZEROS", "SIGNED"):
        found += [f"regularizers.l1()({x})", f"regularizers.l2()({x})"]
        found += [f"regularizers.L1L2({scale}, 0.3)({x})" for scale in (0.01, 1e-4)]
    for x in ("W", "Y32", "WIDE32", "ZEROS"):
        found += [
            f"regularizers.OrthogonalRegularizer()({x})",
            f"regularizers.OrthogonalRegularizer(0.1, 'columns')({x})",
        ]
    return found


_SCALES = ["0", "1", "True", "np.int32(3)", "-1.0", "-0.5", "-1e-7", "-float('inf')", "-1e300"]
_FACTORS = ["-1", "-1.5", "'a'", "[1.0]", "float('nan')", "float('inf')", "1j", "np.float64(-0.1)"]
_IDENTIFIERS = ["'typo'", "''", "3", "[]", "{}", "{'class_name': 'zzz', 'config': {}}", "'L1_L2'"]

SAME_NUMBERS = _same_numbers()

SAME_OTHERWISE = [
    *(f"contrib.l1_regularizer({scale})" for scale in _SCALES),
    *(f"contrib.l2_regularizer({scale})" for scale in _SCALES),
    *(f"contrib.l1_l2_regularizer({scale}, 0.5)" for scale in _SCALES),
    *(f"contrib.l1_l2_regularizer(0.5, {scale})" for scale in _SCALES),
    "contrib.l1_regularizer(0.0)(None)",
    "contrib.l2_regularizer(-0.0)(W)",
    "contrib.l1_l2_regularizer(0.0, 0.0)(W)",
    "contrib.sum_regularizer([])",
    "contrib.sum_regularizer([None])",
    "contrib.sum_regularizer([contrib.l1_regularizer(0.0)])(W)",
    "contrib.apply_regularization(contrib.l1_regularizer(0.5))",
    "contrib.apply_regularization(contrib.l1_regularizer(0.5), [])",
    "contrib.apply_regularization(lambda x: x, [W])",
    "contrib.apply_regularization(lambda x: x[0], [W])",
    "add_n([])",
    "add_n(None)",
    *(f"regularizers.L1({factor})" for factor in _FACTORS),
    *(f"regularizers.L2({factor})" for factor in _FACTORS),
    *(f"regularizers.L1L2({factor})" for factor in _FACTORS),
    *(f"regularizers.L1L2(0.1, {factor})" for factor in _FACTORS),
    *(f"regularizers.OrthogonalRegularizer({factor})" for factor in [*_FACTORS, "None"]),
    "regularizers.OrthogonalRegularizer(0.1, 'x')",
    "regularizers.OrthogonalRegularizer()(array([[[1.0, 2.0], [3.0, 4.0]]] * 2))",
    "regularizers.OrthogonalRegularizer()(array([1.0, 2.0]))",
    *(f"regularizers.get({identifier})" for identifier in _IDENTIFIERS),
    "regularizers.get(None)",
    "regularizers.get({'class_name': 'L1', 'config': {'l1': -0.5}})",
    *(
        f"regularizers.get({identifier}).get_config()"
        for identifier in (
            "'l2'",
            "'L2'",
            "'l1l2'",
            "'L1L2'",
            "regularizers.L2",
            "regularizers.L1(0.5)",
            "{'class_name': 'l2', 'config': {'l2': 0.1}}",
            "{'class_name': 'L1L2', 'config': {'l1': 0.1}}",
            "regularizers.serialize(regularizers.L1L2(0.1, 0.2))",
        )
    ),
    *(
        f"type(regularizers.get({identifier})).__name__"
        for identifier in ("'l1'", "'L1'", "'orthogonal_regularizer'", "'OrthogonalRegularizer'")
    ),
    "regularizers.get(len) is len",
    *(
        f"regularizers.{made}.get_config()"
        for made in ("L1(0.5)", "L2(0.1)", "L2(None)", "L1L2(0.1, 1)", "L1L2(None)", "L2(True)")
    ),
    "regularizers.OrthogonalRegularizer(0.5, 'columns').get_config()",
    *(
        f"regularizers.serialize(regularizers.{made})"
        for made in ("L1(0.5)", "L2(0.1)", "L1L2(0.1, 0.2)", "OrthogonalRegularizer(0.5)")
    ),
    "regularizers.deserialize(None)",
    "regularizers.deserialize(regularizers.serialize(regularizers.L2(0.1))).get_config()",
    "regularizers.L2.from_config({'l2': 0.1}).get_config()",
    "regularizers.l1 is regularizers.L1 and regularizers.l2 is regularizers.L2",
    "regularizers.l1_l2 is regularizers.L1L2",
    "regularizers.orthogonal_regularizer is regularizers.OrthogonalRegularizer",
    "regularizers.Regularizer()(W)",
]

# Where this package differs on purpose: the peers' outcome, and ours.
DIFFERENT: dict[str, tuple[Any, Any]] = {
    "regularizers.L1().get_config()": ({"l1": 0.009999999776482582}, {"l1": 0.01}),
    "float(regularizers.L2(0.01)(array([1.0], 'float64')))": (0.009999999776482582, 0.01),
    "regularizers.get('l1_l2').get_config()": (
        "ValueError: Could not interpret regularizer identifier: l1_l2",
        {"l1": 0.0, "l2": 0.0},
    ),
    "regularizers.L2(np.float32(0.5)).get_config()": (
        "ValueError: Invalid value for argument l2: expected a non-negative float.Received: l2=0.5",
        {"l2": 0.5},
    ),
    "float(regularizers.OrthogonalRegularizer()(array([[1.0, 2.0]]))) == 0.0": (False, True),
    "float(l2_loss(array([300.0], 'float16')))": (float("inf"), 45000.0),
    "type(contrib.l1_regularizer('x')).__name__": (
        "function",
        "TypeError: scale: got 'x'; wanted a float",
    ),
    "type(contrib.l1_regularizer(np.True_)).__name__": (
        "function",
        "ValueError: scale cannot be an integer: True",
    ),
}


def inherited_scopes(library: Library, store: Any) -> Any:
    contrib, w = library.names["contrib"], np.array([[1, -2], [-3, 4]], np.float32)
    with store.variable_scope("sc", regularizer=contrib.l2_regularizer(0.5)):
        store.get_variable("w", initializer=w)
        store.get_variable("own", initializer=w, regularizer=contrib.l1_regularizer(0.5))
        store.get_variable("off", initializer=w, regularizer=store.no_regularizer)
        store.get_variable("kept", initializer=w, trainable=False)
        with store.variable_scope("inner", regularizer=contrib.l1_regularizer(0.1, scope="mine")):
            store.get_variable("w", initializer=w)
            with store.variable_scope("off", regularizer=store.no_regularizer):
                store.get_variable("w", initializer=w)
        with store.variable_scope("inner2"):
            store.get_variable("w", initializer=w)
    store.get_variable("outside", initializer=w)
    store.get_variable(
        "both", initializer=w, regularizer=contrib.l1_l2_regularizer(0.5, 0.5, scope="l1_l2")
    )
    store.get_variable("zero", initializer=w, regularizer=contrib.l1_regularizer(0.0))
    scopes = (None, "", "sc", "sc/inner", "sc/inner/", "inner", ".*inner", "both", "nothing")
    return {
        str(scope): (
            [(loss.name, library.number(loss)) for loss in store.get_regularization_losses(scope)],
            library.number(store.get_regularization_loss(scope)),
            len(store.get_collection("trainable_variables", scope)),
        )
        for scope in scopes
    }


def reuse(library: Library, store: Any) -> Any:
    contrib, w = library.names["contrib"], np.array([[1, -2], [-3, 4]], np.float32)
    l1, l2 = contrib.l1_regularizer(0.5), contrib.l2_regularizer(0.5)
    first = store.get_variable("v", initializer=w, regularizer=l2)
    same, refused = [], []
    for kind in (True, store.AUTO_REUSE):
        with store.variable_scope("", reuse=kind):
            same.append(store.get_variable("v", regularizer=l1) is first)
            same.append(store.get_variable("v", [2, 2], regularizer=l2) is first)
            with store.variable_scope("", reuse=False):
                same.append(store.get_variable("v") is first)
            for shape, dtype in (([3, 2], np.float32), ([2, 2], np.float64)):
                try:
                    store.get_variable("v", shape, dtype)
                except ValueError as error:
                    refused.append(str(error))
    return same, refused, len(store.get_regularization_losses())


def applied(library: Library, store: Any) -> Any:
    contrib, w = library.names["contrib"], np.array([[1, -2], [-3, 4]], np.float32)
    a, b = store.get_variable("a", initializer=w), store.get_variable("b", initializer=w)
    store.add_to_collection("weights", a)
    values = [
        store.apply_regularization(contrib.l1_regularizer(0.5)),
        store.apply_regularization(contrib.l2_regularizer(0.5), [a, b]),
        store.apply_regularization(contrib.l2_regularizer(0.0), [a]),
        store.get_regularization_loss(),
    ]
    losses = store.get_collection("regularization_losses")
    return [library.number(value) for value in values], [loss.name for loss in losses]


WORKFLOWS: dict[str, Callable[[Library, Any], Any]] = {
    "inherited scopes": inherited_scopes,
    "reuse": reuse,
    "applied": applied,
}


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {
        "W": np.array([[1, -2], [-3, 4]], np.float32),
        "X32": rng.standard_normal(1000).astype(np.float32),
        "Y32": rng.standard_normal((7, 5)).astype(np.float32),
        "WIDE32": rng.lognormal(0, 3, (20, 30)).astype(np.float32),
        "ZEROS": np.zeros((4, 3), np.float32),
        "SIGNED": np.array([-0.0, 0.0, -1.5, 1e-40], np.float32),
        "X64": rng.standard_normal(1000),
    }


def as_numpy(x: Any, dtype: Any = None) -> np.ndarray:
    """An array as it is, and lists as float32."""
    return np.asarray(x, dtype or getattr(x, "dtype", np.float32))


def outcome(expression: str, library: Library) -> Any:
    """What the expression gives: JSON, a number with its dtype, or the error and its message."""
    names = {"np": np, **library.names}
    names |= {name: library.names["array"](x) for name, x in arrays().items()}
    try:
        result = eval(expression, names)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if hasattr(result, "dtype"):
        dtype = getattr(result.dtype, "name", None)
        return {"dtype": dtype, "shape": list(result.shape), "value": float(result)}
    return result


def outcomes(library: Library) -> dict[str, Any]:
    found = {e: outcome(e, library) for e in (*SAME_NUMBERS, *SAME_OTHERWISE, *DIFFERENT)}
    for name, workflow in WORKFLOWS.items():
        with library.store() as store:
            found[name] = workflow(library, store)
    return found
