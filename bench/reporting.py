"""The command line, the tables and the file of figures that the benchmarks share."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import fused_penalties as fp
from timing import interleaved, ratio

Contenders = dict[str, Callable[[], Any]]
Targets = dict[str, tuple[float, float] | tuple[float]]  # (at least, and perhaps what to aim for)


class Report:
    """What one run of a benchmark, whose options it reads, has measured."""

    def __init__(self, description: str) -> None:
        parser = argparse.ArgumentParser(description=description.split("\n")[0])
        parser.add_argument("--json", type=Path, help="also write the figures to this file")
        parser.add_argument("--rounds", type=int, default=15)
        self.options = parser.parse_args()
        self.results: list[dict[str, Any]] = []
        self.console = Console()
        info = fp.build_info()
        self.console.print(
            f"fused-penalties {info['version']}, {info['active_isa']}, {os.cpu_count()} cores, "
            f"numpy {np.__version__}, torch {torch.__version__}"
        )

    def run(self, title: str, contenders: Contenders, targets: Targets) -> None:
        """Times the contenders; the ratios are those of the first one against each of the others.

        A contender named "pure ..." is a limit, and its ratio the share of it that is reached.
        """
        times = interleaved(contenders, self.options.rounds)
        subject = next(iter(contenders))
        table = Table(title=title, title_justify="left", title_style="bold")
        for column in ("contender", "median", f"{subject} is", "at least", "aim"):
            table.add_column(column, justify="left" if column == "contender" else "right")
        for name in contenders:
            row: dict[str, Any] = {
                "work": title,
                "contender": name,
                "seconds": statistics.median(times[name]),
            }
            cells = [name, _seconds(row["seconds"])]
            if name != subject:
                row["ratio"] = ratio(times, name, subject)
                row["at_least"], row["aim"] = (*targets.get(name, ()), None, None)[:2]
                unit = f" of the {name[5:]}" if name.startswith("pure ") else "x"
                cells.append(f"{row['ratio']:.2f}{unit}")
                cells += ["" if t is None else f"{t:g}" for t in (row["at_least"], row["aim"])]
                if row["at_least"] is not None and row["ratio"] < row["at_least"]:
                    cells[2] = f"[red]{cells[2]}[/red]"
            table.add_row(*cells)
            self.results.append(row)
        self.console.print(table)

    def absolute(self, title: str, call: Callable[[], Any], at_most: float) -> None:
        """Times one call, which has to take at most so many seconds."""
        seconds = statistics.median(interleaved({title: call}, self.options.rounds)[title])
        text = f"{_seconds(seconds)}, at most {_seconds(at_most)}"
        self.console.print(
            f"[bold]{title}[/bold]: {text}" if seconds <= at_most else f"{title}: [red]{text}[/red]"
        )
        self.results.append({"work": title, "seconds": seconds, "at_most": at_most})

    def write(self) -> None:
        """The figures as JSON, if the command line asks for them."""
        if not self.options.json:
            return
        machine = {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "numpy": np.__version__,
            "torch": torch.__version__,
            "rounds": self.options.rounds,
        }
        figures = {"machine": machine, "build": fp.build_info(), "results": self.results}
        self.options.json.write_text(json.dumps(figures, indent=1) + "\n")


def _seconds(value: float) -> str:
    if value >= 1e-3:
        return f"{value * 1e3:.2f} ms"
    return f"{value * 1e6:.1f} µs" if value >= 1e-5 else f"{value * 1e9:.0f} ns"
