"""What `fuse` promises of models, on the backend of this process.

`test_keras.py` runs this file once for each backend, in a Python of its own.
"""

from __future__ import annotations

import gc
import pickle
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops
from keras.src.backend import AutocastScope

import fused_penalties as fp
import fused_penalties.keras as fused_keras
from fused_penalties import contrib, regularizers
from fused_penalties.keras import L1, L1L2, L2, OrthogonalRegularizer, fuse, unfuse
from keras_cases import (
    BACKEND,
    RANDOM,
    X,
    Y,
    cube,
    dense,
    everything,
    gradients,
    history,
    number,
    small,
    total,
    value_and_gradient,
)

# "auto" leaves the choice to Keras, "eager" is without a compiler, "compiled" is with XLA's.
WAYS = {"auto": {}, "eager": {"run_eagerly": True}, "compiled": {"jit_compile": True}}
if BACKEND == "torch":
    WAYS.pop("compiled")  # minutes of C++; `test_torch_compile` has a smaller one


@pytest.fixture(autouse=True)
def _the_same_weights_in_every_model() -> None:
    keras.utils.set_random_seed(11)


@pytest.mark.parametrize("way", WAYS)
def test_histories_are_the_same(way: str) -> None:
    plain = history(everything(), **WAYS[way])
    keras.utils.set_random_seed(11)
    model = everything()
    fuse(model)
    assert history(model, **WAYS[way]) == pytest.approx(plain, rel=1e-5)


def test_losses_are_one_and_the_others() -> None:
    plain = everything()
    keras.utils.set_random_seed(11)
    model = everything()
    fuse(model)
    plain(X), model(X)
    # The activity's, the fused one, the function's, the subclass' and the orthogonal one.
    assert len(model.losses) == 5 < len(plain.losses)
    assert total(model) == pytest.approx(total(plain), rel=1e-6)
    for fused, one in zip(gradients(model), gradients(plain), strict=True):
        np.testing.assert_allclose(fused, one, rtol=1e-5, atol=1e-6)


def test_one_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    penalty = fused_keras._penalty

    def counted(tensors: Any, *rest: Any) -> Any:
        calls.append(len(tensors))
        return penalty(tensors, *rest)

    monkeypatch.setattr(fused_keras, "_penalty", counted)
    model = small("l2", keras.regularizers.L1(), keras.regularizers.L1L2(0.1, 0.1))
    fuse(model)
    assert len(model.losses) == 1
    assert calls == [3]


def test_the_value_is_that_of_the_package() -> None:
    model = small(L2(0.1), L1(0.2))
    fuse(model)
    first, second = (ops.convert_to_numpy(model.layers[k].kernel) for k in (0, 1))
    wanted = (
        0.1 * np.square(first, dtype=np.float64).sum()
        + 0.2 * np.abs(second, dtype=np.float64).sum()
    )
    assert number(model.losses[0]) == pytest.approx(wanted, rel=1e-6)


def test_what_is_trained_is_asked_each_time() -> None:
    model = small(L2(0.1), L2(0.2))
    fuse(model)
    plain = small(L2(0.1), L2(0.2))
    plain.set_weights(model.get_weights())
    for trained in (False, True):
        model.layers[0].trainable = plain.layers[0].trainable = trained
        assert total(model) == pytest.approx(total(plain), rel=1e-6)
    model.trainable = False
    assert model.losses == []


def test_regularizers_are_asked_each_time() -> None:
    changing = keras.regularizers.L2(0.1)
    model = small(changing, "l1")
    fuse(model)
    for factor in (0.5, 0.0, 2.0):
        changing.l2 = factor
        assert total(model) == pytest.approx(plain_total(model), rel=1e-6)
    model.layers[1].kernel.regularizer = L2(3.0)
    assert total(model) == pytest.approx(plain_total(model), rel=1e-6)
    model.layers[0].kernel.regularizer = None
    assert total(model) == pytest.approx(plain_total(model), rel=1e-6)


def plain_total(model: Any) -> float:
    """By Keras' own method."""
    return sum(number(loss) for loss in type(model)._get_regularization_losses(model))


