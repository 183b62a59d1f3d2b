"""The penalty of a pytree in JAX: its value both ways, its derivatives, what it refuses."""

from __future__ import annotations

from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="not installed: jax")
pytest.importorskip("optax", reason="not installed: optax")

import jax.numpy as jnp  # noqa: E402

import convention_oracle  # noqa: E402
import fresh  # noqa: E402
import fused_penalties as fp  # noqa: E402
import jax_oracle  # noqa: E402
import values  # noqa: E402
from fused_penalties import contrib, regularizers  # noqa: E402
from fused_penalties.jax import build_info, penalty  # noqa: E402
from jax_oracle import assert_close  # noqa: E402

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
BOTH = L1L2(0.01, 0.02)
needs_kernels = pytest.mark.skipif(
    not build_info()["ffi"], reason="not built: what `python -m fused_penalties.jax build` makes"
)


def bits(x: Any) -> str:
    return f"{x.dtype} {float(x).hex()}"


# ---- the value


@needs_kernels
@pytest.mark.parametrize("kind", ["normal", "subnormal", "extreme", "nan", "inf"])
@pytest.mark.usefixtures("isa", "x64")
def test_each_bit_of_a_value(kind: str) -> None:
    arrays = [values.make(kind, dtype, 5000, n) for n, dtype in enumerate(jax_oracle.DTYPES)]
    found = penalty([jnp.asarray(x) for x in arrays], BOTH)
    assert bits(found) == bits(fp.penalty(arrays, BOTH))
    if kind in ("normal", "subnormal"):
        assert float(found) == convention_oracle.penalty(arrays, [(0.01, 0.02)] * len(arrays))


@needs_kernels
@pytest.mark.parametrize("threads", ["1", "3"])
def test_threads_are_those_of_the_package(threads: str) -> None:
    code = """
    import os
    import jax, jax.numpy as jnp
    import numpy as np
    import fused_penalties as fp
    from fused_penalties.jax import penalty
    from fused_penalties.regularizers import L1L2

    x = np.random.default_rng(0).standard_normal(6_000_000, np.float32)
    on_cpu = jnp.asarray(x)
    value = jax.jit(lambda w: penalty(w, L1L2(0.1, 0.2)))
    value(on_cpu[:9]).block_until_ready()
    call = value.lower(on_cpu).compile()
    before = len(os.listdir("/proc/self/task"))
    found = float(call(on_cpu))
    more = len(os.listdir("/proc/self/task")) - before
    print(more, found == float(fp.penalty(x, L1L2(0.1, 0.2))))
    """
    assert fresh.output(code, OMP_NUM_THREADS=threads) == f"{int(threads) - 1} True"


@needs_kernels
def test_many_threads_at_once() -> None:
    arrays = [values.make("normal", "float32", 700_000 + n, n) for n in range(8)]
    wanted = [bits(fp.penalty(x, BOTH)) for x in arrays]
    on_cpu = [jnp.asarray(x) for x in arrays]
    call = jax.jit(lambda w: penalty(w, BOTH))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert list(pool.map(lambda w: bits(call(w)), on_cpu)) == wanted


@pytest.mark.parametrize("dtype", jax_oracle.DTYPES)
@pytest.mark.usefixtures("way", "x64")
def test_a_value(dtype: str) -> None:
    params = jax_oracle.weights(dtype)
    found = penalty(params, BOTH)
    assert found.dtype == ("float64" if dtype == "float64" else "float32")
    wanted = jax_oracle.value(jax.tree.leaves(params), 0.01, 0.02)
    assert_close(found, wanted, "float32", ulps=8)
    assert_close(jax.jit(lambda p: penalty(p, BOTH))(params), wanted, "float32", ulps=8)


@pytest.mark.usefixtures("way")
def test_16_bit_weights_do_not_overflow() -> None:
    for dtype in (jnp.float16, jnp.bfloat16):
        w, ones = jnp.full((300,), 256.0, dtype), jnp.ones(300, dtype)
        found, along = jax.jvp(lambda w: penalty(w, L1L2(1.0, 1.0)), (w,), (ones,))
        assert bits(found) == bits(np.float32(300 * 256.0 + 300 * 65536.0))
        assert bits(along) == bits(np.float32(300 * (1.0 + 512.0)))


