"""One page with all pictures, the figures behind them, and what they were measured on and with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from bench import tables
from bench.tables import OURS
from bench.work import Row, size

from .figures import TIMES, Result, bytes_per_second, faster, label, times_faster
from .pictures import Picture
from .style import DARK, LIGHT, Theme, painted

STYLE = """
body { background: var(--background); color: var(--text); margin: 2rem auto; max-width: 56rem;
  padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }
svg { width: 100%; height: auto; }
figure { margin: 2rem 0; }
figcaption, .quiet { color: var(--quiet); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--grid); padding: 0.2rem 0.6rem; text-align: left;
  vertical-align: top; }
.wide td, .wide th { white-space: nowrap; }
td.number, th.number { text-align: right; }
td.loss { font-weight: bold; }
summary { cursor: pointer; }
"""


def page(results: Sequence[Result], shown: Sequence[tuple[Picture, str]]) -> str:
    """`shown` are the pictures, as SVG for light backgrounds."""
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        "<title>fused-penalties: benchmarks</title>",
        f"<style>\n:root {{ {_variables(LIGHT)} }}\n@media (prefers-color-scheme: dark) "
        f"{{ :root {{ {_variables(DARK)} }} }}{STYLE}</style></head><body>",
        "<h1>fused-penalties: benchmarks</h1>",
        *(f"<p>{escape(result.name)}, {result.figures['date']}</p>" for result in results),
        *(
            f"<figure>{inline(svg, picture.name)}"
            f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
            for picture, svg in shown
        ),
        "<h2>What was measured, on what and with what</h2>",
        *(_about(result) for result in results),
        "<h2>All figures</h2>",
        "<p>Times are medians over rounds in which all contenders take turns, with the quartiles. "
        "“Times as fast” says how many times as fast fused-penalties is; where it is slower, the "
        "figure is bold. For the limits it is the share of their speed that is reached.</p>",
        *(table for result in results for table in _tables(result)),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def inline(svg: str, name: str) -> str:
    """An SVG as part of the page: its colours are the page's, and its ids its own."""
    svg = painted(svg[svg.index("<svg") :], {name: f"var(--{name})" for name in LIGHT.all()})
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)


def _variables(theme: Theme) -> str:
    return " ".join(f"--{name}: {color};" for name, color in theme.all().items())


def _about(result: Result) -> str:
    """The machine, the package, the versions of all else, and what was left out."""
    figures = result.figures
    machine, package = figures["machine"], figures["package"]
    caches = ", ".join(f"{name} {size(nbytes)}" for name, nbytes in machine["caches"].items())
    facts = {
        "processor": f"{machine['processor']}, {machine['cores']} cores",
        "threads": machine["threads"],
        "caches": caches,
        "memory": size(machine["memory_bytes"]),
        "system": machine["system"],
        "fused-penalties": f"{package['version']}, {package['isa']}",
        "beside it": ", ".join(f"{name} {text}" for name, text in figures["versions"].items()),
        "left out": "; ".join(f"{name}: {why}" for name, why in figures["left_out"].items()),
        "command": figures["command"],
        "date": figures["date"],
        "file": result.file,
    }
    lines = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
        if value
    )
    return f"<h3>{escape(result.name)}</h3><table>{lines}</table>"


def _tables(result: Result) -> Iterator[str]:
    """One for each case and unit, with all of its rows."""
    kinds: dict[tuple[str, str], list[Row]] = {}
    for row in result.rows:
        kinds.setdefault((row["case"], row["unit"]), []).append(row)
    for (case, unit), rows in kinds.items():
        columns, lines = _figures(rows, unit)
        head = "".join(f"<th{_number(column)}>{escape(column)}</th>" for column in columns)
        body = "\n".join(
            "<tr>"
            + "".join(
                f"<td{_number(column, cell)}>{escape(cell)}</td>"
                for column, cell in zip(columns, line, strict=True)
            )
            + "</tr>"
            for line in lines
        )
        yield (
            f"<details><summary>{escape(f'{case} ({unit}), {result.name}')}</summary>"
            f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>'
            "</table></div></details>"
        )


# Columns that hold no figures.
WORDS = ("what", "model", "data", "dtype", "where", "contender", "variant")


def _figures(rows: Sequence[Row], unit: str) -> tuple[list[str], list[list[str]]]:
    keys = [
        key
        for key in dict.fromkeys(key for row in rows for key in row)
        if key not in ("case", "unit", "contenders")
    ]
    values = list(
        dict.fromkeys(name for row in rows for c in row["contenders"].values() for name in c)
    )
    in_seconds = unit == "s"
    columns = [*keys, "contender", *values, *(["GB/s", "times as fast"] if in_seconds else [])]
    lines = []
    for row in rows:
        for contender, found in row["contenders"].items():
            line = [_text(row.get(key), key) for key in keys]
            line.append(label(contender))
            line += [_text(found.get(value), value, in_seconds) for value in values]
            if in_seconds:
                speed = bytes_per_second(row, contender) / 1e9 if row.get("bytes") else None
                line.append(f"{speed:.3g}" if speed else "")
                compared = contender != OURS and OURS in row["contenders"]
                line.append(faster(times_faster(row, contender)) if compared else "")
            lines.append(line)
    return columns, lines


def _text(value: Any, name: str, in_seconds: bool = False) -> str:
    if value is None:
        return ""
    if name == "bytes":
        return size(value)
    if in_seconds and name in ("median", "low", "high"):
        return tables.seconds(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _number(column: str, cell: str = "") -> str:
    if column in WORDS:
        return ""
    loss = column == "times as fast" and cell and float(cell.rstrip(TIMES)) < 1
    return ' class="number loss"' if loss else ' class="number"'
