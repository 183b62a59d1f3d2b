"""One rank of torch.distributed: every way in which people spread a model, against one process.

Each case returns the bits that this rank found and those that it wants, as texts. What is wanted
comes from the whole tensors, which every rank makes from the same seed, by `fused_penalties.sums`
and its like, which know nothing of ranks.
"""

from __future__ import annotations

import copy
import json
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import fused_penalties as fp
import fused_penalties.torch as fpt
from fused_penalties import distributed as fpd
from fused_penalties.regularizers import L1, L1L2, L2
from launch import leave
from random_shards import random_shards

RULES = {r"norm|bias": None, r"up": L1L2(1e-3, 1e-2), r".*": L2(1e-4)}
Pair = tuple[list[Any], list[Any]]


class Block(nn.Module):
    """Sizes that no number of ranks divides; `few` has fewer rows than four ranks."""

    def __init__(self, dtype: Any = torch.float32) -> None:
        super().__init__()
        self.up = nn.Linear(130, 258, dtype=dtype)
        self.norm = nn.LayerNorm(258, dtype=dtype)
        self.down = nn.Linear(258, 66, dtype=dtype)
        self.few = nn.Linear(66, 2, dtype=dtype)

    def forward(self, x: Any) -> Any:
        return self.few(self.down(self.norm(self.up(x)).relu()))


def model(dtype: Any = torch.float32) -> Block:
    torch.manual_seed(7)
    made = Block(dtype)
    for param in made.parameters():  # zeros would prove little
        nn.init.normal_(param, std=0.02)
    return made


def whole(module: nn.Module) -> dict[str, Any]:
    return {name: param.detach().clone() for name, param in module.named_parameters()}


def bits(sums: Any) -> list[Any]:
    """All that a rank has to agree about, to the last digit."""
    floats = [*sums.abs, *sums.square, sums.total_abs, sums.total_square]
    return [*sums.names, *[float(one).hex() for one in floats], *map(int, sums.sizes)]


def hexes(*tensors: Any) -> list[str]:
    return [float(one).hex() for tensor in tensors for one in tensor.detach().reshape(-1)]


def both(found: Any, wanted: dict[str, Any]) -> Pair:
    assert found.exact
    return bits(found), bits(fp.sums(wanted))


def mesh(*shape: int) -> Any:
    return init_device_mesh("cpu", shape, mesh_dim_names=("outer", "inner")[: len(shape)])


# The ways to spread a model. Those that need an even number of ranks return None without one.


def fsdp(ranks: int, module: Block) -> tuple[nn.Module, dict[str, Any]]:
    kept = whole(module)
    fully_shard(module.up, mesh=mesh(ranks))
    return fully_shard(module, mesh=mesh(ranks)), kept


