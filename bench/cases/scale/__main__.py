"""Sums of weights that are spread over processes, against processes that do not communicate.

    pip install ".[torch,bench]"
    python bench/cases/scale [--rounds N] [--json FILE]

Two processes with 512 MB of float32 each and one thread each, over gloo on the loopback. In each
round both meet, then time five calls of one contender; the slower of the two counts.
`fused_penalties.Plan` over what lies in the process itself, which needs nobody else, is the limit.
The sums are checked against those of all the weights before they are timed. What a call sends is
counted, not computed.

`report.py` beside it measures the command on a checkpoint of 6 GB.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))  # what all benchmarks share

from reporting import Contenders, Report, Times  # noqa: E402

RANKS = 2
MOST = {"collectives": 1, "bytes per buffer": 70.0}


class Ranks(Report):
    """Whose times come from other processes."""

    times: Times

    def measure(self, contenders: Contenders) -> tuple[Times, Times]:
        return self.times, {}


def main() -> None:
    report = Ranks(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), report.options.rounds)
    # A round takes as long as the slower process.
    report.times = {
        name: [max(both) for both in zip(*(one["times"][name] for one in found), strict=True)]
        for name in found[0]["times"]
    }
    title = f"{RANKS} processes, 512 MB each, one thread each"
    report.run(title, dict.fromkeys(report.times, None), {"pure local sums": (0.9,)})
    for row in found[0]["sent"]:
        for what, most in MOST.items():
            edges = what == "collectives" and row["edges"]
            count, limit = row[what], most + edges
            text = f"{row['work']}: {what} of a call: {count:g}, at most {limit:g}"
            report.console.print(text if count <= limit else f"[red]{text}[/red]")
        report.results.append(row)
    report.write()


def measured(folder: Path, rounds: int) -> list[dict[str, Any]]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, HERE / "rank.py", str(rank), str(RANKS), str(folder), str(rounds)],
            env=environment,
        )
        for rank in range(RANKS)
    ]
    try:
        for process in processes:
            if process.wait(timeout=300):
                sys.exit(f"failed: a rank ended with {process.returncode}")
    finally:
        for process in processes:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


if __name__ == "__main__":
    main()
