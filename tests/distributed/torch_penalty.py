"""One of two ranks: `fused_penalties.torch.Penalty` of DTensors that change, beside whole ones."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import fused_penalties.torch as fpt
from fused_penalties import distributed as fpd
from fused_penalties.regularizers import L1, L2
from launch import leave


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b = nn.Linear(40, 50), nn.Linear(50, 6)

    def forward(self, x: Any) -> Any:
        return self.b(self.a(x).relu())


def same(spread: Any, alone: Any) -> None:
    assert spread.dtype == alone.dtype, (spread.dtype, alone.dtype)
    assert spread.item() == alone.item(), (spread.item(), alone.item())


def check(penalty: Any, whole: Any) -> None:
    """The value, what is named, and the gradients."""
    value, wanted = penalty(), whole()
    same(value, wanted)
    alone = whole.named()
    for name, one in penalty.named().items():
        same(one, alone[name])
    value.backward()
    wanted.backward()
    for name, param in penalty._model[0].named_parameters():
        there = dict(whole._model[0].named_parameters())[name]
        if there.grad is None:
            assert param.grad is None, name
        else:
            assert torch.equal(param.grad.full_tensor(), there.grad), name
        param.grad = there.grad = None


def main() -> None:
    rank, ranks, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{folder}/s", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    after_a_forward_pass(mesh)
    after_a_forward_pass_of_tensor_parallelism(ranks)
    changes(mesh, rank)
    stages(rank, ranks)
    a_group(rank)
    leave(folder, rank, ranks)


def after_a_forward_pass(mesh: Any) -> None:
    """The outermost module's parameters are plain then, and whole."""
    alone, spread = Net(), Net()
    fully_shard(spread, mesh=mesh)
    whole, penalty = fpt.Penalty(alone, L2(0.5)), fpt.Penalty(spread, L2(0.5))
    check(penalty, whole)
    spread(torch.ones(2, 40))
    assert not hasattr(spread.a.weight, "to_local")
    for one in penalty, whole:
        one.set_regularizer({"a": L1(0.25), "b": L2(0.125)})
    same(penalty(), whole())
    spread.reshard()
    check(penalty, whole)


def after_a_forward_pass_of_tensor_parallelism(ranks: int) -> None:
    """They are DTensors of the other dimension then."""
    alone, spread = Net(), Net()
    mesh = init_device_mesh("cpu", (1, ranks), mesh_dim_names=("data", "columns"))
    plan = {"a": ColwiseParallel(output_layouts=Replicate())}
    parallelize_module(spread, mesh["columns"], plan)
    fully_shard(spread, mesh=mesh["data"])
    whole, penalty = fpt.Penalty(alone, L2(0.5)), fpt.Penalty(spread, L2(0.5))
    for _ in range(2):
        held = spread.a.weight
        for module in alone, spread:
            module.zero_grad()
        losses = [module(torch.ones(2, 40)).square().sum() for module in (alone, spread)]
        assert spread.a.weight is not held
        assert hasattr(spread.a.weight, "to_local")
        values = [one() for one in (whole, penalty)]
        same(values[1], values[0])
        for loss, value in zip(losses, values, strict=True):
            (loss + value).backward()
        for name, param in spread.named_parameters():
            wanted = alone.get_parameter(name).grad
            torch.testing.assert_close(param.grad.full_tensor(), wanted, msg=name)
    # Replaced, and not by a stand-in: removed.
    for module in spread, alone:
        module.a.bias = None
    same(penalty(), whole())


def changes(mesh: Any, rank: int) -> None:
    alone, spread = Net(), Net()
    for layer in spread.a, spread.b:
        for name, param in layer.named_parameters():
            setattr(layer, name, nn.Parameter(distribute_tensor(param.detach(), mesh, [Shard(0)])))
    whole, penalty = fpt.Penalty(alone, L2(0.5)), fpt.Penalty(spread, L2(0.5))
    check(penalty, whole)
    same(copy.deepcopy(penalty)(), whole())

    for module in spread, alone:
        module.a.weight.requires_grad_(False)
    check(penalty, whole)

    other = torch.full((6, 50), 3.0)
    alone.b.weight = nn.Parameter(other)
    spread.b.weight = nn.Parameter(distribute_tensor(other, mesh, [Shard(0)]))
    check(penalty, whole)

    for module in spread, alone:
        module.double()
    assert penalty().dtype == torch.float64
    check(penalty, whole)

    # Frozen on one rank only: no rank has a value.
    spread.b.bias.requires_grad_(rank == 0)
    with pytest.raises((ValueError, fpd.RankError), match=r"b\.bias"):
        fpt.Penalty(spread, L2(0.5))()


def stages(rank: int, ranks: int) -> None:
    """A pipeline: what a rank alone freezes is nobody else's."""
    line = DeviceMesh("cpu", torch.arange(ranks)[:, None], mesh_dim_names=("stage", "within"))
    mine = nn.Module()
    one = distribute_tensor(torch.full((5000,), rank + 1.0), line["within"], [Shard(0)])
    mine.register_parameter(f"stage{rank}", nn.Parameter(one))
    mine.register_parameter(f"other{rank}", nn.Parameter(one.clone()))
    penalty = fpt.Penalty(mine, L1(1.0))
    assert penalty().item() == 2 * 15000.0
    mine.get_parameter(f"other{rank}").requires_grad_(rank > 0)
    assert penalty().item() == 2 * 15000.0 - 5000.0
    if rank:
        mine.get_parameter("stage1").requires_grad_(False)
    value = penalty()
    assert value.item() == 15000.0
    value.backward()
    trained = f"other{rank}" if rank else "stage0"
    for name, param in mine.named_parameters():
        assert (param.grad is None) == (name != trained), name
    assert (mine.get_parameter(trained).grad.to_local() == 1.0).all()


def a_group(rank: int) -> None:
    """The ranks of a group, of which others know nothing."""
    groups = [dist.new_group([one]) for one in range(2)]
    alone = DeviceMesh("cpu", torch.arange(2)[:, None], mesh_dim_names=("outer", "inner"))["inner"]
    module = nn.Module()
    module.w = nn.Parameter(distribute_tensor(torch.ones(9) + rank, alone, [Shard(0)]))
    penalty = fpt.Penalty(module, L1(1.0), group=groups[rank], timeout=30.0)
    assert penalty().item() == 9.0 * (rank + 1)
    assert copy.deepcopy(penalty)().item() == 9.0 * (rank + 1)
    with pytest.raises(fpd.RankError, match="replicas differ: 'w'"):
        fpt.Penalty(module, L1(1.0))()
    with pytest.raises(ValueError, match="timeout: got -1"):
        fpt.Penalty(module, L1(1.0), timeout=-1)()


if __name__ == "__main__":
    main()
