"""The store of TensorFlow 1's workflow: variables, scopes and collections."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fused_penalties import contrib, regularizers
from fused_penalties.tf1.losses import Loss
from fused_penalties.tf1.store import AUTO_REUSE, GraphKeys, VariableStore, no_regularizer

W = np.array([[1, -2], [-3, 4]], np.float32)
L1 = contrib.l1_regularizer(0.5)
L2 = contrib.l2_regularizer(0.5)


def names(losses: list[Any]) -> list[str]:
    return [loss.name for loss in losses]


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
