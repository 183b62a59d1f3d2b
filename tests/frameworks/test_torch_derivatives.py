"""The operation in torch: its value, and its derivatives by every way that torch has."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from fused_penalties import contrib, regularizers  # noqa: E402
from fused_penalties.torch import _ops, penalty  # noqa: E402
from torch_oracle import assert_close, expression, gradients, tensors  # noqa: E402

# torch's own: of torch.compile, which makes an object of autograd's functions, and of forward mode.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]

L2, L1L2 = regularizers.L2, regularizers.L1L2
SHAPES = [(7, 5), (), (3,), (2, 3, 4), (1000,), (0, 4)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@dtypes
@pytest.mark.parametrize(
    ("l1", "l2"), [(0.25, 0.0), (0.0, 0.5), (0.25, 0.5), (0.1, 0.3), (0.0, 0.0)]
)
def test_value_and_gradient(dtype: Any, l1: float, l2: float) -> None:
    weights = tensors(dtype, *SHAPES)
    value = penalty(weights, L1L2(l1, l2))
    assert value.shape == ()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(value, expression(weights, l1, l2))
    (3.0 * value).backward()
    for weight, wanted in zip(weights, gradients(weights, l1, l2, 3.0), strict=True):
        assert weight.grad.dtype == dtype
        assert_close(weight.grad, wanted)


def test_mixed_dtypes_and_coefficients() -> None:
    each = (torch.float16, torch.float32, torch.float64, torch.bfloat16)
    weights = [tensors(dtype, (5, 3))[0] for dtype in each]
    rules = [L1L2(0.25, 0.5), None, L1L2(0.0, 0.125), L1L2(1.0, 0.0)]
    l1, l2 = [0.25, 0.0, 0.0, 1.0], [0.5, 0.0, 0.125, 0.0]
    value = penalty(weights, rules)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, expression(weights, l1, l2), rtol=1e-6, atol=0.0)
    value.backward()
    for weight, wanted, rule in zip(weights, gradients(weights, l1, l2), rules, strict=True):
        if rule is None:
            assert weight.grad is None
        else:
            assert_close(weight.grad, wanted)


@pytest.mark.parametrize(("most", "parts"), [(1, 1), (2, 2), (1000, 5)])
def test_gradients_that_are_asked_for_part_by_part(
    most: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight may be in two parts, one that is not trained is in none."""
    shapes = [(7, 5), (3,), (2, 3, 4), (), (100,), (11,)]
    l1, l2 = [0.25, 0.0, 0.5, 1.0, 0.0, 0.125], [0.5, 0.25, 0.0, 0.0, 1.0, 0.125]
    weights = tensors(torch.float32, *shapes)
    weights[1].requires_grad_(False)
    weights[5] = weights[0]
    rules = [L1L2(*pair) for pair in zip(l1, l2, strict=True)]
    whole = penalty(weights, rules)
    asked = []
    gradient = _ops._wanted_gradients
    monkeypatch.setattr(_ops, "_PART", 1)
    monkeypatch.setattr(_ops, "_MOST_PARTS", most)
    monkeypatch.setattr(
        _ops, "_wanted_gradients", lambda *args: asked.append(args[1]) or gradient(*args)
    )
    value = penalty(weights, rules)
    assert torch.equal(value, whole)
    (3.0 * value).backward()
    (3.0 * penalty(weights, rules)).backward()
    assert len(asked) == 2 * parts
    wanted = [2 * one for one in gradients(weights, l1, l2, 3.0)]
    assert weights[1].grad is None
    assert_close(weights[0].grad, wanted[0] + wanted[5])
    for k in 2, 3, 4:
        assert_close(weights[k].grad, wanted[k])
    trained = [weights[k] for k in (0, 2, 4)]
    slopes = torch.autograd.grad(penalty(weights, rules) ** 2, trained, create_graph=True)
    second = torch.autograd.grad(slopes[2].sum(), trained[2])[0]
    # Of p(w)**2 with p' = 2 * w: 2 * p' * sum(p') + 2 * p * 2.
    slope = 2.0 * weights[4].double()
    assert_close(second, 2.0 * slope * slope.sum() + 4.0 * expression(weights, l1, l2))


