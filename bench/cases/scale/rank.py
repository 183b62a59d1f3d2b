"""One of the processes of this case: rank, ranks, folder, rounds, rows of each buffer."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import fused_penalties as fp
from bench import exact, machine
from fused_penalties import distributed

BUFFERS, COLUMNS = 64, 1024
CALLS = 5  # between two barriers, which processes do not leave at the same moment


def weights(rank: int, rows: int) -> dict[str, Any]:
    shape = rows, COLUMNS
    rng = np.random.default_rng(rank)
    return {f"{k}": 0.02 * rng.standard_normal(shape, np.float32) for k in range(BUFFERS)}


def shards(mine: dict[str, Any], rank: int, ranks: int) -> dict[str, distributed.Shard]:
    return {
        name: distributed.Shard(one, (ranks * len(one), one.shape[1]), (rank * len(one), 0))
        for name, one in mine.items()
    }


def check(plan: distributed.Plan, ranks: int, rows: int) -> None:
    """A wrong result must not be timed."""
    found = plan.sums()
    every = [weights(rank, rows) for rank in range(ranks)]
    for k, (got_abs, got_square) in enumerate(zip(found.abs, found.square, strict=True)):
        if k % 16 == 0:  # the exact sums of all would take a minute
            whole = np.concatenate([each[f"{k}"] for each in every])
            for got, exactly in zip((got_abs, got_square), exact.sums(whole), strict=True):
                if abs(float(Fraction(float(got)) / exactly - 1)) > 2.6e-15:
                    raise ValueError(f"got {float(got)!r}; wanted {float(exactly)!r}")


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


def sent(plan: distributed.Plan) -> dict[str, Any]:
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
    # Where cuts make blocks that lie in two processes, what comes first are the weights themselves.
    return {"collectives": len(counts), "bytes_per_buffer": counts[-1] / len(plan)}


def row(what: str, buffers: dict[str, Any], times: dict[str, list[float]]) -> dict[str, Any]:
    """`bytes` and `buffers` are those in each process."""
    nbytes = sum(x.nbytes for x in buffers.values())
    return {
        "case": "scale",
        "what": what,
        "dtype": "float32",
        "bytes": nbytes,
        "buffers": len(buffers),
        "threads": 1,
        "offset": 0,
        "where": machine.where(nbytes),
        "unit": "s",
        "ranks": dist.get_world_size(),
        "times": times,
    }


def main() -> None:
    rank, ranks, rounds, rows = (int(sys.argv[at]) for at in (1, 2, 4, 5))
    folder = Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/s", rank=rank, world_size=ranks)
    mine = weights(rank, rows)
    plan = distributed.Plan(shards(mine, rank, ranks))
    check(plan, ranks, rows)
    alone = fp.Plan(mine, None)
    times = timed({"fused_penalties": plan.sums, "each alone": alone.sums}, rounds)
    found = [row("distributed.Plan", mine, times)]
    for cut, shape, count in (
        ("at multiples of 8 KiB", (16, 128), 161),
        ("elsewhere", (15, 127), 161),
        ("at multiples of 8 KiB", (16, 128), 10_000),
    ):
        rng = np.random.default_rng(rank)
        small = {f"{k}": rng.standard_normal(shape, np.float32) for k in range(count)}
        other = distributed.Plan(shards(small, rank, ranks))
        other.sums()  # which finds the window
        of_call = sent(other)
        times = timed({"fused_penalties": other.sums}, rounds)
        found.append({**row(f"distributed.Plan, cut {cut}", small, times), **of_call})
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