def test_scopes_have_their_say() -> None:
    """A variable has another value in some of Keras' scopes."""
    model = small("l2", L1(0.1))
    fuse(model)
    outside = total(model)
    state = [(weight, 3.0 * ops.convert_to_tensor(weight)) for weight in model.weights]
    with keras.StatelessScope(state_mapping=state):
        assert total(model) == pytest.approx(plain_total(model), rel=1e-6)
        assert total(model) > 2 * outside
    model.layers[0].kernel.assign(1e-4 * np.ones((6, 6)))
    with AutocastScope("float16"):
        rounded = [w.value for w in model.trainable_weights if w.regularizer is not None]
        assert {keras.backend.standardize_dtype(w.dtype) for w in rounded} == {"float16"}
        wide = [ops.convert_to_numpy(w).astype(np.float64) for w in rounded]
        wanted = 0.01 * np.square(wide[0]).sum() + 0.1 * np.abs(wide[1]).sum()
        assert total(model) == pytest.approx(wanted, rel=1e-6)
    if BACKEND == "torch":
        with keras.device("meta"):
            assert model.losses[0].device.type == "meta"


def test_a_factor_that_is_a_variable() -> None:
    regularizer = keras.regularizers.L2(0.1)
    regularizer.l2 = keras.Variable(0.5)
    model = small(regularizer, L2(0.1))
    fuse(model)
    for factor in (0.5, 1.5):
        regularizer.l2.assign(factor)
        assert total(model) == pytest.approx(plain_total(model), rel=1e-6)
    assert len(model.losses) == 2


def test_a_factor_that_is_a_tensor_of_the_backend() -> None:
    """A variable of the backend's own, and a tensor that changes in place, are asked each time."""
    regularizer = keras.regularizers.L1(0.1)
    model = small(regularizer, L2(0.1))
    fuse(model)
    assert total(model) == pytest.approx(plain_total(model), rel=1e-6)
    assert len(model.losses) == 1
    if BACKEND == "torch":
        import torch

        change = regularizer.l1.fill_
        with torch.inference_mode():  # whose tensors do not count their changes
            model.layers[1].kernel.regularizer = keras.regularizers.L1(0.3)
            assert total(model) == pytest.approx(plain_total(model), rel=1e-6)
        model.layers[1].kernel.regularizer = None
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        regularizer.l1 = tf.Variable(0.2)
        change = regularizer.l1.assign
    else:
        return  # JAX' cannot change
    for factor in (0.0, 0.5):
        change(factor)
        assert total(model) == pytest.approx(plain_total(model), rel=1e-6)


def test_strengths_that_are_no_longer_used_are_forgotten() -> None:
    first = keras.regularizers.L1(0.5)
    model = small(first, "l2")
    fuse(model)
    kernel = model.layers[0].kernel
    assert total(model) == pytest.approx(plain_total(model), rel=1e-6)
    forgotten = weakref.ref(first.l1)
    model.layers[0].kernel_regularizer = kernel.regularizer = None
    del first
    for factor in (0.1, 0.2, 0.3):
        kernel.regularizer = keras.regularizers.L1(factor)
        assert total(model) == pytest.approx(plain_total(model), rel=1e-6)
    gc.collect()
    assert forgotten() is None


def test_variables_that_are_removed_are_forgotten() -> None:
    current: list[Any] = []

    class Changing(keras.Layer):
        """Keras keeps a layer's weights itself; these are ours alone."""

        @property
        def trainable_weights(self) -> list[Any]:
            return current

    model = Changing()
    fuse(model)
    made = []
    for _ in range(30):
        current[:] = [keras.Variable(np.ones(3, np.float32)) for _ in range(2)]
        made += map(weakref.ref, current)
        for variable in current:
            variable.regularizer = L2(0.5)
        assert total(model) == pytest.approx(3.0)
    gc.collect()
    assert sum(one() is not None for one in made) <= 2 * len(current)


def test_a_model_that_is_built_later() -> None:
    model = keras.Sequential([dense("l2"), dense("l1")])
    fuse(model)
    assert model.losses == []
    model.build((None, 6))
    assert total(model) == pytest.approx(plain_total(model), rel=1e-6)


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = dense("l2")
        self.out = dense(L1(0.01), units=3)

    def call(self, x: Any) -> Any:
        hidden = self.hidden(x)
        self.add_loss(0.1 * ops.sum(ops.square(hidden)) / 64)
        return self.out(hidden)


