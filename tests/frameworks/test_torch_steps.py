"""A penalty attached to an optimizer, and gradients clipped by their norm."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from fused_penalties import regularizers  # noqa: E402
from fused_penalties.torch import Penalty, clip_grad_norm_  # noqa: E402
from torch_oracle import assert_close, expression, gradients, tensors  # noqa: E402

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2


def net(dtype: Any = torch.float64) -> Any:
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.LayerNorm(5), torch.nn.Linear(5, 2)
    return torch.nn.Sequential(*layers).to(dtype)


def data(step: int, dtype: Any = torch.float64) -> Any:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(step)).to(dtype)


def matrices(model: Any) -> list[Any]:
    return [param for param in model.parameters() if param.ndim > 1]


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "Adam": lambda params: torch.optim.Adam(params, lr=0.01),
    "fused Adam": lambda params: torch.optim.Adam(params, lr=0.01, fused=True),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr=0.1),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=0.01),
    "Adafactor": lambda params: torch.optim.Adafactor(params, lr=0.01),
}


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_as_in_the_loss(optimizer: str, set_to_none: bool) -> None:
    """The same training as with the penalty written out in the loss."""
    ours, plain = net(), net()
    stepped, wanted = (OPTIMIZERS[optimizer](model.parameters()) for model in (ours, plain))
    handle = Penalty(ours, L1L2(0.01, 0.02), skip_1d=True).attach(stepped)
    for step in range(4):
        x = data(step)
        before = expression(matrices(ours), 0.01, 0.02)
        stepped.zero_grad(set_to_none)
        ours(x).square().mean().backward()
        stepped.step()
        wanted.zero_grad(set_to_none)
        (plain(x).square().mean() + expression(matrices(plain), 0.01, 0.02)).backward()
        wanted.step()
        assert_close(handle.value(), before)
        for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-13)
    assert handle.steps == 4


def test_gradients_that_are_missing_are_made() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    Penalty(model, [("0.weight|3", L1L2(0.25, 0.5)), (".*", None)]).attach(optimizer)
    model[0](data(0)).sum().backward()
    alone = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    there = model[0].weight.grad
    optimizer.step()
    assert model[0].weight.grad is there
    for (name, param), before in zip(model.named_parameters(), alone, strict=True):
        wanted = gradients([param], 0.25, 0.5)[0]
        if name == "0.weight":
            assert_close(param.grad, before + wanted)
        elif name.startswith("3"):
            assert before is None
            assert_close(param.grad, wanted)
        elif before is None:
            assert param.grad is None
        else:
            assert_close(param.grad, before)


def test_a_step_without_any_gradient_is_one_of_the_penalty() -> None:
    model = net()
    before = [param.detach().clone() for param in matrices(model)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Penalty(model, L2(0.5), skip_1d=True).attach(optimizer)
    optimizer.step()
    for param, old in zip(matrices(model), before, strict=True):
        assert_close(param, old - 0.1 * old)


def test_frozen_and_thawed_between_steps() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Penalty(model, L2(0.5), skip_1d=True).attach(optimizer)
    first, last = matrices(model)
    first.requires_grad_(False)
    kept = first.clone()
    optimizer.step()
    assert torch.equal(first, kept)
    assert first.grad is None
    first.requires_grad_(True)
    optimizer.step()
    assert_close(first, 0.9 * kept)
    model.float()
    optimizer.zero_grad()
    kept = first.detach().clone()
    optimizer.step()
    assert first.dtype == torch.float32
    assert_close(first, 0.9 * kept)
    assert last.grad.dtype == torch.float32


def test_sums_of_several_backwards() -> None:
    """The penalty is added once a step, however many gradients are accumulated."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    Penalty(model, L2(0.5)).attach(optimizer)
    for step in range(3):
        model(data(step)).sum().backward()
    alone = [param.grad.clone() for param in model.parameters()]
    optimizer.step()
    for param, before in zip(model.parameters(), alone, strict=True):
        assert_close(param.grad, before + param)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("mode", ["grad", "prox", "decay"])
def test_grad_scaler(mode: str, fused: bool) -> None:
    """Added to what is unscaled, and nothing at a step that the scaler skips."""
    ours, plain = net(torch.float32), net(torch.float32)
    stepped, wanted = (torch.optim.SGD(m.parameters(), lr=0.1, fused=fused) for m in (ours, plain))
    handle = Penalty(ours, L2(0.5), skip_1d=True).attach(stepped, mode=mode)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(5):
        x, skipped = data(step, torch.float32), step == 2
        stepped.zero_grad()
        loss = ours(x).square().mean() * (math.inf if skipped else 1.0)
        before = [param.detach().clone() for param in ours.parameters()]
        scaler.scale(loss).backward()
        scaler.step(stepped)
        scaler.update()
        if skipped:
            assert all(map(torch.equal, ours.parameters(), before))
            continue
        wanted.zero_grad()
        loss = plain(x).square().mean()
        if mode == "grad":
            loss = loss + expression(matrices(plain), 0.0, 0.5).float()
        loss.backward()
        wanted.step()
        with torch.no_grad():
            for param in matrices(plain) if mode != "grad" else ():
                param.mul_(1 / 1.1 if mode == "prox" else 0.9)
        for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert handle.steps == (5 if fused and mode == "grad" else 4)


