"""Figures for people: the tables of a run and of a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from bench.limits import LIMITS
from bench.results import key
from bench.work import Row, size, title

OURS = "fused_penalties"
ERROR = "relative error"  # the unit of the case accuracy


def of_rows(rows: Sequence[Row], heading: str) -> Table:
    """A line for each row; where another one is faster than we are, it is red."""
    if rows[0]["unit"] == ERROR:
        return of_errors(rows, heading)
    table = Table(title=heading, title_justify="left", title_style="bold", show_lines=True)
    table.add_column("work")
    table.add_column("fused_penalties", justify="right")
    table.add_column("times as fast as")
    for row in rows:
        ours = row["contenders"].get(OURS)
        table.add_row(title(row), own_cell(row, ours), others_cell(row, ours))
    return table


def of_errors(rows: Sequence[Row], heading: str) -> Table:
    """A line for each kind of data and dtype, of the largest number of elements alone."""
    table = Table(title=f"{heading}: relative errors", title_justify="left", title_style="bold")
    for column in ("data", "dtype", "elements", "fused_penalties", "the others"):
        table.add_column(column)
    largest = {(row["data"], row["dtype"]): row for row in rows}
    for (data, dtype), row in largest.items():
        errors = {name: worst(found) for name, found in row["contenders"].items()}
        ours = errors.pop(OURS)
        others = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
        table.add_row(data, dtype, f"{row['elements']:,}", f"{ours:.1e}", others)
    return table


def worst(errors: dict[str, float | str]) -> float:
    """The largest of a contender's errors, which may be "inf" or "nan"; NaN is worse than all."""
    return max(map(float, errors.values()), key=lambda error: (math.isnan(error), error))


def own_cell(row: Row, ours: dict[str, Any] | None) -> Text:
    if row["unit"] == "bytes":
        return Text(size(ours["median"]))
    if row["unit"] != "s" or ours is None:
        return Text()
    text = Text(f"{seconds(ours['median'])}\n{seconds(ours['low'])} to {seconds(ours['high'])}")
    if any(limit in row["contenders"] for limit in LIMITS):
        text.append(f"\n{row['bytes'] / ours['median'] / 1e9:.3g} GB/s, {row['where']}")
    if "collectives" in row:
        text.append(f"\n{row['collectives']} collectives")
        text.append(f"\n{row['bytes_per_buffer']:.3g} bytes sent a buffer")
    if "peak_bytes" in row:
        text.append(f"\n{size(row['peak_bytes'][OURS])} in memory")
    return text


def others_cell(row: Row, ours: dict[str, Any] | None) -> Text:
    """The share of the limit, and how many times as fast as each of the others we are."""
    others = {name: found for name, found in row["contenders"].items() if name != OURS}
    if row["unit"] != "s" or ours is None:
        return Text()
    lines = []
    for name, found in sorted(others.items(), key=lambda item: item[1]["median"]):
        ratio = found["median"] / ours["median"]
        if name in LIMITS:
            lines.insert(0, Text(f"{ratio:.2f} of the {name}"))
        else:
            lines.append(Text(f"{ratio:.2f}x {name}" if ratio < 10 else f"{ratio:.0f}x {name}"))
            if ratio < 1:
                lines[-1].stylize("red")
            if found.get("error", 0.0) >= 0.01:
                lines[-1].append(f", {100 * found['error']:.0f} % off")
    return Text("\n").join(lines)


def seconds(value: float) -> str:
    for least, factor, unit in ((1.0, 1.0, "s"), (1e-3, 1e3, "ms"), (1e-6, 1e6, "µs")):
        if value >= least:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def of_comparison(first: dict[str, Any], second: dict[str, Any]) -> Table:
    """Our times in the rows that both files have, and beside them the limit's.

    Where the limit has changed as well, it was the machine. Times whose quartiles overlap are not
    told apart.
    """
    table = Table(show_lines=True)
    table.add_column("work")
    for column in ("A", "B"):
        table.add_column(column, justify="right")
    table.add_column("B is")
    table.add_column("the limit in B is")
    others = {key(row): row["contenders"] for row in second["rows"]}
    for row in first["rows"]:
        before, after = row["contenders"], others.get(key(row), {})
        if row["unit"] != "s" or OURS not in before or OURS not in after:
            continue
        limit = next((name for name in LIMITS if name in before and name in after), None)
        table.add_row(
            f"{row['case']}: {title(row)}",
            *(seconds(contenders[OURS]["median"]) for contenders in (before, after)),
            change(before[OURS], after[OURS]),
            change(before[limit], after[limit]) if limit else Text(),
        )
    return table


def change(before: dict[str, Any], after: dict[str, Any]) -> Text:
    ratio = before["median"] / after["median"]
    if before["low"] <= after["high"] and after["low"] <= before["high"]:
        return Text(f"{ratio:.2f}x, within noise")
    return Text(f"{ratio:.2f}x as fast", style="red" if ratio < 1 else "green")
