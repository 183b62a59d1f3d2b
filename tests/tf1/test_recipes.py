"""What TensorFlow users write, in the words of this package: the table of tf1/README.md, run."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import fused_penalties as fp
import readmes
from fused_penalties import contrib, regularizers

FOLDER = f"{readmes.PACKAGE}/tf1"
ULP = float(np.finfo(np.float32).eps)
LAYERS = {"layer1": (784, 200), "layer2": (200, 200), "layer3": (200, 10)}


@pytest.fixture
def w() -> np.ndarray:
    return np.array([[1, -2], [-3, 4]], np.float32)


def network(store: fp.VariableStore, scale: float) -> None:
    """The published network: three layers of weights with a penalty and biases without."""
    for scope, (inputs, outputs) in LAYERS.items():
        with store.variable_scope(scope):
            store.get_variable(
                "weights", [inputs, outputs], regularizer=contrib.l2_regularizer(scale)
            )
            store.get_variable("biases", [outputs], initializer=np.zeros)


def test_the_table(w: np.ndarray) -> None:
    """The right column, from top to bottom; the tests below have the values."""
    (table,) = re.findall(r"^\|---\|---\|\n((?:\|.*\n)+)", readmes.text(FOLDER), re.MULTILINE)
    names: dict[str, Any] = {"fp": fp, "contrib": contrib, "regularizers": regularizers}
    names |= {"W": w, "r": contrib.l2_regularizer(0.5), "activations": w}
    names |= {"loss": 1.0, "reg_constant": 0.01, "weight_decay": 0.01}
    names["grads"] = {"w": np.zeros((784, 200), np.float32), "bias": None}
    for row in table.splitlines():
        found = re.findall(r"`([^`]+)`", row.split(" | ")[1])
        assert found or "nothing:" in row
        for code in found:
            exec(f"{code} pass" if code.endswith(":") else code, names)


def test_contrib_on_an_array(w: np.ndarray) -> None:
    # tf.contrib.layers.l1_regularizer(0.5)(W), tf.contrib.layers.l2_regularizer(0.5)(W)
    assert contrib.l1_regularizer(0.5)(w) == 5.0
    assert contrib.l2_regularizer(0.5)(w) == 7.5


def test_keras_on_an_array(w: np.ndarray) -> None:
    # tf.keras.regularizers.l1(0.5)(W), l2(0.5)(W) and l1()(W)
    assert regularizers.l1(0.5)(w) == 5.0
    assert regularizers.l2(0.5)(w) == 15.0
    assert regularizers.l1()(w) == np.float32(0.099999994)


def test_l2_loss(w: np.ndarray) -> None:
    # tf.nn.l2_loss(W)
    assert fp.l2_loss(w) == 15.0


def test_loss_and_a_constant_times_the_sum(store: fp.VariableStore, w: np.ndarray) -> None:
    # reg_losses = tf.get_collection(tf.GraphKeys.REGULARIZATION_LOSSES)
    # loss = base_loss + reg_constant * sum(reg_losses)
    store.get_variable("w", w, regularizer=contrib.l2_regularizer(0.5))
    base_loss, reg_constant = 1.0, 0.01
    reg_losses = store.get_collection(fp.GraphKeys.REGULARIZATION_LOSSES)
    loss = base_loss + reg_constant * sum(reg_losses)
    assert loss == pytest.approx(1.075, rel=ULP)


def test_loss_and_the_regularization_loss(store: fp.VariableStore, w: np.ndarray) -> None:
    # loss = base_loss + tf.losses.get_regularization_loss()
    store.get_variable("w", w, regularizer=contrib.l2_regularizer(0.001))
    loss = 1.0 + store.get_regularization_loss()
    assert loss == pytest.approx(1.015, rel=ULP)


def test_apply_regularization_to_weights(store: fp.VariableStore, w: np.ndarray) -> None:
    # weights = tf.trainable_variables()
    # regularizer = tf.contrib.layers.l1_regularizer(0.005)
    # penalty = tf.contrib.layers.apply_regularization(regularizer, weights)
    store.get_variable("a", w)
    store.get_variable("b", w)
    weights = store.get_collection(fp.GraphKeys.TRAINABLE_VARIABLES)
    penalty = contrib.apply_regularization(contrib.l1_regularizer(0.005), weights)
    assert penalty == pytest.approx(0.1, rel=ULP)


def test_apply_regularization_to_the_weights_collection(
    store: fp.VariableStore, w: np.ndarray
) -> None:
    # tf.add_to_collection(tf.GraphKeys.WEIGHTS, w)
    # tf.contrib.layers.apply_regularization(tf.contrib.layers.l2_regularizer(0.5))
    store.add_to_collection(fp.GraphKeys.WEIGHTS, store.get_variable("w", w))
    assert store.apply_regularization(contrib.l2_regularizer(0.5)) == 7.5
    assert store.get_regularization_loss() == 7.5


def test_apply_regularization_to_losses_is_a_mistake(
    store: fp.VariableStore, w: np.ndarray
) -> None:
    # As published: it regularizes the regularization losses.
    # reg_variables = tf.get_collection(tf.GraphKeys.REGULARIZATION_LOSSES)
    # reg_term = tf.contrib.layers.apply_regularization(regularizer, reg_variables)
    regularizer = contrib.l2_regularizer(0.1)
    store.get_variable("w", w, regularizer=regularizer)
    reg_variables = store.get_collection(fp.GraphKeys.REGULARIZATION_LOSSES)
    with pytest.warns(UserWarning, match="computes the penalty of penalties"):
        reg_term = contrib.apply_regularization(regularizer, reg_variables)
    assert reg_term == pytest.approx(0.1125, rel=ULP)
    assert store.get_regularization_loss() == 1.5


def test_weight_decay_over_trainable_variables(store: fp.VariableStore, w: np.ndarray) -> None:
    # l2 = weight_decay * tf.add_n([tf.nn.l2_loss(tf.cast(v, tf.float32))
    #                               for v in tf.trainable_variables()])
    store.get_variable("a", w)
    store.get_variable("b", w.astype(np.float16))
    store.get_variable("step", np.array([7.0]), trainable=False)
    weight_decay = 0.01
    variables = store.get_collection(fp.GraphKeys.TRAINABLE_VARIABLES)
    word_for_word = weight_decay * fp.add_n([fp.l2_loss(v) for v in variables])
    in_one_read = fp.penalty(variables, contrib.l2_regularizer(weight_decay))
    assert word_for_word == pytest.approx(0.3, rel=ULP)
    assert in_one_read == pytest.approx(0.3, rel=ULP)


def test_weight_decay_without_biases(store: fp.VariableStore, w: np.ndarray) -> None:
    # tf.add_n([tf.nn.l2_loss(v) for v in tf.trainable_variables() if 'bias' not in v.name]) * 0.5
    store.get_variable("kernel", w)
    store.get_variable("bias", np.full(3, 100, np.float32))
    rules = {r"bias": None, r".*": contrib.l2_regularizer(0.5)}
    assert fp.penalty(store.variables, rules) == 7.5


def test_activity_regularization(store: fp.VariableStore) -> None:
    # tf.layers.dense(x, 5, activity_regularizer=tf.contrib.layers.l2_regularizer(0.01))
    activations = np.full((5, 5), 2, np.float32)
    loss = contrib.l2_regularizer(0.01)(activations) / len(activations)
    store.add_to_collection(fp.GraphKeys.REGULARIZATION_LOSSES, loss)
    assert store.get_regularization_loss() == pytest.approx(0.1, rel=ULP)


def test_a_scope_with_a_regularizer(store: fp.VariableStore, w: np.ndarray) -> None:
    # with tf.variable_scope('dense', regularizer=tf.contrib.layers.l2_regularizer(0.5)):
    #     kernel = tf.get_variable('kernel', initializer=W)
    #     bias = tf.get_variable('bias', [2], regularizer=tf.no_regularizer)
    with store.variable_scope("dense", regularizer=contrib.l2_regularizer(0.5)):
        store.get_variable("kernel", initializer=w)
        store.get_variable("bias", [2], regularizer=fp.no_regularizer)
    (loss,) = store.get_regularization_losses()
    assert loss.name == "dense/kernel/Regularizer/l2_regularizer:0"
    assert loss == 7.5


def test_a_scope_with_reuse(store: fp.VariableStore) -> None:
    # with tf.variable_scope('tower', regularizer=r, reuse=tf.AUTO_REUSE):
    for _ in range(2):
        with store.variable_scope(
            "tower", regularizer=contrib.l2_regularizer(0.5), reuse=fp.AUTO_REUSE
        ):
            store.get_variable("w", [3])
    assert len(store.get_regularization_losses()) == 1


def test_losses_of_one_scope(store: fp.VariableStore) -> None:
    # tf.losses.get_regularization_losses(scope='layer1')
    network(store, 0.1)
    (loss,) = store.get_regularization_losses("layer1")
    assert loss == contrib.l2_regularizer(0.1)(store.variables["layer1/weights"])


def test_the_listing_of_variables_and_losses(store: fp.VariableStore) -> None:
    # for v in tf.trainable_variables(): print(v.name, v.shape, np.prod(v.shape))
    # for l in tf.losses.get_regularization_losses(): print(l.name)
    network(store, 0.1)
    variables = [f"{name} {v.shape} {v.size}" for name, v in store.variables.items()]
    losses = [loss.name for loss in store.get_regularization_losses()]
    assert variables == [
        "layer1/weights (784, 200) 156800",
        "layer1/biases (200,) 200",
        "layer2/weights (200, 200) 40000",
        "layer2/biases (200,) 200",
        "layer3/weights (200, 10) 2000",
        "layer3/biases (10,) 10",
    ]
    assert losses == [
        "layer1/weights/Regularizer/l2_regularizer:0",
        "layer2/weights/Regularizer/l2_regularizer:0",
        "layer3/weights/Regularizer/l2_regularizer:0",
    ]
    assert sum(v.size for v in store.get_collection(fp.GraphKeys.TRAINABLE_VARIABLES)) == 199210


def test_a_training_loop(store: fp.VariableStore, w: np.ndarray) -> None:
    # for _ in range(steps): sess.run(train_op); print(sess.run(reg_loss))
    kernel = store.get_variable("w", w, regularizer=contrib.l2_regularizer(1.0))
    seen = []
    for _ in range(3):
        seen.append(float(store.get_regularization_loss()))
        kernel *= 0.5
    assert seen == [15.0, 15.0 / 4, 15.0 / 16]


def test_the_gradient_of_the_losses(store: fp.VariableStore) -> None:
    # tf.gradients(tf.losses.get_regularization_loss(), tf.trainable_variables())
    network(store, 0.5)
    grads = {name: np.zeros_like(v) for name, v in store.variables.items()}
    plan = store.plan()
    plan.add_grad(grads)
    assert plan.value() == store.get_regularization_loss()
    for name, v in store.variables.items():
        wanted = 0.5 * v if name.endswith("weights") else np.zeros_like(v)
        np.testing.assert_array_equal(grads[name], wanted)
