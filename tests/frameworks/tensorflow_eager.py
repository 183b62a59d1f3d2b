"""`fused_penalties.tensorflow.penalty` in eager mode: values, derivatives, and what is refused."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import fused_penalties as fp
import fused_penalties.keras
from fused_penalties import contrib, regularizers
from fused_penalties.tensorflow import _ops, penalty
from tensorflow_oracle import DTYPES, close, expression, value_and_grads, values

SHAPES = [(3, 4), (), (0, 3), (5000,), (2, 3, 4, 5)]
BOTH = regularizers.L1L2(0.3, 0.2)


def variables(dtype: Any = tf.float32) -> list[Any]:
    return [tf.Variable(values(*s, dtype=dtype, seed=k)) for k, s in enumerate(SHAPES)]


def value_and_gradients(sources: Any, regularizer: Any = BOTH) -> tuple[Any, list[Any]]:
    with tf.GradientTape() as tape:
        tape.watch(sources)
        value = penalty(sources, regularizer)
    return value, tape.gradient(value, sources)


@pytest.fixture
def plain_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where plain operations come in place of the core's."""

    def refuse(*_: Any) -> None:
        raise AssertionError("plain operations")

    monkeypatch.setattr(_ops, "expression", refuse)
    monkeypatch.setattr(_ops, "_gradients", refuse)


@pytest.mark.usefixtures("plain_is_refused")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("make", [tf.Variable, tf.identity], ids=["variables", "tensors"])
@pytest.mark.parametrize(("l1", "l2"), [(0.3, 0.2), (0.0, 0.5), (0.7, 0.0), (0.0, 0.0)])
def test_values_and_gradients(make: Any, dtype: Any, l1: float, l2: float) -> None:
    sources = [make(values(*s, dtype=dtype, seed=k)) for k, s in enumerate(SHAPES)]
    wanted, slopes = value_and_grads(sources, l1, l2)
    regularizer = regularizers.L1L2(l1, l2)
    value, grads = value_and_gradients(sources, regularizer)
    assert value.dtype == (tf.float64 if dtype == tf.float64 else tf.float32)
    assert value.shape == ()
    close(value, wanted, value.dtype)
    assert value.numpy() == fp.penalty([source.numpy() for source in sources], regularizer)
    for source, grad, slope in zip(sources, grads, slopes, strict=True):
        assert (grad.dtype, grad.shape) == (dtype, source.shape)
        close(grad, slope, dtype)


@pytest.mark.usefixtures("plain_is_refused")
def test_mixed_dtypes_and_regularizers_and_what_is_further_on() -> None:
    sources = [tf.Variable(values(100, dtype=dtype)) for dtype in DTYPES]
    factors = [0.1, 0.2, 0.3, 0.4]
    rules = [regularizers.L2(factor) for factor in factors]
    with tf.GradientTape() as tape:
        value = penalty(sources, rules)
        loss = 3.0 * value**2
    assert value.dtype == tf.float64
    assert value.numpy() == fp.penalty([source.numpy() for source in sources], rules)
    each = [value_and_grads([w], 0.0, l2) for w, l2 in zip(sources, factors, strict=True)]
    np.testing.assert_allclose(value, sum(one for one, _ in each), rtol=1e-6)
    for source, (_, (slope,)), grad in zip(
        sources, each, tape.gradient(loss, sources), strict=True
    ):
        close(grad, 6.0 * value.numpy() * slope, source.dtype)


def test_16_bits_do_not_overflow() -> None:
    value, grad = value_and_gradients(tf.fill([1000], tf.constant(300.0, tf.float16)))
    assert value.numpy() == pytest.approx(1000 * (0.3 * 300 + 0.2 * 300**2), rel=1e-6)
    assert grad.dtype == tf.float16


