"""Weights that are spread over processes, and a checkpoint that is larger than memory need be.

The ranks are two processes with one thread each, over gloo on the loopback. In each round both
meet, then time some calls of one contender; the slower of the two counts. The limit is
`fused_penalties.Plan` over what lies in the process itself, which needs nobody else. What a call
sends is counted, not computed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import child
from bench.cases.scale import report
from bench.settings import Settings
from bench.timing import summary
from bench.work import Row

PARTS = {
    "ranks": "sums over two processes of torch.distributed, against each one's own",
    "report": "the command over a sharded checkpoint in the page cache, against cat",
}
RANKS = 2


def run(parts: Sequence[str], settings: Settings) -> Iterator[Row]:
    if "ranks" in parts:
        if importlib.util.find_spec("torch") is None:
            settings.leave_out("scale/ranks", "not installed: torch")
        elif settings.late():
            settings.leave_out("scale/ranks", "there was no time left for it")
        else:
            yield from of_ranks(settings)
    if "report" in parts:
        yield from report.rows(settings)


def of_ranks(settings: Settings) -> Iterator[Row]:
    settings.expect(1)
    settings.doing("sums over two processes")
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), settings)
    for rows in zip(*found, strict=True):
        row = dict(rows[0])
        times = [row.pop("times") for row in map(dict, rows)]
        # A round takes as long as the slower process.
        row["contenders"] = {
            name: summary([max(both) for both in zip(*(one[name] for one in times), strict=True)])
            for name in times[0]
        }
        row.pop("times")
        yield row


def measured(folder: Path, settings: Settings) -> list[list[dict[str, Any]]]:
    """The rows of each process, with its own times."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(child.ROOT), os.environ.get("PYTHONPATH")])
        ),
    }
    # Buffers of so many rows of 1024 float32 in each process.
    rows = "512" if settings.quick else "2048"
    arguments = [str(RANKS), str(folder), str(settings.rounds), rows]
    processes = []
    for rank in range(RANKS):
        command = [sys.executable, "-m", "bench.cases.scale.rank", str(rank), *arguments]
        with (folder / f"{rank}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
    try:
        for rank, process in enumerate(processes):
            if process.wait(timeout=300):
                raise child.Failed((folder / f"{rank}.log").read_text(errors="replace"))
    finally:
        for process in processes:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]
