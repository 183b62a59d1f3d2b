"""What the command prints: the numbers of many tensors as a table, as JSON or as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.console import Console

from ._file import natural

STRENGTH = 0.01  # of l1 and l2 if none is given
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
    rms: float | None = None  # the square root of the mean of w²
    largest: float | None = None  # max|w|
    l1_penalty: float | None = None
    l2_penalty: float | None = None
    l1: float | None = None  # the strengths of both
    l2: float | None = None

    @property
    def is_finite(self) -> bool:
        return self.largest is None or math.isfinite(self.largest)


class Totals(NamedTuple):
    """Over the tensors that are summed."""

    size: int
    bytes: int
    abs: float
    square: float
    rms: float
    largest: float
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
    def nonfinite(self) -> list[Row]:
        """Those with NaN or infinity among their elements."""
        return [row for row in self.tensors if not row.is_finite]

    @property
    def gb_per_s(self) -> float:
        return self.totals.bytes / self.seconds / 1e9


def _falling(value: float | None) -> tuple[bool, bool, float]:
    # NaN first, since it is what one looks for; what is not summed last.
    return value is None, value == value, -(value or 0.0)


ORDERS: dict[str, Callable[[Row], Any]] = {
    "file": lambda row: 0,
    "name": lambda row: natural(row.name),
    "size": lambda row: -row.size,
    "abs": lambda row: _falling(row.abs),
    "square": lambda row: _falling(row.square),
    "rms": lambda row: _falling(row.rms),
    "largest": lambda row: _falling(row.largest),
}


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


# What a table has beside the names: a key of --columns, and what stands above the column.
HEADINGS = {
    "shape": "shape",
    "dtype": "dtype",
    "penalty": "penalty",  # the strengths by the rules
    "size": "size",
    "bytes": "bytes",
    "abs": "Σ|w|",
    "square": "Σw²",
    "rms": "rms",
    "largest": "max|w|",
    "l1_penalty": "L1",
    "l2_penalty": "L2",
}
_WORDS = ("shape", "dtype", "penalty")  # the others are numbers


def as_table(report: Report, columns: Sequence[str] = ()) -> str:
    """One line per tensor; on a terminal too narrow for it, its numbers stand below its name.

    A terminal gets the columns that fit, unless they are given; piped output is as wide as it
    needs. No word is broken but one that is longer than the terminal is wide.
    """
    console = Console()
    room = shutil.get_terminal_size().columns if console.is_terminal else _ENDLESS
    several = len({row.file for row in report.tensors}) > 1
    names = [["file", "tensor"][not several :]]
    for row in report.tensors:
        names.append([printable(word) for word in (row.file, row.name)[not several :]])
    names.append(["total", *[""] * several])
    names_widths = [max(map(cell_len, column)) for column in zip(*names, strict=True)]
    usual = [key for key in HEADINGS if key != "bytes" and (key != "penalty" or report.rules)]
    cells = {key: _column(report, key) for key in columns or usual}
    widths = {key: max(map(len, column)) for key, column in cells.items()}

    def width(keys: Sequence[str]) -> int:
        """Of a line with the names and these columns, the spaces between them too."""
        return sum(names_widths) + 2 * several + sum(2 + widths[key] for key in keys)

    def width_below(keys: Sequence[str]) -> int:
        """Of the numbers alone, below the names."""
        return len(_INDENT) - 2 + sum(2 + widths[key] for key in keys if key not in _WORDS)

    chosen = report.rules or (report.l1, report.l2) != (STRENGTH, STRENGTH)
    last = ("rms", "largest") if chosen else ("l1_penalty", "l2_penalty")
    least = [("dtype",), ("size",), ("shape",), last]
    shown = columns or _that_fit(usual, least, lambda keys: width(keys) <= room)
    is_wide = width(shown) <= room
    if not is_wide and not columns:
        shown = _that_fit(usual, [("size",), last], lambda keys: width_below(keys) <= room)
    words = [key for key in shown if key in _WORDS]
    numbers = [key for key in shown if key not in _WORDS]

    # By hand: rich takes a minute to lay out a table of 200,000 lines.
    lines = []
    for place, name in enumerate(names):
        labels = [*name, *(cells[key][place] for key in words)]
        figures = [cells[key][place].rjust(widths[key]) for key in numbers]
        if is_wide:
            most = [*names_widths, *(widths[key] for key in words)]
            labels = [
                label + " " * (size - cell_len(label))
                for label, size in zip(labels, most, strict=True)
            ]
            filled = ["  ".join([*labels, *figures])]
        else:
            filled = [*_filled(filter(None, labels), room), *_filled(figures, room, _INDENT)]
        if console.color_system:
            filled[0] = f"\x1b[36m{labels[0]}\x1b[0m{filled[0].removeprefix(labels[0])}"
        lines += filled
        if place == 0:
            end = min(width(shown) if is_wide else width_below(shown), room)
            lines.append(("" if is_wide else _INDENT).ljust(end, "─"))
    notes = _notes(report, shown)
    if left_out := [HEADINGS[key] for key in usual if key not in shown]:
        notes += [f"no room for {', '.join(left_out)}"] * (not columns)
    for note in notes:
        lines += [""] * (note is notes[0]) + [*_filled(note.split(" "), room, space=" ")]
    return "\n".join([*lines, ""])


_ENDLESS = 1 << 62
_INDENT = "    "


def _that_fit(
    keys: list[str], least: Sequence[Sequence[str]], fits: Callable[[Sequence[str]], bool]
) -> list[str]:
    """The columns without those that one misses least, as far as there is no room for them."""
    kept = keys
    for less in least:
        if not fits(kept):
            kept = [key for key in kept if key not in less]
    for more in reversed(least):  # a narrow one may have room again now that a wide one is gone
        with_more = [key for key in keys if key in kept or key in more]
        if fits(with_more):
            kept = with_more
    return kept


def _column(report: Report, key: str) -> list[str]:
    """The cells from the heading to the total."""
    of_row = {
        "shape": lambda row: "\N{MULTIPLICATION SIGN}".join(map(str, row.shape)) or "scalar",
        "dtype": lambda row: printable(row.dtype),
        "penalty": _strengths,
    }.get(key)
    if of_row:
        return [HEADINGS[key], *map(of_row, report.tensors), ""]
    rows: list[Row | Totals] = [*report.tensors, report.totals]
    return [HEADINGS[key], *(_short(getattr(row, key)) for row in rows)]


def _strengths(row: Row) -> str:
    """What a rule gave to a tensor."""
    if row.l1 is None or row.l2 is None:
        return "-"
    given = {"l1": row.l1, "l2": row.l2}
    return ", ".join(f"{name} = {value:g}" for name, value in given.items() if value) or "none"


def _short(number: float | None) -> str:
    if number is None:
        return "-"
    return f"{number:,}" if isinstance(number, int) else f"{number:.6g}"


def _filled(words: Iterable[str], room: int, indent: str = "", space: str = "  ") -> Iterator[str]:
    """Lines of whole words."""
    line = ""
    for word in words:
        if line and cell_len(line) + len(space) + cell_len(word) > room:
            yield line
            line = ""
        line = f"{line}{space}{word}" if line else f"{indent}{word}"
    if line:
        yield line


def _notes(report: Report, shown: Sequence[str]) -> list[str]:
    """What stands below a table with these columns."""
    strengths = (
        f"l1 and l2 by {printable(report.rules)}"
        if report.rules
        else f"l1 = {report.l1:g}, l2 = {report.l2:g}"
    )
    has_penalties = not {"penalty", "l1_penalty", "l2_penalty"}.isdisjoint(shown)
    notes = [
        *[f"{report.scale} scale: {FORMULAS[report.scale]}, {strengths}"] * has_penalties,
        f"{report.totals.bytes:,} bytes in {report.seconds:.3g} s: {report.gb_per_s:.3g} GB/s "
        f"({report.isa}, at most {report.threads} thread{'s' * (report.threads != 1)})",
    ]
    if report.nonfinite:
        notes.append(said_of(report.nonfinite))
    others = Counter(row.dtype for row in report.tensors if row.abs is None)
    if others:
        kinds = ", ".join(f"{count} {dtype}" for dtype, count in others.items())
        notes.append(f"not summed, and in no total: {kinds}")
    return [printable(note) for note in notes + report.notes]


def said_of(nonfinite: Sequence[Row]) -> str:
    """Which tensors these are, as far as there are not too many."""
    names = ", ".join(row.name for row in nonfinite[:_MOST_NAMES])
    more = len(nonfinite) - _MOST_NAMES
    return (
        f"{len(nonfinite)} with NaN or infinity: {names}"
        + f", and {more} more: --sort largest has them first" * (more > 0)
    )


_MOST_NAMES = 20


def printable(text: str) -> str:
    """`text` on one line: a name in a file may hold line breaks and a terminal's control codes."""
    return text if text.isprintable() else repr(text)[1:-1]
