"""What a plan does to weights and grads in place: proximal steps, weight decay, clipping."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import float_environment
import fused_penalties as fp
import oracle
import plan_oracle
import values
from fused_penalties import contrib, regularizers
from layouts import LAYOUTS, cube
from oracle import hexes
from plan_cases import DECAY, PROXIMAL
from plan_oracle import bits, same_bits
from wrapped import OnlyDLPack

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
W = np.array([[1, -2], [-3, 4]], np.float32)
dtypes = pytest.mark.parametrize("dtype", oracle.DTYPES)
UPDATES: dict[str, tuple[list[Any], Callable[..., None], Callable[..., np.ndarray]]] = {
    "prox": (
        PROXIMAL,
        lambda plan, l1, l2, step: plan.prox(step),
        lambda w, l1, l2, step: plan_oracle.proximal(w, l1, l2, step),
    ),
    "decay": (
        [(0.1, l2, rate) for l2, rate in DECAY],
        lambda plan, l1, l2, rate: plan.decay(rate),
        lambda w, l1, l2, rate: plan_oracle.decayed(w, l2, rate),
    ),
}
updates = pytest.mark.parametrize("update", UPDATES)
STRENGTH = (0.1, 0.3, 0.7)


def assert_updates(
    update: str,
    weights: list[np.ndarray],
    strength: tuple[float, float, float] = STRENGTH,
    threads: int | None = None,
) -> None:
    _, call, expected = UPDATES[update]
    wanted = [expected(w, *strength) for w in weights]
    assert call(fp.Plan(weights, L1L2(*strength[:2]), threads=threads), *strength) is None
    for at, (got, want) in enumerate(zip(weights, wanted, strict=True)):
        if not same_bits(got, want):
            worst = np.flatnonzero(bits(got) != bits(want))[0]
            raise AssertionError(
                f"weights[{at}] of {got.dtype}, shape {got.shape}, {strength}: differs first at "
                f"{worst}: got {bits(got)[worst]:#x}, wanted {bits(want)[worst]:#x}"
            )


@dtypes
@updates
@pytest.mark.usefixtures("isa")
def test_strengths(update: str, dtype: str) -> None:
    for strength in UPDATES[update][0]:
        assert_updates(update, [values.assorted(dtype, 20_000)], strength)


@dtypes
@updates
@pytest.mark.usefixtures("isa")
def test_lengths(update: str, dtype: str) -> None:
    x = values.assorted(dtype, 50_000)
    assert_updates(update, [x[:length].copy() for length in values.edge_lengths(dtype)])


@dtypes
@updates
@pytest.mark.usefixtures("isa")
def test_addresses(update: str, dtype: str) -> None:
    x = values.assorted(dtype, 5000)
    assert_updates(update, [values.at_offset(x, offset) for offset in range(65)])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@updates
@pytest.mark.usefixtures("isa")
def test_every_16_bit_weight(update: str, dtype: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint64)
    for strength in UPDATES[update][0]:
        assert_updates(update, [values.from_patterns(every, dtype)], strength)


@dtypes
@updates
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("isa")
def test_layouts(update: str, dtype: str, layout: str) -> None:
    """What lies between the elements of a strided view stays as it was."""
    x = values.assorted(dtype, cube(dtype).size).reshape(cube(dtype).shape)
    # The same view of the elements' numbers says which of them it shows.
    shown = np.asarray(LAYOUTS[layout](np.arange(x.size).reshape(x.shape))).flatten()
    hidden = np.setdiff1d(np.arange(x.size), shown)
    for order in "=>" if dtype != "bfloat16" else "=":
        w = np.asarray(LAYOUTS[layout](x.astype(x.dtype.newbyteorder(order))))
        base = w if w.base is None else w.base
        if not w.flags.writeable:
            continue
        before = base.flatten()
        assert_updates(update, [w])
        if base.dtype.names:
            assert not base["tag"].any()
            before, base = before["w"], base["w"]
        if base.size == x.size:
            assert np.array_equal(bits(base)[hidden], bits(before)[hidden])


@updates
@pytest.mark.usefixtures("isa")
@given(
    made=st.lists(
        st.tuples(
            st.sampled_from(list(oracle.DTYPES)),
            st.integers(0, 400),
            st.sampled_from([1, -1, 2, -3]),
        ),
        max_size=5,
    ),
    strength=st.tuples(st.floats(0, 10), st.floats(0, 0.5), st.floats(0, 1)),
    threads=st.integers(1, 3),
)
def test_any_views(
    update: str, made: list[Any], strength: tuple[float, float, float], threads: int
) -> None:
    weights = [values.assorted(dtype, size * abs(step))[::step] for dtype, size, step in made]
    assert_updates(update, weights, strength, threads)


@updates
@pytest.mark.usefixtures("isa")
def test_any_number_of_threads(update: str) -> None:
    sizes = [1_500_011, 70_001, 9000, *range(100)]
    kept = [values.make("normal", dtype, size) for size in sizes for dtype in oracle.DTYPES]
    for threads in (None, *range(1, 9)):
        weights = [x.copy() for x in kept]
        assert_updates(update, [*weights[4:], weights[0][::-2]], STRENGTH, threads)


@pytest.mark.parametrize("mode", float_environment.MODES)
@updates
@pytest.mark.usefixtures("isa")
def test_hostile_modes(update: str, mode: str) -> None:
    _, call, expected = UPDATES[update]
    kept = [values.assorted(dtype, 60_000) for dtype in oracle.DTYPES]
    for strength in (STRENGTH, (0.1, 1e-39, 1.0)):
        wanted = [expected(w, *strength) for w in kept]
        for threads in (1, 2):
            weights = [x.copy() for x in kept]
            plan = fp.Plan(weights, L1L2(*strength[:2]), threads=threads)
            with float_environment.hostile(mode) as control:
                call(plan, *strength)
                assert float_environment.control() == control
            assert all(map(same_bits, weights, wanted))


@updates
def test_the_next_value_sees_it(update: str) -> None:
    w = W.copy()
    plan = fp.Plan([w], L1L2(0.5, 0.25))
    UPDATES[update][1](plan, *STRENGTH)
    assert hexes([plan.value()]) == hexes([fp.penalty([w], L1L2(0.5, 0.25))])


@updates
def test_torch_weights(update: str) -> None:
    torch = pytest.importorskip("torch")
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        name = str(dtype).rpartition(".")[2]
        x = values.make("normal", name, 600)
        unsigned = torch.from_numpy(x.view(f"i{x.itemsize}").copy())
        weights = unsigned.view(dtype).reshape(20, 30)
        before = x.reshape(20, 30).T
        plan = fp.Plan([torch.nn.Parameter(weights).T.detach()], L1L2(*STRENGTH[:2]))
        UPDATES[update][1](plan, *STRENGTH)
        got = values.from_patterns(unsigned.numpy().view(f"u{x.itemsize}"), name).reshape(20, 30)
        assert same_bits(got.T, UPDATES[update][2](before, *STRENGTH))


@updates
@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (-1.0, ValueError),
        (-1e-300, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        (10**400, ValueError),
        (np.ones(1), ValueError),
        (True, TypeError),
        ("0.1", TypeError),
        (None, TypeError),
        (1j, TypeError),
    ],
)
def test_what_is_no_step_or_rate(update: str, bad: Any, error: type[Exception]) -> None:
    w = W.copy()
    plan = fp.Plan([w], L1L2(0.5, 0.25))
    name = {"prox": "step", "decay": "rate"}[update]
    with pytest.raises(error, match=f"^{name}: got "):
        getattr(plan, update)(bad)
    with pytest.raises(error, match=r"^max_norm: got "):
        plan.clip_grad_norm([w], -bad if isinstance(bad, float) and bad > 0 else bad)
    assert np.array_equal(w, W)


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


UNWRITABLE = {
    "read-only": lambda: read_only(W),
    "broadcast": lambda: np.broadcast_to(np.float32(1.0), (2, 2)),
    "memoryview": lambda: memoryview(W.copy()),
    "NumPy scalar": lambda: np.float32(1.0),
    "read-only, by DLPack": lambda: OnlyDLPack(read_only(W)),
}


@updates
@pytest.mark.parametrize("what", UNWRITABLE)
def test_weights_that_cannot_be_written(update: str, what: str) -> None:
    good, bad = W.copy(), UNWRITABLE[what]()
    for weights, label in (
        ([good, bad], r"^weights\[1\]: "),
        ({"a": good, "b": bad}, r"^weights\['b'\]: "),
        (bad, r"^weights"),
    ):
        plan = fp.Plan(weights, L1L2(0.5, 0.25))
        with pytest.raises(ValueError, match=label):
            getattr(plan, update)(0.1)
        assert np.array_equal(good, W)
        plan.value()
    plan = fp.Plan([good, bad], [L1L2(0.5, 0.25), None])
    getattr(plan, update)(0.1)
    assert not np.array_equal(good, W)


# The proximal step.


@pytest.mark.usefixtures("isa")
def test_exact_zeros() -> None:
    for dtype in oracle.DTYPES.values():
        w = np.array([0.5, -0.5, 0.25, -0.25, 0.75, -0.75, 0.0, -0.0, np.nan], dtype)
        fp.Plan(w, L1(0.5)).prox(1.0)
        assert w[:8].tolist() == [0, 0, 0, 0, 0.25, -0.25, 0, 0]
        assert not np.signbit(w[:4].astype(float)).any()
        assert not np.signbit(w[6:8].astype(float)).any()
        assert np.isnan(w[8])


def test_prox_minimises() -> None:
    """No point nearby has a smaller (x - w)²/2 + step·(l1·|x| + l2·x²)."""
    w = values.make("normal", "float64", 500) * 2
    l1, l2, step = 0.7, 0.2, 1.3
    x = w.copy()
    fp.Plan(x, L1L2(l1, l2)).prox(step)

    def objective(at: np.ndarray) -> np.ndarray:
        return (at - w) ** 2 / 2 + step * (l1 * np.abs(at) + l2 * at**2)

    assert (x == 0.0).any()
    for shift in (-1e-4, 1e-4, -0.3, 0.3):
        assert (objective(x) < objective(x + shift)).all()


def test_functions_have_no_proximal_step() -> None:
    w = W.copy()
    plan = fp.Plan([w, W.copy()], [L1(0.5), np.max])
    with pytest.raises(
        TypeError, match=r"^regularizer: no proximal step is known of .*weights\[1\]"
    ):
        plan.prox(0.1)
    assert np.array_equal(w, W)


def problem() -> tuple[np.ndarray, np.ndarray]:
    """A regression with 60 features, of which ten matter."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((200, 60))
    truth = np.zeros(60)
    truth[rng.permutation(60)[:10]] = rng.standard_normal(10) * 3
    return x, x @ truth + 0.1 * rng.standard_normal(200)