def test_special_values_as_in_tensorflow() -> None:
    x = tf.constant([0.0, -0.0, np.nan, np.inf, -np.inf, 2.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.reduce_sum(0.3 * tf.abs(x)) + tf.reduce_sum(0.2 * tf.square(x))
    ours, grad = value_and_gradients(x)
    np.testing.assert_array_equal(ours, value)
    np.testing.assert_allclose(grad, tape.gradient(value, x), rtol=1e-6)


def test_only_what_is_watched_gets_a_gradient() -> None:
    trained, frozen = tf.Variable(values(9)), tf.Variable(values(8), trainable=False)
    tensor, left_out = values(7), tf.Variable(values(6))
    listed = [frozen, trained, tensor, left_out]
    rules = [BOTH, BOTH, BOTH, None]
    with tf.GradientTape() as tape:
        value = penalty(listed, rules)
    assert value.numpy() == fp.penalty([w.numpy() for w in listed[:3]], BOTH)
    grads = tape.gradient(value, listed)
    assert [grad is None for grad in grads] == [True, False, True, True]
    close(grads[1], value_and_grads([trained], 0.3, 0.2)[1][0], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(frozen)
        value = penalty(listed, rules)
    close(tape.gradient(value, frozen), value_and_grads([frozen], 0.3, 0.2)[1][0], tf.float32)


def test_listed_twice_counts_twice() -> None:
    variable = tf.Variable(values(9))
    with tf.GradientTape() as tape:
        value = penalty([variable, variable], BOTH)
    wanted, slopes = value_and_grads([variable], 0.3, 0.2)
    close(value, 2 * wanted, tf.float32)
    close(tape.gradient(value, variable), 2 * slopes[0], tf.float32)


def test_a_gradient_after_the_variables_have_changed() -> None:
    """It is that of what the penalty has seen."""
    sources = variables()
    _, slopes = value_and_grads(sources, 0.3, 0.2)
    with tf.GradientTape() as tape:
        value = penalty(sources, BOTH)
    for variable in sources:
        variable.assign_sub(tf.ones_like(variable))
    for source, grad, slope in zip(sources, tape.gradient(value, sources), slopes, strict=True):
        close(grad, slope, source.dtype)


def test_gradients_do_not_share_memory() -> None:
    sources = variables()
    with tf.GradientTape(persistent=True) as tape:
        value = penalty(sources, BOTH)
    first, second = tape.gradient(value, sources), tape.gradient(value, sources)
    ends = sorted(
        (array.ctypes.data, array.ctypes.data + array.nbytes)
        for array in (grad.__array__() for grad in [*first, *second] if grad.shape.rank)
        if array.nbytes
    )
    assert all(start % 64 == 0 for start, _ in ends)
    assert all(end <= start for (_, end), (start, _) in pairwise(ends))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_weight_is_kept() -> None:
    variable = tf.Variable(values(100))
    with tf.GradientTape() as tape:
        value = penalty(variable, BOTH)
    tape.gradient(value, variable)
    gone = weakref.ref(variable)
    del variable, tape
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("make", [tf.Variable, tf.identity], ids=["variable", "tensor"])
def test_second_derivatives(make: Any) -> None:
    x = make(values(4, 5, dtype=tf.float64))

    def of(function: Any) -> Any:
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = function() ** 2
            grad = inner.gradient(loss, x)
            cubed = tf.reduce_sum(grad**3)
        return outer.gradient(cubed, x)

    wanted = of(lambda: expression([x], 0.3, 0.2))
    np.testing.assert_allclose(of(lambda: penalty(x, BOTH)), wanted, rtol=1e-12)


@pytest.mark.parametrize("make", [tf.Variable, tf.identity], ids=["variable", "tensor"])
def test_forward_mode(make: Any) -> None:
    x, tangent = make(values(4, 5, dtype=tf.float64)), values(4, 5, dtype=tf.float64, seed=1)

    def of(function: Any) -> tuple[Any, Any]:
        with tf.autodiff.ForwardAccumulator(x, tangent) as forward:
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = function()
            grad = tape.gradient(value, x)
        return forward.jvp(value), forward.jvp(grad)

    for ours, wanted in zip(
        of(lambda: penalty(x, BOTH)), of(lambda: expression([x], 0.3, 0.2)), strict=True
    ):
        np.testing.assert_allclose(ours, wanted, rtol=1e-12)


def test_a_persistent_tape_that_still_records() -> None:
    x = tf.Variable(values(4, dtype=tf.float64))
    with tf.GradientTape(persistent=True) as tape:
        value = penalty(x, BOTH)
        grad = tape.gradient(value, x)
    close(grad, value_and_grads([x], 0.3, 0.2)[1][0], tf.float64)
    close(tape.gradient(grad, x), np.full(4, 0.4), tf.float64)


def test_recomputed_gradients() -> None:
    x = tf.Variable(values(50))
    with tf.GradientTape() as tape:
        value = tf.recompute_grad(lambda: penalty(x, BOTH))()
    close(tape.gradient(value, x), value_and_grads([x], 0.3, 0.2)[1][0], tf.float32)


def test_a_gradient_asked_for_in_a_graph() -> None:
    x = tf.Variable(values(50))
    with tf.GradientTape(persistent=True) as tape:
        value = penalty(x, BOTH)
    grad = tf.function(lambda: tape.gradient(value, x))()
    close(grad, value_and_grads([x], 0.3, 0.2)[1][0], tf.float32)


def test_training_is_that_with_the_expression() -> None:
    x, y = values(64, 6), values(64, 3, seed=1)

    def losses(penalty_of: Any) -> list[float]:
        layers = [tf.Variable(0.3 * values(6, 8)), tf.Variable(0.3 * values(8, 3))]
        found = []
        for _ in range(20):
            with tf.GradientTape() as tape:
                error = tf.nn.relu(x @ layers[0]) @ layers[1] - y
                loss = tf.reduce_mean(error**2) + penalty_of(layers)
            for variable, grad in zip(layers, tape.gradient(loss, layers), strict=True):
                variable.assign_sub(0.05 * grad)
            found.append(float(loss))
        return found

    ours = losses(lambda layers: penalty(layers, regularizers.L1L2(0.001, 0.01)))
    wanted = losses(lambda layers: tf.cast(expression(layers, 0.001, 0.01), tf.float32))
    assert ours[-1] < ours[0] - 0.05
    np.testing.assert_allclose(ours, wanted, rtol=1e-5)


def named(name: str, *shape: int) -> Any:
    return tf.Variable(values(*shape), name=name)


KERNELS = {r"kernel": regularizers.L2(0.5)}
RULES = {r"bias|norm": None, **KERNELS}


def test_rules_over_the_variables_names() -> None:
    listed = [named("a/kernel", 3, 2), named("a/bias", 2), named("norm/gamma", 2), named("b", 4)]
    wanted = fp.penalty(listed[0].numpy(), regularizers.L2(0.5))
    assert penalty(listed, RULES).numpy() == wanted
    assert penalty(iter(listed), {r"^a/kernel:0$": regularizers.L2(0.5)}).numpy() == wanted
    by_key = {"x": listed[0], "y": listed[1]}
    assert penalty(by_key, {"x": regularizers.L2(0.5)}).numpy() == wanted
    seen = []

    def rank_2(name: str, variable: Any) -> bool:
        seen.append(name)
        return bool(variable.shape.rank == 2)

    assert penalty(listed, [(rank_2, regularizers.L2(0.5))]).numpy() == wanted
    assert seen == ["a/kernel:0", "a/bias:0", "norm/gamma:0", "b:0"]


def test_models_and_layers() -> None:
    module = tf.Module()
    module.w = named("kernel", 3, 2)
    module.frozen = tf.Variable(values(3), name="kernel", trainable=False)
    assert penalty(module, KERNELS).numpy() == fp.penalty(module.w.numpy(), regularizers.L2(0.5))

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    kernels = [layer.kernel for layer in model.layers]
    wanted = fp.penalty([kernel.numpy() for kernel in kernels], BOTH)
    rules = {r"/bias$": None, r"/kernel$": BOTH}
    for given in model, model.trainable_variables, kernels:
        with tf.GradientTape() as tape:
            value = penalty(given, BOTH if given is kernels else rules)
        assert value.numpy() == wanted
        grads = tape.gradient(value, [kernel.value for kernel in kernels])
        for grad, slope in zip(grads, value_and_grads(kernels, 0.3, 0.2)[1], strict=True):
            close(grad, slope, tf.float32)

    old = tf_keras.Sequential([tf_keras.layers.Dense(3, input_shape=(4,))])
    kernel = old.layers[0].kernel
    assert penalty(old, KERNELS).numpy() == fp.penalty(kernel.numpy(), regularizers.L2(0.5))
    mixed = tf_keras.layers.Dense(3, dtype="mixed_float16")
    mixed.build((None, 4))
    kernel = mixed.kernel.numpy()
    assert penalty([mixed.kernel], BOTH).numpy() == fp.penalty(kernel, BOTH)


def test_regularizers_of_all_kinds() -> None:
    w = tf.Variable(values(6, 5))
    for regularizer in (
        contrib.l2_regularizer(0.3),
        contrib.l1_l2_regularizer(0.2, 0.3),
        contrib.sum_regularizer([contrib.l1_regularizer(0.1), contrib.l2_regularizer(0.4)]),
        fused_penalties.keras.L1L2(0.1, 0.2),
    ):
        assert penalty([w], regularizer).numpy() == fp.penalty(
            w.numpy(), regularizer_of(regularizer)
        )
    assert penalty([w], keras.regularizers.L2(0.5)).numpy() == pytest.approx(
        float(fp.penalty(w.numpy(), regularizers.L2(0.5))), rel=1e-6
    )
    assert penalty([w], contrib.l2_regularizer(0.0)).numpy() == 0.0
    orthogonal = fused_penalties.keras.OrthogonalRegularizer(0.5)
    assert penalty([w], orthogonal).numpy() == pytest.approx(
        float(regularizers.OrthogonalRegularizer(0.5)(w.numpy())), rel=1e-5
    )


def regularizer_of(regularizer: Any) -> Any:
    """One that takes NumPy's arrays, which those of `fused_penalties.keras` do not."""
    kind = getattr(regularizers, type(regularizer).__name__, None)
    return kind(**regularizer.get_config()) if kind else regularizer


def test_functions_beside_the_fused_sums() -> None:
    listed = [named("a", 5), named("b", 4), named("c", 3)]
    cube = lambda w: tf.reduce_sum(tf.abs(w) ** 3)  # noqa: E731
    rules = [("a", cube), ("b", regularizers.L2(0.5)), ("c", lambda w: None)]
    with tf.GradientTape() as tape:
        value = penalty(listed, rules)
    a, b, _ = (v.numpy().astype(np.float64) for v in listed)
    assert value.numpy() == pytest.approx((np.abs(a) ** 3).sum() + 0.5 * (b**2).sum(), rel=1e-6)
    grads = tape.gradient(value, listed)
    np.testing.assert_allclose(grads[0], 3 * a * np.abs(a), rtol=1e-5)
    np.testing.assert_allclose(grads[1], b, rtol=1e-6)
    assert grads[2] is None


@pytest.mark.parametrize("given", [[], {}, [tf.Variable(1.0)]])
def test_no_penalty_is_zero(given: Any) -> None:
    value = penalty(given, None)
    assert (value.numpy(), value.dtype) == (0.0, tf.float32)


INTEGERS = tf.Variable([1, 2], name="steps")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (None, TypeError, "variables: got None; wanted a variable, an iterable or a mapping"),
        ("kernel", TypeError, "variables: got str; wanted a variable"),
        (3.0, TypeError, "variables: got float; wanted a variable"),
        ([np.ones(3)], TypeError, r"variables\[0\]: got ndarray; wanted a TensorFlow variable"),
        ([None], TypeError, r"variables\[0\]: got None; wanted a TensorFlow variable"),
        (tf.constant(1), TypeError, "variables: dtype int32 is not supported; wanted float16"),
        (INTEGERS, TypeError, r"variables\['steps:0'\]: dtype int32 is not supported"),
        ([INTEGERS], TypeError, r"variables\['steps:0'\]: dtype int32 is not supported"),
        ({"s": tf.constant("x")}, TypeError, r"variables\['s'\]: dtype string is not supported"),
        ([tf.constant([1j])], TypeError, r"variables\[0\]: dtype complex128 is not supported"),
        (tf.sparse.from_dense([1.0]), TypeError, "variables: got SparseTensor; wanted a dense"),
        ([tf.ragged.constant([[1.0]])], TypeError, r"\[0\]: got RaggedTensor; wanted a dense"),
        ({"i": tf.IndexedSlices([1.0], [0])}, TypeError, r"\['i'\]: got IndexedSlices; wanted"),
        (tf.Module(), ValueError, "variables: this Module has no trainable variables; wanted"),
        (keras.Sequential(), ValueError, "this Sequential has no trainable variables"),
    ],
)
def test_what_is_refused(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        penalty(given, BOTH)


@pytest.mark.parametrize(
    ("regularizer", "error", "message"),
    [
        ({"kernal": BOTH}, ValueError, r"'kernal' is found in none of the 1 names: kernel:0"),
        ([BOTH, BOTH], ValueError, "got a sequence of 2; wanted one for each of 1"),
        ("l2", TypeError, "regularizer"),
        (lambda w: 3.0, TypeError, r"variables\['kernel:0'\]: .*returned float, which"),
        (lambda w: w, ValueError, r"variables\['kernel:0'\]: .*a tensor of rank 2; wanted rank 0"),
        (regularizers.OrthogonalRegularizer(), TypeError, "cannot differentiate; wanted a tensor"),
    ],
)
def test_regularizers_that_are_refused(
    regularizer: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        penalty([named("kernel", 3, 2)], regularizer)


def test_a_penalty_is_not_asked_of_what_has_none() -> None:
    listed = {"kernel": named("kernel", 3), "steps": INTEGERS}
    wanted = fp.penalty(listed["kernel"].numpy(), BOTH)
    assert penalty(listed, {"kernel": BOTH}).numpy() == wanted
    with pytest.raises(ValueError, match="weights without names"):
        penalty([tf.constant([1.0])], {"kernel": BOTH})
