"""The transformations for optax, alone and with others."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="not installed: jax")
optax = pytest.importorskip("optax", reason="not installed: optax")

import jax.numpy as jnp  # noqa: E402

import jax_oracle  # noqa: E402
from fused_penalties import contrib, regularizers  # noqa: E402
from fused_penalties.jax import add_penalty, penalty, proximal  # noqa: E402
from jax_oracle import assert_close  # noqa: E402

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
BOTH = L1L2(0.01, 0.02)
MATRICES = [(lambda name, w: w.ndim < 2, None), (r".*", BOTH)]


def updated(transformation: Any, updates: Any, params: Any) -> Any:
    found, _ = jax.jit(transformation.update)(updates, transformation.init(params), params)
    return found


def each(function: Callable[..., Any], *trees: Any) -> None:
    leaves = [jax.tree.leaves(tree) for tree in trees]
    for several in zip(*leaves, strict=True):
        function(*several)


def train(optimizer: Any, loss: Callable[[Any], Any], params: Any, steps: int = 5) -> Any:
    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    start = jax.tree.map(jnp.asarray, params)
    (last, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), None, length=steps)
    return last


def loss(params: Any) -> Any:
    return sum(jnp.sum(jnp.sin(w)) for w in jax.tree.leaves(params))


# ---- add_penalty


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_gradient_is_added(dtype: str) -> None:
    params, updates = jax_oracle.weights(dtype), jax_oracle.weights(dtype, seed=1)

    def check(found: Any, g: Any, w: Any) -> None:
        assert found.dtype == g.dtype
        wanted = np.asarray(g, np.float64) + jax_oracle.gradient(w, 0.01, 0.02)
        assert_close(found, wanted, dtype, ulps=2)

    each(check, updated(add_penalty(BOTH), updates, params), updates, params)


def test_gradients_of_another_dtype_keep_it() -> None:
    params = {"a": jnp.ones(3, jnp.bfloat16)}
    found = updated(add_penalty(L2(0.01)), {"a": jnp.ones(3, jnp.float32)}, params)
    assert found["a"].dtype == jnp.float32
    assert_close(found["a"], np.full(3, 1.02))


OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(0.1),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_trains_as_a_loss_with_the_penalty_does(name: str) -> None:
    optimizer, params = OPTIMIZERS[name](), jax_oracle.weights()
    with_penalty = train(optimizer, lambda p: loss(p) + penalty(p, MATRICES), params)
    added = train(optax.chain(add_penalty(MATRICES), optimizer), loss, params)
    masked = optax.masked(add_penalty(BOTH), lambda p: jax.tree.map(lambda w: w.ndim > 1, p))
    for found in (added, train(optax.chain(masked, optimizer), loss, params)):
        each(lambda a, b: assert_close(a, b, ulps=32), found, with_penalty)


def test_a_mask_leaves_updates_as_they_are() -> None:
    params, updates = jax_oracle.weights(), jax_oracle.weights(seed=1)
    found = updated(
        add_penalty(L2(0.5), {"dense": True, "norm": False, "out": False}), updates, params
    )
    assert_close(found["dense"]["bias"], updates["dense"]["bias"] + params["dense"]["bias"])
    np.testing.assert_array_equal(found["out"], updates["out"])


def test_functions_are_differentiated() -> None:
    params = {"a": np.asarray([1.0, -2.0], np.float32), "b": np.ones(2, np.float32)}
    many = contrib.sum_regularizer([lambda w: jnp.sum(w**3), L1(0.5), lambda w: None])
    found = updated(add_penalty({"a": many}), params, params)
    assert_close(found["a"], [1 + 3 + 0.5, -2 + 12 - 0.5])
    np.testing.assert_array_equal(found["b"], params["b"])


def test_no_update_stays_none() -> None:
    params = {"a": jnp.ones(2), "b": jnp.ones(2), "c": None}
    for transformation in (add_penalty(L2(0.5)), proximal(L2(0.5))):
        state = transformation.init(params)
        found, _ = transformation.update({"a": None, "b": jnp.ones(2), "c": None}, state, params)
        assert found["a"] is None
        assert found["c"] is None
        assert found["b"].shape == (2,)


def test_groups_of_parameters() -> None:
    params = jax_oracle.weights()
    labels = {"dense": "small", "norm": "none", "out": "large"}
    kinds = {
        "small": optax.chain(add_penalty({"bias": None, "kernel": L2(0.5)}), optax.sgd(1.0)),
        "large": optax.chain(add_penalty(L2(1.0)), optax.sgd(1.0)),
        "none": optax.sgd(1.0),
    }
    zeros = jax.tree.map(np.zeros_like, params)
    found = updated(optax.multi_transform(kinds, labels), zeros, params)
    assert_close(found["dense"]["kernel"], -params["dense"]["kernel"])
    assert_close(found["out"], -2 * params["out"])
    assert not np.any(found["dense"]["bias"])
    assert not np.any(found["norm"]["scale"])


def test_several_batches_to_a_step() -> None:
    params = {"a": np.asarray([1.0, 0.05, -3.0], np.float32)}
    optimizer = optax.MultiSteps(
        optax.chain(add_penalty(L2(0.5)), optax.sgd(0.1), proximal(L1(0.5), learning_rate=0.2)), 2
    )
    found = train(optimizer, lambda p: 0.0 * jnp.sum(p["a"]), params, steps=3)["a"]
    assert_close(found, jax_oracle.shrunk(0.9 * params["a"], 0.1, 0.0))
    assert found[1] == 0.0


# ---- proximal


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_proximal_step(dtype: str) -> None:
    params, updates = jax_oracle.weights(dtype), jax_oracle.weights(dtype, seed=1)
    found = updated(proximal(L1L2(0.5, 0.25), learning_rate=0.8), updates, params)
    after = optax.apply_updates(params, found)
    zeros = 0

    def check(after: Any, u: Any, w: Any) -> None:
        nonlocal zeros
        assert after.dtype == w.dtype
        moved = np.asarray(w, np.float64) + np.asarray(u, np.float64)
        wanted = jax_oracle.shrunk(moved, 0.4, 0.2)
        assert_close(after, wanted, dtype, ulps=8)
        cut = np.abs(moved) < 0.399
        zeros += int(cut.sum())
        assert not np.any(np.asarray(after)[cut])

    each(check, after, updates, params)
    assert zeros > 10


def test_zeros_are_exact_whatever_the_numbers() -> None:
    rng = np.random.default_rng(0)
    for dtype in (np.float16, jnp.bfloat16, np.float32):
        p = (rng.standard_normal(20_000) * 10.0 ** rng.integers(-4, 3, 20_000)).astype(dtype)
        u = (rng.standard_normal(20_000) * 10.0 ** rng.integers(-4, 3, 20_000)).astype(dtype)
        after = optax.apply_updates(p, updated(proximal(L1(1e4)), u, p))
        assert not np.any(np.asarray(after))


PAIRS = list(itertools.product(jax_oracle.DTYPES, repeat=2))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("of_updates", "of_params"), PAIRS)
def test_zeros_are_exact_whatever_the_dtypes(of_updates: str, of_params: str) -> None:
    rng = np.random.default_rng(1)
    updates, params = (
        jnp.asarray(rng.standard_normal(1000)).astype(dtype) for dtype in (of_updates, of_params)
    )
    after = optax.apply_updates(params, updated(proximal(L1(0.5)), updates, params))
    assert after.dtype == of_params
    moved = np.asarray(params, np.float64) + np.asarray(updates, np.float64)
    cut = np.abs(moved) < 0.499
    assert cut.sum() > 100
    assert not np.any(np.asarray(after)[cut])
    assert_close(after, jax_oracle.shrunk(moved, 0.5, 0.0), of_params, ulps=8)


@pytest.mark.parametrize("make", [optax.sgd, optax.adam])
def test_narrow_gradients_train_wide_parameters(make: Any) -> None:
    """In a scan, whose state must keep its dtypes."""
    params = {"a": jnp.linspace(-1.0, 1.0, 1000)}
    narrow = optax.stateless(lambda g, _: jax.tree.map(lambda x: x.astype(jnp.bfloat16), g))
    rate = 0.125
    chain = optax.chain(narrow, make(rate), proximal(L1(100.0), learning_rate=lambda count: rate))
    for optimizer in (chain, optax.MultiSteps(chain, 2)):
        last = train(optimizer, loss, params, steps=4)["a"]
        assert last.dtype == np.float32
        assert not np.any(last)


def test_nan_stays_nan() -> None:
    params = {"a": np.asarray([np.nan, 1.0], np.float32)}
    found = updated(proximal(L1(0.5)), {"a": np.zeros(2, np.float32)}, params)["a"]
    np.testing.assert_array_equal(found, [np.nan, -0.5])


def test_it_finds_the_minimum_that_is_known() -> None:
    """Of ½·|w - c|² + l1·|w| + l2·w² that is the shrunk c."""
    c = np.asarray([3.0, -2.0, 0.4, -0.3, 0.0, 1.01], np.float32)
    optimizer = optax.chain(
        optax.sgd(0.5), proximal([(r".*", L1L2(1.0, 0.5))], learning_rate=lambda count: 0.5)
    )
    last = train(optimizer, lambda p: 0.5 * jnp.sum((p["w"] - c) ** 2), {"w": 0 * c + 5}, 60)["w"]
    wanted = jax_oracle.shrunk(c, 1.0, 0.5)
    assert_close(last, wanted, ulps=16)
    np.testing.assert_array_equal(last == 0, wanted == 0)


def test_a_schedule_counts_steps() -> None:
    params, zeros = {"a": jnp.full(2, 10.0)}, {"a": jnp.zeros(2)}
    transformation = proximal(
        L1(1.0), learning_rate=optax.piecewise_constant_schedule(1.0, {2: 3.0})
    )
    state, steps = transformation.init(params), []
    for _ in range(4):
        found, state = jax.jit(transformation.update)(zeros, state, params)
        steps.append(float(found["a"][0]))
    assert steps == [-1.0, -1.0, -3.0, -3.0]


def test_a_rate_that_is_injected() -> None:
    params, zeros = {"a": jnp.full(2, 10.0)}, {"a": jnp.zeros(2)}
    make = optax.inject_hyperparams(proximal, static_args=("regularizer",))
    transformation = make(L1(1.0), learning_rate=0.5)
    state = transformation.init(params)
    state.hyperparams["learning_rate"] = jnp.asarray(0.25)
    found, _ = jax.jit(transformation.update)(zeros, state, params)
    assert_close(found["a"], [-0.25, -0.25])


# ---- what is refused, and what optax asks


TRANSFORMATIONS = [add_penalty, proximal]


@pytest.mark.parametrize("make", TRANSFORMATIONS)
def test_what_is_wrong_is_said_at_the_beginning(make: Any) -> None:
    params = {"a": jnp.ones(2), "n": jnp.arange(2)}
    with pytest.raises(ValueError, match="'nothing' is found in none of the 2 names: a, n"):
        make({"nothing": None, "a": L2(0.1)}).init(params)
    with pytest.raises(TypeError, match=r"params\['n'\]: dtype int32 is not supported"):
        make(L2(0.1)).init(params)
    with pytest.raises(ValueError, match="mask: got a pytree of another structure"):
        make(L2(0.1), {"b": True}).init(params)
    transformation = make({"a": L2(0.1)})
    state = transformation.init(params)
    with pytest.raises(ValueError, match="params: got None; wanted update"):
        transformation.update(params, state)


def test_functions_have_no_proximal_step() -> None:
    with pytest.raises(TypeError, match=r"params\['a'\]: no proximal step is known of <lambda>"):
        proximal(lambda w: jnp.sum(w)).init({"a": jnp.ones(2)})


@pytest.mark.parametrize("rate", [-1.0, float("nan"), float("inf")])
def test_rates_that_are_none(rate: float) -> None:
    with pytest.raises(ValueError, match=r"learning_rate: got .*; wanted a finite number of"):
        proximal(L1(0.1), learning_rate=rate)


def test_optax_finds_the_parameters_in_the_state() -> None:
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    rules = {"a": L1(0.1), "b": None}
    optimizer = optax.chain(add_penalty(rules), optax.adam(0.1), proximal(rules))
    state = optimizer.init(params)
    doubled = optax.tree_utils.tree_map_params(optimizer, lambda x: x + 1, state)
    moments = optax.tree_utils.tree_get(doubled, "mu")
    each(lambda x: np.testing.assert_array_equal(x, np.ones(2)), moments)