@pytest.mark.usefixtures("way", "x64")
def test_the_result_is_float64_if_a_leaf_is_whatever_its_penalty() -> None:
    params = {"a": jnp.ones(3, jnp.float32), "b": jnp.ones(3, jnp.float64)}
    assert penalty(params, {"a": L2(0.1)}).dtype == jnp.float64
    assert penalty(params, BOTH, {"a": True, "b": False}).dtype == jnp.float64
    assert penalty({"a": params["a"]}, BOTH).dtype == jnp.float32


@pytest.mark.usefixtures("way")
def test_without_leaves_there_is_no_penalty() -> None:
    for params in ({}, [], None, {"a": None}, jnp.zeros((0, 3)), {"a": jnp.zeros(0)}):
        assert bits(penalty(params, BOTH)) == bits(np.float32(0))
    assert float(penalty([None, jnp.ones(2), None], L1(1.0))) == 2.0


Pair = namedtuple("Pair", "kernel bias")


@pytest.mark.usefixtures("way")
def test_names_are_paths() -> None:
    seen: list[str] = []

    def rule(name: str, leaf: Any) -> bool:
        seen.append(name)
        return True

    w = jnp.ones(2)
    penalty({"b": [w, Pair(w, w)], "a": {"x.y": w}}, [(rule, L2(0.1))])
    assert seen == ["a/x.y", "b/0", "b/1/kernel", "b/1/bias"]
    seen.clear()
    penalty(w, [(rule, L2(0.1))])
    assert seen == [""]


@pytest.mark.usefixtures("way")
def test_flax() -> None:
    flax = pytest.importorskip("flax", reason="not installed: flax")
    from flax import nnx

    params = jax_oracle.weights()
    rules = {r"bias|scale": None, r"kernel": BOTH, r".*": None}
    wanted = jax_oracle.value([params["dense"]["kernel"]], 0.01, 0.02)
    assert_close(penalty(flax.core.freeze(params), rules), wanted, ulps=8)

    state = nnx.state(nnx.Linear(5, 7, rngs=nnx.Rngs(0)), nnx.Param)
    kernel = np.asarray(jax.tree.leaves(state)[1])
    assert kernel.shape == (5, 7)
    found, gradient = jax.jit(jax.value_and_grad(lambda s: penalty(s, {"kernel": BOTH})))(state)
    assert_close(found, jax_oracle.value([kernel], 0.01, 0.02), ulps=8)
    assert_close(jax.tree.leaves(gradient)[1], jax_oracle.gradient(kernel, 0.01, 0.02))


@pytest.mark.usefixtures("way")
def test_rules_of_every_form() -> None:
    params = jax_oracle.weights()
    kernel, out = params["dense"]["kernel"], params["out"]
    wanted = jax_oracle.value([kernel], 0.0, 0.3) + jax_oracle.value([out], 0.1, 0.0)
    forms = [
        {r"kernel": L2(0.3), r"^out$": L1(0.1)},
        [(r"bias|norm", None), (lambda name, w: w.ndim == 3, L1(0.1)), (r".*", L2(0.3))],
        [None, L2(0.3), None, L1(0.1)],  # dense/bias, dense/kernel, norm/scale, out
        {r"kernel": contrib.l2_regularizer(0.6), r"out": contrib.l1_regularizer(0.1)},
    ]
    for form in forms:
        assert_close(penalty(params, form), wanted, ulps=8)


def power(w: Any) -> Any:
    return 0.1 * jnp.sum(w**4)


@pytest.mark.usefixtures("way")
def test_functions() -> None:
    x = np.asarray([1.0, -2.0], np.float32)
    many = contrib.sum_regularizer([power, contrib.l1_regularizer(0.5), lambda w: None])
    found, gradient = jax.value_and_grad(lambda w: penalty({"w": w}, many))(x)
    assert_close(found, 0.1 * 17 + 1.5)
    assert_close(gradient, [0.4 + 0.5, -3.2 - 0.5])
    assert float(penalty(x, lambda w: None)) == 0.0


@pytest.mark.parametrize("mode", ["rows", "columns"])
def test_the_orthogonal_regularizer(mode: str) -> None:
    w = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    w[1] = 0
    of = regularizers.OrthogonalRegularizer(0.1, mode)
    found, gradient = jax.jit(jax.value_and_grad(lambda w: penalty(w, of)))(w)
    assert_close(found, of(w))
    direction = np.random.default_rng(1).standard_normal(w.shape)
    direction[1] = 0  # where the cosine has no derivative
    ahead, behind = (float(of(w + h * direction)) for h in (1e-3, -1e-3))
    assert float((gradient * direction).sum()) == pytest.approx((ahead - behind) / 2e-3, rel=1e-2)
    assert float(penalty(np.ones((1, 1), np.float32), of)) == 0.0


