"""The two kinds of charts: curves with a name at each end, and bars of speed-ups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from .figures import TIMES, faster
from .style import LIGHT, look

WIDTH = 8.0  # inches; the README shows a picture about 800 pixels wide
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curves:
    """One panel of curves over two logarithmic axes."""

    title: str
    curves: Mapping[str, Points]  # by contender
    x_label: str
    y_label: str
    x_text: Callable[[float], str] = lambda x: f"{x:g}"
    y_text: Callable[[float], str] = lambda y: f"{y:g}"
    x_ticks: Sequence[float] = ()
    spread: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    marks: Mapping[str, float] = field(default_factory=dict)  # vertical lines: name -> x
    bound: float | None = None  # what we guarantee: a horizontal line


@dataclass(frozen=True)
class Bars:
    """One panel of speed-ups: how many times as fast as each contender we are."""

    title: str
    ratios: Mapping[str, float]
    notes: Mapping[str, str] = field(default_factory=dict)  # beside the figures of some


def stacked(panels: Sequence[Curves], title: str) -> Figure:
    """Panels one below the other, the names of contenders at the right ends of their curves."""
    height = 1.0 + sum(_height(panel) for panel in panels)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    grid = figure.subplots(
        len(panels), 1, squeeze=False, height_ratios=[_height(panel) for panel in panels]
    )
    for panel, axes in zip(panels, grid[:, 0], strict=True):
        _curves(axes, panel)
        axes.set_title(panel.title, pad=18 if panel.marks else 8)
    # Room for the names, which the layout does not know of.
    figure.get_layout_engine().set(rect=(0.005, 0.0, 0.735, 0.985), h_pad=0.1)
    figure.draw_without_rendering()  # from here on the axes know their size in points
    for panel, axes in zip(panels, grid[:, 0], strict=True):
        _name_at_ends(axes, panel)
    return figure


def _height(panel: Curves) -> float:
    return max(3.0, 0.6 + 0.24 * len(panel.curves))


def _curves(axes: Axes, panel: Curves) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for contender, points in panel.curves.items():
        style = look(contender)
        x, y = zip(*points, strict=True)
        axes.plot(
            x,
            y,
            **style.line(),
            zorder=style.layer,
        )
        if contender in panel.spread:
            low, high = zip(*panel.spread[contender], strict=True)
            axes.fill_between(x, low, high, color=style.color, alpha=0.15, linewidth=0)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    if panel.x_ticks:
        axes.set_xticks(panel.x_ticks)
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: panel.x_text(x)))
    _few_ticks(axes)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: panel.y_text(y)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    left, right = axes.get_xlim()
    for name, x in panel.marks.items():
        if left < x < right:
            axes.axvline(x, color=LIGHT.quiet, linewidth=0.9, linestyle=(0, (1, 2)))
            axes.annotate(
                name,
                (x, 1),
                (0, 3),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="center",
                color=LIGHT.quiet,
                fontsize=9,
            )


def _few_ticks(axes: Axes) -> None:
    """Powers of ten, or 1, 2 and 5 of each where there are few of them."""
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    steps = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())


def _name_at_ends(axes: Axes, panel: Curves) -> None:
    """Writes each contender's name to the right of its last point, with a line from there."""
    ends = {contender: points[-1] for contender, points in panel.curves.items()}
    names = sorted(ends, key=lambda contender: ends[contender][1])
    last = max(x for x, _ in ends.values())
    size = axes.figure.dpi / 72  # pixels in a point
    to_pixels = axes.transData.transform
    box = axes.get_window_extent()
    wanted = [to_pixels(ends[name])[1] for name in names]
    at = apart(wanted, 13.5 * size, box.y0, box.y1 - 5 * size)
    for name, y in zip(names, at, strict=True):
        style = look(name)
        x_end, y_end = to_pixels(ends[name])
        elbow = box.x1 + 14 * size
        to_figure = axes.figure.transFigure.inverted().transform
        corners = to_figure([(x_end, y_end), (elbow, y), (elbow + 12 * size, y)])
        where = {"transform": axes.figure.transFigure}
        if ends[name][0] == last:  # from a curve that ends earlier it would cross others
            thin = Line2D(*corners[:2].T, color=style.color, linewidth=0.6, **where)
            axes.figure.add_artist(thin)
        axes.figure.add_artist(Line2D(*corners[1:].T, **style.line(), markevery=[1], **where))
        axes.figure.text(
            *to_figure((elbow + 18 * size, y)),
            style.label,
            va="center",
            fontsize=10,
            fontweight="bold" if style.layer == 6 else "normal",
        )


def apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near those wanted (which ascend), at least `gap` apart, between low and high.

    Where there is no room for that, they go beyond, as far below as above.
    """
    if not wanted:
        return []
    # Runs of names that touch: each lies around the mean of what its names want.
    runs: list[list[float]] = []
    for value in wanted:
        runs.append([value])
        while len(runs) > 1 and _first(runs[-1], gap) < _last(runs[-2], gap) + gap:
            runs[-2:] = [runs[-2] + runs[-1]]
    at = [_first(run, gap) + i * gap for run in runs for i in range(len(run))]
    if (len(at) - 1) * gap >= high - low:
        start = (low + high) / 2 - (len(at) - 1) * gap / 2
        return [start + i * gap for i in range(len(at))]
    for i in range(len(at)):
        at[i] = max(at[i], low + i * gap)
    for i in range(len(at)):
        at[-1 - i] = min(at[-1 - i], high - i * gap)
    return at


def _first(run: Sequence[float], gap: float) -> float:
    return sum(run) / len(run) - (len(run) - 1) * gap / 2


def _last(run: Sequence[float], gap: float) -> float:
    return sum(run) / len(run) + (len(run) - 1) * gap / 2


def small_panels(panels: Sequence[Curves], title: str, finish: Callable[[Axes], None]) -> Figure:
    """Panels two by two on the same axes, with one legend below. `finish` adds to each of them."""
    bound = {"color": LIGHT.colors["ours"], "linewidth": 1.0, "linestyle": (0, (4, 3))}
    rows = math.ceil(len(panels) / 2)
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    figure = Figure(
        figsize=(WIDTH, 0.8 + 2.7 * rows + 0.25 * math.ceil(len(names) / 4)), layout="constrained"
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    columns = min(2, len(panels))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for at, (panel, axes) in enumerate(zip(panels, grid.flat, strict=False)):
        _curves(axes, panel)
        axes.set_title(panel.title)
        if panel.bound:
            axes.axhline(panel.bound, **bound)
        finish(axes)
        if at % columns:
            axes.set_ylabel("")
        if at + columns < len(panels):
            axes.set_xlabel("")
    handles = [Line2D([], [], **look(name).line(), label=look(name).label) for name in names]
    if any(panel.bound for panel in panels):
        handles.append(Line2D([], [], label="guaranteed", **bound))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=4,
        frameon=False,
        handlelength=2.8,
        columnspacing=1.2,
    )
    return figure


def bars(panels: Sequence[Bars], title: str) -> Figure:
    """Panels two by two on the same axis, a bar for each contender, from 1 to the ratio."""
    columns = min(2, len(panels))
    titles = [fill(panel.title, 84 // columns) for panel in panels]
    rows = range(0, len(panels), columns)
    most = [max(len(panel.ratios) for panel in panels[at : at + columns]) for at in rows]
    lines = [max(text.count("\n") for text in titles[at : at + columns]) for at in rows]
    heights = [0.65 + 0.25 * n + 0.18 * more for n, more in zip(most, lines, strict=True)]
    figure = Figure(figsize=(WIDTH, 1.1 + sum(heights)), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    ratios = [ratio for panel in panels for ratio in panel.ratios.values()]
    low, high = min(0.8, min(ratios) / 1.1), max(3.0, max(ratios))
    room = (high / low) ** (0.4 if any(panel.notes for panel in panels) else 0.2)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for at, (panel, axes) in enumerate(zip(panels, grid.flat, strict=False)):
        _bars(axes, panel)
        axes.set_xlim(low, high * room)  # with room for the figures beyond the bars
        axes.set_ylim(most[at // columns] - 0.4, -0.6)
        axes.set_title(" " + "\n " * lines[at // columns])  # keeps the room
    figure.supxlabel("times as fast (log scale); left of 1: slower", fontsize=10)
    figure.draw_without_rendering()  # from here on it is known where the axes are
    for at, (text, axes) in enumerate(zip(titles, grid.flat, strict=False)):
        # Above the names of the contenders too: a title is longer than the axis.
        x, y = 0.01 + at % columns / columns, axes.get_position().y1 + 0.06 / figure.get_figheight()
        figure.text(x, y, text, fontsize=11, fontweight="bold", va="bottom")
    return figure


def _bars(axes: Axes, panel: Bars) -> None:
    axes.set_xscale("log")
    order = sorted(panel.ratios, key=panel.ratios.__getitem__, reverse=True)
    for at, contender in enumerate(order):
        ratio, style = panel.ratios[contender], look(contender)
        axes.barh(at, ratio - 1, left=1, height=0.66, color=style.color)
        axes.annotate(
            ", ".join(filter(None, [faster(ratio), panel.notes.get(contender)])),
            (max(ratio, 1), at),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9.5,
            fontweight="bold" if ratio < 1 else "normal",
        )
    axes.axvline(1, color=LIGHT.text, linewidth=1.2)
    axes.set_yticks(range(len(order)), [look(name).label for name in order])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(FuncFormatter(_ratio_text))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())


def _ratio_text(ratio: float, _: Any) -> str:
    return f"{ratio:g}{TIMES}"