def minimised(l1_ratio: float, accelerated: bool, steps: int) -> np.ndarray:
    """scikit-learn's ElasticNet with alpha 0.1 by proximal steps, the features in two buffers."""
    x, y = problem()
    alpha = 0.1
    regularizer = contrib.l1_l2_regularizer(alpha * l1_ratio, alpha * (1.0 - l1_ratio))
    w = np.zeros(x.shape[1])
    plan = fp.Plan({"some": w[:23], "others": w[23:]}, regularizer)
    step = len(y) / np.linalg.norm(x, 2) ** 2
    ahead, before, momentum = w.copy(), w.copy(), 1.0
    for _ in range(steps):
        w[:] = ahead - step * (x.T @ (x @ ahead - y)) / len(y)
        plan.prox(step)
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2 if accelerated else 1.0
        ahead = w + (momentum - 1) / following * (w - before)
        before[:], momentum = w, following
    return w


@pytest.mark.parametrize("accelerated", [False, True], ids=["ISTA", "FISTA"])
@pytest.mark.parametrize("l1_ratio", [1.0, 0.5])
def test_like_scikit_learn(l1_ratio: float, accelerated: bool) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = problem()
    options = {"alpha": 0.1, "fit_intercept": False, "tol": 1e-14, "max_iter": 100_000}
    peer = (
        linear_model.Lasso(**options)
        if l1_ratio == 1.0
        else linear_model.ElasticNet(l1_ratio=l1_ratio, **options)
    ).fit(x, y)
    w = minimised(l1_ratio, accelerated, 3000)
    np.testing.assert_allclose(w, peer.coef_, rtol=0.0, atol=1e-6)
    assert np.array_equal(w == 0.0, peer.coef_ == 0.0)
    assert (w == 0.0).sum() >= 30


