"""What torch asks of operators: opcheck, compilers, tensors without values, autocast, DDP."""

from __future__ import annotations

import copy
from typing import Any

import pytest

import fresh

torch = pytest.importorskip("torch", reason="torch is not installed")

from fused_penalties import regularizers  # noqa: E402
from fused_penalties.torch import Penalty, penalty  # noqa: E402
from torch_oracle import assert_close, expression, gradients, tensors  # noqa: E402

# torch's own: of torch.compile, which makes an object of autograd's functions, and of forward mode.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]

L1L2 = regularizers.L1L2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype: Any) -> None:
    weights = [w.detach() for w in tensors(dtype, (3, 4), (), (0,), (7,))]
    ops = torch.ops.fused_penalties
    upstream = torch.tensor(0.5)
    for l1, l2 in (([0.25], [0.5]), ([0.25, 0.0, 0.5, 0.0], [0.5, 1.0, 0.0, 0.0])):
        torch.library.opcheck(ops.value.default, (weights, l1, l2))
        torch.library.opcheck(ops.gradient.default, (weights, upstream, l1, l2))


def model() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.LayerNorm(5), torch.nn.Linear(5, 2)
    )


def _targets(graph: Any) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if "fused" in str(node.target)]


@pytest.mark.parametrize("inductor", [False, True])
def test_compile(inductor: bool) -> None:
    """The whole step is one graph; in it one operator forward and one backward."""
    from torch._dynamo.backends.common import aot_autograd

    net = model()
    rule = Penalty(net, L1L2(0.25, 0.5), skip_1d=True)
    x = torch.ones(3, 6)

    def loss() -> Any:
        return net(x).square().sum() + rule()

    def gradient(f: Any) -> tuple[Any, list[Any]]:
        value = f()
        return value, list(torch.autograd.grad(value, list(net.parameters())))

    wanted = gradient(loss)
    graphs = []

    def keep(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        from functorch.compile import make_boxed_func

        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    backend = "inductor" if inductor else aot_autograd(fw_compiler=keep, bw_compiler=keep)
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    torch.testing.assert_close(gradient(compiled), wanted)
    if not inductor:
        operators = [_targets(graph) for graph in graphs]
        assert operators == [[f"fused_penalties.{one}.default"] for one in ("value", "gradient")]
    with torch.no_grad():
        for param in net.parameters():
            param.mul_(2.0)
    torch.testing.assert_close(gradient(compiled), gradient(loss))
    rule.set_regularizer(L1L2(0.5, 0.0))
    torch.testing.assert_close(gradient(compiled), gradient(loss))
    net[0].weight.requires_grad_(False)
    frozen = torch.compile(loss, fullgraph=True, backend=backend)
    torch.testing.assert_close(frozen(), loss())
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "rules",
    [
        L1L2(0.25, 0.5),
        {"bias": None, ".*": L1L2(0.25, 0.5)},
        [(lambda name, w: w.ndim < 2, None), (".*", L1L2(0.25, 0.5))],
    ],
    ids=["one", "names", "functions"],
)
def test_compile_the_function(rules: Any) -> None:
    net = model()

    def loss() -> Any:
        return penalty(dict(net.named_parameters()), rules)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(), loss())
    torch._dynamo.reset()


def test_forward_mode_compiled() -> None:
    """Where torch.compile would drop the derivative, which then was 0 or None without a word."""
    (weight,) = (w.detach() for w in tensors(torch.float64, (4,)))
    direction = torch.arange(1.0, 5.0, dtype=torch.float64)
    forward = torch.autograd.forward_ad

    def ours(w: Any) -> Any:
        return penalty([w], L1L2(0.25, 0.5)).sin()

    def by_func(f: Any) -> Any:
        return torch.func.jvp(f, (weight,), (direction,))[1]

    def by_hand(f: Any) -> Any:
        with forward.dual_level():
            return forward.unpack_dual(f(forward.make_dual(weight, direction))).tangent

    wanted = by_func(lambda w: expression([w], 0.25, 0.5).sin())
    assert wanted != 0.0
    for way in (by_func, by_hand):
        torch._dynamo.reset()
        compiled = torch.compile(ours, backend="aot_eager")
        compiled(weight)  # knows of no direction, and must not be taken again for one
        torch.testing.assert_close(way(compiled), wanted)
        torch.testing.assert_close(torch.compile(way, backend="aot_eager")(ours), wanted)
    torch._dynamo.reset()


