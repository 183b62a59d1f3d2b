"""The report of measure.py: its times, what must be reached, the file and the picture."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import fused_penalties as fp
from bench.cases.gpu.card import Card, Times, cp
from bench.timing import summary

Contenders = dict[str, Callable[[], Any]]

COMMAND = "python -m bench.cases.gpu.measure"
QUICK_ROUNDS, QUICK_LATEST = 5, 35.0
HOST_AT_MOST = 15e-6
READ, EXCHANGE, NORMS = "pure read", "pure exchange", "torch._foreach_norm 1 and 2, stack"
GRADIENT = ", value and gradient"

AT_LEAST = {
    ("4 GB float32", READ): 0.90,
    ("4 GB bfloat16", READ): 0.90,
    ("GPT-2 small float32", READ): 0.80,
    ("7B bfloat16", READ): 0.88,
    ("2000 x 512 float32", NORMS): 5.0,
    ("4 GB float32" + GRADIENT, EXCHANGE): 0.85,
    ("4 GB bfloat16" + GRADIENT, EXCHANGE): 0.85,
    ("GPT-2 small float32" + GRADIENT, EXCHANGE): 0.85,
    ("7B bfloat16" + GRADIENT, EXCHANGE): 0.85,
}


class GpuReport:
    """What one run on a GPU, whose options it reads, has measured, and what was left out."""

    def __init__(self, description: str) -> None:
        self.started = time.monotonic()
        parser = argparse.ArgumentParser(description=description.split("\n")[0])
        parser.add_argument("--json", type=Path, help="also write the figures to this file")
        parser.add_argument("--rounds", type=int, default=15)
        self.options = self.parse(parser)
        self.machine = self.facts()
        self.results: list[dict[str, Any]] = []
        self.left_out: list[dict[str, str]] = []
        self.compiling = 0.0  # seconds
        self.complete = False
        self.console = Console()
        self.console.print(self.headline())

    def parse(self, parser: argparse.ArgumentParser) -> argparse.Namespace:
        parser.add_argument("--picture", type=Path, help="also draw the ratios into this file")
        parser.add_argument(
            "--latest",
            type=float,
            default=150.0,
            metavar="SECONDS",
            help="no work is begun later than this",
        )
        parser.add_argument(
            "--quick",
            action="store_true",
            help=f"under a minute: at most {QUICK_ROUNDS} rounds, no torch.compile",
        )
        options = parser.parse_args()
        for path in filter(None, (options.json, options.picture)):
            if not path.parent.is_dir():
                parser.error(f"{path.parent} is not a directory")
        if reason := unavailable():
            parser.exit(2, f"{parser.prog}: {reason}\n")
        if options.quick:
            options.rounds = min(options.rounds, QUICK_ROUNDS)
            options.latest = min(options.latest, QUICK_LATEST)
        return options

    def facts(self) -> dict[str, Any]:
        card = torch.cuda.get_device_properties(0)
        cuda = cp.cuda.runtime.runtimeGetVersion()
        return {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "numpy": np.__version__,
            "torch": torch.__version__,
            "rounds": self.options.rounds,
            "card": card.name,
            "date": datetime.date.today().isoformat(),
            "memory_bytes": card.total_memory,
            "multiprocessors": card.multi_processor_count,
            "l2_bytes": card.L2_cache_size,
            "driver": driver(),
            "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}",
            "cuda_of_torch": torch.version.cuda,
            "cupy": cp.__version__,
            "python": platform.python_version(),
            # Files without their folders, which say nothing to others.
            "command": " ".join([COMMAND, *(Path(a).name for a in sys.argv[1:])]),
            "quick": self.options.quick,
        }

    def headline(self) -> str:
        m = self.machine
        return (
            f"{m['card']}, driver {m['driver']}, CUDA {m['cuda']}, cupy {m['cupy']}, "
            f"torch {m['torch']}, fused-penalties {fp.__version__}, {m['date']}"
        )

    def use(self, card: Card) -> None:
        self.card = card
        for name, limit in self.card.limits.items():
            self.console.print(
                f"{name}: {limit['bytes_per_second'] / 1e9:,.0f} GB/s, {limit['blocks']} blocks of "
                f"{limit['threads']} threads with {limit['loads_ahead']} loads ahead each"
            )

    def compare(self, title: str, contenders: Contenders, moved: int, buffers: int) -> None:
        """Times the contenders of a work that moves so many bytes, and writes what there is."""
        self.moved, self.buffers = moved, buffers
        targets = {name: least for (work, name), least in AT_LEAST.items() if work == title}
        self.run(title, contenders, targets)
        self.write()

    def run(self, title: str, contenders: Contenders, targets: dict[str, float]) -> None:
        """Times the contenders; the ratios are those of the first one against each of the others.

        A contender named "pure ..." is a limit, and its ratio the share of it that is reached.
        """
        times, host_times = self.measure(contenders)
        subject = next(iter(contenders))
        table = Table(title=title, title_justify="left", title_style="bold")
        for column in ("contender", "median", "host", f"{subject} is", "at least"):
            table.add_column(column, justify="left" if column == "contender" else "right")
        for name in contenders:
            found = summary(times[name])
            row: dict[str, Any] = {
                "work": title,
                "bytes": self.moved,
                "buffers": self.buffers,
                "contender": name,
                "seconds": found["median"],
                "quartiles": [found["low"], found["high"]],
                "host_seconds": statistics.median(host_times[name]),
            }
            cells = [name, seconds_text(row["seconds"]), seconds_text(row["host_seconds"])]
            if name != subject:
                row["ratio"] = ratio(times, name, subject)
                row["at_least"] = targets.get(name)
                missed = row["at_least"] is not None and row["ratio"] < row["at_least"]
                text = ratio_text(row)
                cells.append(f"[red]{text}[/red]" if missed else text)
                cells.append("" if row["at_least"] is None else f"{row['at_least']:g}")
            table.add_row(*cells)
            self.results.append(row)
        self.console.print(table)

    def write(self) -> None:
        """The figures as JSON, if the command line asks for them."""
        if self.options.json:
            self.options.json.write_text(json.dumps(self.figures(), indent=1) + "\n")

    def measure(self, contenders: Contenders) -> tuple[Times, Times]:
        device, host = self.card.interleaved(contenders, self.options.rounds)
        for name in device.keys() & self.card.limits.keys():
            # The limit's own kernel moved other bytes; this is its time for those of the work.
            share = self.moved / self.card.limits[name]["bytes"]
            device[name] = [seconds * share for seconds in device[name]]
        return device, host

    def leave_out(self, title: str, what: str, why: str) -> None:
        self.console.print(f"{title}: {what} left out: {why}", highlight=False)
        self.left_out.append({"work": title, "what": what, "why": why})

    def must_reach(self) -> list[dict[str, Any]]:
        """What the plan has to reach beside what was measured, None where nothing was."""
        measured = {(row["work"], row["contender"]): row["ratio"] for row in self.ratios()}
        rows: list[dict[str, Any]] = [
            {"work": at[0], "contender": at[1], "ratio": measured.get(at), "at_least": least}
            for at, least in AT_LEAST.items()
        ]
        for row in rows:
            row["reached"] = None if row["ratio"] is None else row["ratio"] >= row["at_least"]
        values = [row for row in self.results if row["contender"] == "plan.value"]
        for slowest in sorted(values, key=lambda row: row["host_seconds"])[-1:]:
            row = {"work": slowest["work"], "contender": "plan.value, host, slowest of all works"}
            row |= {"host_seconds": slowest["host_seconds"], "at_most": HOST_AT_MOST}
            rows.append(row | {"reached": row["host_seconds"] < HOST_AT_MOST})
        return rows

    def print_must_reach(self) -> None:
        verdicts = {True: "[green]reached[/green]", False: "[red]not reached[/red]"}
        table = Table("work", "against", title="Must reach", title_justify="left")
        for column in ("measured", "wanted", ""):
            table.add_column(column, justify="right" if column else "left")
        for row in self.must_reach():
            if "at_most" in row:
                cells = [seconds_text(row["host_seconds"]), f"< {seconds_text(row['at_most'])}"]
            else:
                cells = ["" if row["ratio"] is None else ratio_text(row), f"{row['at_least']:g}"]
            verdict = verdicts.get(row["reached"], "not measured")
            table.add_row(row["work"], row["contender"], *cells, verdict)
        self.console.print(table)

    def ratios(self) -> list[dict[str, Any]]:
        return [row for row in self.results if "ratio" in row]

    def figures(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "build": fp.build_info(),
            "results": self.results,
            "limits": self.card.limits,
            "must_reach": self.must_reach(),
            "left_out": self.left_out,
            "complete": self.complete,
        }


def ratio(times: Times, slower: str, faster: str) -> float:
    """How many times faster ``faster`` is than ``slower``: the median over the rounds."""
    return statistics.median(a / b for a, b in zip(times[slower], times[faster], strict=True))


def ratio_text(row: dict[str, Any]) -> str:
    name = row["contender"]
    unit = f" of the {name[5:]}" if name.startswith("pure ") else "x"
    return f"{row['ratio']:.2f}{unit}"


def seconds_text(value: float) -> str:
    if value >= 1e-3:
        return f"{value * 1e3:.2f} ms"
    return f"{value * 1e6:.1f} µs" if value >= 1e-5 else f"{value * 1e9:.0f} ns"


def unavailable() -> str:
    """Why nothing can be measured here, in one line; empty if it can."""
    if not hasattr(fp, "cuda"):
        return "this build of fused-penalties has no CUDA part"
    if not (available := fp.cuda.is_available()):
        return " ".join(str(available).split())
    return "" if torch.cuda.is_available() else "this torch does not see the GPU"


def driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        lines = []
    return lines[0] if lines else "unknown"


def draw(figures: dict[str, Any], path: Path) -> None:
    """The ratios: shares of the limits on the left, times the peers on the right."""
    rows = [row for row in figures["results"] if "ratio" in row]
    works = list(dict.fromkeys(row["work"] for row in rows))[::-1]
    figure = Figure(figsize=(13, 1.8 + 0.42 * len(works)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
    machine = figures["machine"]
    figure.suptitle(f"fused_penalties.Plan on {machine['card']}, {machine['date']}, device time")

    for name, color in ((READ, "tab:blue"), (EXCHANGE, "tab:green")):
        limit = [row for row in rows if row["contender"] == name]
        label = f"of the {name[5:]}, {figures['limits'][name]['bytes_per_second'] / 1e9:,.0f} GB/s"
        at = [works.index(row["work"]) for row in limit]
        left.barh(at, [row["ratio"] for row in limit], 0.6, color=color, label=label)
        for y, row in zip(at, limit, strict=True):
            left.text(1.05, y, f"{row['ratio']:.2f}", va="center")
    wanted = [row for row in rows if row["contender"] in (READ, EXCHANGE) and row["at_least"]]
    left.plot(
        [row["at_least"] for row in wanted],
        [works.index(row["work"]) for row in wanted],
        "|",
        color="black",
        markersize=16,
        label="at least",
    )
    left.set_yticks(range(len(works)), works)
    left.set_xlabel("share of the card's limit")
    left.set_xlim(0.0, 1.15)
    left.axvline(1.0, color="gray", linewidth=0.8)

    others = [row for row in rows if row["contender"] not in (READ, EXCHANGE)]
    for marker, name in zip(
        "osD^vP*X", dict.fromkeys(r["contender"] for r in others), strict=False
    ):
        if not name.startswith("plan."):
            peer = [row for row in others if row["contender"] == name]
            at = [works.index(row["work"]) for row in peer]
            right.plot([row["ratio"] for row in peer], at, marker, label=name)
    right.axvline(1.0, color="gray", linewidth=0.8)
    right.set_xscale("log")
    right.set_xlabel("times as fast as (log scale)")
    right.grid(axis="both", alpha=0.3)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize=9)
    figure.savefig(path, dpi=150)
