"""`penalty` in graphs: `tf.function`, XLA, saved models, TensorFlow 1, strategies, Keras' `fit`."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import fresh
import fused_penalties as fp
from fused_penalties import regularizers
from fused_penalties.tensorflow import penalty
from tensorflow_oracle import DTYPES, close, expression, value_and_grads, values

SHAPES = [(3, 4), (), (0, 3), (5000,)]
BOTH = regularizers.L1L2(0.3, 0.2)


def variables(dtype: Any = tf.float32) -> list[Any]:
    return [tf.Variable(values(*s, dtype=dtype, seed=k)) for k, s in enumerate(SHAPES)]


def operations(function: Any) -> set[str]:
    """Of all that it was traced to."""
    found = set()
    for concrete in function._list_all_concrete_functions():
        found |= {node.op for node in concrete.graph.as_graph_def().node}
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("xla", [False, True], ids=["plain", "xla"])
def test_values_and_gradients(dtype: Any, xla: bool) -> None:
    listed = variables(dtype)
    wanted, slopes = value_and_grads(listed, 0.3, 0.2)

    @tf.function(jit_compile=xla)
    def step() -> Any:
        with tf.GradientTape() as tape:
            value = penalty(listed, BOTH)
        return value, tape.gradient(value, listed)

    value, grads = step()
    assert value.dtype == (tf.float64 if dtype == tf.float64 else tf.float32)
    if not xla:
        assert value.numpy() == fp.penalty([w.numpy() for w in listed], BOTH)
    assert ("PyFuncStateless" in operations(step)) is not xla
    np.testing.assert_allclose(value, wanted, rtol=1e-5 if dtype != tf.float64 else 1e-13)
    for variable, grad, slope in zip(listed, grads, slopes, strict=True):
        assert (grad.dtype, grad.shape) == (dtype, variable.shape)
        close(grad, slope, dtype)
    listed[0].assign(2 * listed[0])
    np.testing.assert_allclose(step()[0], value_and_grads(listed, 0.3, 0.2)[0], rtol=1e-5)


def test_tensors_of_unknown_shape() -> None:
    @tf.function(input_signature=[tf.TensorSpec([None, None])])
    def both(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = penalty(x, BOTH)
        assert value.shape == ()
        return value, tape.gradient(value, x)

    for x in values(3, 4), values(5, 1), values(0, 2):
        wanted, (slope,) = value_and_grads([x], 0.3, 0.2)
        value, grad = both(x)
        close(value, wanted, tf.float32)
        close(grad, slope, tf.float32)


def test_a_tape_around_the_function_and_second_derivatives() -> None:
    x = tf.Variable(values(4, 5, dtype=tf.float64))

    def of(function: Any) -> Any:
        traced = tf.function(function)
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                loss = traced() ** 2
            cubed = tf.reduce_sum(inner.gradient(loss, x) ** 3)
        return outer.gradient(cubed, x)

    wanted = of(lambda: expression([x], 0.3, 0.2))
    np.testing.assert_allclose(of(lambda: penalty(x, BOTH)), wanted, rtol=1e-12)


def test_in_control_flow() -> None:
    x = tf.Variable(values(40))

    @tf.function
    def looped(count: Any) -> Any:
        total = 0.0
        for _ in tf.range(count):
            if total >= 0.0:
                total += penalty(x, BOTH)
        return total

    with tf.GradientTape() as tape:
        total = looped(tf.constant(3))
    wanted, (slope,) = value_and_grads([x], 0.3, 0.2)
    close(total, 3 * wanted, tf.float32)
    close(tape.gradient(total, x), 3 * slope, tf.float32)


def test_what_was_traced_without_xla_is_refused_by_xla() -> None:
    x = tf.Variable(values(40))
    inner = tf.function(lambda: penalty(x, BOTH))
    inner()
    with pytest.raises(tf.errors.InvalidArgumentError, match="PyFunc"):
        tf.function(lambda: inner(), jit_compile=True)()
    fresh_one = tf.function(lambda: penalty(x, BOTH))
    compiled = tf.function(lambda: fresh_one(), jit_compile=True)
    close(compiled(), value_and_grads([x], 0.3, 0.2)[0], tf.float32)


def test_saved_models_in_another_process(tmp_path: Path) -> None:
    """What is traced before has plain operations all the same; a graph as it was says no."""
    module = tf.Module()
    module.w = tf.Variable(values(50))
    module.before = tf.function(lambda: penalty(module.w, BOTH), input_signature=[])
    module.later = tf.function(lambda: penalty(module.w, BOTH), input_signature=[])
    value = module.before()
    signature = module.before.get_concrete_function()
    tf.saved_model.save(module, str(tmp_path), signatures={"as_it_was": signature})
    (number,) = [
        int(node.attr["token"].s.decode().rpartition("_")[2])
        for node in signature.graph.as_graph_def().node
        if node.op == "PyFuncStateless"
    ]
    found = fresh.output(
        textwrap.dedent(f"""
        import tensorflow as tf
        module = tf.saved_model.load({str(tmp_path)!r})
        print(*module.before().numpy().flat, *module.later().numpy().flat)

        from fused_penalties import regularizers
        from fused_penalties.tensorflow import penalty
        for _ in range({number} + 1):  # functions of its own, one with the saved graph's number
            tf.function(lambda: penalty(tf.constant([1.0]), regularizers.L2(0.5)))()
        try:
            print(module.signatures["as_it_was"]())
        except tf.errors.OpError as error:
            print("another process" in str(error))
        """)
    ).splitlines()
    for number in found[0].split():
        assert float(number) == pytest.approx(float(value), rel=1e-6)
    assert found[1:] == ["True"]


@pytest.mark.parametrize("resource", [True, False], ids=["resource", "reference"])
def test_sessions(resource: bool) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        listed = [
            v1.get_variable(f"w{k}", initializer=values(*s, seed=k), use_resource=resource)
            for k, s in enumerate(SHAPES)
        ]
        placeholder = v1.placeholder(tf.float32, [None])
        value = penalty([*listed, placeholder], BOTH)
        named = penalty(listed, {"w0:0": BOTH})
        grads = tf.gradients(value, [*listed, placeholder])
        fed = {placeholder: [1.0, -2.0]}
        with pytest.raises(tf.errors.FailedPreconditionError, match=r"\bw\d"):
            session.run(value, fed)
        session.run(v1.global_variables_initializer())
        arrays = [*session.run(listed), np.array([1.0, -2.0], np.float32)]
        assert session.run(value, fed) == fp.penalty(arrays, BOTH)
        assert session.run(named) == fp.penalty(arrays[0], BOTH)
        got = session.run(grads, fed)
    for one, slope in zip(got, value_and_grads(arrays, 0.3, 0.2)[1], strict=True):
        close(one, slope, tf.float32)


def test_under_a_strategy() -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        listed = variables()

        @tf.function
        def step() -> Any:
            def replica() -> Any:
                with tf.GradientTape() as tape:
                    value = penalty(listed, BOTH)
                return value, tape.gradient(value, listed)

            return strategy.run(replica)

        value, grads = step()
    wanted, slopes = value_and_grads(listed, 0.3, 0.2)
    close(value, wanted, tf.float32)
    for grad, slope in zip(grads, slopes, strict=True):
        close(grad, slope, tf.float32)
    assert "PyFuncStateless" not in operations(step)
    close(penalty(listed, BOTH), wanted, tf.float32)


def test_variables_on_several_devices() -> None:
    found = fresh.output(
        """
        import tensorflow as tf
        from fused_penalties import regularizers
        from fused_penalties.tensorflow import penalty

        (cpu,) = tf.config.list_physical_devices()
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
        variables = []
        for place in "CPU:0", "CPU:1":
            with tf.device(place):
                variables.append(tf.Variable([1.0, -2.0]))
        with tf.GradientTape() as tape:
            value = penalty(variables, regularizers.L2(0.5))
        print(float(value), [grad.numpy().tolist() for grad in tape.gradient(value, variables)])
        """
    )
    assert found == "5.0 [[1.0, -2.0], [1.0, -2.0]]"


@pytest.mark.parametrize(
    "way", [{"run_eagerly": True}, {"jit_compile": False}, {}, {"jit_compile": True}]
)
def test_in_a_keras_model_that_is_fitted(way: dict[str, Any]) -> None:
    class Model(keras.Sequential):  # type: ignore[misc]
        of = None

        def compute_loss(self, *arguments: Any, **named: Any) -> Any:
            loss = super().compute_loss(*arguments, **named)
            return loss + self.of([w.value for w in self.trainable_variables])

    def history(of: Any) -> Any:
        keras.utils.set_random_seed(1)
        model = Model([keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
        model.of = of
        model.compile(keras.optimizers.SGD(0.05), "mse", **way)
        x, y = values(64, 6).numpy(), values(64, 3, seed=1).numpy()
        return model.fit(x, y, epochs=4, batch_size=16, verbose=0, shuffle=False).history["loss"]

    ours = history(lambda ws: penalty(ws, regularizers.L1L2(0.001, 0.01)))
    wanted = history(lambda ws: tf.cast(expression(ws, 0.001, 0.01), tf.float32))
    np.testing.assert_allclose(ours, wanted, rtol=1e-5)
