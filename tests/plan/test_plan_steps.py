"""What proximal steps and weight decay are for: exact zeros, minima, and decay as torch has it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import fused_penalties as fp
import oracle
import values
from fused_penalties import contrib, regularizers
from oracle import hexes
from plan_oracle import bits

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
W = np.array([[1, -2], [-3, 4]], np.float32)


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