def test_meta_and_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    def check() -> None:
        weights = [torch.nn.Parameter(torch.empty(3, 4)), torch.nn.Parameter(torch.empty(5))]
        value = penalty(weights, L1L2(0.25, 0.5))
        assert (value.shape, value.dtype, value.device) == ((), torch.float32, weights[0].device)
        value.backward()
        assert [w.grad.shape for w in weights] == [w.shape for w in weights]

    with torch.device("meta"):
        check()
    with FakeTensorMode():
        check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: Any) -> None:
    """Weights are read as they are stored, and the penalty stays float32."""
    net = model()
    rule = Penalty(net, L1L2(0.25, 0.5))
    with torch.autocast("cpu", dtype=dtype):
        value = rule()
        total = net(torch.ones(3, 6)).sum() + value
    assert value.dtype == torch.float32
    assert_close(value, expression(list(net.parameters()), 0.25, 0.5))
    wanted = gradients(list(net.parameters()), 0.25, 0.5)
    alone = torch.autograd.grad(total - value.detach(), list(net.parameters()), retain_graph=True)
    value.backward()
    for param, want in zip(net.parameters(), wanted, strict=True):
        assert_close(param.grad, want)
    assert all(torch.isfinite(grad).all() for grad in alone)


def test_checkpointed_and_deep_copied() -> None:
    net = model()
    rule = Penalty(net, L1L2(0.25, 0.5))
    from torch.utils.checkpoint import checkpoint

    checkpoint(rule, use_reentrant=False).backward()
    wanted = gradients(list(net.parameters()), 0.25, 0.5)
    for param, want in zip(net.parameters(), wanted, strict=True):
        assert_close(param.grad, want)
    other = copy.deepcopy(rule)
    with torch.no_grad():
        net[0].weight.zero_()
    assert other() != rule()


def test_two_processes(tmp_path: Any) -> None:
    """Under DDP each rank has the gradient of the mean loss plus that of the penalty, once."""
    code = f"""
        import torch, torch.distributed as dist, torch.multiprocessing as mp
        from fused_penalties import regularizers
        from fused_penalties.torch import Penalty

        def net():
            torch.manual_seed(0)
            layers = torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)
            return torch.nn.Sequential(*layers)

        def expression(model):
            return sum(0.25 * p.abs().sum() + 0.5 * p.square().sum() for p in model.parameters())

        def work(rank, attached, views):
            store = "file://{tmp_path}/" + f"{{attached}}{{views}}"
            dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
            model, plain = net(), net()
            ddp = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=views)
            ours, theirs = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (ddp, plain))
            rule = Penalty(ddp, regularizers.L1L2(0.25, 0.5))
            if attached:
                rule.attach(ours)
            for step in range(3):
                x = [torch.full((2, 6), float(r + step)) for r in range(2)]
                ours.zero_grad()
                loss = ddp(x[rank]).square().sum()
                (loss if attached else loss + rule()).backward()
                ours.step()
                theirs.zero_grad()
                (sum(plain(one).square().sum() for one in x) / 2 + expression(plain)).backward()
                theirs.step()
            for p, q in zip(model.parameters(), plain.parameters()):
                torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
            dist.destroy_process_group()

        if __name__ == "__main__":
            for attached in (False, True):
                for views in (False, True):
                    mp.start_processes(work, (attached, views), nprocs=2, start_method="fork")
            print("same")
    """
    assert fresh.output(code).splitlines()[-1] == "same"