def test_exact_zeros_where_a_subgradient_finds_none() -> None:
    x, y = problem()
    proximal = minimised(1.0, False, 500)
    w = np.zeros(x.shape[1])
    plan = fp.Plan(w, L1(0.1))
    step = len(y) / np.linalg.norm(x, 2) ** 2
    for _ in range(500):
        g = x.T @ (x @ w - y) / len(y)
        plan.add_grad(g)
        w -= step * g
    assert (proximal == 0.0).sum() >= 30
    assert (w == 0.0).sum() == 0
    np.testing.assert_allclose(w, proximal, rtol=0.0, atol=0.1)  # the same problem all the same


# Weight decay.


def test_decay_three_ways() -> None:
    """torch SGD's weight_decay=s is contrib's l2(s), with the factor 1/2, is Keras' l2(s/2)."""
    torch = pytest.importorskip("torch")
    start, gradient = (values.make("normal", "float64", 300, seed) for seed in (1, 2))
    s, rate = 0.3, 0.1
    parameter = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.SGD([parameter], lr=rate, weight_decay=s)
    decayed = {"contrib": start.copy(), "keras": start.copy()}
    regularizer = {"contrib": contrib.l2_regularizer(s), "keras": L2(s / 2)}
    penalised = start.copy()
    for _ in range(5):
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        for name, w in decayed.items():
            fp.Plan(w, regularizer[name]).decay(rate)
            w -= rate * gradient
        g = gradient.copy()
        fp.Plan(penalised, regularizer["contrib"]).add_grad(g)
        penalised -= rate * g
    assert hexes(decayed["contrib"]) == hexes(decayed["keras"])
    wanted = parameter.detach().numpy()
    for w in (decayed["contrib"], penalised):
        np.testing.assert_allclose(w, wanted, rtol=1e-13, atol=1e-15)
    assert not np.allclose(wanted, start - 5 * rate * gradient, rtol=1e-3)


