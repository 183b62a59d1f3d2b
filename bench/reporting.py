"""The command line, the tables and the file of figures that the benchmarks share."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import fused_penalties as fp
from timing import interleaved, ratio

Contenders = dict[str, Callable[[], Any]]
Times = dict[str, list[float]]
Targets = dict[str, tuple[float, float] | tuple[float]]  # (at least, and perhaps what to aim for)


class Report:
    """What one run of a benchmark, whose options it reads, has measured."""

    def __init__(self, description: str) -> None:
        parser = argparse.ArgumentParser(description=description.split("\n")[0])
        parser.add_argument("--json", type=Path, help="also write the figures to this file")
        parser.add_argument("--rounds", type=int, default=15)
        self.options = self.parse(parser)
        self.machine = self.facts()
        self.results: list[dict[str, Any]] = []
        self.console = Console()
        self.console.print(self.headline())

    # What a benchmark on another device has its own of.

    def parse(self, parser: argparse.ArgumentParser) -> argparse.Namespace:
        return parser.parse_args()

    def facts(self) -> dict[str, Any]:
        """What the figures were measured on and with, for the file."""
        return {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            **versions(),
            "rounds": self.options.rounds,
        }

    def headline(self) -> str:
        info = fp.build_info()
        return (
            f"fused-penalties {info['version']}, {info['active_isa']}, {os.cpu_count()} cores, "
            + ", ".join(" ".join(one) for one in versions().items())
        )

    def measure(self, contenders: Contenders) -> tuple[Times, Times]:
        """Seconds per call, one figure a round; apart, the host's, if a device does the work."""
        return interleaved(contenders, self.options.rounds), {}

    def run(self, title: str, contenders: Contenders, targets: Targets) -> None:
        """Times the contenders; the ratios are those of the first one against each of the others.

        A contender named "pure ..." is a limit, and its ratio the share of it that is reached.
        """
        times, host_times = self.measure(contenders)
        subject = next(iter(contenders))
        table = Table(title=title, title_justify="left", title_style="bold")
        for column in ("contender", "median", "host", f"{subject} is", "at least", "aim"):
            if column != "host" or host_times:
                table.add_column(column, justify="left" if column == "contender" else "right")
        for name in contenders:
            row: dict[str, Any] = {
                "work": title,
                "contender": name,
                "seconds": statistics.median(times[name]),
            }
            cells = [name, seconds_text(row["seconds"])]
            if host_times:
                row["host_seconds"] = statistics.median(host_times[name])
                cells.append(seconds_text(row["host_seconds"]))
            if name != subject:
                row["ratio"] = ratio(times, name, subject)
                row["at_least"], row["aim"] = (*targets.get(name, ()), None, None)[:2]
                missed = row["at_least"] is not None and row["ratio"] < row["at_least"]
                text = ratio_text(row)
                cells.append(f"[red]{text}[/red]" if missed else text)
                cells += ["" if t is None else f"{t:g}" for t in (row["at_least"], row["aim"])]
            table.add_row(*cells)
            self.results.append(row)
        self.console.print(table)

    def absolute(self, title: str, call: Callable[[], Any], at_most: float) -> None:
        """Times one call, which has to take at most so many seconds."""
        seconds = statistics.median(interleaved({title: call}, self.options.rounds)[title])
        text = f"{seconds_text(seconds)}, at most {seconds_text(at_most)}"
        self.console.print(
            f"[bold]{title}[/bold]: {text}" if seconds <= at_most else f"{title}: [red]{text}[/red]"
        )
        self.results.append({"work": title, "seconds": seconds, "at_most": at_most})

    def write(self) -> None:
        """The figures as JSON, if the command line asks for them."""
        if not self.options.json:
            return
        self.options.json.write_text(json.dumps(self.figures(), indent=1) + "\n")

    def figures(self) -> dict[str, Any]:
        return {"machine": self.machine, "build": fp.build_info(), "results": self.results}


def versions() -> dict[str, str]:
    """Those of the libraries that the benchmark has imported."""
    names = "numpy", "torch", "keras", "jax", "tensorflow"
    return {name: sys.modules[name].__version__ for name in names if name in sys.modules}


def ratio_text(row: dict[str, Any]) -> str:
    name = row["contender"]
    unit = f" of the {name[5:]}" if name.startswith("pure ") else "x"
    return f"{row['ratio']:.2f}{unit}"


def seconds_text(value: float) -> str:
    if value >= 1e-3:
        return f"{value * 1e3:.2f} ms"
    return f"{value * 1e6:.1f} µs" if value >= 1e-5 else f"{value * 1e9:.0f} ns"