def hsdp(ranks: int, module: Block) -> tuple[nn.Module, dict[str, Any]] | None:
    if ranks % 2:
        return None
    kept = whole(module)
    return fully_shard(module, mesh=mesh(2, ranks // 2)), kept


def column_tensor_parallel(
    ranks: int, module: Block, shard: bool = True, row: bool = False
) -> tuple[nn.Module, dict[str, Any]] | None:
    if ranks % 2:
        return None
    kept = whole(module)
    both = mesh(ranks // 2, 2)
    plan: dict[str, Any] = {"up": ColwiseParallel(output_layouts=Replicate())}
    if row:
        plan["down"] = RowwiseParallel(input_layouts=Replicate())
    parallelize_module(module, both["inner"], plan)
    return (fully_shard(module, mesh=both["outer"]) if shard else module), kept


def largest(sums: fpd.DistributedSums) -> list[str]:
    return [float(one).hex() for one in (*sums.largest, sums.total_largest)]


def magnitudes(kept: dict[str, Any]) -> list[str]:
    """Those of whole tensors, by torch, whose maximum is NaN if there is one."""
    each = torch.stack([one.detach().double().abs().max() for one in kept.values()])
    return hexes(each, each.max())


def case_sums_of_each_way(rank: int, ranks: int) -> dict[str, Pair]:
    ways = {
        "FSDP2": fsdp(ranks, model()),
        "FSDP2, bfloat16": fsdp(ranks, model(torch.bfloat16)),
        "FSDP2, float64": fsdp(ranks, model(torch.float64)),
        "HSDP": hsdp(ranks, model()),
        "FSDP2 and columns": column_tensor_parallel(ranks, model()),
        "columns": column_tensor_parallel(ranks, model(), shard=False),
    }
    found = {}
    for name, way in ways.items():
        if way is None:
            continue
        module, kept = way
        found[name] = both(fpd.sums(module.named_parameters()), kept)
        plan = fpd.Plan(module.named_parameters(), RULES, check_replicas=True)
        wanted = fp.sums(kept)
        for step in range(3):  # at all digits, within the window, and again
            found[f"{name}, step {step}"] = bits(plan.sums()), bits(wanted)
        found[f"{name}, largest"] = largest(plan.sums(largest=True)), magnitudes(kept)
        penalty = fp.penalty(kept, RULES)
        found[f"{name}, penalty"] = hexes(plan.value()), [float(penalty).hex()]
    return found


def case_replicas(rank: int, ranks: int) -> dict[str, Pair]:
    """Data parallelism: every rank has all; it counts once."""
    module = nn.parallel.DistributedDataParallel(model())
    return {"DDP": both(fpd.sums(module.named_parameters()), whole(module))}


def case_pipeline(rank: int, ranks: int) -> dict[str, Pair]:
    """Each layer on one rank; where there are more ranks than layers, some have nothing."""
    layers = {f"{k}": nn.Linear(90, 40 + k) for k in range(3)}
    torch.manual_seed(3)
    for layer in layers.values():
        nn.init.normal_(layer.weight)
    for layer in layers.values():
        nn.init.normal_(layer.bias)
    mine = {
        f"{k}.{name}": param
        for k, layer in layers.items()
        if (int(k) + 1) % ranks == rank
        for name, param in layer.named_parameters()
    }
    kept = {
        f"{k}.{name}": param.detach()
        for k, layer in layers.items()
        for name, param in layer.named_parameters()
    }
    found = fpd.sums(mine)
    ordered = {name: kept[name] for name in found.names}
    return {
        "pipeline": both(found, ordered),
        "every layer is there": (sorted(found.names), sorted(kept)),
        "penalty": (
            hexes(fpd.penalty(mine, {r"weight": L1(0.1), "bias": None})),
            [float(fp.penalty(ordered, {r"weight": L1(0.1), "bias": None})).hex()],
        ),
    }


def case_placements(rank: int, ranks: int) -> dict[str, Pair]:
    """Tensors on meshes by hand: uneven, empty, of rank 0, replicated on one dimension."""
    rng = torch.Generator().manual_seed(11)
    shapes = {"odd": (1001, 7), "few": (ranks - 1 or 1, 4099), "row": (5000,), "none": (0, 3)}
    kept = {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    kept["large"] = torch.randn(64 * ranks, 64, generator=rng)  # cut at multiples of 8 KiB
    kept["half"] = torch.randn(3, 5000, generator=rng).half()
    kept["scalar"] = torch.randn((), generator=rng)
    line = mesh(ranks)
    shards = {
        name: distribute_tensor(one, line, [Shard(0) if one.ndim else Replicate()])
        for name, one in kept.items()
    }
    found = {"one dimension": both(fpd.sums(shards), kept)}
    if ranks % 2 == 0:
        table = mesh(2, ranks // 2)
        for placements in [Shard(0), Replicate()], [Replicate(), Shard(0)], [Shard(0), Shard(0)]:
            shards = {
                name: distribute_tensor(one, table, placements if one.ndim else [Replicate()] * 2)
                for name, one in kept.items()
            }
            found[f"two dimensions, {placements}"] = both(fpd.sums(shards), kept)
    return found


def case_shards_by_hand(rank: int, ranks: int) -> dict[str, Pair]:
    return {name: both(fpd.sums(mine), kept) for name, mine, kept in random_shards(rank, ranks)}


def case_cut_within_rows(rank: int, ranks: int) -> dict[str, Pair]:
    """Shard(1): within the bound, the same everywhere, and said to be inexact."""
    kept = torch.randn(300, 1000, generator=torch.Generator().manual_seed(2))
    found = fpd.sums({"w": distribute_tensor(kept, mesh(ranks), [Shard(1)])})
    wanted = kept.double().abs().sum().item(), kept.double().square().sum().item()
    for one, other in zip((found.total_abs, found.total_square), wanted, strict=True):
        assert abs(one - other) <= 1e-13 * other  # what adding in float64 may cost at most
    texts = {"exact": ([found.exact], [ranks == 1])}
    if ranks == 1:
        texts["digits"] = bits(found), bits(fp.sums({"w": kept}))
    way = column_tensor_parallel(ranks, model(), row=True)
    if way is not None:
        module, kept_all = way
        plan = fpd.Plan(module.named_parameters())
        sums, one = plan.sums(), fp.sums(kept_all)
        texts["which"] = list(plan.inexact), ["down.weight"]
        texts["not exact"] = [sums.exact], [False]
        for name in one.names:
            if name != "down.weight":
                texts[name] = [sums[name].square.hex()], [one[name].square.hex()]
    return texts


def case_window(rank: int, ranks: int) -> dict[str, Pair]:
    """Weights that leave the window, come to hold NaN, and come back."""
    torch.manual_seed(1)
    kept = {
        "w": torch.randn(1000, 11),
        "zero": torch.zeros(5000),
        "d": torch.randn(40, 40).double(),
    }
    module = {name: distribute_tensor(one, mesh(ranks), [Shard(0)]) for name, one in kept.items()}
    plan = fpd.Plan(module)
    found = {}
    steps: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
        ("as they are", lambda all: None),
        ("much larger", lambda all: all["w"].mul_(1e18)),
        ("much smaller", lambda all: all["w"].mul_(1e-35)),
        ("zeros no more", lambda all: all["zero"].add_(1e-3)),
        ("a huge one", lambda all: all["d"].mul_(1e150)),
        ("NaN", lambda all: all["zero"].copy_(torch.full((5000,), torch.nan))),
        ("infinity", lambda all: all["w"].mul_(torch.inf)),
        ("back", lambda all: [one.copy_(torch.ones(one.shape)) for one in all.values()]),
    ]
    for name, change in steps:
        change(kept)
        with torch.no_grad():
            for key, one in kept.items():
                part = distribute_tensor(one, mesh(ranks), [Shard(0)])
                module[key].to_local().copy_(part.to_local())
        for again in range(2):
            sums = plan.sums(largest=bool(again))
            found[f"{name}, {again}"] = both(sums, kept)
        found[f"{name}, largest"] = largest(sums), magnitudes(kept)
    return found


def case_steady(rank: int, ranks: int) -> dict[str, Pair]:
    """How much a call sends, once the window is known."""
    counts: dict[str, list[int]] = {"all_reduce": [], "all_to_all_single": [], "all_gather": []}
    rng = torch.Generator().manual_seed(9)
    aligned = {f"{k}": torch.randn(64 * ranks, 64, generator=rng) for k in range(161)}
    ragged = {f"{k}": torch.randn(50, 61, generator=rng) for k in range(161)}
    plans = {
        name: fpd.Plan(
            {key: distribute_tensor(one, mesh(ranks), [Shard(0)]) for key, one in kept.items()}
        )
        for name, kept in (("aligned", aligned), ("ragged", ragged))
    }
    for plan in plans.values():
        plan.sums()
    kept_functions = {name: getattr(dist, name) for name in counts}
    for name, original in kept_functions.items():

        def counted(*args: Any, _name: str = name, _original: Any = original, **more: Any) -> Any:
            counts[_name].append(args[0].nbytes)
            return _original(*args, **more)

        setattr(dist, name, counted)
    found = {}
    for name, plan in plans.items():
        for sent in counts.values():
            sent.clear()
        plan.sums()
        assert counts["all_reduce"][0] <= 70 * 161, counts
        edges = int(name == "ragged" and ranks > 1)
        found[name] = [len(sent) for sent in counts.values()], [1, edges, 0]
    for sent in counts.values():
        sent.clear()
    plans["aligned"].grad_norm({})
    assert counts["all_reduce"][0] <= 1300, counts
    # A schedule, the same on all ranks: at first it penalizes other tensors.
    for step, calls in (1, 2), (2, 1), (3, 1):
        plans["aligned"].set_regularizer(L2(0.1 * step))
        for sent in counts.values():
            sent.clear()
        plans["aligned"].value()
        found[f"step {step}"] = [len(sent) for sent in counts.values()], [calls, 0, 0]
    for name, original in kept_functions.items():
        setattr(dist, name, original)
    return found


def case_gradients(rank: int, ranks: int) -> dict[str, Pair]:
    """The penalty's gradient, and norm and clipping of a loss's."""
    found = {}
    for name, way in (
        ("FSDP2", fsdp(ranks, model())),
        ("HSDP", hsdp(ranks, model())),
        ("FSDP2 and columns", column_tensor_parallel(ranks, model())),
    ):
        if way is None:
            continue
        module, kept = way
        for one in kept.values():
            one.requires_grad_()
        fpt.penalty(kept, RULES).backward()
        penalty = fpd.penalty(module.named_parameters(), RULES)
        penalty.backward()
        params = dict(module.named_parameters())
        for key, param in params.items():
            mine = [] if param.grad is None else hexes(param.grad.full_tensor())
            theirs = [] if kept[key].grad is None else hexes(kept[key].grad)
            found[f"{name}, gradient of {key}"] = mine, theirs

        module.zero_grad()
        torch.manual_seed(4)
        module(torch.randn(8, 130)).square().sum().backward()
        grads = {key: param.grad.full_tensor() for key, param in params.items()}
        norm = fp.sums(grads).total_l2_norm
        found[f"{name}, norm"] = (
            hexes(fpd.grad_norm(module.named_parameters())),
            [float(np.float32(norm)).hex()],
        )
        clipping = copy.deepcopy(grads)
        fp.Plan(kept, None).clip_grad_norm(clipping, 0.25 * norm)
        plan = fpd.Plan(module.named_parameters())
        before = plan.clip_grad_norm_(0.25 * norm)
        found[f"{name}, norm before clipping"] = hexes(before), [float(np.float32(norm)).hex()]
        for key, param in params.items():
            found[f"{name}, clipped {key}"] = (
                hexes(param.grad.full_tensor()),
                hexes(clipping[key]),
            )
    return found


def case_training(rank: int, ranks: int) -> dict[str, Pair]:
    """The module `fused_penalties.torch.Penalty` in the loss, beside one process that trains."""
    alone = model()
    spread, _ = fsdp(ranks, model())
    losses: dict[str, list[float]] = {}
    for name, module in ("alone", alone), ("spread", spread):
        penalty = fpt.Penalty(module, {r"up": L1L2(1e-3, 1e-2), r".*": L2(1e-2)}, skip_1d=True)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        torch.manual_seed(6)
        for step in range(4):
            if step == 2:
                penalty.set_regularizer(L2(1e-3))
            optimizer.zero_grad()
            out = module(torch.randn(16, 130))  # the same on every rank, so that means are equal
            loss = out.square().mean() + penalty()
            loss.backward()
            optimizer.step()
            losses.setdefault(name, []).append(loss.item())
        named = penalty.named()
        assert list(named) == ["up.weight", "down.weight", "few.weight"]
        losses[name].append(sum(map(float, named.values())))
        params = dict(module.named_parameters())
        gathered = {key: getattr(params[key], "full_tensor", params[key].clone)() for key in named}
        wanted = fp.penalty({key: one.detach() for key, one in gathered.items()}, L2(1e-3))
        assert float(penalty().detach()) == float(wanted)
    np.testing.assert_allclose(losses["spread"], losses["alone"], rtol=1e-5)
    assert losses["alone"][0] != losses["alone"][3]
    return {}


def case_gradients_by_hand(rank: int, ranks: int) -> dict[str, Pair]:
    """Pairs of an iterator, which can be read once; and plain gradients of what lies here."""
    rng = torch.Generator().manual_seed(8)
    kept = {"w": torch.randn(900, 5, generator=rng), "few": torch.randn(1, 5, generator=rng)}
    spread = {name: distribute_tensor(one, mesh(ranks), [Shard(0)]) for name, one in kept.items()}
    plan = fpd.Plan(spread)
    plain = {name: one.to_local().clone() for name, one in spread.items()}  # some of no elements
    found = {
        "plain": (
            hexes(plan.grad_norm(plain)),
            [float(np.float32(fp.sums(kept).total_l2_norm)).hex()],
        )
    }
    grads = {name: one.clone() for name, one in spread.items()}
    plan.clip_grad_norm_(0.5, ((name, one) for name, one in grads.items()))
    clipping = copy.deepcopy(kept)
    fp.Plan(kept, None).clip_grad_norm(clipping, 0.5)
    for name, one in clipping.items():
        found[f"clipped {name}"] = hexes(grads[name].full_tensor()), hexes(one)
    return found


def case_missing_gradients(rank: int, ranks: int) -> dict[str, Pair]:
    """None, on all ranks or on one, counts as zeros, also at the edges; and what came is let go."""
    kept = {name: torch.randn(900, 5, generator=torch.Generator().manual_seed(8)) for name in "ab"}
    spread = {name: distribute_tensor(one, mesh(ranks), [Shard(0)]) for name, one in kept.items()}
    plan = fpd.Plan(spread)
    found = {}
    for name, missing in ("b", range(ranks)), ("a", [0]), ("a", [ranks - 1]), ("b", []):
        grads = {key: one.to_local().clone() for key, one in spread.items()}
        wanted = copy.deepcopy(kept)
        rows = fpd._shards.layout_of(name, spread[name])
        lost = [None] * ranks
        dist.all_gather_object(lost, (rows.offset[0], rows.local[0]))
        for at in missing:
            first, count = lost[at]
            wanted[name][first : first + count] = 0
        if rank in missing:
            del grads[name]
        found[f"{name} of {list(missing)}"] = (
            hexes(plan.grad_norm(grads)),
            [float(np.float32(fp.sums(wanted).total_l2_norm)).hex()],
        )
    memory = np.ones(spread["a"].to_local().shape, np.float32)
    kept_alive = weakref.ref(memory)
    plan.grad_norm({"a": torch.from_numpy(memory)})
    del memory
    found["let go"] = [kept_alive()], [None]
    return found


def case_backward_of_a_rank_without_anything(rank: int, ranks: int) -> dict[str, Pair]:
    weight = torch.ones(9, requires_grad=True)
    penalty = fpd.penalty({"w": weight} if rank == 0 else {}, L2(0.5))
    (2 * penalty).backward()
    with torch.no_grad():
        assert not fpd.penalty({"w": weight} if rank == 0 else {}, L2(0.5)).requires_grad
    return {
        "value": (hexes(penalty), [(4.5).hex()]),
        "gradient": ([weight.grad is None or hexes(weight.grad)], [rank > 0 or [(2.0).hex()] * 9]),
    }


def case_dtypes(rank: int, ranks: int) -> dict[str, Pair]:
    """The value has the dtype that the same function has in one process."""
    kept = {"a": torch.ones(30), "b": torch.ones(30, dtype=torch.float64)}
    spread = {name: distribute_tensor(one, mesh(ranks), [Shard(0)]) for name, one in kept.items()}
    found = {}
    for rules in {"a": L2(0.1), "b": None}, {"a": None, "b": L2(0.1)}, {"a": None, "b": None}:
        value, wanted = fpd.Plan(spread, rules).value(), fpt.penalty(kept, rules)
        found[f"{rules}"] = [str(value.dtype), *hexes(value)], [str(wanted.dtype), *hexes(wanted)]
    return found


def case_offsets(rank: int, ranks: int) -> dict[str, Pair]:
    """torch's private function says where a shard lies: the elements are their own places."""

    def places() -> Block:
        module = model()
        with torch.no_grad():
            for param in module.parameters():
                param.copy_(torch.arange(float(param.numel())).reshape(param.shape))
        return module

    found = {}
    for name, way in (
        ("FSDP2", fsdp(ranks, places())),
        ("HSDP", hsdp(ranks, places())),
        ("FSDP2, columns and rows", column_tensor_parallel(ranks, places(), row=True)),
    ):
        if way is None:
            continue
        module, kept = way
        for key, param in module.named_parameters():
            layout = fpd._shards.layout_of(key, param)
            box = tuple(
                slice(first, first + size)
                for first, size in zip(layout.offset, layout.local, strict=True)
            )
            found[f"{name}, {key}"] = hexes(param.to_local()), hexes(kept[key][box])
    return found


def main() -> None:
    rank, ranks, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{folder}/s", rank=rank, world_size=ranks)
    cases = {name[5:]: one for name, one in globals().items() if name.startswith("case_")}
    results = {
        f"{name}: {key}": pair
        for name, case in cases.items()
        for key, pair in case(rank, ranks).items()
    }
    (folder / f"{rank}.json").write_text(json.dumps(results))
    leave(folder, rank, ranks)


if __name__ == "__main__":
    main()