def test_decay_under_adam_is_adamw_and_the_penalty_is_not() -> None:
    torch = pytest.importorskip("torch")
    start = values.make("normal", "float64", 300)
    s, rate = 0.3, 0.01

    def trained(optimizer: Any, before: Any = None, grad: Any = None, **options: Any) -> np.ndarray:
        parameter = torch.nn.Parameter(torch.tensor(start))
        made = optimizer([parameter], lr=rate, **options)
        plan = fp.Plan([parameter], contrib.l2_regularizer(s))
        for step in range(5):
            parameter.grad = torch.tensor(values.make("normal", "float64", 300, 10 + step))
            if grad:
                grad(plan, [parameter.grad])
            if before:
                before(plan)
            made.step()
        return parameter.detach().numpy()

    adam, adamw = torch.optim.Adam, torch.optim.AdamW
    decayed = trained(adam, before=lambda plan: plan.decay(rate))
    penalised = trained(adam, grad=lambda plan, grads: plan.add_grad(grads))
    np.testing.assert_allclose(decayed, trained(adamw, weight_decay=s), rtol=1e-12)
    np.testing.assert_allclose(penalised, trained(adam, weight_decay=s), rtol=1e-10)
    assert np.abs(decayed - penalised).max() > 1e-3


def test_decay_of_what_has_no_l2() -> None:
    w = values.assorted("float32", 1000)
    before = bits(w)
    for regularizer in (L1(0.5), None, np.max, L2(0.0)):
        fp.Plan(w, regularizer).decay(0.5)
        assert np.array_equal(bits(w), before)