# ---- the mask


@pytest.mark.usefixtures("way")
def test_a_mask() -> None:
    params = jax_oracle.weights()
    dense = jax_oracle.value(list(params["dense"].values()), 0.01, 0.02)
    matrices = jax_oracle.value([params["dense"]["kernel"], params["out"]], 0.01, 0.02)
    prefix = {"dense": True, "norm": False, "out": np.bool_(False)}
    assert_close(penalty(params, BOTH, prefix), dense, ulps=8)
    assert_close(
        penalty(params, BOTH, lambda p: jax.tree.map(lambda w: w.ndim > 1, p)), matrices, ulps=8
    )
    assert_close(penalty(params, {"norm|out": None, "dense": BOTH}), dense, ulps=8)
    assert float(penalty(params, BOTH, False)) == 0.0
    # Rules and sequences are about the leaves that are let through.
    assert_close(penalty(params, [BOTH, BOTH], prefix), dense, ulps=8)
    with pytest.raises(ValueError, match="is found in none of the 2 names: dense/bias, dense/ke"):
        penalty(params, {"norm": BOTH}, prefix)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ({"a": True}, ValueError, "mask: got a pytree of another structure than params; wanted a"),
        ({"a": True, "b": {"d": True}}, ValueError, "mask: got a pytree of another structure"),
        ({"a": [True], "b": True}, ValueError, "mask: got a pytree of another structure"),
        ({"a": 1, "b": True}, TypeError, r"mask: got int for params\['a'\]; wanted True or Fal"),
        (lambda params: None, ValueError, "mask: got a pytree of another structure"),
        ("a", TypeError, r"mask: got str for params\['a'\]; wanted True or False"),
    ],
)
def test_masks_that_do_not_fit(mask: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        penalty({"a": jnp.ones(2), "b": {"c": jnp.ones(2)}}, BOTH, mask)


# ---- derivatives


@pytest.mark.parametrize("dtype", jax_oracle.DTYPES)
@pytest.mark.usefixtures("way", "x64")
def test_gradients(dtype: str) -> None:
    params = jax_oracle.weights(dtype)
    found = jax.jit(jax.grad(lambda p: 3.0 * penalty(p, BOTH)))(params)
    for x, g in zip(jax.tree.leaves(params), jax.tree.leaves(found), strict=True):
        assert g.dtype == x.dtype
        assert_close(g, 3.0 * jax_oracle.gradient(x, 0.01, 0.02), dtype)
        assert (np.asarray(g, np.float64).flat[:2] == 0).all()  # sign(0) is 0


def test_a_coefficient_of_zero_leaves_its_term_out() -> None:
    x = jnp.asarray([jnp.inf, -jnp.inf, jnp.nan, 1.0])
    np.testing.assert_array_equal(
        jax.grad(lambda w: penalty(w, L1(0.5)))(x), [0.5, -0.5, np.nan, 0.5]
    )
    np.testing.assert_array_equal(
        jax.grad(lambda w: penalty(w, L2(0.5)))(x), [np.inf, -np.inf, np.nan, 1.0]
    )
    np.testing.assert_array_equal(jax.grad(lambda w: penalty(w, L1L2()))(x), np.zeros(4))


@pytest.mark.usefixtures("way")
def test_derivatives_of_every_kind() -> None:
    x = np.asarray([1.0, -2.0, 0.0, 3.0], np.float32)
    direction = np.asarray([1.0, 10.0, 100.0, -1.0], np.float32)

    def f(w: Any) -> Any:
        return penalty({"a": w}, L1L2(0.5, 0.25))

    slope = jax_oracle.gradient(x, 0.5, 0.25)
    for way in (jax.grad, jax.jacfwd, jax.jacrev):
        assert_close(way(f)(x), slope)
        assert_close(jax.jit(way(jax.checkpoint(f)))(x), slope)
    value, along = jax.jvp(f, (x,), (direction,))
    assert_close(value, jax_oracle.value([x], 0.5, 0.25))
    assert_close(along, slope @ direction)
    assert_close(jax.linearize(f, x)[1](direction), slope @ direction)
    for second in (jax.hessian(f), jax.jacrev(jax.grad(f)), jax.jacfwd(jax.jacfwd(f))):
        assert_close(second(x), 0.5 * np.eye(4))
    assert_close(jax.jvp(jax.grad(f), (x,), (direction,))[1], 0.5 * direction)
    assert_close(jax.jacfwd(jax.hessian(f))(x), np.zeros((4, 4, 4)))


@pytest.mark.usefixtures("way")
def test_the_gradient_of_some_leaves() -> None:
    frozen, trained = np.ones(5, np.float32), np.full(5, 2.0, np.float32)

    def f(trained: Any, frozen: Any) -> Any:
        return penalty([trained, frozen], L2(0.5))

    assert_close(jax.grad(f)(trained, frozen), trained)
    assert_close(jax.jvp(lambda w: f(w, frozen), (trained,), (frozen,))[1], 10.0)


# ---- what JAX makes of functions


@pytest.mark.usefixtures("way")
def test_scan() -> None:
    x = np.asarray([1.0, -2.0, 3.0], np.float32)

    def step(w: Any, _: Any) -> Any:
        value, gradient = jax.value_and_grad(lambda w: penalty(w, L2(0.5)))(w)
        return w - 0.5 * gradient, value

    last, found = jax.jit(lambda w: jax.lax.scan(step, w, None, length=4))(x)
    assert_close(last, x / 16)
    assert_close(found, [7.0 / 4**k for k in range(4)])

    def sum_of_all(w: Any) -> Any:
        return jax.lax.scan(lambda s, _: (s / 2, penalty(s, L2(0.5))), w, None, length=4)[1].sum()

    assert_close(jax.jit(jax.grad(sum_of_all))(x), x * sum(1.0 / 4**k for k in range(4)))


@pytest.mark.usefixtures("x64")
def test_vmap(way: str) -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((3, 2, 5)).astype(np.float32)
    b = rng.standard_normal((2, 4)).astype(jnp.bfloat16)
    c = rng.standard_normal((3, 2, 2))
    d = rng.standard_normal((3, 6)).astype(np.float16)

    def f(*several: Any) -> Any:
        return penalty(several, [BOTH, L1(0.3), L2(0.2), BOTH])

    alone = [[float(f(a[i, j], b[j], c[i, j], d[i])) for j in range(2)] for i in range(3)]
    # Some are mapped over one of the two axes alone, and the last axis of another is the inner one.
    nested = jax.vmap(jax.vmap(f, in_axes=(0, 0, 1, None)), in_axes=(0, None, 0, 0))
    for call in (nested, jax.jit(nested)):
        found = call(a, b, c.swapaxes(1, 2), d)
        assert found.shape == (3, 2)
        assert_close(found, alone, ulps=8)
        if way == "the package's kernels":
            np.testing.assert_array_equal(found, alone)
    gradient = jax.vmap(jax.grad(lambda w: penalty(w, BOTH)))(a)
    assert_close(gradient, jax_oracle.gradient(a, 0.01, 0.02))
    assert jax.vmap(lambda w: penalty(w, BOTH))(np.zeros((0, 3), np.float32)).shape == (0,)


@pytest.mark.usefixtures("way")
def test_donated_weights() -> None:
    x = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)

    def step(w: Any) -> Any:
        value, gradient = jax.value_and_grad(lambda w: penalty(w, BOTH))(w)
        return w - gradient, value

    stepped, found = jax.jit(step, donate_argnums=0)(jnp.asarray(x))
    assert_close(found, jax_oracle.value([x], 0.01, 0.02), ulps=64)
    assert_close(stepped, x - jax_oracle.gradient(x, 0.01, 0.02))