def test_convention_of_contrib_has_the_half() -> None:
    (weight,) = tensors(torch.float64, (9,))
    value = penalty(weight, contrib.l2_regularizer(0.5))
    assert_close(value, weight.square().sum() / 4)


def test_layouts() -> None:
    """Gradients lie as the weights do, whatever the order of the axes."""
    (whole,) = tensors(torch.float32, (4, 6, 5, 5))
    base = whole.detach()
    weights = [
        base.to(memory_format=torch.channels_last),
        base.transpose(0, 2),
        base[:, ::2],
        base[0, 0, 0].expand(3, 5),
    ]
    weights = [weight.requires_grad_() for weight in weights]
    value = penalty(weights, L1L2(0.25, 0.5))
    assert_close(value, expression(weights, 0.25, 0.5))
    value.backward()
    for weight, wanted in zip(weights, gradients(weights, 0.25, 0.5), strict=True):
        assert_close(weight.grad, wanted)
    assert weights[0].grad.is_contiguous(memory_format=torch.channels_last)


def test_lazily_negated_and_intermediate_weights() -> None:
    (leaf,) = tensors(torch.float64, (4, 4))
    for change in (torch.tanh, torch._neg_view, lambda w: -(w.square())):
        (wanted,) = torch.autograd.grad(expression([change(leaf)], 0.25, 0.5), leaf)
        (got,) = torch.autograd.grad(penalty([change(leaf)], L1L2(0.25, 0.5)), leaf)
        torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-15)


def test_listed_twice_counts_twice() -> None:
    (weight,) = tensors(torch.float64, (5,))
    value = penalty([weight, weight], L1L2(0.25, 0.5))
    assert_close(value, 2 * expression([weight], 0.25, 0.5))
    value.backward()
    assert_close(weight.grad, gradients([weight], 0.5, 1.0)[0])


def test_what_needs_no_gradient_gets_none() -> None:
    weights = tensors(torch.float32, (5,), (6,), (7,))
    weights[1].requires_grad_(False)
    value = penalty(weights, [L1L2(0.25, 0.5), L1L2(0.5, 0.5), L1L2(1.0, 0.0)])
    assert_close(value, expression(weights, [0.25, 0.5, 1.0], [0.5, 0.5, 0.0]))
    value.backward()
    assert weights[1].grad is None
    wanted = gradients(weights, [0.25, 0.5, 1.0], [0.5, 0.5, 0.0])
    assert_close(weights[0].grad, wanted[0])
    assert_close(weights[2].grad, wanted[2])
    with torch.no_grad():
        assert not penalty(weights, L1L2(0.25, 0.5)).requires_grad


def test_no_weights() -> None:
    assert penalty([], L1L2(0.25, 0.5)).item() == 0.0
    assert penalty({}, regularizers.L2(0.5)).shape == ()
    assert penalty(tensors(torch.float32, (3,)), None).item() == 0.0
    (empty,) = tensors(torch.float32, (0,))
    value = penalty(empty, L1L2(0.25, 0.5))
    value.backward()
    assert value.item() == 0.0
    assert empty.grad.shape == (0,)


def test_weights_that_change_are_seen() -> None:
    (weight,) = tensors(torch.float32, (5, 3))
    for change in (
        lambda: weight.data.mul_(2.0),
        lambda: setattr(weight, "data", weight.data.t()),  # the same memory, other strides
        lambda: setattr(weight, "data", weight.data[:2]),
        lambda: setattr(weight, "data", torch.ones(4)),
        lambda: setattr(weight, "data", weight.data.double()),
        lambda: weight.data.resize_(100).fill_(0.5),
    ):
        change()
        weight.grad = None
        assert_close(penalty([weight], L1L2(0.25, 0.5)), expression([weight], 0.25, 0.5))
        penalty([weight], L1L2(0.25, 0.5)).backward()
        assert_close(weight.grad, gradients([weight], 0.25, 0.5)[0])


