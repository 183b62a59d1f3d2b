"""Penalty: which parameters of a model count, under which rules, also when the model changes."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest

import fresh

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402

from fused_penalties import regularizers  # noqa: E402
from fused_penalties.torch import Penalty, penalty  # noqa: E402
from torch_oracle import assert_close, expression, gradients  # noqa: E402

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2


class Net(torch.nn.Module):
    """With norm layers, a tied weight, and names as timm's models have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(7, 5)
        self.pos_embed = torch.nn.Parameter(torch.randn(1, 7, 5))
        self.bn1 = torch.nn.BatchNorm1d(5)
        self.body = torch.nn.Linear(5, 5)
        self.head = torch.nn.Linear(5, 7)
        self.head.weight = self.embed.weight

    def forward(self, x: Any) -> Any:
        h = self.bn1(self.embed(x) + self.pos_embed[0, : len(x)])
        return self.head(torch.tanh(self.body(h)))

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token"}


def weights_of(net: Any, *names: str) -> list[Any]:
    return [net.get_parameter(name) for name in names]


def assert_is(rule: Any, weights: list[Any], l1: Any, l2: Any) -> None:
    """The value, the names, and the gradient of these parameters and no others."""
    model = rule._model[0]
    for param in model.parameters():
        param.grad = None
    value = rule()
    assert_close(value, expression(weights, l1, l2))
    value.backward()
    for weight, wanted in zip(weights, gradients(weights, l1, l2), strict=True):
        assert_close(weight.grad, wanted)
    with_grads = {id(p) for p in model.parameters() if p.grad is not None}
    assert with_grads == {id(weight) for weight in weights}
    named = rule.named()
    assert list(named) == [n for n, p in model.named_parameters() if id(p) in with_grads]
    torch.testing.assert_close(sum(named.values()), value.detach())


def test_all_parameters_tied_ones_once() -> None:
    net = Net()
    assert_is(Penalty(net, L1L2(0.25, 0.5)), list(net.parameters()), 0.25, 0.5)
    assert len(list(Penalty(net, L2(0.5)).parameters())) == 0
    assert Penalty(net, L2(0.5)).state_dict() == {}


def test_rules() -> None:
    net = Net()
    rules = [(lambda name, w: w.ndim < 2, None), ("embed", L1(0.25)), (".*", L2(0.5))]
    weights = weights_of(net, "pos_embed", "embed.weight", "body.weight")
    assert_is(Penalty(net, rules), weights, [0.25, 0.25, 0.0], [0.0, 0.0, 0.5])


def test_without_biases_and_norm_layers() -> None:
    net = Net()
    weights = weights_of(net, "pos_embed", "embed.weight", "body.weight")
    assert_is(Penalty(net, L2(0.5), skip_1d=True), weights, 0.0, 0.5)
    weights = weights_of(net, "embed.weight", "body.weight")
    assert_is(Penalty(net, L2(0.5), True, no_weight_decay=True), weights, 0.0, 0.5)
    rule = Penalty(net, L2(0.5), no_weight_decay=["*.bias", "bn1.*", "embed.weight"])
    assert_is(rule, weights_of(net, "pos_embed", "body.weight"), 0.0, 0.5)
    rule = Penalty(net, {"^embed": L1(0.5), ".": L2(0.5)}, skip_1d=True)
    weights = weights_of(net, "pos_embed", "embed.weight", "body.weight")
    assert_is(rule, weights, [0.0, 0.5, 0.0], [0.5, 0.0, 0.5])


def test_frozen_as_long_as_they_are() -> None:
    net = Net()
    net.embed.weight.requires_grad_(False)
    rule = Penalty(net, L2(0.5), skip_1d=True)
    assert_is(rule, weights_of(net, "pos_embed", "body.weight"), 0.0, 0.5)
    net.embed.weight.requires_grad_(True)
    net.body.requires_grad_(False)
    assert_is(rule, weights_of(net, "pos_embed", "embed.weight"), 0.0, 0.5)
    net.requires_grad_(False)
    assert rule().item() == 0.0
    assert not rule().requires_grad
    assert rule.named() == {}


def test_parameters_that_are_moved_converted_or_replaced() -> None:
    net = Net()
    rule = Penalty(net, L1L2(0.25, 0.5), skip_1d=True)
    names = "pos_embed", "embed.weight", "body.weight"
    assert_is(rule, weights_of(net, *names), 0.25, 0.5)
    net.double()
    assert rule().dtype == torch.float64
    assert_is(rule, weights_of(net, *names), 0.25, 0.5)
    state = {name: value * 2 for name, value in net.state_dict().items()}
    net.load_state_dict(state, assign=True)
    assert net.head.weight is not net.embed.weight  # assigning unties them
    assert_is(rule, weights_of(net, *names, "head.weight"), 0.25, 0.5)
    net.body = torch.nn.Linear(5, 3).double()
    assert_is(Penalty(net, L2(0.5)), list(net.parameters()), 0.0, 0.5)


