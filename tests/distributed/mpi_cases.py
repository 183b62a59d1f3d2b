"""One rank of MPI: NumPy arrays that are cut anywhere, against one process, and ranks at fault."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

import fused_penalties as fp
from fused_penalties import distributed as fpd
from fused_penalties.regularizers import L1L2, L2
from launch import told
from random_shards import random_shards

COMM = MPI.COMM_WORLD
RANK, RANKS = COMM.Get_rank(), COMM.Get_size()
LAST = RANK == RANKS - 1
LIMIT = 2.0  # seconds, where ranks wait for one that does not come
AMPLE = 60.0  # where all come, however busy the machine is


def cases() -> dict[str, Any]:
    """What was found and what is wanted, as texts."""
    found = {}
    for name, mine, kept in random_shards(RANK, RANKS):
        rules = [(lambda name, w: name != "a" and w.ndim < 3, L1L2(0.1, 0.2))]
        plan, wanted = fpd.Plan(mine, rules, COMM), fp.sums(kept)
        for step in range(3):
            sums = plan.sums()
            assert sums.exact
            assert sums.names == wanted.names
            floats = [[*one.abs, *one.square, one.total_square] for one in (sums, wanted)]
            found[f"{name}, step {step}"] = [[float(x).hex() for x in one] for one in floats]
        most = plan.sums(largest=True).largest, [np.abs(w).max(initial=0) for w in kept.values()]
        found[f"{name}, largest"] = [[float(x).hex() for x in one] for one in most]
        penalties = plan.value(), fp.penalty(kept, rules)
        assert type(penalties[0]) is type(penalties[1])
        found[f"{name}, penalty"] = [float(one).hex() for one in penalties]

        copies = {key: fpd.Shard(one.array.copy(), *one[1:]) for key, one in mine.items()}
        norm = fpd.clip_grad_norm_(copies, 1.0, COMM)
        found[f"{name}, norm"] = [float(norm).hex(), float(_rounded(wanted, kept)).hex()]
        scaled = fpd.grad_norm(copies, COMM)
        assert math.isclose(scaled, 1.0, rel_tol=1e-3)
    mine = {f"{RANK}": np.full(7, RANK + 1.0)}  # a pipeline
    every = {f"{rank}": np.full(7, rank + 1.0) for rank in range(RANKS)}
    found["pipeline"] = [one.square.tolist() for one in (fpd.sums(mine, COMM), fp.sums(every))]
    return found


def _rounded(sums: Any, arrays: dict[str, Any]) -> Any:
    wide = any(one.dtype == np.float64 for one in arrays.values())
    return sums.total_l2_norm if wide else np.float32(sums.total_l2_norm)


def faults() -> dict[str, str]:
    """Faults after which the ranks are still together."""
    one = np.ones(5000)
    found = {}
    for name, mine in (
        ("shapes", {"w": np.ones(3 + LAST)}),
        ("dtypes", {"w": np.ones(3, np.float64 if LAST else np.float32)}),
        ("gap", {} if LAST else {"w": fpd.Shard(np.ones(2), (2 * RANKS,), (2 * RANK,))}),
        ("an error of its own", {"w": [1.0] if LAST else np.ones(3)}),
        ("undeclared", {"w": np.ones(3) + RANK}),
    ):
        found[name] = told(lambda mine=mine: fpd.sums(mine, COMM, timeout=AMPLE))
    plan = fpd.Plan({"w": one}, L2(0.5), COMM, timeout=AMPLE, check_replicas=True)
    plan.value()
    one[7] = 1.0 + LAST
    found["drifted"] = told(plan.value)
    plain = fpd.Plan({"w": np.ones(5000)}, None, COMM, timeout=AMPLE)
    found["another limit"] = told(lambda: plain.clip_grad_norm_(1.0 + LAST, {"w": np.ones(5000)}))
    found["not in it"] = told(lambda: fpd.sums({"w": one}, MPI.COMM_NULL))
    one[7] = np.nan
    found["NaN"] = told(lambda: float(plan.value()))
    one[7] = 1.0
    found["nothing"] = told(lambda: float(fpd.sums({} if LAST else {"w": one}, COMM).total_abs))
    return found


def gone() -> dict[str, Any]:
    plan = _plan()
    if LAST:
        time.sleep(60.0)
    return _timed(plan.value)


def late() -> dict[str, Any]:
    """One rank comes after the others have given up, while their processes are still there."""
    plan = _plan()
    if LAST:
        time.sleep(1.5 * LIMIT)
    return _timed(plan.value)


def another_kind() -> dict[str, Any]:
    """Calls whose words, and edges, differ in number."""
    plan = _plan()
    plan.sums()
    return _timed(plan.sums if LAST else plan.value)


def another_plan() -> dict[str, Any]:
    """One is made on a rank alone."""
    plan = _plan()
    alone = {"w": np.ones(3)}
    return _timed((lambda: fpd.sums(alone, COMM, timeout=LIMIT)) if LAST else plan.value)


def _plan() -> fpd.Plan:
    rows = fpd.Shard(np.ones((50, 9)), (50 * RANKS, 9), (50 * RANK, 0))
    held = {f"{RANK}": np.ones(5000), "rows": rows, "more": rows}
    plan = fpd.Plan(held, {"more": None, ".*": L2(0.5)}, COMM, timeout=LIMIT)
    plan.value()
    return plan


def _timed(call: Callable[[], Any]) -> dict[str, Any]:
    start = time.monotonic()
    text = told(call)
    seconds = time.monotonic() - start
    again = told(lambda: fpd.sums({"w": np.ones(3)}, MPI.Comm(COMM), timeout=LIMIT))
    total = time.monotonic() - start
    return {"told": text, "seconds": seconds, "again": again, "seconds in all": total}


def main() -> None:
    folder, which = Path(sys.argv[1]), sys.argv[2]
    found = globals()[which]()
    (folder / f"{RANK}.json").write_text(json.dumps(found))
    while which != "gone" and not all((folder / f"{one}.json").exists() for one in range(RANKS)):
        time.sleep(0.01)  # else the end of one, which may abort MPI, would be that of all


if __name__ == "__main__":
    main()