def test_not_finite() -> None:
    weights = torch.tensor([1.0, math.inf, math.nan, -0.0], requires_grad=True)
    assert math.isnan(penalty(weights, L1L2(0.25, 0.0)).item())
    penalty(weights, L1L2(0.25, 0.5)).backward()
    grad = weights.grad.tolist()
    assert grad[:2] == [1.25, math.inf]
    assert math.isnan(grad[2])
    assert grad[3] == 0.0
    for upstream in (0.0, math.inf, math.nan):
        weights.grad = None
        (penalty(weights[:1], L1L2(0.25, 0.5)) * upstream).backward()
        wanted = 1.25 * upstream
        got = weights.grad[0].item()
        assert got == wanted or (math.isnan(got) and math.isnan(wanted))


@pytest.mark.parametrize(("l1", "l2"), [(0.25, 0.5), (0.0, 0.5), (0.25, 0.0)])
def test_gradcheck(l1: float, l2: float) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = [
        (torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5).requires_grad_()
        for shape in ((3, 4), (), (5,))
    ]

    def f(*given: Any) -> Any:
        return penalty(given, L1L2(l1, l2)) ** 2

    assert torch.autograd.gradcheck(f, weights, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, weights)


@dtypes
def test_gradient_penalty(dtype: Any) -> None:
    """Double backward, as a loss on gradients takes it: create_graph uses plain operations."""
    weights = tensors(dtype, (4, 3), (5,))
    grads = torch.autograd.grad(2.0 * penalty(weights, L1L2(0.25, 0.5)), weights, create_graph=True)
    for got, wanted in zip(grads, gradients(weights, 0.25, 0.5, 2.0), strict=True):
        assert got.dtype == dtype
        assert_close(got, wanted)
    again = torch.autograd.grad(sum(grad.float().square().sum() for grad in grads), weights)
    for got, weight in zip(again, weights, strict=True):
        g = 2.0 * (0.25 * weight.double().sign() + weight.double())
        torch.testing.assert_close(got.double(), 4.0 * g, rtol=2e-2, atol=1e-2)


def _ours(weights: Any) -> Any:
    return penalty(weights, L1L2(0.25, 0.5)).sin()


def _plain(weights: Any) -> Any:
    return expression(weights, 0.25, 0.5).sin()


def _assert_same(got: Any, wanted: Any) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


def test_functional_transforms() -> None:
    weights = [w.detach() for w in tensors(torch.float64, (3, 4), (5,), (2, 2, 2))]
    directions = [w.detach() for w in tensors(torch.float64, (3, 4), (5,), (2, 2, 2), seed=1)]
    func = torch.func
    _assert_same(func.grad(_ours)(weights), func.grad(_plain)(weights))
    _assert_same(func.grad_and_value(_ours)(weights), func.grad_and_value(_plain)(weights))
    one = torch.ones((), dtype=torch.float64)
    _assert_same(func.vjp(_ours, weights)[1](one), func.vjp(_plain, weights)[1](one))
    moved = (weights,), (directions,)
    _assert_same(func.jvp(_ours, *moved), func.jvp(_plain, *moved))
    for outer in (func.jacfwd, func.jacrev):
        _assert_same(
            outer(func.grad(lambda w: _ours([w])))(weights[0]),
            outer(func.grad(lambda w: _plain([w])))(weights[0]),
        )
    _assert_same(
        func.hessian(lambda w: _ours([w]))(weights[1]),
        func.hessian(lambda w: _plain([w]))(weights[1]),
    )

    def some(f: Any, one: Any) -> Any:  # one of several moves
        return func.jvp(lambda w: f([w, *weights[1:]]), (weights[0],), (one,))

    _assert_same(some(_ours, directions[0]), some(_plain, directions[0]))