@pytest.mark.usefixtures("way")
def test_shapes_alone() -> None:
    params = {"a": jax.ShapeDtypeStruct((3, 4), jnp.bfloat16)}
    found = jax.eval_shape(lambda p: penalty(p, BOTH), params)
    assert (found.shape, found.dtype) == ((), jnp.float32)


def test_the_way_is_chosen_where_a_function_is_lowered(way: str) -> None:
    traced = jax.jit(lambda w: penalty(w, BOTH)).trace(jnp.ones(3))
    called = {
        platform: "fused_penalties_penalty"
        in traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "rocm", "tpu")
    }
    kernels = way == "the package's kernels"
    assert called == {"cpu": kernels, "cuda": False, "rocm": False, "tpu": False}


SHARDED = """
    import jax, jax.numpy as jnp
    import numpy as np
    import fused_penalties as fp
    from fused_penalties.jax import penalty
    from fused_penalties.regularizers import L1L2
    from jax.sharding import NamedSharding, PartitionSpec as P

    regularizer = L1L2(0.5, 0.25)
    f = lambda w: penalty([w], regularizer)
    x = np.random.default_rng(0).integers(-9, 9, (8, 64)).astype(np.float32)  # sums are exact
    mesh = jax.make_mesh((4,), ("x",))
    w = jax.device_put(x, NamedSharding(mesh, P("x")))
    value, gradient = jax.jit(jax.value_and_grad(f))(w)
    print(len(w.sharding.device_set), len(gradient.sharding.device_set))
    sum_of_parts = lambda w: jax.lax.psum(f(w), "x")
    part = jax.shard_map(sum_of_parts, mesh=mesh, in_specs=P("x"), out_specs=P())
    wanted = float(np.float64(0.5) * np.abs(x).sum() + 0.25 * np.square(x).sum())
    print({float(f(w)) - wanted, float(value) - wanted, float(jax.jit(part)(w)) - wanted})
    print(bool((gradient == 0.5 * np.sign(x) + 0.5 * x).all()))
"""