def test_decay_never_changes_signs() -> None:
    w, other = W.copy(), W.copy()
    plan = fp.Plan({"w": w, "strong": other}, {"strong": L2(2.0), "w": L2(0.5)})
    message = r"^rate: got 0\.26, and weights\['strong'\] has l2 = 2 .*wanted 2 \* rate \* l2 of at"
    with pytest.raises(ValueError, match=message):
        plan.decay(0.26)
    assert np.array_equal(w, W)
    assert np.array_equal(other, W)
    plan.decay(0.25)
    assert not other.any()
    assert np.array_equal(w, W * np.float32(0.75))


# Clipping.


def assert_clipped(grads: list[np.ndarray], max_norm: float, threads: int | None = None) -> None:
    norm = plan_oracle.norm(grads)
    wanted = [plan_oracle.clipped(g, norm, max_norm) for g in grads]
    plan = fp.Plan([np.zeros_like(g) for g in grads], L1(0.1), threads=threads)
    got = plan.clip_grad_norm(grads, max_norm)
    assert type(got) is float
    assert hexes([got]) == hexes([norm])
    for g, want in zip(grads, wanted, strict=True):
        assert same_bits(g, want)


def finite(dtype: str, count: int, seed: int = 0) -> np.ndarray:
    """Weights of any kind whose squares have a sum."""
    x = values.assorted(dtype, count, seed)
    with np.errstate(invalid="ignore"):  # of a signalling NaN
        small = np.abs(x.astype(float)) < 1e150
    x[~small] = 1
    return x


@dtypes
@pytest.mark.usefixtures("isa")
def test_clip(dtype: str) -> None:
    size = {"float16": 1e6, "bfloat16": 1e38, "float32": 1e38, "float64": 1e150}[dtype]
    for max_norm in (0.0, 1e-3, 1.0, 0.7 * size, math.inf):
        assert_clipped([finite(dtype, n, n) for n in (0, 1, 7, 1000, 50_001)], max_norm)
        assert_clipped([finite(dtype, 3000).reshape(50, 60).T, finite(dtype, 300)[::-3]], max_norm)


@pytest.mark.usefixtures("isa")
def test_clip_of_many_dtypes_and_lengths() -> None:
    for threads in (None, 1, 2, 5):
        grads = [finite(dtype, n) for dtype in oracle.DTYPES for n in (*range(70), 30_000)]
        assert_clipped(grads, 3.0, threads)


@pytest.mark.parametrize("mode", float_environment.MODES)
@pytest.mark.usefixtures("isa")
def test_clip_in_hostile_modes(mode: str) -> None:
    kept = [values.make("normal", dtype, 60_000) for dtype in oracle.DTYPES]
    norm = plan_oracle.norm(kept)
    wanted = [plan_oracle.clipped(g, norm, 1e-6) for g in kept]
    grads = [g.copy() for g in kept]
    plan = fp.Plan([np.zeros_like(g) for g in grads], None)
    with float_environment.hostile(mode) as control:
        got = plan.clip_grad_norm(grads, 1e-6)
        assert float_environment.control() == control
    assert hexes([got]) == hexes([norm])
    assert all(map(same_bits, grads, wanted))