def test_batches_of_models() -> None:
    stacked = [w.detach() for w in tensors(torch.float64, (6, 3, 4), (6,), (5, 6))]
    single = tensors(torch.float64, (3, 3))[0].detach()
    in_dims = ([0, 0, 1, None],)
    given = [*stacked, single]
    for transform in (lambda f: f, torch.func.grad):
        _assert_same(
            torch.func.vmap(transform(_ours), in_dims=in_dims)(given),
            torch.func.vmap(transform(_plain), in_dims=in_dims)(given),
        )


def test_forward_mode_without_func() -> None:
    (weight,) = tensors(torch.float64, (4,))
    (direction,) = (w.detach() for w in tensors(torch.float64, (4,), seed=1))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(weight.detach(), direction)
        got = torch.autograd.forward_ad.unpack_dual(_ours([dual])).tangent
        wanted = torch.autograd.forward_ad.unpack_dual(_plain([dual])).tangent
    assert wanted
    _assert_same(got, wanted)


@pytest.mark.parametrize("part", [1, 1 << 20])
def test_a_loss_is_added_in_place(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the penalty, of one part or several, as `loss += ...` does."""
    monkeypatch.setattr(_ops, "_PART", part)
    weights = tensors(torch.float64, (7,), (3, 2))
    loss = penalty(weights, L1L2(0.25, 0.5))
    loss += weights[0].square().sum()
    loss *= 2.0
    loss.backward()
    slopes = gradients(weights, 0.25, 0.5, 2.0)
    assert_close(weights[0].grad, slopes[0] + 4.0 * weights[0].detach())
    assert_close(weights[1].grad, slopes[1])


def test_forward_over_reverse() -> None:
    """The product of the Hessian and a direction: tangents pass through backward."""
    from torch.autograd import forward_ad

    (weight,) = tensors(torch.float64, (9,))
    direction = torch.linspace(-1.0, 1.0, 9, dtype=torch.float64)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(weight.detach().requires_grad_(), direction)
        (slope,) = torch.autograd.grad(penalty(dual, L2(0.5)), dual)
        assert_close(forward_ad.unpack_dual(slope).tangent, direction)
    upstream = torch.tensor(3.0, dtype=torch.float64)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(upstream, torch.ones_like(upstream))
        (slope,) = torch.autograd.grad(penalty(weight, L2(0.5)), weight, dual)
        assert_close(forward_ad.unpack_dual(slope).tangent, weight.detach())


def test_batches_of_upstream_gradients() -> None:
    weights = tensors(torch.float64, (7,), (3, 2))
    factors = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    slopes = gradients(weights, 0.25, 0.5)

    def check(found: Any) -> None:
        for got, slope in zip(found, slopes, strict=True):
            assert_close(got, torch.stack([factor * slope for factor in factors]))

    value = penalty(weights, L1L2(0.25, 0.5))
    check(torch.autograd.grad(value, weights, factors, retain_graph=True, is_grads_batched=True))
    check(
        torch.func.vmap(lambda one: torch.autograd.grad(value, weights, one, retain_graph=True))(
            factors
        )
    )


def test_frozen_tensors_may_change_before_backward() -> None:
    weights = tensors(torch.float32, (7,), (3, 2))
    frozen = torch.ones(5)
    with torch.inference_mode():
        inference = torch.ones(4)
    value = penalty([weights[0], frozen, inference, weights[1]], L1L2(0.25, 0.5))
    frozen.add_(1.0)
    value.backward()
    for weight, slope in zip(weights, gradients(weights, 0.25, 0.5), strict=True):
        assert_close(weight.grad, slope)


def test_traced_with_symbolic_shapes() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    def slope(weight: Any) -> Any:
        leaf = weight.detach().requires_grad_()
        return torch.autograd.grad(penalty([leaf], L1L2(0.25, 0.5)), leaf)[0]

    traced = make_fx(slope, tracing_mode="symbolic")(torch.ones(5, 3))
    (weight,) = tensors(torch.float32, (7, 2))
    assert_close(traced(weight.detach()), gradients([weight], 0.25, 0.5)[0])