def test_weights_on_several_devices() -> None:
    four = "--xla_force_host_platform_device_count=4"
    assert fresh.output(SHARDED, XLA_FLAGS=four).splitlines() == ["4 4", "{0.0}", "True"]


# ---- what is refused


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (np.arange(3), r"params\['a/b'\]: dtype int(32|64) is not supported; wanted float16"),
        (np.asarray([True]), r"params\['a/b'\]: dtype bool is not supported"),
        (3, r"params\['a/b'\]: dtype int32 is not supported"),
        (np.ones(2, np.complex64), r"params\['a/b'\]: dtype complex64 is not supported"),
        ("text", r"params\['a/b'\]: got str; wanted an array"),
        (jax.ShapeDtypeStruct((2,), np.float32), r"got ShapeDtypeStruct; wanted an array"),
    ],
)
def test_leaves_that_have_no_penalty(leaf: Any, message: str) -> None:
    params = {"a": {"b": leaf}, "c": jnp.ones(3)}
    for regularizer in (BOTH, L2(0.0), power):
        with pytest.raises(TypeError, match=message):
            penalty(params, regularizer)
    assert float(penalty(params, {"b": None, "c": L1(1.0)})) == 3.0
    assert float(penalty(params, L1(1.0), {"a": False, "c": True})) == 3.0
    with pytest.raises(TypeError, match=r"^params: "):
        penalty(leaf, BOTH)


@pytest.mark.parametrize(
    ("regularizer", "error", "message"),
    [
        ({"nothing": L2(0.1), ".*": None}, ValueError, "'nothing' is found in none of the 2 names"),
        ([L2(0.1)], ValueError, "got a sequence of 1; wanted one for each of 2 buffers"),
        (L2, TypeError, "got the class L2; wanted an instance of it"),
        (0.1, TypeError, "got float; wanted a regularizer or None"),
        (lambda w: w, ValueError, r"params\['a'\]: <lambda> returned an array of rank 1; wanted a"),
        (lambda w: 1.0, TypeError, r"<lambda> returned float, which JAX cannot differentiate"),
    ],
)
def test_regularizers_that_are_none(regularizer: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        penalty({"a": jnp.ones(2), "b": jnp.ones(2)}, regularizer)


def test_strengths_are_plain_numbers() -> None:
    with pytest.raises(ValueError, match="Invalid value for argument l2: expected a non-negative"):
        jax.jit(lambda strength: penalty(jnp.ones(2), L2(strength)))(0.1)
    gradient = jax.jit(jax.grad(lambda s: s * penalty(jnp.ones(2), L2(1.0))))(0.1)
    assert float(gradient) == 2.0


@needs_kernels
def test_an_isa_that_is_not_supported() -> None:
    code = """
    import jax, jax.numpy as jnp
    from fused_penalties.jax import penalty
    from fused_penalties.regularizers import L2
    try:
        print(float(penalty(jnp.ones(3), L2(1.0))))
    except RuntimeError as error:
        print("sse9" in str(error), "not supported" in str(error))
    """
    assert fresh.output(code, FUSED_PENALTIES_ISA="sse9") == "True True"
