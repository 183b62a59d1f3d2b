"""The workflow of TensorFlow 1: variables, scopes, collections, and losses that stay lazy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fused_penalties as fp
from fused_penalties import contrib, regularizers
from fused_penalties.losses import Loss
from fused_penalties.store import AUTO_REUSE, GraphKeys, VariableStore, no_regularizer
from messages import exactly

W = np.array([[1, -2], [-3, 4]], np.float32)
L1 = contrib.l1_regularizer(0.5)
L2 = contrib.l2_regularizer(0.5)


@pytest.fixture
def store() -> VariableStore:
    return VariableStore()


def names(losses: list[Any]) -> list[str]:
    return [loss.name for loss in losses]


def state(store: VariableStore) -> Any:
    """All that a store holds."""
    keys = [value for key, value in vars(GraphKeys).items() if key.isupper()]
    collections = {key: [id(x) for x in store.get_collection(key)] for key in keys}
    return copy.copy(dict(store.variables)), collections


def test_the_keys_are_those_of_tensorflow() -> None:
    assert GraphKeys.REGULARIZATION_LOSSES == "regularization_losses"
    assert GraphKeys.WEIGHTS == "weights"
    assert GraphKeys.TRAINABLE_VARIABLES == "trainable_variables"
    assert GraphKeys.LOSSES == "losses"


def test_an_array_is_stored_and_not_copied(store: VariableStore) -> None:
    w = W.copy()
    assert store.get_variable("w", w, regularizer=L2) is w
    (loss,) = store.get_regularization_losses()
    assert float(loss) == 7.5
    w *= 2
    assert float(loss) == store.get_regularization_loss() == 30.0


def test_the_array_may_be_the_initializer(store: VariableStore) -> None:
    w = W.copy()
    assert store.get_variable("w", initializer=w) is w
    made = store.get_variable("v", initializer=[[1, -2], [-3, 4]])
    assert made.dtype == np.float32
    assert (made == W).all()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_a_shape_makes_a_variable(store: VariableStore, dtype: type) -> None:
    w = store.get_variable("w", [784, 200], dtype=dtype)
    assert w.shape == (784, 200)
    assert w.dtype == dtype
    limit = np.sqrt(6 / 984)
    assert 0.9 * limit < np.abs(w.astype(np.float64)).max() <= 1.01 * limit
    assert np.abs(w.astype(np.float64).mean()) < 0.02 * limit


@pytest.mark.parametrize(
    ("shape", "fans"), [(400, 800), ((), 2), ((3, 3, 4, 5), 81), ((7, 0, 0), 2)]
)
def test_a_shape_of_any_rank(store: VariableStore, shape: Any, fans: int) -> None:
    made = [store.get_variable(f"w{k}", shape) for k in range(400)]
    assert {w.shape for w in made} == {(shape,) if isinstance(shape, int) else shape}
    assert {w.dtype for w in made} == {np.dtype(np.float32)}
    if made[0].size:
        limit, largest = np.float32(np.sqrt(6 / fans)), np.abs(made).max()
        assert 0.9 * limit < largest <= limit


def test_an_initializer_gets_shape_and_dtype(store: VariableStore) -> None:
    assert (store.get_variable("a", [2, 3], initializer=np.zeros) == np.zeros((2, 3))).all()
    assert (store.get_variable("b", np.int64(3), np.float64, np.ones) == np.ones(3)).all()
    made = store.get_variable("c", [2], initializer=lambda shape, dtype: [1.0, 2.0])
    assert made.dtype == np.float32


def test_variables_are_listed_by_name(store: VariableStore) -> None:
    a = store.get_variable("a", [2])
    with store.variable_scope("sc"):
        b = store.get_variable("b", [3], trainable=False)
    assert list(store.variables) == ["a", "sc/b"]
    assert store.variables["sc/b"] is b
    assert store.get_collection(GraphKeys.TRAINABLE_VARIABLES)[0] is a
    assert len(store.get_collection(GraphKeys.TRAINABLE_VARIABLES)) == 1
    with pytest.raises(TypeError):
        store.variables["c"] = a  # type: ignore[index]


@pytest.mark.parametrize(
    ("regularizer", "kind"),
    [
        (L1, "l1_regularizer"),
        (L2, "l2_regularizer"),
        (contrib.l1_l2_regularizer(), "l1_l2_regularizer"),
        (contrib.l1_l2_regularizer(0.0, 0.5), "l1_l2_regularizer"),
        (contrib.sum_regularizer([L1, None, L2]), "sum_regularizer"),
        (contrib.l2_regularizer(0.5, scope="mine"), "mine"),
        (regularizers.L2(0.5), "L2"),
        (np.max, "max"),
    ],
)
def test_names_of_losses(store: VariableStore, regularizer: Any, kind: str) -> None:
    with store.variable_scope("sc"):
        store.get_variable("v", W, regularizer=regularizer)
    assert names(store.get_regularization_losses()) == [f"sc/v/Regularizer/{kind}:0"]


@pytest.mark.parametrize(
    "regularizer",
    [
        None,
        no_regularizer,
        contrib.l1_regularizer(0.0),
        contrib.sum_regularizer([]),
        contrib.sum_regularizer([contrib.l2_regularizer(0.0), lambda x: None]),
        lambda x: None,
    ],
)
def test_a_regularizer_that_gives_none_adds_nothing(store: VariableStore, regularizer: Any) -> None:
    store.get_variable("v", W, regularizer=regularizer)
    assert store.get_regularization_losses() == []


def test_a_variable_that_is_not_trained_has_a_loss(store: VariableStore) -> None:
    store.get_variable("v", W, regularizer=L2, trainable=False)
    assert store.get_regularization_loss() == 7.5


def test_scopes_pass_regularizers_on(store: VariableStore) -> None:
    with store.variable_scope("sc", regularizer=L2) as outer:
        store.get_variable("w", W)
        store.get_variable("bias", [2])
        store.get_variable("own", W, regularizer=L1)
        store.get_variable("none", W, regularizer=no_regularizer)
        with store.variable_scope("inner") as inner:
            store.get_variable("w", W)
        with store.variable_scope("other", regularizer=L1):
            store.get_variable("w", W)
            with store.variable_scope("off", regularizer=no_regularizer):
                store.get_variable("w", W)
        with store.variable_scope(""):
            store.get_variable("again", W)
    store.get_variable("outside", W)
    assert (outer, inner) == ("sc", "sc/inner")
    assert names(store.get_regularization_losses()) == [
        "sc/w/Regularizer/l2_regularizer:0",
        "sc/bias/Regularizer/l2_regularizer:0",
        "sc/own/Regularizer/l1_regularizer:0",
        "sc/inner/w/Regularizer/l2_regularizer:0",
        "sc/other/w/Regularizer/l1_regularizer:0",
        "sc/again/Regularizer/l2_regularizer:0",
    ]


def test_reuse_never_adds_a_second_loss(store: VariableStore) -> None:
    v = store.get_variable("v", W, regularizer=L2)
    for reuse in (True, AUTO_REUSE):
        with store.variable_scope("", reuse=reuse):
            assert store.get_variable("v") is v
            assert store.get_variable("v", [2, 2], np.float32, regularizer=L1) is v
            with store.variable_scope("", reuse=False):
                assert store.get_variable("v", (2, 2)) is v
    assert len(store.get_regularization_losses()) == 1
    assert len(store.get_collection(GraphKeys.TRAINABLE_VARIABLES)) == 1


def test_auto_reuse_makes_what_is_missing(store: VariableStore) -> None:
    with store.variable_scope("sc", reuse=AUTO_REUSE):
        first = store.get_variable("v", [2], regularizer=L2)
        assert store.get_variable("v", [2], regularizer=L2) is first
    assert len(store.get_regularization_losses()) == 1


def test_a_scope_ends_with_an_error(store: VariableStore) -> None:
    with pytest.raises(KeyError), store.variable_scope("sc", regularizer=L2, reuse=True):
        raise KeyError
    store.get_variable("v", W)
    assert list(store.variables) == ["v"]
    assert store.get_regularization_losses() == []


def test_collections_filter_by_match(store: VariableStore) -> None:
    for scope in ("sc", "sc/inner", "sc/inner2"):
        with store.variable_scope(scope):
            store.get_variable("w", W, regularizer=L2)
    key = GraphKeys.REGULARIZATION_LOSSES
    store.add_to_collection(key, 0.25)
    assert len(store.get_collection(key)) == len(store.get_collection(key, "")) == 4
    assert names(store.get_collection(key, "sc/inner")) == [
        "sc/inner/w/Regularizer/l2_regularizer:0",
        "sc/inner2/w/Regularizer/l2_regularizer:0",
    ]
    assert names(store.get_collection(key, "sc/inner/")) == [
        "sc/inner/w/Regularizer/l2_regularizer:0"
    ]
    assert store.get_collection(key, "inner") == []
    assert len(store.get_collection(key, ".*inner")) == 2
    assert store.get_collection("nothing") == []
    assert len(store.get_collection(GraphKeys.TRAINABLE_VARIABLES, "sc/w:0$")) == 1
    assert store.get_regularization_loss("sc/inner") == 15.0
    assert store.get_regularization_loss("inner") == 0.0


def test_a_collection_is_a_copy(store: VariableStore) -> None:
    store.get_variable("v", W, regularizer=L2)
    store.get_regularization_losses().clear()
    assert len(store.get_regularization_losses()) == 1


def test_a_variable_keeps_its_name_in_a_collection(store: VariableStore) -> None:
    with store.variable_scope("sc"):
        w = store.get_variable("w", W.copy())
    store.add_to_collection(GraphKeys.WEIGHTS, w)
    store.add_to_collection(GraphKeys.WEIGHTS, W.copy())
    assert len(store.get_collection(GraphKeys.WEIGHTS)) == 2
    (found,) = store.get_collection(GraphKeys.WEIGHTS, "sc")
    assert found is w
    store.add_to_collection(GraphKeys.LOSSES, Loss("sc/mine", [w], [L1]))
    assert names(store.get_collection(GraphKeys.LOSSES, "sc")) == ["sc/mine"]


def test_the_sum_of_losses(store: VariableStore) -> None:
    value = store.get_regularization_loss()
    assert isinstance(value, np.float32)
    assert value == 0.0
    store.get_variable("a", W, regularizer=L2)
    store.get_variable("b", W, regularizer=L1)
    store.add_to_collection(GraphKeys.REGULARIZATION_LOSSES, 0.25)
    value = store.get_regularization_loss()
    assert isinstance(value, np.float32)
    assert value == 12.75
    store.get_variable("c", W.astype(np.float64), regularizer=L1)
    assert isinstance(store.get_regularization_loss(), np.float64)


def test_all_losses_are_one_pass(store: VariableStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.variable_scope("sc", regularizer=contrib.sum_regularizer([L1, L2])):
        for k in range(9):
            store.get_variable(f"w{k}", [k, 3])
    store.apply_regularization(L1, list(store.variables.values()))
    reads: list[int] = []
    terms = fp._core.HostPlan.terms

    def counted(plan: Any, strengths: Any) -> Any:
        reads.append(strengths.bytes)
        return terms(plan, strengths)

    monkeypatch.setattr(fp._core.HostPlan, "terms", counted)
    in_one = store.get_regularization_loss()
    once = sum(x.nbytes for x in store.variables.values())
    assert reads == [once]
    assert float(sum(store.get_regularization_losses())) == in_one
    assert reads == [once, once]


def test_losses_are_numbers(store: VariableStore) -> None:
    store.get_variable("a", W, regularizer=L2)
    store.get_variable("b", W, regularizer=L1)
    a, b = store.get_regularization_losses()
    assert isinstance(a.value(), np.float32)
    assert (a.value(), float(b), str(a), f"{b:.2f}") == (7.5, 5.0, "7.5", "5.00")
    assert repr(a) == "<Loss 'a/Regularizer/l2_regularizer:0'>"
    assert 1 + a == a + 1 == np.float32(1) + a == 8.5
    assert 0.5 * a == a / 2 == 3.75
    assert -a == -7.5
    assert 1 - a == -6.5
    assert a > b
    assert np.sqrt(b) == np.float32(np.sqrt(5))
    assert np.array([a, b]).tolist() == [7.5, 5.0]
    assert a + 0 == 7.5
    assert isinstance(sum([a, b]), Loss)
    assert a + b == 12.5
    assert sum([a, 0.5, b]) == 13.0


def test_activity_losses_by_hand(store: VariableStore) -> None:
    store.get_variable("w", W, regularizer=L2)
    activations = np.full((5, 5), 2, np.float32)
    loss = regularizers.L2(0.01)(activations) / len(activations)
    store.add_to_collection(GraphKeys.REGULARIZATION_LOSSES, loss)
    assert store.get_regularization_loss() == pytest.approx(7.7, rel=1.2e-7)


def test_apply_takes_the_collection_of_weights(store: VariableStore) -> None:
    a = store.get_variable("a", W.copy())
    store.get_variable("b", W)
    store.add_to_collection(GraphKeys.WEIGHTS, a)
    for nothing in (None, []):
        value = store.apply_regularization(L1, nothing)
        assert isinstance(value, np.float32)
        assert value == 5.0
    assert store.apply_regularization(L1, [a, a]) == 10.0
    with store.variable_scope("sc"):
        store.apply_regularization(contrib.l1_regularizer(0.0))
    assert names(store.get_regularization_losses()) == [
        "get_regularization_penalty:0",
        "get_regularization_penalty_1:0",
        "get_regularization_penalty_2:0",
        "sc/get_regularization_penalty:0",
    ]
    assert store.get_regularization_loss() == 20.0
    a *= 2
    assert store.get_regularization_loss() == 40.0


def test_apply_takes_patterns(store: VariableStore) -> None:
    with store.variable_scope("dense"):
        store.get_variable("kernel", W)
        store.get_variable("bias", np.full(2, 100, np.float32))
    assert store.apply_regularization({"bias": None, ".*": L1}, store.variables) == 5.0
    assert store.get_regularization_loss() == 5.0


def test_a_plan_of_a_store(store: VariableStore) -> None:
    with store.variable_scope("dense", regularizer=L2):
        kernel = store.get_variable("kernel", W.copy())
        bias = store.get_variable("bias", np.ones(2), regularizer=fp.no_regularizer)
    store.get_variable("scale", np.full(2, 2, np.float32), regularizer=np.max)
    store.get_variable("steps", np.array(3), trainable=False)
    assert store.regularizers == {
        "dense/kernel": L2,
        "dense/bias": None,
        "scale": np.max,
        "steps": None,
    }
    for plan in fp.Plan(store), store.plan(threads=1):
        assert plan.names == tuple(store.variables)
        assert plan.named() == {"dense/kernel": 7.5, "dense/bias": 0, "scale": 2, "steps": 0}
        assert plan.value() == store.get_regularization_loss() == 9.5
        assert plan.describe().splitlines()[0].endswith(repr(L2))
        kernel *= 2
        assert plan.value() == store.get_regularization_loss() == 32.0
        kernel /= 2
    assert fp.Plan(store, {"kernel": L1}).named()["dense/kernel"] == 5.0
    assert fp.Plan(store, None).value() == 0.0
    with pytest.raises(ValueError, match=r"^threads: "):
        store.plan(threads=0)
    assert np.all(bias == 1)
    assert len(VariableStore().plan()) == 0


def test_a_plan_adds_what_one_variable_has_several_times(store: VariableStore) -> None:
    kernel = store.get_variable("kernel", W.copy(), regularizer=L2)
    bias = store.get_variable("bias", np.ones(2, np.float32))
    store.apply_regularization(L1, [kernel, bias])
    store.apply_regularization([None, L2], [kernel, bias])
    store.add_to_collection(GraphKeys.REGULARIZATION_LOSSES, 100.0)
    plan = store.plan()
    assert plan.named() == {"kernel": 7.5 + 5.0, "bias": 1.0 + 0.5}
    assert plan.value() + 100.0 == store.get_regularization_loss() == 114.0
    grads = {"kernel": np.zeros_like(W), "bias": np.zeros(2, np.float32)}
    plan.add_grad(grads)
    assert grads["kernel"].tolist() == [[1.0, -1.5], [-2.0, 2.5]]
    assert grads["bias"].tolist() == [1.0, 1.0]


def test_a_plan_counts_one_array_of_two_names_twice(store: VariableStore) -> None:
    store.get_variable("a", W, regularizer=L2)
    store.get_variable("b", W, regularizer=L2)
    assert store.plan().value() == store.get_regularization_loss() == 15.0


def test_no_plan_of_a_loss_of_another_array(store: VariableStore) -> None:
    store.get_variable("w", W, regularizer=L2)
    store.apply_regularization(L1, [W.copy()])
    message = (
        "regularizers: 'get_regularization_penalty:0' is the loss of an array that is no variable "
        "of this store; wanted losses of variables only"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        fp.Plan(store)
    assert fp.Plan(store.variables, L1).value() == 5.0


def test_apply_to_losses_warns(store: VariableStore) -> None:
    store.get_variable("w", W, regularizer=L2)
    with pytest.warns(UserWarning, match="given regularization losses") as caught:
        store.apply_regularization(L2, store.get_regularization_losses())
    assert caught[0].filename == __file__


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
        "regularizer: got a str; wanted a regularizer or None",
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
        "regularizer: got a float; wanted a regularizer or None",
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