def test_other_strengths() -> None:
    net = Net()
    rule = Penalty(net, L2(0.5))
    rule.set_regularizer(L1(0.25))
    assert_is(rule, list(net.parameters()), 0.25, 0.0)
    rule.set_regularizer(lambda step: L2(0.5**step), step=2)
    assert_is(rule, list(net.parameters()), 0.0, 0.25)
    with pytest.raises(ValueError, match="nothing like it"):
        rule.set_regularizer({"nothing like it": None, ".*": L1(1.0)})
    with pytest.raises(TypeError, match="schedule"):
        rule.set_regularizer(L1(1.0), step=3)
    assert_is(rule, list(net.parameters()), 0.0, 0.25)


def test_what_it_says() -> None:
    net = Net()
    net.pos_embed.requires_grad_(False)
    text = repr(Penalty(net, L2(0.5), skip_1d=True))
    assert "L2(l2=0.5): 2 tensors, 60 elements" in text
    assert "None: 4 tensors, 22 elements" in text
    assert "frozen: 1 tensors, 35 elements" in text


def test_functions_are_differentiated_by_torch() -> None:
    net = Net()
    rules = {
        "^body.weight": lambda w: (w @ w.T - torch.eye(5)).square().sum(),
        "^body.bias": lambda w: None,
        "^embed": L2(0.5),
    }
    rule = Penalty(net, rules)
    body = net.body.weight.detach().double().requires_grad_()
    wanted = (body @ body.T - torch.eye(5)).square().sum()
    rule().backward()
    assert_close(rule(), wanted + expression([net.embed.weight], 0.0, 0.5))
    wanted.backward()
    torch.testing.assert_close(net.body.weight.grad.double(), body.grad, rtol=1e-5, atol=1e-5)
    assert_close(net.embed.weight.grad, gradients([net.embed.weight], 0.0, 0.5)[0])
    assert net.body.bias.grad is None
    assert list(rule.named()) == ["embed.weight", "body.weight"]
    for function, error in (
        (regularizers.OrthogonalRegularizer(), TypeError),  # a NumPy scalar: no gradient
        (lambda w: 3.0, TypeError),
        (lambda w: w.sum(0), ValueError),
    ):
        with pytest.raises(error, match=r"params\['body.weight'\]"):
            Penalty(net, {"body.weight": function})()