def test_a_subclass_with_losses_of_its_own() -> None:
    plain = history(Subclassed())
    keras.utils.set_random_seed(11)
    model = Subclassed()
    fuse(model)
    assert history(model) == pytest.approx(plain, rel=1e-5)


def test_mixed_precision() -> None:
    """Weights are float32, and so are penalties."""

    def make() -> Any:
        policy = {"dtype": "mixed_float16"}
        model = keras.Sequential([layers.Input((6,)), dense("l2", **policy), dense("l1", 3)])
        model.layers[0].kernel.assign(1e3 * np.ones((6, 6)))
        return model

    plain, model = make(), make()
    fuse(model)
    assert keras.backend.standardize_dtype(model.losses[0].dtype) == "float32"
    assert total(model) == pytest.approx(total(plain), rel=1e-6)
    assert number(model.losses[0]) > 65504  # beyond float16


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_do_not_overflow(dtype: str) -> None:
    model = keras.Sequential([layers.Input((300,)), dense(L2(0.5), 300, dtype=dtype)])
    model.layers[0].kernel.assign(300.0 * np.ones((300, 300)))
    wanted = 0.5 * 300.0**4
    assert number(L2(0.5)(model.layers[0].kernel)) == pytest.approx(wanted, rel=1e-5)
    fuse(model)
    (loss,) = model.losses
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    assert number(loss) == pytest.approx(wanted, rel=1e-5)
    slope = gradients(model)[0]
    assert slope.dtype == dtype
    np.testing.assert_array_equal(slope.astype(np.float32), np.full((300, 300), 300, np.float32))


def test_float64() -> None:
    if BACKEND == "jax":
        return  # has no float64 unless it is configured so for the whole process
    model = keras.Sequential([layers.Input((6,)), dense("l2", dtype="float64"), dense("l2")])
    fuse(model)
    (loss,) = model.losses
    assert keras.backend.standardize_dtype(loss.dtype) == "float64"
    kernels = [ops.convert_to_numpy(layer.kernel).astype(np.float64) for layer in model.layers]
    narrow = float(np.float32(0.01))
    wanted = 0.01 * np.square(kernels[0]).sum() + narrow * np.square(kernels[1]).sum()
    assert number(loss) == pytest.approx(wanted, rel=1e-14)


def save(model: Any, folder: Path) -> Any:
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras", custom_objects={"cube": cube})


def clone(model: Any, _: Path) -> Any:
    with keras.saving.custom_object_scope({"cube": cube}):
        made = keras.models.clone_model(model)
    made.set_weights(model.get_weights())
    return made


def pickled(model: Any, _: Path) -> Any:
    with keras.saving.custom_object_scope({"cube": cube}):
        return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("copy", [save, clone, pickled])
