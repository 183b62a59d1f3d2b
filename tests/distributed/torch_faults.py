"""Ranks of torch.distributed of which one is at fault: what each of them is told."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from fused_penalties import distributed as fpd
from fused_penalties.regularizers import L1, L2
from fused_penalties.torch import Penalty
from launch import leave, told

LIMIT = 3.0  # seconds, where ranks wait for one that does not come
NOT_IN_IT = "ValueError: group: this rank is not in it; wanted a group that it is in"
AMPLE = 60.0  # where all come, however busy the machine is


def ones(*shape: int, dtype: Any = torch.float32) -> Any:
    return torch.ones(shape, dtype=dtype)


def faults(rank: int, ranks: int, folder: Path) -> dict[str, str]:
    """Faults after which the ranks are still together: one after the other, in one group."""
    last = rank == ranks - 1
    found = {}

    def sums(name: str, mine: Any, rules: Any = None) -> None:
        found[name] = told(lambda: fpd.Plan(mine, rules, timeout=AMPLE).value())

    sums("shapes", {"w": ones(3, 4 + last)})
    sums("dtypes", {"w": ones(8, dtype=torch.float64 if last else torch.float32)})
    sums("gap", {} if last else {"w": fpd.Shard(ones(2, 5), (2 * ranks, 5), (2 * rank, 0))})
    sums("overlap", {"w": fpd.Shard(ones(3, 5), (2 * ranks + 1, 5), (2 * rank, 0))})
    sums("gap within rows", {"w": fpd.Shard(ones(5, 1), (5, ranks + 1), (0, rank))})
    sums("overlap within rows", {"w": fpd.Shard(ones(5, 2), (5, ranks + 1), (0, rank))})
    sums("outside", {"w": fpd.Shard(ones(5), (5 if last else 50,), (3,))})
    sums("strengths", {"w": ones(3)}, L2(0.25 if last else 0.5))
    sums("a rule for nothing", {"w": ones(3)}, {"v": L1(0.5)})
    sums("a rule for nothing on one rank", {"w": ones(3)}, {"v" if last else "w": L1(0.5)})
    sums("a function", {"w": ones(3)}, lambda w: 0.0)
    sums("no array", {"w": [1.0] if last else ones(3)})
    sums("integers", {"w": ones(3, dtype=torch.int32)})
    sums("parts to be added up", {"w": _partial(ranks)})
    wrong = -1.0 if last else AMPLE
    found["a wrong limit"] = told(lambda: fpd.sums({"w": ones(3)}, timeout=wrong))
    with pytest.MonkeyPatch.context() as patch:
        if last:
            patch.setattr(fpd._plan, "stand_in", _not_found)
        sums("a failing import", {"w": ones(3)})
    plan = fpd.Plan({"w": ones(3) + rank}, L1(0.5), timeout=AMPLE)
    found["shards that nobody declared"] = told(plan.value)
    found["shards that nobody declared, again"] = told(plan.value)
    mine = fpd.Shard(ones(4) + rank, (4,), (0,))  # as a DTensor on a mesh of this rank alone
    sums("stages with one name", {"w": mine}, L1(0.5))

    weight = ones(1000)
    plan = fpd.Plan({"w": weight, "b": ones(5)}, L2(0.5), timeout=AMPLE, check_replicas=True)
    plan.value()
    if last:
        weight[17] = 2.0
    found["replicas that drifted"] = told(plan.value)
    if last:
        weight[17] = 1.0
    found["replicas that are equal again"] = told(plan.value)

    shard = distribute_tensor(ones(6000), init_device_mesh("cpu", (ranks,)), [Shard(0)])
    plan = fpd.Plan({"w": shard}, L2(0.5), timeout=AMPLE)
    plan.sums()
    grad = shard.clone()
    grads: dict[str, Any] = {"w": grad}
    if last:
        grads = {"v": grad}
    found["an error of its own"] = told(lambda: plan.grad_norm(grads))
    found["grads of another dtype"] = told(
        lambda: plan.grad_norm({"w": grad.double() if last else grad})
    )
    found["grads of no dtype"] = told(lambda: plan.grad_norm({"w": grad.int()}))
    found["grads without names"] = told(lambda: plan.grad_norm([grad]))
    for name, weights in (
        ("weights as gradients", shard),
        ("what lies where weights do", shard.to_local().view(-1)),
        ("parameters as gradients", torch.nn.Parameter(grad)),
    ):
        found[name] = told(lambda: plan.clip_grad_norm_(0.1, {"w": weights}))  # noqa: B023
    found["weights as gradients on one rank"] = told(
        lambda: plan.clip_grad_norm_(0.1, {"w": shard if last else grad})
    )
    found["params of other shapes"] = told(
        lambda: fpd.grad_norm({"w": ones(3 + last)}, timeout=AMPLE)
    )
    found["an error of all"] = told(lambda: plan.clip_grad_norm_(-1.0, {"w": grad}))
    found["no limit on one rank"] = told(
        lambda: plan.clip_grad_norm_(torch.nan if last else 1.0, {"w": grad})
    )
    found["another limit"] = told(lambda: plan.clip_grad_norm_(1.0 + last, {"w": grad}))
    found["a limit on one rank"] = told(
        lambda: plan.clip_grad_norm_(1.0, {"w": grad}) if last else plan.grad_norm({"w": grad})
    )
    found["still as they were"] = told(lambda: float(plan.sums().total_abs))
    found["a second derivative"] = told(lambda: _second_derivative(ranks))
    converted = distribute_tensor(ones(6000), init_device_mesh("cpu", (ranks,)), [Shard(0)])
    other = fpd.Plan({"w": converted}, timeout=AMPLE)
    other.sums()
    if last:  # as module.double() does
        torch.utils.swap_tensors(converted, converted.double())
    found["another dtype"] = told(other.sums)
    if last:
        shard.to_local()[0] = torch.nan
    found["NaN"] = told(lambda: float(plan.sums().total_abs))
    if last:
        shard.to_local()[0] = 1.0
    found["no NaN any more"] = told(lambda: float(plan.sums().total_abs))
    found["nothing on one rank"] = told(
        lambda: float(fpd.sums({} if last else {"w": ones(4)}).total_abs)
    )
    found["by name on one rank"] = told(plan.named if last else plan.value)
    found["the largest on one rank"] = told(lambda: plan.sums(largest=last))
    found["no flag on one rank"] = told(lambda: plan.sums(largest=np.ones(2) if last else True))
    found["NumPy's False on one rank"] = told(
        lambda: float(plan.sums(largest=np.False_ if last else False).total_abs)
    )
    found |= strengths(rank, ranks, shard)
    two = [fpd.Plan({"w": shard}, L2(scale)) for scale in (0.5, 0.25)]
    found["another plan"] = told(two[last].value)
    if last:
        plan._engine.past.calls += 1  # as if it had made a call that others have not
    found["another call"] = told(plan.sums)
    found["together again"] = told(lambda: float(plan.sums().total_abs))
    plan = fpd.Plan({"w": shard}, L2(0.5), timeout=AMPLE)
    plan.sums(), plan.value()  # from now on both send as many words
    found["another method"] = told(plan.value if last else plan.sums)
    found["together again, sums"] = told(lambda: float(plan.sums().total_abs))
    found["together again, value"] = told(lambda: float(plan.value()))
    others = dist.new_group([0])
    found["a group of others"] = told(lambda: fpd.sums({}, others)) if rank else NOT_IN_IT
    return found


def strengths(rank: int, ranks: int, shard: Any) -> dict[str, str]:
    """Others than before, at first on one rank."""
    last = rank == ranks - 1
    found = {}
    plan = fpd.Plan({"w": shard, "b": ones(3)}, {"w": L2(0.5), "b": None}, timeout=AMPLE)

    def value(name: str, call: Any = plan.value) -> None:
        found[name] = told(lambda: float(call()))

    value("the first strengths")
    if last:
        plan.set_regularizer(L2(0.25))
    value("other strengths on one rank")
    value("other strengths on one rank, again")
    found["sums beside"] = told(lambda: float(plan.sums().total_abs))
    if last:
        plan.set_regularizer({"w": L2(0.5), "b": None})
    value("the first strengths again")
    if rank == 0:
        plan.set_regularizer(L2(0.25))
    value("other strengths on another rank")
    if rank > 0:
        plan.set_regularizer(L2(0.25))
    value("other strengths on all")
    told_here = told(lambda: plan.set_regularizer({"v": L1(0.5)})) if last else "ValueError"
    found["rules that one rank cannot read"] = told_here.partition(":")[0]
    value("rules that one rank could not read")
    if last:
        plan.set_regularizer(None)
        shard.to_local()[0] = torch.nan
    value("strengths and NaN on one rank")
    plan.set_regularizer(L2(1.0))
    value("strengths and NaN")
    if last:
        shard.to_local()[0] = 1.0

    module = torch.nn.Module()
    module.w, module.b = (torch.nn.Parameter(shard.clone()) for _ in range(2))
    penalty = Penalty(module, L2(0.5), timeout=AMPLE)
    value("nothing frozen", penalty)
    if last:
        module.b.requires_grad_(False)
    value("frozen on one rank", penalty)
    module.b.requires_grad_(False)
    value("frozen on all", penalty)
    if last:
        module.b.requires_grad_(True)
    value("not frozen on one rank", penalty)
    module.b.requires_grad_(False)
    value("frozen on all again", penalty)
    return found


def _not_found(*_: Any) -> Any:
    raise ImportError("no such module")


def _partial(ranks: int) -> Any:
    return DTensor.from_local(ones(3), init_device_mesh("cpu", (ranks,)), [Partial()])


def _second_derivative(ranks: int) -> Any:
    weight = distribute_tensor(ones(9), init_device_mesh("cpu", (ranks,)), [Shard(0)])
    weight.requires_grad_()
    value = fpd.penalty({"w": weight}, L2(0.5), timeout=AMPLE)
    return torch.autograd.grad(value.square(), weight, create_graph=True)


def failing(rank: int, ranks: int, folder: Path) -> dict[str, str]:
    """An error of the engine that says nothing of other ranks, on all at once."""
    plan = fpd.Plan({"w": ones(3)}, L2(0.5), timeout=AMPLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", _no_memory)
        return {"told": told(plan.value)}


def _no_memory(*_: Any, **__: Any) -> Any:
    raise RuntimeError("out of memory")


def late(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    """One rank comes after the others have given up, while their processes are still there."""
    return _without(rank, ranks, lambda: time.sleep(1.5 * LIMIT))


def dead(rank: int, ranks: int, folder: Path) -> dict[str, Any]:
    return _without(rank, ranks, lambda: os._exit(7))


def _without(rank: int, ranks: int, leave: Callable[[], None]) -> dict[str, Any]:
    shard = distribute_tensor(ones(6000), init_device_mesh("cpu", (ranks,)), [Shard(0)])
    plan = fpd.Plan({"w": shard}, L2(0.5), timeout=LIMIT)
    plan.value()
    if rank == ranks - 1:
        leave()
    start = time.monotonic()
    text = told(plan.value)
    seconds = time.monotonic() - start
    again = [told(call) for call in (plan.value, plan.sums, lambda: fpd.sums({"w": shard}))]
    total = time.monotonic() - start
    return {"told": text, "seconds": seconds, "again": again, "seconds in all": total}


def main() -> None:
    rank, ranks, folder, which = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    dist.init_process_group("gloo", init_method=f"file://{folder}/s", rank=rank, world_size=ranks)
    run = {"faults": faults, "failing": failing, "late": late, "dead": dead}[which]
    found = run(rank, ranks, folder)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    if which in ("faults", "failing"):
        leave(folder, rank, ranks)
    while which == "late" and not (folder / f"{ranks - 1}.json").exists():
        time.sleep(0.1)
    os._exit(0)  # else the end would wait for what is not there any more


if __name__ == "__main__":
    main()