def test_copies_and_files() -> None:
    """A copy of a model that has its penalty in it has one of its own parameters."""
    net = Net()
    net.rule = Penalty(net, L2(0.5), skip_1d=True)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for param in net.parameters():
            param.zero_()
    assert net.rule().item() == 0.0
    weights = weights_of(other, "pos_embed", "embed.weight", "body.weight")
    assert_close(other.rule(), expression(weights, 0.0, 0.5))
    file = io.BytesIO()
    torch.save(other, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    torch.testing.assert_close(loaded.rule(), other.rule())
    with torch.no_grad():
        loaded.body.weight.zero_()
    assert loaded.rule() < other.rule()
    assert set(net.state_dict()) == set(Net().state_dict())


def test_memory_goes_with_the_model() -> None:
    import gc

    from fused_penalties.torch import _plans

    _plans._remembered.clear()
    for _ in range(3):
        net = Net()
        Penalty(net, L2(0.5))().backward()
        assert len(_plans._remembered) == 1
        del net
        gc.collect()
        assert not _plans._remembered


@pytest.mark.parametrize("move", ["data", "half", "to"])
def test_memory_that_a_living_model_left_is_not_kept(move: str) -> None:
    """A parameter stays the same object when it is moved or converted."""
    from fused_penalties.torch import _plans

    _plans._remembered.clear()
    net = torch.nn.Linear(50, 50)
    left = []
    for turn in range(4):
        Penalty(net, L2(0.5))().backward()
        assert len(_plans._remembered) == 1
        left.append(StorageWeakRef(net.weight.untyped_storage()))
        net.zero_grad()
        if move == "data":
            net.weight.data = torch.ones(50, 50)
        elif move == "half":
            net.to(torch.bfloat16 if turn % 2 else torch.float16)
        else:
            net.to("meta").to_empty(device="cpu")
            torch.nn.init.ones_(net.weight)
            torch.nn.init.ones_(net.bias)
        assert_close(Penalty(net, L2(0.5))(), expression(list(net.parameters()), 0.0, 0.5))
        assert all(storage.expired() for storage in left)


def test_a_tensor_that_goes_during_a_call() -> None:
    from fused_penalties.torch import _plans

    _plans._remembered.clear()
    tensors = [torch.ones(5)]
    _plans.with_bound(tensors, lambda bound: tensors.clear())
    assert not _plans._remembered


def test_plans_are_remembered_up_to_a_number() -> None:
    from fused_penalties.torch import _plans

    _plans._remembered.clear()
    nets = [Net() for _ in range(_plans._MOST + 10)]
    for net in nets:
        Penalty(net, L2(0.5))()
    assert len(_plans._remembered) == _plans._MOST
    known = list(_plans._remembered.values())
    Penalty(nets[-1], L1(0.5))()
    assert list(map(id, _plans._remembered.values())) == list(map(id, known))


def test_memory_that_is_handed_to_another() -> None:
    """A storage that is given other memory leaves its old place to somebody else.

    In a Python of its own, where memory that is free comes to whoever asks next.
    """
    code = """
        import torch
        from fused_penalties.regularizers import L1
        from fused_penalties.torch import penalty

        taken = 0
        for size in range(1000, 1100):
            weight = torch.ones(size)
            assert penalty([weight], L1(1.0)).item() == size
            place, storage = weight.data_ptr(), weight.untyped_storage()
            storage.resize_(0)
            other = torch.full((size,), 3.0)
            taken += other.data_ptr() == place
            assert penalty([other], L1(1.0)).item() == 3.0 * size
            storage.resize_(4 * size)
            weight.fill_(2.0)
            assert penalty([weight], L1(1.0)).item() == 2.0 * size
        print(taken)
    """
    assert int(fresh.output(code)) > 0


def test_in_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    net = Net()

    def work(k: int) -> None:
        l2 = 0.5 / (k % 3 + 1)
        rule = Penalty(net, L2(l2))
        for _ in range(30):
            assert_close(rule(), expression(list(net.parameters()), 0.0, l2))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda n: Penalty(n.state_dict(), L2(0.5)), TypeError, "torch.nn.Module"),
        (lambda n: Penalty(torch.nn.ReLU(), L2(0.5)), ValueError, "none of the 0 parameters"),
        (lambda n: Penalty(n.requires_grad_(False), L2(0.5)), ValueError, "none of the 7"),
        (lambda n: Penalty(n, {"convolution": L2(0.5)}), ValueError, "convolution"),
        (lambda n: Penalty(n, L2), TypeError, "instance"),
        (lambda n: Penalty(n, L2(0.5), no_weight_decay=["head"]), ValueError, "'head'"),
        (lambda n: Penalty(n, L2(0.5), no_weight_decay="bias"), TypeError, "collection"),
        (lambda n: Penalty(n.body, L2(0.5), no_weight_decay=True), TypeError, "no method"),
    ],
)
def test_refused(change: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        change(Net())


def test_tensors_that_are_refused() -> None:
    good = torch.ones(3, requires_grad=True)
    complex_, integer = torch.ones(3, dtype=torch.complex64), torch.ones(3, dtype=torch.int32)
    for bad, error, says in (
        (integer, TypeError, r"params\['b'\]: dtype int32"),
        (complex_, TypeError, r"params\['b'\]: dtype complex64"),
        (torch.ones(3, device="meta"), ValueError, r"params\['b'\]: is on meta but params\['a'\]"),
        (torch.ones(3, 3).to_sparse(), TypeError, "sparse"),
        (torch.nn.parameter.UninitializedParameter(), TypeError, "no values"),
        ([1.0, 2.0], TypeError, "list"),
    ):
        with pytest.raises(error, match=says):
            penalty({"a": good, "b": bad}, L2(0.5))
        assert penalty({"a": good, "b": bad}, {"a": L2(0.5)}).item() == 1.5
    with pytest.raises(ValueError, match="sequence of 1"):
        penalty([good, good], [L2(0.5)])


def test_distributed_tensors_are_refused() -> None:
    assert (
        "wanted a tensor of this process"
        in fresh.run(
            """
        import torch
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import distribute_tensor
        from fused_penalties import regularizers
        from fused_penalties.torch import penalty
        mesh = init_device_mesh("cpu", (1,))
        penalty([distribute_tensor(torch.ones(4), mesh)], regularizers.L2(0.5))
        """,
            RANK="0",
            WORLD_SIZE="1",
            MASTER_ADDR="localhost",
            MASTER_PORT="29517",
        ).stderr
    )


def test_nothing_is_imported_for_it() -> None:
    """The package alone imports no framework, and torch's part none but torch."""
    for module, allowed in (
        ("fused_penalties", set()),
        ("fused_penalties.cli", set()),
        ("fused_penalties.torch", {"torch"}),
    ):
        found = fresh.output(
            f"""
            import sys, {module}
            print(*sys.modules.keys() & {{"torch", "keras", "jax", "tensorflow", "flax", "cupy"}})
            """
        )
        assert set(found.split()) == allowed
