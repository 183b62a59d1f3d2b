"""One of the processes of this benchmark: rank, ranks, folder, rounds."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import fused_penalties as fp
from fused_penalties import distributed

BUFFERS, ROWS = 64, 2048  # of 1024 float32: 8 MB of each buffer lie here
CALLS = 5  # between two barriers, which processes do not leave at the same moment


def weights(rank: int) -> dict[str, Any]:
    rng = np.random.default_rng(rank)
    return {f"{k}": 0.02 * rng.standard_normal((ROWS, 1024), np.float32) for k in range(BUFFERS)}


def shards(mine: dict[str, Any], rank: int, ranks: int) -> dict[str, distributed.Shard]:
    return {
        name: distributed.Shard(one, (ranks * len(one), one.shape[1]), (rank * len(one), 0))
        for name, one in mine.items()
    }


def check(plan: distributed.Plan, ranks: int) -> None:
    found = plan.sums()
    parts = [fp.partial_sums(weights(rank)) for rank in range(ranks)]
    wanted = sum(parts[1:], start=parts[0]).sums()  # cut at multiples of 8 KiB, they merge exactly
    assert (found.abs == wanted.abs).all()
    assert (found.square == wanted.square).all()


def timed(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for at in range(rounds + 1):
        for name, call in calls.items():
            dist.barrier()
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            if at:  # the first round is to warm up
                times[name].append((time.perf_counter() - start) / CALLS)
    return times


def sent(work: str, plan: distributed.Plan, edges: bool) -> dict[str, Any]:
    """What one call of a plan gives to torch.distributed."""
    counts: list[int] = []
    originals = {name: getattr(dist, name) for name in ("all_reduce", "all_to_all_single")}
    for name, original in originals.items():

        def counted(first: Any, *args: Any, _original: Any = original, **more: Any) -> Any:
            counts.append(first.nbytes)
            return _original(first, *args, **more)

        setattr(dist, name, counted)
    plan.sums()
    for name, original in originals.items():
        setattr(dist, name, original)
    # The edges themselves are the weights' own bytes; the sums are what is reduced, at the end.
    return {
        "work": work,
        "collectives": len(counts),
        "edges": edges,
        "bytes per buffer": counts[-1] / len(plan),
    }


def main() -> None:
    rank, ranks, rounds = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[4])
    folder = Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/s", rank=rank, world_size=ranks)
    mine = weights(rank)
    plan = distributed.Plan(shards(mine, rank, ranks))
    check(plan, ranks)
    alone = fp.Plan(mine, None)
    times = timed({"distributed.Plan": plan.sums, "pure local sums": alone.sums}, rounds)
    rows = []
    for work, count, shape, edges in (
        ("161 buffers, cut at multiples of 8 KiB", 161, (16, 128), False),
        ("161 buffers, cut elsewhere", 161, (15, 127), True),
        ("10,000 buffers, cut at multiples of 8 KiB", 10_000, (16, 128), False),
    ):
        rng = np.random.default_rng(rank)
        small = {f"{k}": rng.standard_normal(shape, np.float32) for k in range(count)}
        other = distributed.Plan(shards(small, rank, ranks))
        other.sums()  # which finds the window
        rows.append(sent(work, other, edges))
        rows[-1]["seconds"] = float(np.median(timed({work: other.sums}, rounds)[work]))
    (folder / f"{rank}.json").write_text(json.dumps({"times": times, "sent": rows}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
