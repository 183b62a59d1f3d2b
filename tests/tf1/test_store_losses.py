"""The losses of a store: lazy, numbers in the end, and a plan of all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fused_penalties as fp
from fused_penalties import contrib, regularizers
from fused_penalties.tf1.losses import Loss
from fused_penalties.tf1.store import GraphKeys, VariableStore
from messages import exactly

W = np.array([[1, -2], [-3, 4]], np.float32)
L1 = contrib.l1_regularizer(0.5)
L2 = contrib.l2_regularizer(0.5)


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