def test_copies_have_the_same_losses(copy: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    model = everything()
    fuse(model)
    made = copy(model, tmp_path)
    with pytest.raises(ValueError, match="not fused"):
        unfuse(made)
    assert total(made) == pytest.approx(total(model), rel=1e-5)
    fuse(made)
    assert total(made) == pytest.approx(total(model), rel=1e-5)


def test_inside_another_model() -> None:
    """Keras asks the outermost model alone, whose own method finds what rules added too."""
    inner = small("l2", cube)
    fuse(inner, {"bias": L2(0.3), "kernel": None})
    outer = keras.Sequential([layers.Input((6,)), inner, dense("l1", 3)])
    assert total(outer) == pytest.approx(plain_total(outer), rel=1e-6)
    assert total(outer) - total(inner) == pytest.approx(
        number(L1()(outer.layers[1].kernel)), rel=1e-4
    )
    fuse(outer)
    assert total(outer) == pytest.approx(plain_total(outer), rel=1e-6)


@pytest.mark.parametrize("first", ["inner", "outer"])
@pytest.mark.parametrize("unfused", ["inner", "outer"])
def test_rules_of_a_model_inside_another(first: str, unfused: str) -> None:
    """Each fusion takes away what it added, and that alone, whichever came first."""
    inner = small(L2(0.1), None)
    models = {"inner": inner, "outer": keras.Sequential([layers.Input((6,)), inner])}
    outer, kernel = models["outer"], inner.layers[1].kernel
    ones = ops.convert_to_numpy(kernel).astype(np.float64)
    own, norm = total(outer), np.abs(ones).sum()
    other = {"inner": "outer", "outer": "inner"}
    path = re.escape(kernel.path)
    rules = {"inner": {path: L1(0.1)}, "outer": {path: L1(0.2)}}
    strengths = {"inner": 0.1, "outer": 0.2}
    fuse(models[first], rules[first])
    fuse(models[other[first]], rules[other[first]])
    assert total(outer) == pytest.approx(own + 0.3 * norm, rel=1e-6)
    fuse(models[first], {path: L1(0.7)})  # anew, beneath the other's
    assert total(outer) == pytest.approx(own + (0.7 + strengths[other[first]]) * norm, rel=1e-6)
    fuse(models[first], rules[first])
    unfuse(models[unfused])
    left = strengths[other[unfused]]
    for model in models.values():
        assert total(model) == pytest.approx(own + left * norm, rel=1e-6)
    unfuse(models[other[unfused]])
    assert kernel.regularizer is None
    assert total(outer) == pytest.approx(own, rel=1e-6)


ADDED = {
    "ours": (L2(0.1), 0.0, 0.1),
    "the package's": (regularizers.L1L2(0.2, 0.3), 0.2, 0.3),
    "with a half": (contrib.l2_regularizer(0.1), 0.0, 0.05),
    "Keras'": (keras.regularizers.L1(0.25), 0.25, 0.0),
    "a sum": (
        contrib.sum_regularizer([contrib.l1_regularizer(0.1), contrib.l2_regularizer(0.4)]),
        0.1,
        0.2,
    ),
    "a function": (lambda w: 0.5 * ops.sum(ops.square(w)), 0.0, 0.5),
}


@pytest.mark.parametrize("name", ADDED)
def test_rules_add(name: str) -> None:
    rule, l1, l2 = ADDED[name]
    model = small("l2", None)
    own, before = total(model), gradients(model)
    fuse(model, [(lambda path, w: path.endswith("bias"), None), (r"kernel", rule)])
    kernels = [ops.convert_to_numpy(layer.kernel).astype(np.float64) for layer in model.layers]
    wanted = own + sum(l1 * np.abs(k).sum() + l2 * np.square(k).sum() for k in kernels)
    assert total(model) == pytest.approx(wanted, rel=1e-6)
    assert len(model.losses) == (3 if name == "a function" else 1)
    slope, k = gradients(model)[2], ops.convert_to_numpy(model.layers[1].kernel)
    np.testing.assert_allclose(slope, l1 * np.sign(k) + 2 * l2 * k, rtol=1e-5, atol=1e-7)
    unfuse(model)
    assert total(model) == pytest.approx(own, rel=1e-6)
    np.testing.assert_allclose(gradients(model)[0], before[0], rtol=1e-6)
    assert model.layers[1].kernel.regularizer is None


def test_rules_again() -> None:
    model = small("l2", None)
    own = total(model)
    fuse(model, {"kernel": L2(0.1)})
    once = total(model)
    fuse(model, {"kernel": L2(0.1)})
    assert total(model) == pytest.approx(once, rel=1e-6)
    mine = L1(0.5)
    model.layers[0].kernel.regularizer = mine
    unfuse(model)
    assert model.layers[0].kernel.regularizer is mine
    model.layers[0].kernel.regularizer = keras.regularizers.L2()
    assert total(model) == pytest.approx(own, rel=1e-6)


def test_rules_and_weights_that_are_not_trained() -> None:
    model = everything()
    own = total(model)
    fuse(model, {r".*": L2(0.1)})
    trained = [ops.convert_to_numpy(w).astype(np.float64) for w in model.trainable_weights]
    wanted = own + 0.1 * sum(np.square(w).sum() for w in trained)
    assert total(model) == pytest.approx(wanted, rel=1e-5)


def test_a_plain_orthogonal_rule_has_a_gradient() -> None:
    model = small("l2", None)
    fuse(model, {"kernel": regularizers.OrthogonalRegularizer(0.5)})
    kernel = ops.convert_to_numpy(model.layers[1].kernel)
    _, wanted = value_and_gradient(OrthogonalRegularizer(0.5), kernel)
    np.testing.assert_allclose(gradients(model)[2], wanted, rtol=1e-5, atol=1e-7)


def test_a_fit_with_rules() -> None:
    rules = {"bias": None, "kernel": L2(0.05)}
    with_rules, built_in = small(L2(0.1), None), small(L2(0.15), L2(0.05))
    built_in.layers[2].kernel.regularizer = L2(0.05)
    built_in.set_weights(with_rules.get_weights())
    fuse(with_rules, rules)
    assert history(with_rules) == pytest.approx(history(built_in), rel=1e-5)


def test_errors_leave_the_model_as_it_was() -> None:
    model = small("l2", None)
    own = total(model)
    with pytest.raises(ValueError, match=r"'gamma' is found in none of the 6 names"):
        fuse(model, {"kernel": L2(0.1), "gamma": None})
    with pytest.raises(TypeError, match="wanted a regularizer or None"):
        fuse(model, {"kernel": 0.1})
    with pytest.raises(TypeError, match="got the class L2"):
        fuse(model, L2)
    with pytest.raises(ValueError, match="not fused"):
        unfuse(model)
    assert total(model) == pytest.approx(own, rel=1e-6)
    assert model.layers[1].kernel.regularizer is None
    with pytest.raises(ValueError, match="has no weights yet"):
        fuse(keras.Sequential([dense("l2")]), L2(0.1))
    with pytest.raises(TypeError, match="got list; wanted a Keras model"):
        fuse([model])
    with pytest.raises(ValueError, match="not fused"):
        unfuse(None)


def test_a_wrong_rule_keeps_the_fusion_before() -> None:
    model = small("l2", None)
    fuse(model, {"kernel": L2(0.1)})
    before = total(model)
    with pytest.raises(ValueError, match="found in none"):
        fuse(model, {"nowhere": L2(0.1)})
    assert total(model) == pytest.approx(before, rel=1e-6)
    assert len(model.losses) == 1


def test_a_model_with_a_way_of_its_own() -> None:
    class Own(keras.Sequential):
        def _get_regularization_losses(self) -> list[Any]:
            return []

    with pytest.raises(TypeError, match="_get_regularization_losses of its own"):
        fuse(Own([dense("l2")]))


def test_a_keras_without_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("l2", None)
    monkeypatch.delattr(keras.Layer, "_get_regularization_losses")
    with pytest.raises(RuntimeError, match=r"Keras \d.* has no Layer._get_regularization_losses"):
        fuse(model)


def test_what_is_used_of_keras_privately() -> None:
    """`losses` asks the outermost layer once; the method looks at `trainable_weights` alone."""
    model = small("l2", cube)
    asked = []

    class Weights:
        @property
        def trainable_weights(self) -> list[Any]:
            asked.append("trainable_weights")
            return model.trainable_weights[2:]

    found = keras.Layer._get_regularization_losses(Weights())
    assert asked == ["trainable_weights"]
    assert [number(one) for one in found] == [
        pytest.approx(number(cube(model.layers[1].kernel)), rel=1e-6)
    ]
    marker = ops.convert_to_tensor(1.0)
    object.__setattr__(model, "_get_regularization_losses", lambda: [marker])
    assert model.losses == [marker]


def test_a_layer_alone() -> None:
    layer = dense(L2(0.1))
    layer.build((None, 6))
    fuse(layer)
    assert total(layer) == pytest.approx(number(L2(0.1)(layer.kernel)), rel=1e-6)


def test_the_package_takes_them_for_arrays() -> None:
    w = RANDOM.normal(size=(5, 4)).astype(np.float32)
    assert fp.penalty([w, w], [L2(0.1), L1(0.2)]) == fp.penalty(
        [w, w], [regularizers.L2(0.1), regularizers.L1(0.2)]
    )


if BACKEND == "torch":

    @pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's
    def test_torch_compile() -> None:
        import torch

        model = small("l2", "l1")
        before, slopes = total(model), gradients(model)[2]
        fuse(model)
        loss = torch.compile(lambda: sum(model.losses), backend="aot_eager")()
        assert number(loss) == pytest.approx(before, rel=1e-6)
        model.zero_grad()
        loss.backward()
        found = model.layers[1].kernel.value.grad.numpy(force=True)
        np.testing.assert_allclose(found, slopes, rtol=1e-6)


if BACKEND == "tensorflow":

    def operations(function: Any) -> set[str]:
        graph = function.get_concrete_function().graph
        return {operation.type for operation in graph.get_operations()}

    @pytest.mark.parametrize("jit", [False, True])
    def test_a_graph(jit: bool) -> None:
        """Under XLA no Python can be called, so the choice is made before it is traced."""
        import tensorflow as tf

        model = small("l2", "l1")
        before, slopes = total(model), gradients(model)[2]
        fuse(model)
        model.compile("sgd", "mse", jit_compile=False)
        kernel = model.layers[1].kernel.value

        @tf.function(jit_compile=jit)
        def inner() -> Any:
            with tf.GradientTape() as tape:
                loss = tf.add_n(model.losses)
            return loss, tape.gradient(loss, kernel)

        loss, found = inner()
        assert number(loss) == pytest.approx(before, rel=1e-6)
        np.testing.assert_allclose(found.numpy(), slopes, rtol=1e-6)
        assert any("PyFunc" in kind for kind in operations(inner)) is not jit

    def test_a_graph_that_xla_compiles_later() -> None:
        import tensorflow as tf

        model = small("l2", "l1")
        before = total(model)
        fuse(model)
        traced = tf.function(lambda: tf.add_n(model.losses))
        assert number(traced()) == pytest.approx(before, rel=1e-6)
        compiled = tf.function(lambda: traced(), jit_compile=True)
        assert number(compiled()) == pytest.approx(before, rel=1e-6)

    def test_second_derivatives() -> None:
        import tensorflow as tf

        x = tf.constant([1.0, -2.0])
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = L1L2(0.5, 2.0)(x) ** 2
            slope = inner.gradient(loss, x)
        # With p = 0.5·(|a|+|b|) + 2·(a²+b²) = 11.5 and p' = (4.5, -8.5): of the sum of 2·p·p'.
        assert slope.numpy() == pytest.approx([2 * 11.5 * 4.5, -2 * 11.5 * 8.5])
        wanted = [2 * (4.5 - 8.5) * 4.5 + 2 * 11.5 * 4, 2 * (4.5 - 8.5) * -8.5 + 2 * 11.5 * 4]
        assert outer.gradient(slope, x).numpy() == pytest.approx(wanted)

    def test_a_strategy() -> None:
        import tensorflow as tf

        with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
            plain = history(small("l2", "l1"))
            keras.utils.set_random_seed(11)
        with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
            model = small("l2", "l1")
            fuse(model)
            assert len(history(model)) == len(plain)

    def test_export(tmp_path: Path) -> None:
        import tensorflow as tf

        model = small("l2", "l1")
        fuse(model)
        model.compile("sgd", "mse")
        model.fit(X, Y, verbose=0)
        model.export(tmp_path / "model", verbose=False)
        loaded = tf.saved_model.load(str(tmp_path / "model"))
        served = loaded.serve(X)
        np.testing.assert_allclose(served.numpy(), model.predict(X, verbose=0), rtol=1e-5)


if BACKEND == "torch":

    def test_a_factor_with_a_gradient() -> None:
        import torch

        regularizer = keras.regularizers.L1(0.1)
        model = small(regularizer, L2(0.1))
        fuse(model)
        assert len(model.losses) == 1
        regularizer.l1.requires_grad_()
        sum(model.losses).backward()
        wanted = torch.abs(model.layers[0].kernel.value).sum()
        assert number(regularizer.l1.grad) == pytest.approx(number(wanted), rel=1e-6)

    def test_second_derivatives() -> None:
        import torch

        x = torch.tensor([1.0, -2.0], requires_grad=True)
        (slope,) = torch.autograd.grad(L1L2(0.5, 2.0)(x) ** 2, x, create_graph=True)
        assert slope.detach().numpy() == pytest.approx([2 * 11.5 * 4.5, -2 * 11.5 * 8.5])
        wanted = [2 * (4.5 - 8.5) * 4.5 + 2 * 11.5 * 4, 2 * (4.5 - 8.5) * -8.5 + 2 * 11.5 * 4]
        (found,) = torch.autograd.grad(slope.sum(), x)
        assert found.numpy() == pytest.approx(wanted)
