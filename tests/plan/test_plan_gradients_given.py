"""The ways of giving gradients and the upstream, torch's among them."""

from __future__ import annotations

from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

import fused_penalties as fp
import plan_oracle
import values
from fused_penalties import contrib, regularizers
from plan_oracle import bits

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
W = np.array([[1, -2], [-3, 4]], np.float32)


# Against torch.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("upstream", [1.0, -2.5])
def test_autograd(dtype: str, upstream: float) -> None:
    torch = pytest.importorskip("torch")
    arrays = [values.make("normal", dtype, 300, seed).reshape(15, 20) for seed in range(3)]
    mixture = [L1(0.1), contrib.l2_regularizer(0.2), L1L2(0.1, 0.3)]
    tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
    a, b, c = tensors
    loss = 0.1 * a.abs().sum() + 0.2 * (b * b).sum() / 2
    loss = upstream * (loss + 0.1 * c.abs().sum() + 0.3 * (c * c).sum())
    loss.backward()
    grads = [torch.zeros_like(x) for x in tensors]
    with torch.no_grad():
        fp.Plan(tensors, mixture).add_grad(grads, upstream)
    epsilon = np.finfo(dtype).eps
    for x, got in zip(tensors, grads, strict=True):
        np.testing.assert_allclose(got.numpy(), x.grad.numpy(), rtol=4 * epsilon, atol=0.0)


def test_torch_gradients_accumulate() -> None:
    """Into `parameter.grad`, beside that of the loss, as autograd would have added it."""
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        layer = torch.nn.Linear(30, 20).to(dtype)
        layer(torch.ones(2, 30, dtype=dtype)).sum().backward()
        parameters = list(layer.parameters())
        name = str(dtype).rpartition(".")[2]
        as_arrays = [
            [values.from_patterns(x.detach().view(unsigned(x)).numpy(), name) for x in tensors]
            for tensors in (parameters, [p.grad for p in parameters])
        ]
        wanted = [plan_oracle.gradient(w, g, 0.1, 0.3) for w, g in zip(*as_arrays, strict=True)]
        fp.Plan(parameters, L1L2(0.1, 0.3)).add_grad([p.grad for p in parameters])
        for parameter, want in zip(parameters, wanted, strict=True):
            got = parameter.grad.view(unsigned(parameter)).numpy()
            assert np.array_equal(got, want.view(got.dtype))


def unsigned(tensor: Any) -> Any:
    torch = pytest.importorskip("torch")
    return {2: torch.uint16, 4: torch.uint32}[tensor.element_size()]


# The ways of giving grads.


def test_ways_of_giving_grads() -> None:
    wanted = np.sign(W) * np.float32(0.5)
    plan = fp.Plan({"a": W, "b": W}, L1(0.5))
    a, b = np.zeros_like(W), np.zeros_like(W)
    for grads in (
        [a, b],
        (a, b),
        iter([a, b]),
        {"b": b, "a": a},
        MappingProxyType({"a": a, "b": b}),
    ):
        a[...], b[...] = 0, 1
        plan.add_grad(grads)
        assert np.array_equal(a, wanted)
        assert np.array_equal(b, wanted + 1)
    for weights in (W, [W], {"w": W}, memoryview(W)):
        for grads in (a, [a]):
            a[...] = 0
            fp.Plan(weights, L1(0.5)).add_grad(grads)
            assert np.array_equal(a, wanted)


@pytest.mark.parametrize(
    "upstream",
    [
        -2,
        -2.0,
        Fraction(-2),
        np.float32(-2),
        np.int8(-2),
        np.array(-2.0),
        np.array(-2, ">i4"),
        values.make("zeros", "bfloat16", 1)[0] - 2,
    ],
)
def test_upstream(upstream: Any) -> None:
    g = np.zeros_like(W)
    plan = fp.Plan(W, L1(0.5))
    plan.add_grad(g, upstream)
    assert g.tolist() == [[-1, 1], [1, -1]]
    assert plan.value_and_grad(g, upstream=upstream) == 5.0
    assert g.tolist() == [[-2, 2], [2, -2]]


def test_upstream_of_torch() -> None:
    torch = pytest.importorskip("torch")
    g = np.zeros_like(W)
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        fp.Plan(W, L1(0.5)).add_grad(g, torch.tensor(-2, dtype=dtype))
    assert g.tolist() == [[-3, 3], [3, -3]]


def test_buffers_without_a_penalty_need_no_grad() -> None:
    names = {"a": W, "b": W, "c": W}
    plan = fp.Plan(names, {"a": L1(0.5), "b": L1(0.0), "c": None})
    g = np.zeros_like(W)
    plan.add_grad({"a": g})
    plan.add_grad({"a": g, "b": None})
    plan.add_grad([g, None, None])
    assert g.tolist() == [[1.5, -1.5], [-1.5, 1.5]]


def test_a_grad_without_a_penalty_is_left_alone() -> None:
    g = [values.assorted("float32", 4, seed).reshape(2, 2) for seed in range(2)]
    before = [bits(x) for x in g]
    fp.Plan([W, W], [None, L1(0.0)]).add_grad(g)
    fp.Plan([W, W], L1(0.5)).add_grad(g, 0.0)
    assert fp.Plan([W, W], L1(0.5)).value_and_grad(g, 0.0) == 10.0
    assert all(np.array_equal(bits(x), b) for x, b in zip(g, before, strict=True))
