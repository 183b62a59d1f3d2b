"""Clipping by the norm of all gradients, as torch has it."""

from __future__ import annotations

import math

import numpy as np
import pytest

import float_environment
import fused_penalties as fp
import oracle
import plan_oracle
import values
from fused_penalties import regularizers
from layouts import read_only
from oracle import hexes
from plan_oracle import same_bits

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
W = np.array([[1, -2], [-3, 4]], np.float32)
dtypes = pytest.mark.parametrize("dtype", oracle.DTYPES)


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
