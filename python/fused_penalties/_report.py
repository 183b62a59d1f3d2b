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

from rich.cells import cell_len
from rich.console import Console

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
    l1: float | None = None  # the strengths of both
    l2: float | None = None


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
    rules: str | None  # the file that has the strengths; they are then None here
    l1: float | None
    l2: float | None
    tensors: list[Row]
    totals: Totals
    seconds: float
    isa: str
    threads: int
    notes: list[str]

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
        file, name, dtype = map(printable, (row.file, row.name, row.dtype))
        writer.writerow([file, name, "x".join(map(str, row.shape)), dtype, *row[4:]])
    return out.getvalue()


def as_table(report: Report) -> str:
    """One line per tensor; on a terminal too narrow for it, its numbers stand below its name.

    Nothing is cut off: piped output is as wide as it needs, and a terminal wraps what is left over.
    """
    several = len({row.file for row in report.tensors}) > 1
    names = ["file"] * several + ["tensor", "shape", "dtype"] + ["penalty"] * bool(report.rules)
    lines = [(names, ["size", "Σ|w|", "Σw²", "L1", "L2"])]
    for row in report.tensors:
        shape = "\N{MULTIPLICATION SIGN}".join(map(str, row.shape)) or "scalar"
        labels = [*[row.file] * several, row.name, shape, row.dtype]
        if report.rules:
            labels.append(_strengths(row))
        lines.append(([*map(printable, labels)], [f"{row.size:,}", *_short(row[6:10])]))
    totals = report.totals
    total = ["total"] + [""] * (len(names) - 1)
    lines.append((total, [f"{totals.size:,}", *_short(totals[2:])]))

    # By hand: rich takes a minute to lay out a table of 200,000 lines.
    console = Console()
    room = shutil.get_terminal_size().columns if console.is_terminal else math.inf
    left = [max(map(cell_len, column)) for column in zip(*(line[0] for line in lines), strict=True)]
    right = [max(map(len, column)) for column in zip(*(line[1] for line in lines), strict=True)]
    width = sum(left) + sum(right) + 2 * (len(left) + len(right) - 1)
    is_wide = width <= room

    def cyan(text: str) -> str:
        return f"\x1b[36m{text}\x1b[0m" if console.color_system else text

    text = []
    for labels, numbers in lines:
        if is_wide:
            labels = [
                label + " " * (most - cell_len(label))
                for label, most in zip(labels, left, strict=True)
            ]
        numbers = [number.rjust(most) for number, most in zip(numbers, right, strict=True)]
        named = "  ".join([cyan(labels[0]), *filter(None, labels[1:])])
        text.append(("  " if is_wide else "\n    ").join([named, "  ".join(numbers)]))
    rule = "─" * width if is_wide else "    " + "─" * (sum(right) + 2 * (len(right) - 1))
    return "\n".join([text[0], rule, *text[1:], "", *_notes(report), ""])


def _strengths(row: Row) -> str:
    """What a rule gave to a tensor."""
    if row.l1 is None or row.l2 is None:
        return "-"
    given = {"l1": row.l1, "l2": row.l2}
    return ", ".join(f"{name} = {value:g}" for name, value in given.items() if value) or "none"


def _short(numbers: Sequence[float | None]) -> list[str]:
    return ["-" if number is None else f"{number:.6g}" for number in numbers]


def _notes(report: Report) -> list[str]:
    strengths = (
        f"l1 and l2 by {printable(report.rules)}"
        if report.rules
        else f"l1 = {report.l1:g}, l2 = {report.l2:g}"
    )
    notes = [
        f"{report.scale} scale: {FORMULAS[report.scale]}, {strengths}",
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
    return [printable(note) for note in notes + report.notes]


def printable(text: str) -> str:
    """`text` on one line: a name in a file may hold line breaks and a terminal's control codes."""
    return text if text.isprintable() else repr(text)[1:-1]
