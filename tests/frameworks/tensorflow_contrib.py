"""`fused_penalties.tensorflow.contrib` next to tf_slim's regularizers, which are tf.contrib's.

`test_tensorflow_contrib.py` runs this file in a Python of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_slim
from tf_slim.layers import regularizers as slim

import fresh
from fused_penalties.tensorflow import contrib as ours

v1 = tf.compat.v1
W = np.array([[1, -2], [-3, 4]], np.float32)
RANDOM = np.random.default_rng(3)
X = RANDOM.normal(size=(7, 5)).astype(np.float32)
# Sums in the weights' dtype, in an order of TensorFlow's own.
RELATIVE = {"float64": 1e-14, "float32": 1e-6, "float16": 4e-3, "bfloat16": 3e-2}


def one_of_each(contrib: Any) -> None:
    for name, regularizer in {
        "l1": contrib.l1_regularizer(0.5),
        "l2": contrib.l2_regularizer(0.5),
        "both": contrib.l1_l2_regularizer(),
        "first": contrib.l1_l2_regularizer(0.5, 0.0),
        "second": contrib.l1_l2_regularizer(0.0, 0.5),
        "mine": contrib.l2_regularizer(0.5, scope="mine"),
        "ours": contrib.l1_l2_regularizer(0.1, 0.2, scope="ours"),
        "sum": contrib.sum_regularizer([contrib.l1_regularizer(0.5), None, tf.nn.l2_loss]),
        "named": contrib.sum_regularizer([contrib.l1_regularizer(0.5)], scope="named"),
        "off": contrib.l1_regularizer(0.0),
        "none": contrib.sum_regularizer([contrib.l2_regularizer(0.0), lambda w: None]),
        "empty": contrib.sum_regularizer([None]),
    }.items():
        v1.get_variable(name, initializer=X, regularizer=regularizer)


def without_resources(contrib: Any) -> None:
    with v1.variable_scope("", use_resource=False):
        one_of_each(contrib)
    assert {v.dtype._is_ref_dtype for v in v1.trainable_variables()} == {True}


def scopes(contrib: Any) -> None:
    with v1.variable_scope("sc", regularizer=contrib.l2_regularizer(0.5)):
        v1.get_variable("w", initializer=W)
        v1.get_variable("own", initializer=W, regularizer=contrib.l1_regularizer(0.5))
        v1.get_variable("off", initializer=W, regularizer=v1.no_regularizer)
        v1.get_variable("kept", initializer=W, trainable=False)
        with v1.variable_scope("inner", regularizer=v1.no_regularizer):
            v1.get_variable("w", initializer=W)
        with v1.name_scope("names"), v1.variable_scope("deeper"):
            v1.get_variable("w", initializer=W)


def used_again(contrib: Any) -> None:
    for kind in (False, True, v1.AUTO_REUSE, v1.AUTO_REUSE):
        with v1.variable_scope("tower", regularizer=contrib.l2_regularizer(0.5), reuse=kind):
            v1.get_variable("w", [2, 2], initializer=v1.constant_initializer(W))


def several_times(contrib: Any) -> None:
    w, regularizer = v1.get_variable("w", initializer=W), contrib.l1_regularizer(0.5)
    for x in (w, w + 1.0, tf.constant(W)):
        v1.losses.add_loss(regularizer(x), v1.GraphKeys.REGULARIZATION_LOSSES)


def partitioned(contrib: Any) -> None:
    for name, size in (("two", 2), ("one", 1)):
        v1.get_variable(
            name,
            [7, 5],
            initializer=v1.constant_initializer(0.25),
            partitioner=v1.fixed_size_partitioner(size),
            regularizer=contrib.l2_regularizer(0.5),
        )
    with v1.variable_scope("", reuse=True):
        whole = v1.get_variable("two", [7, 5], partitioner=v1.fixed_size_partitioner(2))
    v1.losses.add_loss(contrib.l1_regularizer(0.5)(whole), v1.GraphKeys.REGULARIZATION_LOSSES)
    contrib.apply_regularization(contrib.l1_regularizer(0.5), [whole, *whole])


def slims_layers(contrib: Any) -> None:
    image = tf.constant(RANDOM.normal(size=(2, 8, 8, 1)).astype(np.float32))
    constant = v1.constant_initializer(0.25)
    with tf_slim.arg_scope(
        [tf_slim.conv2d, tf_slim.fully_connected],
        weights_initializer=constant,
        biases_initializer=constant,
        weights_regularizer=contrib.l2_regularizer(0.5),
    ):
        net = tf_slim.conv2d(image, 3, 3, biases_regularizer=contrib.l1_regularizer(0.1))
        net = tf_slim.fully_connected(tf_slim.flatten(net), 4, scope="fc")
        tf_slim.fully_connected(net, 4, weights_regularizer=contrib.l1_l2_regularizer(0.1, 0.2))
    tf_slim.get_variables_to_restore()


def applied(contrib: Any) -> None:
    variables = [v1.get_variable(f"v{k}", initializer=X * k) for k in range(4)]
    for regularizer in (
        contrib.l1_regularizer(0.5),
        contrib.l2_regularizer(0.5),
        contrib.l1_l2_regularizer(0.1, 0.2),
        contrib.sum_regularizer([contrib.l1_regularizer(0.5), tf.nn.l2_loss]),
        contrib.l2_regularizer(0.0),
        tf.nn.l2_loss,
        lambda w: None,
    ):
        contrib.apply_regularization(regularizer, variables)
        contrib.apply_regularization(regularizer, variables[1:2])
        contrib.apply_regularization(regularizer, tuple(variables[:2]))


def applied_to_the_collection(contrib: Any) -> None:
    for k in range(3):
        v1.add_to_collection(v1.GraphKeys.WEIGHTS, v1.get_variable(f"v{k}", initializer=X))
    with v1.name_scope("outer"):
        contrib.apply_regularization(contrib.l2_regularizer(0.5))
        contrib.apply_regularization(contrib.l2_regularizer(0.5), [])


def scales_that_are_tensors(contrib: Any) -> None:
    w = v1.get_variable("w", initializer=W)
    scale = v1.placeholder_with_default(0.25, [])
    other = v1.get_variable("scale", initializer=0.125)
    for regularizer in (
        contrib.l1_regularizer(scale),
        contrib.l2_regularizer(other, "mine"),
        contrib.l1_l2_regularizer(scale, 0.5),
        contrib.l1_l2_regularizer(0.5, other, "mine"),
        contrib.l1_l2_regularizer(0.0, scale),
        contrib.l1_l2_regularizer(scale, other),
    ):
        v1.losses.add_loss(regularizer(w), v1.GraphKeys.REGULARIZATION_LOSSES)
        contrib.apply_regularization(regularizer, [w, w])


def unknown_shapes(contrib: Any) -> None:
    x = v1.placeholder_with_default(X, [None, 5])
    y = v1.placeholder_with_default(X, None)
    contrib.apply_regularization(contrib.l1_l2_regularizer(), [x, y])
    contrib.apply_regularization(contrib.l1_l2_regularizer(), [y, x])
    v1.losses.add_loss(contrib.l1_regularizer(0.1)(y), v1.GraphKeys.REGULARIZATION_LOSSES)


def conditions(contrib: Any) -> None:
    regularizer = contrib.l2_regularizer(0.1)
    v1.get_variable("v", initializer=X, regularizer=regularizer)
    variables = [v1.get_variable(f"v{k}", initializer=X) for k in range(2)]
    on = v1.placeholder_with_default(True, [])
    loss = v1.cond(
        on,
        lambda: contrib.apply_regularization(contrib.l2_regularizer(0.5), variables),
        lambda: tf.constant(0.0),
    )
    losses = v1.get_collection_ref(v1.GraphKeys.REGULARIZATION_LOSSES)
    losses[-1] = loss  # which the branch put there


def dtypes(contrib: Any) -> None:
    for name in RELATIVE:
        dtype = tf.dtypes.as_dtype(name)
        with v1.variable_scope(name, regularizer=contrib.l1_l2_regularizer(0.5, 0.25)):
            variables = [
                v1.get_variable(f"v{k}", initializer=tf.cast(tf.constant(X), dtype))
                for k in range(2)
            ]
        contrib.apply_regularization(contrib.l2_regularizer(0.1), variables)
        contrib.apply_regularization(contrib.l1_regularizer(tf.constant(0.5, dtype)), variables)


GRAPHS = [
    one_of_each,
    without_resources,
    scopes,
    used_again,
    several_times,
    partitioned,
    slims_layers,
    applied,
    applied_to_the_collection,
    scales_that_are_tensors,
    unknown_shapes,
    conditions,
    dtypes,
]


def found(build: Callable[[Any], None], contrib: Any) -> tuple[list[Any], list[Any]]:
    """Of a graph: names and dtypes of losses; their values, and the gradients of each."""
    with tf.Graph().as_default(), v1.Session() as session:
        build(contrib)
        losses = v1.losses.get_regularization_losses()
        variables = v1.trainable_variables()
        gradients = [[g for g in v1.gradients(loss, variables) if g is not None] for loss in losses]
        session.run(v1.global_variables_initializer())
        names = [(loss.name, loss.dtype.name) for loss in losses]
        return names, session.run([losses, gradients])


def assert_close(our: Any, their: Any) -> None:
    dtype = their.dtype.name
    assert our.dtype == their.dtype
    our, their = our.astype(np.float64), their.astype(np.float64)
    np.testing.assert_allclose(our, their, rtol=RELATIVE[dtype], atol=RELATIVE[dtype] / 10)


@pytest.mark.parametrize("build", GRAPHS)
def test_graphs(build: Callable[[Any], None]) -> None:
    names, (values, gradients) = found(build, ours)
    wanted, (their_values, their_gradients) = found(build, slim)
    assert names == wanted
    assert names
    for our, their in zip(values, their_values, strict=True):
        assert_close(our, their)
    for our, their in zip(gradients, their_gradients, strict=True):
        for g, wanted_g in zip(our, their, strict=True):
            assert_close(np.asarray(g), np.asarray(wanted_g))


def calls_of_python() -> int:
    operations = v1.get_default_graph().get_operations()
    return sum("PyFunc" in operation.type for operation in operations)


def test_a_list_is_one_operation_and_a_weight_none_of_ours() -> None:
    with tf.Graph().as_default():
        variables = [
            v1.get_variable(f"v{k}", initializer=X, regularizer=ours.l1_l2_regularizer())
            for k in range(5)
        ]
        v1.losses.get_regularization_losses()
        assert calls_of_python() == 0
        ours.apply_regularization(ours.l1_l2_regularizer(), variables)
        twice = [ours.l1_regularizer(0.1), ours.l2_regularizer(0.2)]
        ours.apply_regularization(ours.sum_regularizer(twice), variables)
        assert calls_of_python() == 2


@pytest.mark.parametrize("many", [False, True])
def test_training(many: bool) -> None:
    """Minimized by an optimizer; variables that change are read again at each step."""

    def losses(contrib: Any) -> list[float]:
        with tf.Graph().as_default(), v1.Session() as session:
            variables = [v1.get_variable(f"v{k}", initializer=X) for k in range(3)]
            regularizer = contrib.l1_l2_regularizer(0.05, 0.5)
            if many:
                contrib.apply_regularization(regularizer, variables)
            else:
                contrib.apply_regularization(regularizer, variables[:1])
            loss = v1.losses.get_regularization_loss() + tf.reduce_sum(variables[0])
            step = v1.train.MomentumOptimizer(0.1, 0.9).minimize(loss)
            session.run(v1.global_variables_initializer())
            seen = []
            for _ in range(8):
                seen.append(session.run(loss))
                session.run(step)
            return seen

    assert losses(ours) == pytest.approx(losses(slim), rel=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_are_added_up_in_32(dtype: str) -> None:
    """300² overflows float16; 1e-4 of it does not. The result can be added to a float16 loss."""
    values = np.full((10, 10), 300.0)
    with tf.Graph().as_default(), v1.Session() as session:
        w = tf.constant(values, dtype)
        more = tf.constant(values, dtype)
        one = ours.l2_regularizer(1e-4)(w)
        scaled = ours.l2_regularizer(tf.constant(1e-4, dtype))(w)
        listed = ours.apply_regularization(ours.l2_regularizer(1e-4), [w, more])
        total = v1.losses.get_regularization_loss() + one + scaled
        theirs = slim.l2_regularizer(1e-4)(w)
        numbers = session.run([one, scaled, listed, total, theirs])
    assert {number.dtype.name for number in numbers} == {dtype}
    relative = RELATIVE[dtype]
    assert [float(x) for x in numbers[:4]] == pytest.approx([450, 450, 900, 1800], rel=relative)
    if dtype == "float16":
        assert np.isinf(numbers[4])


def test_a_session_still_chooses_its_threads() -> None:
    """TensorFlow starts with the first of those who ask for it; a graph must not be that one."""
    printed = fresh.output(
        """
        import numpy as np
        import tensorflow as tf
        from fused_penalties.tensorflow import contrib

        with tf.Graph().as_default():
            w = tf.compat.v1.get_variable(
                "w", initializer=np.ones(3), regularizer=contrib.l2_regularizer(0.5)
            )
            contrib.apply_regularization(contrib.l1_regularizer(0.5), [w, w])
            tf.compat.v1.gradients(tf.compat.v1.losses.get_regularization_loss(), w)
        tf.config.threading.set_intra_op_parallelism_threads(1)  # refused once it has started
        print("not started")
        """
    )
    assert printed.endswith("not started")


def test_what_is_switched_off_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def records(contrib: Any) -> list[Any]:
        caplog.clear()
        contrib.l1_regularizer(0.0)
        contrib.l2_regularizer(-0.0)
        contrib.l1_l2_regularizer(0.0, 0.0)
        contrib.l1_l2_regularizer(0.0, 0.5)
        contrib.l1_l2_regularizer(tf.constant(0.5), 0.0)
        return list(caplog.record_tuples)

    with caplog.at_level(logging.INFO):
        assert records(ours) == records(slim) != []


@pytest.mark.parametrize(
    "expression",
    [
        "l1_regularizer(0)",
        "l1_l2_regularizer(1.0, 3)",
        "l1_l2_regularizer(tf.constant(1.0), 3)",
        "l2_regularizer(-1.0)",
        "l1_regularizer(tf.constant(1))(tf.constant([1.0]))",
        "apply_regularization(contrib.l1_regularizer(0.5))",
        "apply_regularization(lambda x: x, [tf.constant([[1.0]])])",
    ],
)
def test_messages(expression: str) -> None:
    """Those of `tests/tf1/peer_cases.py`, and what takes tensors."""
    messages = []
    for contrib in (ours, slim):
        with tf.Graph().as_default(), pytest.raises((ValueError, TypeError)) as raised:
            eval(f"contrib.{expression}", {"contrib": contrib, "tf": tf})
        messages.append((type(raised.value), str(raised.value)))
    assert messages[0] == messages[1]


def test_other_dtypes() -> None:
    with pytest.raises(TypeError, match="weights: dtype int32 is not supported"):
        ours.l1_regularizer(0.5)(tf.constant([1]))
    with pytest.raises(TypeError, match="weights: dtype complex64 is not supported"):
        ours.apply_regularization(ours.l1_regularizer(0.5), [tf.constant([1j], tf.complex64)])
    with pytest.raises(TypeError, match="regularizer: got float; wanted a regularizer"):
        ours.apply_regularization(0.5, [tf.constant(W)])


def test_the_penalty_of_penalties_warns() -> None:
    with tf.Graph().as_default(), v1.Session() as session:
        regularizer = ours.l2_regularizer(0.1)
        v1.get_variable("w", initializer=W, regularizer=regularizer)
        losses = v1.get_collection(v1.GraphKeys.REGULARIZATION_LOSSES)
        with pytest.warns(UserWarning, match="computes the penalty of penalties"):
            wrong = ours.apply_regularization(regularizer, losses)
        session.run(v1.global_variables_initializer())
        assert session.run(wrong) == pytest.approx(0.1125, rel=1e-6)


def test_configs() -> None:
    for regularizer in (ours.l1_l2_regularizer(0.1, 0.2, "mine"), ours.l1_regularizer(0.0)):
        again = ours.ContribRegularizer.from_config(regularizer.get_config())
        assert (again.name, again.parts) == (regularizer.name, regularizer.parts)
    with_function = ours.sum_regularizer([ours.l1_regularizer(0.1), tf.nn.l2_loss])
    with pytest.raises(ValueError, match="got a regularizer that calls l2_loss"):
        ours.ContribRegularizer.from_config(with_function.get_config())


def test_a_graph_in_another_process(tmp_path: Path) -> None:
    """Single weights' penalties and their gradients run there; a list's needs its Python."""
    with tf.Graph().as_default(), v1.Session() as session:
        regularizer = ours.l1_l2_regularizer(0.5, 0.5)
        variables = [
            v1.get_variable(f"v{k}", initializer=X, regularizer=regularizer) for k in range(2)
        ]
        alone = tf.identity(v1.losses.get_regularization_loss(), "alone")
        step = v1.train.GradientDescentOptimizer(0.1).minimize(alone, name="step")
        ours.apply_regularization(regularizer, variables)
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(tmp_path / "model"))
        session.run(step)
        wanted = session.run(alone)
    printed = fresh.output(
        f"""
        import tensorflow as tf
        v1 = tf.compat.v1
        with tf.Graph().as_default(), v1.Session() as session:
            saver = v1.train.import_meta_graph({str(tmp_path / "model.meta")!r})
            saver.restore(session, {str(tmp_path / "model")!r})
            session.run("step")
            print(float(session.run("alone:0")))
            try:
                session.run("get_regularization_penalty:0")
            except Exception as error:
                print("pyfunc" in str(error) or "another process" in str(error))
        """
    )
    value, needs_python = printed.splitlines()[-2:]
    assert float(value) == pytest.approx(float(wanted), rel=1e-6)
    assert needs_python == "True"
