"""fp.Plan on a GPU, against the card's limits and what people write; device times.

The figures are those of measure.py in this folder, whose text tells how they are taken.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import child
from bench.settings import Settings
from bench.work import Row

PARTS = {"plan": "sums, values and gradients of a plan over weights on the card"}
NEEDED = ("torch", "cupy", "matplotlib")
LIMITS = {"pure read": "read", "pure exchange": "exchange"}


def run(parts: Sequence[str], settings: Settings) -> Iterator[Row]:
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        settings.leave_out("gpu", f"not installed: {', '.join(missing)}")
        return
    settings.doing("all works on the GPU")
    paths = [str(child.ROOT), os.environ.get("PYTHONPATH", "")]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "gpu.json")
        command = [sys.executable, "-m", "bench.cases.gpu.measure", "--json", file]
        command += ["--rounds", str(settings.rounds)]
        if settings.quick:
            command += ["--quick", "--latest", f"{max(0.0, settings.deadline - time.time()):.0f}"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode == 2:
            settings.leave_out("gpu", done.stderr.strip().splitlines()[-1].partition(": ")[2])
            return
        if done.returncode:
            raise child.Failed(done.stdout[-2000:] + done.stderr[-2000:])
        figures = json.loads(file.read_text())
    for left_out in figures["left_out"]:
        settings.leave_out(f"gpu: {left_out['work']}: {left_out['what']}", left_out["why"])
    yield from rows(figures)


def rows(figures: dict[str, Any]) -> Iterator[Row]:
    """What measure.py writes, by work, of which the first contender is ours."""
    works: dict[str, list[dict[str, Any]]] = {}
    for result in figures["results"]:
        works.setdefault(result["work"], []).append(result)
    for work, results in works.items():
        contenders = {}
        for at, result in enumerate(results):
            name = result["contender"]
            low, high = result["quartiles"]
            contenders["fused_penalties" if at == 0 else LIMITS.get(name, name)] = {
                "median": result["seconds"],
                "low": low,
                "high": high,
                "rounds": figures["machine"]["rounds"],
            }
        yield {
            "case": "gpu",
            "what": f"{results[0]['contender']}, {work}",
            "card": figures["machine"]["card"],
            "dtype": "bfloat16" if "bfloat16" in work else "float32",
            "bytes": results[0]["bytes"],
            "buffers": results[0]["buffers"],
            "threads": 1,  # of the host
            "offset": 0,
            "where": "memory",
            "unit": "s",
            "contenders": contenders,
        }