@pytest.mark.parametrize("max_norm", [0.5, 30.0, 1e6, math.inf])
def test_clip_like_torch(max_norm: float) -> None:
    torch = pytest.importorskip("torch")
    parameters = [torch.nn.Parameter(torch.zeros(n, 7)) for n in (1, 30, 500)]
    grads = [torch.tensor(values.make("normal", "float32", p.numel())) for p in parameters]
    ours = [g.clone().reshape(p.shape) for g, p in zip(grads, parameters, strict=True)]
    for parameter, g in zip(parameters, grads, strict=True):
        parameter.grad = g.clone().reshape(parameter.shape)
    wanted = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    got = fp.Plan(parameters, None).clip_grad_norm(ours, max_norm)
    assert got == pytest.approx(float(wanted), rel=1e-6)
    for parameter, g in zip(parameters, ours, strict=True):
        np.testing.assert_allclose(g.numpy(), parameter.grad.numpy(), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("special", [np.inf, np.nan])
def test_clip_of_what_is_not_finite_is_like_torch(special: float) -> None:
    torch = pytest.importorskip("torch")
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([1.0, -2.0, special])
    ours = parameter.grad.clone()
    wanted = float(torch.nn.utils.clip_grad_norm_([parameter], 1.0))
    got = fp.Plan([parameter], None).clip_grad_norm([ours], 1.0)
    assert np.array_equal([got], [wanted], equal_nan=True)
    assert np.array_equal(ours.numpy(), parameter.grad.numpy(), equal_nan=True)


@pytest.mark.usefixtures("isa")
def test_clip_where_float16_squares_overflow() -> None:
    g = np.full(100, 6000.0, np.float16)
    assert fp.Plan([np.zeros_like(g)], None).clip_grad_norm([g], 100.0) == 60000.0
    assert np.array_equal(g, np.full(100, 10.0, np.float16))


def test_clip_of_float32_grads_of_half_precision_weights() -> None:
    w = [W.astype(np.float16), W.astype(oracle.BFLOAT16)]
    grads = [W.copy(), W.copy()]
    assert fp.Plan(w, None).clip_grad_norm(grads, 1e-3) == math.sqrt(60.0)
    wanted = plan_oracle.clipped(W, math.sqrt(60.0), 1e-3)
    assert all(same_bits(g, wanted) for g in grads)


def test_clip_writes_nothing_where_nothing_is_to_do() -> None:
    for max_norm in (math.sqrt(30.0) + 1e-3, math.inf):
        g = W.copy()
        assert fp.Plan(W, L1(0.1)).clip_grad_norm(g, max_norm) == math.sqrt(30.0)
        assert np.array_equal(g, W)
    tiny = np.full(3, 1e-42, np.float32)
    fp.Plan(tiny.copy(), None).clip_grad_norm(tiny, 1.0)
    assert np.array_equal(tiny, np.full(3, 1e-42, np.float32))


def test_clip_ignores_strengths() -> None:
    for regularizer in (None, L1(0.5), np.max, [L1(0.0), None]):
        grads = {"a": W.copy(), "b": W.copy()}
        norm = fp.Plan({"a": W, "b": W}, regularizer).clip_grad_norm(grads, 1.0)
        assert norm == math.sqrt(60.0)
        assert float(np.linalg.norm(grads["a"])) == pytest.approx(math.sqrt(0.5))


def test_clip_skips_weights_without_a_gradient() -> None:
    g = W.copy()
    assert fp.Plan([W, W], L1(0.5)).clip_grad_norm([None, g], 0.0) == math.sqrt(30.0)
    assert not g.any()
    assert fp.Plan([W], L1(0.5)).clip_grad_norm([None], 1.0) == 0.0


def test_clip_errors_leave_grads_untouched() -> None:
    good = W.copy()
    plan = fp.Plan({"a": W, "b": W}, L1(0.5))
    for bad, error in (
        (W.astype(float), TypeError),
        (np.zeros(3, np.float32), ValueError),
        (read_only(W), ValueError),
        ("text", TypeError),
    ):
        with pytest.raises(error, match=r"^grads\['b'\]: "):
            plan.clip_grad_norm({"a": good, "b": bad}, 1e-3)
        assert np.array_equal(good, W)
    with pytest.raises(ValueError, match=r"^grads: got 1; wanted one for each of 2 weights"):
        plan.clip_grad_norm([good], 1e-3)
    assert np.array_equal(good, W)