def test_exact_zeros() -> None:
    """Proximal gradient descent of a lasso ends where scikit-learn's conditions of it hold."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 10, generator=generator, dtype=torch.float64)
    y = x[:, :3].sum(1, keepdim=True) + 0.01 * torch.randn(50, 1, generator=generator)
    model = torch.nn.Linear(10, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = Penalty(model, L1(0.1)).attach(optimizer, mode="prox")

    def slope() -> Any:
        optimizer.zero_grad()
        ((model(x) - y).square().mean() / 2).backward()
        return model.weight.grad[0]

    for _ in range(500):
        slope()
        optimizer.step()
    w, g = model.weight.detach()[0], slope()
    assert (w[3:] == 0.0).all()
    assert (g[3:].abs() <= 0.1).all()
    torch.testing.assert_close(g[:3], -0.1 * w[:3].sign(), rtol=1e-6, atol=1e-9)
    assert_close(handle.value(), 0.1 * w.abs().sum())


@pytest.mark.parametrize("mode", ["prox", "decay"])
def test_learning_rates_of_groups(mode: str) -> None:
    model = net()
    groups = [
        {"params": model[0].parameters(), "lr": 0.1},
        {"params": [*model[2].parameters(), *model[3].parameters()], "lr": torch.tensor(0.2)},
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    l1 = 0.25 if mode == "prox" else 0.0
    rules = [(lambda name, w: w.ndim < 2, None), ("^0", L1L2(l1, 0.5)), (".*", L1L2(l1, 0.25))]
    Penalty(model, rules).attach(optimizer, mode=mode)
    for rate in 0.1, 0.05:
        optimizer.param_groups[0]["lr"] = rate
        before = [param.detach().clone() for param in matrices(model)]
        rest = [param.detach().clone() for param in model.parameters() if param.ndim < 2]
        optimizer.step()
        cases = zip(matrices(model), before, (rate, 0.2), (0.5, 0.25), strict=True)
        for param, old, lr, l2 in cases:
            if mode == "decay":
                wanted = old * (1 - 2 * lr * l2)
            else:
                wanted = old.sign() * (old.abs() - lr * l1).clamp(min=0.0) / (1 + 2 * lr * l2)
            torch.testing.assert_close(param.detach(), wanted, rtol=1e-6, atol=1e-9)
        assert all(map(torch.equal, rest, [p for p in model.parameters() if p.ndim < 2]))


def test_schedule() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rule = Penalty(model, L2(0.5), skip_1d=True)
    handle = rule.attach(optimizer, schedule=lambda step: L2(0.5**step))
    for step in (0, 1, 2, 7):
        handle.steps = step
        optimizer.zero_grad()
        optimizer.step()
        for param in matrices(model):
            assert_close(param.grad, gradients([param], 0.0, 0.5**step)[0])
        assert_close(handle.value(), expression(matrices(model), 0.0, 0.5**step))
    assert handle.steps == 8


def test_value_before_the_first_step_and_after_removal() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rule = Penalty(model, L2(0.5))
    handle = rule.attach(optimizer)
    assert_close(handle.value(), expression(list(model.parameters()), 0.0, 0.5))
    assert not handle.value().requires_grad
    with pytest.raises(ValueError, match="already"):
        rule.attach(optimizer)
    handle.remove()
    handle.remove()
    optimizer.step()
    assert all(param.grad is None for param in model.parameters())
    rule.attach(optimizer)
    optimizer.step()
    assert all(param.grad is not None for param in model.parameters())


def test_nothing_is_kept_alive() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Penalty(model, L2(0.5)).attach(optimizer)
    optimizer.step()
    gone = weakref.ref(model[0].weight), weakref.ref(optimizer)
    del model, optimizer
    gc.collect()
    assert [one() for one in gone] == [None, None]


def test_autograd_sees_that_weights_have_changed() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(data(0)).square().sum()
    Penalty(model, L1(0.5)).attach(optimizer, mode="prox")
    optimizer.step()  # without gradients: only the proximal step writes
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_refused_when_attached() -> None:
    model = net()
    rule = Penalty(model, L1L2(0.25, 0.5))
    params = list(model.parameters())
    for optimizer, kwargs, error, says in (
        (torch.optim.LBFGS(params), {}, TypeError, "LBFGS"),
        (params, {}, TypeError, "Optimizer"),
        (torch.optim.SGD(params[1:], lr=0.1), {}, ValueError, "0.weight"),
        (torch.optim.SGD(params, lr=0.1), {"mode": "l1"}, ValueError, "'prox'"),
        (torch.optim.SGD(params, lr=0.1), {"mode": "decay"}, ValueError, "L1"),
    ):
        with pytest.raises(error, match=says):
            rule.attach(optimizer, **kwargs)
    optimizer = torch.optim.SGD(params, lr=0.1)
    with pytest.raises(TypeError, match="no gradient is known"):
        Penalty(model, lambda w: w.square().sum()).attach(optimizer)
    assert not optimizer._optimizer_step_pre_hooks


def test_refused_at_a_step_which_then_does_nothing() -> None:
    model = net()
    params = list(model.parameters())
    optimizer = torch.optim.SGD(params, lr=0.1)
    rule = Penalty(model, L2(0.5))
    handle = rule.attach(optimizer)

    def refused(error: type[Exception], says: str, *args: Any) -> None:
        before = [param.detach().clone() for param in params]
        grads = [None if param.grad is None else param.grad.clone() for param in params]
        with pytest.raises(error, match=says):
            optimizer.step(*args)
        assert all(map(torch.equal, params, before))
        for param, grad in zip(params, grads, strict=True):
            assert (param.grad is None) == (grad is None)
            assert grad is None or torch.equal(param.grad.to_dense(), grad.to_dense())

    refused(TypeError, "closure", lambda: None)
    params[0].grad = torch.ones_like(params[0])
    params[3].grad = torch.ones_like(params[3]).to_sparse()
    refused(TypeError, "sparse")
    optimizer.zero_grad()
    rule.set_regularizer(lambda step: lambda w: w.sum(), step=0)
    refused(TypeError, "no gradient is known")
    rule.set_regularizer(L2(0.5))
    handle.remove()
    handle = rule.attach(optimizer, mode="decay")
    optimizer.param_groups[0]["lr"] = 2.0
    before = [param.detach().clone() for param in params]
    with pytest.raises(ValueError, match="change sign"):
        optimizer.step()
    assert all(map(torch.equal, params, before))


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
GRADS = [(7, 5), (), (3,), (0, 4), (2, 3, 4)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e9, math.inf])
def test_clip_as_torch_does(dtype: Any, max_norm: float) -> None:
    ours, theirs = tensors(dtype, *GRADS), tensors(dtype, *GRADS)
    for params in ours, theirs:
        grads = tensors(dtype, *GRADS, seed=1)
        for param, grad in zip(params[1:], grads[1:], strict=True):
            param.grad = grad.detach().clone()
    norm = clip_grad_norm_(ours, max_norm)
    assert norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    wanted = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    narrow = dtype in (torch.float16, torch.bfloat16)
    rtol = 1e-2 if narrow else 1e-6
    torch.testing.assert_close(norm.double(), wanted.double(), rtol=rtol, atol=0.0)
    assert ours[0].grad is None
    for p, q in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=rtol, atol=0.0)


def test_clip_does_not_overflow() -> None:
    weight = torch.ones(4, dtype=torch.float16, requires_grad=True)
    weight.grad = torch.full((4,), 30000.0, dtype=torch.float16)
    assert clip_grad_norm_(weight, 1.0).item() == 60000.0
    torch.testing.assert_close(weight.grad, torch.full_like(weight.grad, 0.5), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("norm_type", [1.0, 3.0, math.inf, 0.0])
def test_clip_what_is_left_to_torch(norm_type: float) -> None:
    ours, theirs = tensors(torch.float32, (4, 3), (5,)), tensors(torch.float32, (4, 3), (5,))
    for params in ours, theirs:
        for param in params:
            param.grad = param.detach() + 1.0
    got = clip_grad_norm_(ours, 0.5, norm_type)
    assert torch.equal(got, torch.nn.utils.clip_grad_norm_(theirs, 0.5, norm_type))
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p.grad, q.grad)
    assert clip_grad_norm_([], 1.0).item() == 0.0
    assert clip_grad_norm_(tensors(torch.float32, (3,)), 1.0).item() == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_clip_not_finite(bad: float) -> None:
    (weight,) = tensors(torch.float32, (3,))
    weight.grad = torch.tensor([1.0, bad, 2.0])
    with pytest.raises(RuntimeError, match="non-finite"):
        clip_grad_norm_(weight, 1.0, error_if_nonfinite=True)
    assert weight.grad[0] == 1.0
    other = weight.grad.clone()
    norm = clip_grad_norm_(weight, 1.0)
    assert norm.isnan() if math.isnan(bad) else norm == math.inf
    (theirs,) = tensors(torch.float32, (3,))
    theirs.grad = other
    torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    torch.testing.assert_close(weight.grad, theirs.grad, equal_nan=True)


def test_clip_is_seen_by_autograd() -> None:
    (weight,) = tensors(torch.float32, (3,))
    weight.grad = torch.ones(3)
    leaf = torch.ones(3, requires_grad=True)
    product = (leaf * weight.grad).sum()
    clip_grad_norm_(weight, 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_clip_refuses() -> None:
    (weight,) = tensors(torch.float32, (3,))
    weight.grad = torch.ones(3)
    with pytest.raises(ValueError, match="max_norm"):
        clip_grad_norm_(weight, -1.0)
    assert weight.grad.tolist() == [1.0, 1.0, 1.0]
