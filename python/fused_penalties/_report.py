"""What the command prints: the numbers of many tensors as a table, as JSON or as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleDimensions
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

FORMULAS = {"keras": "l1·Σ|w| + l2·Σw²", "contrib": "l1·Σ|w| + l2·Σw²/2"}


class Row(NamedTuple):
    """One tensor, under the names that JSON and CSV use; None for what is not summed."""

    file: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    bytes: int
    abs: float | None = None
    square: float | None = None
    l1_penalty: float | None = None
    l2_penalty: float | None = None


class Totals(NamedTuple):
    """Over the tensors that are summed."""

    size: int
    bytes: int
    abs: float
    square: float
    l1_penalty: float
    l2_penalty: float


class Report(NamedTuple):
    scale: str
    l1: float
    l2: float
    tensors: list[Row]
    totals: Totals
    seconds: float
    isa: str
    threads: int

    @property
    def gb_per_s(self) -> float:
        return self.totals.bytes / self.seconds / 1e9


def as_json(report: Report) -> str:
    fields: dict[str, Any] = report._asdict()
    fields["tensors"] = [_without_nan(row._asdict()) for row in report.tensors]
    fields["totals"] = _without_nan(report.totals._asdict())
    fields["gb_per_s"] = report.gb_per_s
    return json.dumps(fields, indent=2, allow_nan=False) + "\n"


def _without_nan(fields: dict[str, Any]) -> dict[str, Any]:
    # JSON has no number for them; Python's float() and JavaScript's Number() read these words.
    return {
        key: ("NaN" if math.isnan(value) else "Infinity")
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for key, value in fields.items()
    }


def as_csv(report: Report) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Row._fields)
    for row in report.tensors:
        writer.writerow([*row[:2], "x".join(map(str, row.shape)), *row[3:]])
    return out.getvalue()


def as_table(report: Report) -> str:
    """One line per tensor; on a terminal too narrow for it, its numbers stand below its name.

    Nothing is cut off: piped output is as wide as it needs, and a terminal wraps what is left over.
    """
    several = len({row.file for row in report.tensors}) > 1
    lines = []
    for row in report.tensors:
        names = [row.file, row.name] if several else [row.name]
        shape = "\N{MULTIPLICATION SIGN}".join(map(str, row.shape)) or "scalar"
        labels = [Text(printable(name), "cyan") for name in names] + [Text(shape), Text(row.dtype)]
        lines.append((labels, [f"{row.size:,}", *_short(row[6:])]))
    labels = [Text("total", "bold")] + [Text()] * (len(labels) - 1)
    lines.append((labels, [f"{report.totals.size:,}", *_short(report.totals[2:])]))

    wide = _table(*["file"] * several, "tensor", "shape", "dtype")
    narrow = _table()
    for labels, numbers in lines:
        wide.add_row(*labels, *numbers)
        narrow.add_row(*numbers)

    console = Console(highlight=False)
    room = shutil.get_terminal_size().columns if console.is_terminal else math.inf
    # Both sizes: a dumb terminal would be taken for one of 80 columns all the same.
    console.size = ConsoleDimensions(1_000_000, 25)
    with console.capture() as text:
        if console.measure(wide).maximum <= room:
            console.print(wide)
        else:
            head, rule, *below = console.render_lines(narrow, pad=False)
            indent, end = Segment("    "), Segment.line()
            console.print(Text("  ".join([*["file"] * several, "tensor", "shape", "dtype"])))
            console.print(Segments([indent, *head, end, indent, *rule, end]))
            for (labels, _), line in zip(lines, below, strict=True):
                console.print(Text("  ").join(label for label in labels if label))
                console.print(Segments([indent, *line, end]))
        console.print(Text("\n".join(["", *_notes(report)])))
    return text.get()


def _table(*labels: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for label in labels:
        table.add_column(label, no_wrap=True)
    for label in "size", "Σ|w|", "Σw²", "L1", "L2":
        table.add_column(label, justify="right", no_wrap=True)
    return table


def _short(numbers: Sequence[float | None]) -> list[str]:
    return ["-" if number is None else f"{number:.6g}" for number in numbers]


def _notes(report: Report) -> list[str]:
    notes = [
        f"{report.scale} scale: {FORMULAS[report.scale]}, l1 = {report.l1:g}, l2 = {report.l2:g}",
        f"{report.totals.bytes:,} bytes in {report.seconds:.3g} s: {report.gb_per_s:.3g} GB/s "
        f"({report.isa}, at most {report.threads} thread{'s' * (report.threads != 1)})",
    ]
    odd = sum(row.abs is not None and not math.isfinite(row.abs) for row in report.tensors)
    if odd:
        notes.append(f"with NaN or infinity: {odd} of {len(report.tensors)} tensors")
    others = Counter(row.dtype for row in report.tensors if row.abs is None)
    if others:
        kinds = ", ".join(f"{count} {dtype}" for dtype, count in others.items())
        notes.append(f"not summed, and in no total: {kinds}")
    return notes


def printable(text: str) -> str:
    """`text` on one line: a name in a file may hold line breaks and a terminal's control codes."""
    return text if text.isprintable() else repr(text)[1:-1]
