"""Which rows become which picture. A picture whose rows are not there is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import tables, work
from bench.exact import GUARANTEED
from bench.limits import LIMITS
from bench.tables import OURS
from bench.work import Row, size

from . import charts
from .charts import Bars, Curves
from .figures import Result, bytes_per_second, seconds, series, times_faster
from .style import LIGHT

# Of rows that differ in one thing only, bars show the one next to this, and the largest.
TYPICAL = {"bytes": 256 << 10, "buffers": 1000}
DTYPES = ("float32", "float64", "float16", "bfloat16")
# Where the logarithmic axis shows that a sum was exact, and that it was infinity or NaN: this is a
# band, in which each contender has a line of its own.
EXACT, NOT_FINITE, NEXT_LINE = 1e-20, 1e2, 3.0
RAISED = dict(zip(map(ord, "-0123456789"), "\N{SUPERSCRIPT MINUS}⁰¹²³⁴⁵⁶⁷⁸⁹", strict=True))


@dataclass(frozen=True)
class Picture:
    name: str  # of its files
    caption: str  # what is seen, for those who see it and those who do not
    draw: Callable[[], Figure]


def every(results: Sequence[Result]) -> Iterator[Picture]:
    """All pictures for which there are rows; each has a panel for each of the machines."""
    yield from throughput(results)
    yield from speedups(results)
    yield from threads(results)
    yield from buffers(results)
    yield from errors(results)


def throughput(results: Sequence[Result]) -> Iterator[Picture]:
    def same(row: Row) -> tuple:
        return row["dtype"], row["threads"], row["offset"]

    by_kind: dict[tuple, list[Curves]] = {}
    for result in results:
        for group in series(_one_buffer(result), "bytes", same, least=3):
            dtype, count, offset = same(group[0])
            caches = result.figures["machine"]["caches"]
            panel = Curves(
                result.name,
                _curves(group, "bytes", _gigabytes),
                "size of the buffer (log scale)",
                "GB/s (log scale)",
                x_text=size,
                x_ticks=[2.0**n for n in _every_third([row["bytes"] for row in group])],
                spread=_spread(group, _gigabytes),
                marks={f"{name} cache": caches[name] for name in caches},
            )
            by_kind.setdefault((dtype, count, offset), []).append(panel)
    for (dtype, count, offset), panels in by_kind.items():
        title = f"Σ|w| and Σw² of one buffer, {dtype}, {_threads(count)}"
        caption = (
            f"{title}: gigabytes per second against the size of the buffer, which begins "
            f"{f'{offset} bytes past' if offset else 'on'} a cache line. The dotted line is "
            "reading the same memory and doing nothing with it: the limit, but for a few KiB, "
            "where the call itself counts."
        )
        name = f"throughput-{dtype}-{count}"
        yield Picture(name, caption, partial(charts.stacked, panels, title))


def threads(results: Sequence[Result]) -> Iterator[Picture]:
    panels = []
    for result in results:
        groups = series(
            _one_buffer(result),
            "threads",
            lambda row: (row["dtype"], row["bytes"], row["offset"]),
            least=2,
        )
        for group in _first_offset(groups):
            first = group[0]
            title = f"{result.name}: {first['dtype']}, {size(first['bytes'])}"
            counts = [row["threads"] for row in group]
            panels.append(
                Curves(
                    title,
                    _curves(group, "threads", _gigabytes),
                    "threads (log scale)",
                    "GB/s (log scale)",
                    x_ticks=counts,
                    spread=_spread(group, _gigabytes),
                )
            )
    if panels:
        title = "More threads on one buffer"
        caption = f"{title}: gigabytes per second against the number of threads."
        yield Picture("threads", caption, partial(charts.stacked, panels, title))


def buffers(results: Sequence[Result]) -> Iterator[Picture]:
    panels = []
    for result in results:
        groups = series(
            _sums(result),
            "buffers",
            lambda row: (
                row["dtype"],
                row["bytes"] / row["buffers"],
                row["threads"],
                row["offset"],
            ),
            least=3,
        )
        for group in _first_offset(groups):
            first = group[0]
            each = size(first["bytes"] / first["buffers"])
            panels.append(
                Curves(
                    f"{result.name}: {first['dtype']}, {each} each, {_threads(first['threads'])}",
                    _curves(group, "buffers", seconds),
                    "number of buffers (log scale)",
                    "time of a call (log scale)",
                    x_text=lambda x: f"{x:,.0f}",
                    y_text=tables.seconds,
                    x_ticks=[row["buffers"] for row in group],
                    spread=_spread(group, seconds),
                )
            )
    if panels:
        title = "Many small buffers"
        caption = f"{title}: the time of a call against the number of buffers; lower is better."
        yield Picture("buffers", caption, partial(charts.stacked, panels, title))


def speedups(results: Sequence[Result]) -> Iterator[Picture]:
    """One picture for each case and machine, and of `frameworks` for each framework."""
    for at, result in enumerate(results, start=1):
        kinds: dict[str, list[Bars]] = {}
        for rows in _typical([row for row in result.timed() if _peers(row)]):
            peers = dict.fromkeys(peer for row in rows for peer in _peers(row))
            # The memory lies at several offsets: the one at which we do worst counts.
            ratios = {
                peer: min(times_faster(row, peer) for row in rows if peer in row["contenders"])
                for peer in peers
            }
            notes = {
                peer: f"{100 * error:.0f} % off"
                for peer in peers
                for error in [rows[0]["contenders"].get(peer, {}).get("error", 0.0)]
                if error >= 0.01
            }
            kinds.setdefault(_subject(rows[0]), []).append(Bars(_work(rows[0]), ratios, notes))
        for subject, panels in kinds.items():
            title = f"How many times as fast fused-penalties is: {subject}\n{result.name}"
            caption = (
                f"How many times as fast fused-penalties is as others, {subject}, "
                f"{result.name}. Where a bar goes left from 1, the other one is faster. "
                "Of memory on a cache line and 16 bytes past one, the worse for us counts. "
                "“51 % off” would mean that the sums of the other one are wrong by so much."
            )
            words = ["speedup", *subject.lower().split()] + [str(at)] * (len(results) > 1)
            yield Picture("-".join(words), caption, partial(charts.bars, panels, title))


def errors(results: Sequence[Result]) -> Iterator[Picture]:
    """One for each kind of data, from the first result that has them: no machine changes ours."""
    rows = next(
        (found for result in results if (found := [r for r in result.rows if _accuracy(r)])), []
    )
    for data in dict.fromkeys(row["data"] for row in rows):
        panels = []
        groups = series(
            [row for row in rows if row["data"] == data], "elements", lambda row: row["dtype"], 2
        )
        for group in sorted(groups, key=lambda group: DTYPES.index(group[0]["dtype"])):
            panels.append(
                Curves(
                    group[0]["dtype"],
                    _error_curves(group),
                    "number of elements (log scale)",
                    "relative error (log scale)",
                    x_text=_power,
                    y_text=_error_text,
                    x_ticks=[row["elements"] for row in group],
                    bound=GUARANTEED[group[0]["dtype"]],
                )
            )
        if panels:
            title = f"How far off the sums are: {data} data"
            caption = (
                f"{title}: the larger of the relative errors of Σ|w| and Σw² against exact sums, "
                "by the number of elements. The dashed line is what fused-penalties guarantees."
            )
            draw = partial(_errors, panels, title)
            yield Picture(f"error-{data}", caption, draw)


def _errors(panels: Sequence[Curves], title: str) -> Figure:
    most = max(y for panel in panels for points in panel.curves.values() for _, y in points)
    top = most * NEXT_LINE if most >= NOT_FINITE else 10.0

    def finish(axes: Axes) -> None:
        axes.set_ylim(EXACT / 10, top)
        ticks = [EXACT, 1e-18, 1e-15, 1e-12, 1e-9, 1e-6, 1e-3, 1]
        axes.set_yticks([*ticks, NOT_FINITE] if top > NOT_FINITE else ticks)
        if top > NOT_FINITE:
            axes.axhspan(NOT_FINITE / NEXT_LINE, top, color=LIGHT.grid, alpha=0.5, linewidth=0)

    return charts.small_panels(panels, title, finish)


def _accuracy(row: Row) -> bool:
    return row["case"] == "accuracy" and row["unit"] == tables.ERROR


def _error_curves(group: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
    curves = _curves(group, "elements", _error)
    band = NOT_FINITE
    for name, points in curves.items():
        if any(math.isinf(y) for _, y in points):
            curves[name] = [(x, min(y, band)) for x, y in points]
            band *= NEXT_LINE
    return curves


def _error(row: Row, contender: str) -> float:
    """The larger one of those that the contender has; infinity for NaN too."""
    found = tables.worst(row["contenders"][contender])
    return max(found, EXACT) if math.isfinite(found) else math.inf


def _error_text(y: float) -> str:
    return {EXACT: "exact", NOT_FINITE: "inf, NaN", 1: "1"}.get(y) or _power(y)


def _power(value: float) -> str:
    return "10" + str(round(math.log10(value))).translate(RAISED)


def _one_buffer(result: Result) -> list[Row]:
    return [row for row in _sums(result) if row["buffers"] == 1]


def _sums(result: Result) -> list[Row]:
    return [row for row in result.timed() if row["case"] == "cpu" and row["what"] == "sums"]


def _peers(row: Row) -> list[str]:
    return [name for name in row["contenders"] if name not in (OURS, *LIMITS)]


def _curves(
    group: Sequence[Row], along: str, value: Callable[[Row, str], float]
) -> dict[str, list[tuple[float, float]]]:
    """By contender, of those that are in at least two of the rows."""
    names = dict.fromkeys(name for row in group for name in row["contenders"])
    points = {
        name: [(row[along], value(row, name)) for row in group if name in row["contenders"]]
        for name in names
    }
    return {name: found for name, found in points.items() if len(found) > 1}


def _spread(
    group: Sequence[Row], value: Callable[[Row, str], float]
) -> dict[str, list[tuple[float, float]]]:
    """The quartiles over the rounds, of our own curve only: those of all would hide one another."""

    def at(row: Row, quartile: str) -> float:
        contender = row["contenders"][OURS]
        return value({**row, "contenders": {OURS: {"median": contender[quartile]}}}, OURS)

    return {OURS: [(at(row, "low"), at(row, "high")) for row in group]}


def _first_offset(groups: Sequence[list[Row]]) -> list[list[Row]]:
    """Of groups that differ in nothing but where the memory lies, the first one."""
    found: dict[tuple, list[Row]] = {}
    for group in groups:
        first = group[0]
        found.setdefault((first["dtype"], first["bytes"], first["threads"]), group)
    return list(found.values())


def _typical(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows for bars: by work, those that differ only in where the memory lies."""
    kept = list(rows)
    for along, typical in TYPICAL.items():
        known = [row for row in kept if row["bytes"]]
        for group in series(known, along, partial(_but, along), least=3):
            nearest = min(group, key=lambda row: abs(math.log(row[along] / typical)))
            shown = (nearest[along], group[-1][along])
            kept = [row for row in kept if row not in group or row[along] in shown]
    works: dict[tuple, list[Row]] = {}
    for row in kept:
        works.setdefault((_subject(row), _work(row)), []).append(row)
    return list(works.values())


def _but(along: str, row: Row) -> tuple:
    """What rows along `along` have in common: of many buffers, the size of each."""
    each = row["bytes"] / row["buffers"] if along == "buffers" else row["buffers"]
    return row["case"], row["what"], row["dtype"], row["threads"], row["offset"], each


def _subject(row: Row) -> str:
    """The case, or the framework, with which the texts of its rows begin."""
    case: str = row["case"]
    return str(row["what"]).partition(",")[0] if case == "frameworks" else case


def _work(row: Row) -> str:
    """What rows that differ only in where the memory lies have in common, but for the subject."""
    title = work.title({**row, "offset": 0})
    return title.removeprefix("sums, ").removeprefix(f"{_subject(row)}, ")


def _gigabytes(row: Row, contender: str) -> float:
    return bytes_per_second(row, contender) / 1e9


def _threads(count: int | None) -> str:
    return f"{count} thread{'s' if count > 1 else ''}" if count else ""


def _every_third(sizes: Sequence[int]) -> range:
    """The exponents of two from the least size to the largest, thinned out so that labels fit."""
    low, high = math.ceil(math.log2(min(sizes))), math.floor(math.log2(max(sizes)))
    return range(low, high + 1, 3 if high - low > 9 else 1)
