"""The picture of a checkpoint: how large the weights of each layer are."""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

from ._file import FileFault, faults_of, shortened
from ._report import Row, printable

_FORMATS = (".png", ".svg", ".pdf")
# Of the median root mean square of the layers of the same kind.
NEAR_DEAD, EXPLODING = 1e-2, 1e2


class Layer(NamedTuple):
    """The tensors whose names differ after the last dot or slash only."""

    name: str
    mean: float  # Σ|w|/n
    rms: float
    is_finite: bool


def check_picture(path: str | None) -> None:
    """FileFault if a picture cannot be drawn there, which is said before hours of reading."""
    if path is None:
        return
    if not path.lower().endswith(_FORMATS):
        raise FileFault(path, f"a picture is one of {', '.join(_FORMATS)}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise FileFault(
            path,
            f"matplotlib, which draws it, cannot be imported ({error}); "
            "pip install 'fused-penalties[plot]'",
        ) from error
    with faults_of(path):
        os.stat(os.path.dirname(path) or ".")


def layers_of(rows: Sequence[Row]) -> list[Layer]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.abs is not None and row.size:
            layer = re.sub(r"[./][^./]*\Z", "", row.name)
            found.setdefault((row.file, layer), []).append(row)
    return [_layer(printable(name), own) for (_, name), own in found.items()]


def _layer(name: str, rows: Sequence[Row]) -> Layer:
    size = sum(row.size for row in rows)
    sum_abs, sum_square = (
        sum(map(float, sums)) for sums in zip(*((row.abs, row.square) for row in rows), strict=True)
    )
    return Layer(
        name, sum_abs / size, math.sqrt(sum_square / size), all(row.is_finite for row in rows)
    )


def odd_ones(layers: Sequence[Layer]) -> dict[str, list[int]]:
    """The places of the layers that are marked, by what is odd with them."""
    alike: dict[str, list[float]] = {}
    for layer in layers:
        if layer.is_finite:
            alike.setdefault(_kind(layer.name), []).append(layer.rms)
    of_all = [rms for own in alike.values() for rms in own]
    usual = {kind: median(own if len(own) >= 3 else of_all) for kind, own in alike.items()}
    odd: dict[str, list[int]] = {"near-dead": [], "exploding": [], "NaN or infinity": []}
    for place, layer in enumerate(layers):
        if not layer.is_finite:
            odd["NaN or infinity"].append(place)
        elif layer.rms == 0.0 or layer.rms < NEAR_DEAD * usual[_kind(layer.name)]:
            odd["near-dead"].append(place)
        elif layer.rms > EXPLODING * usual[_kind(layer.name)]:
            odd["exploding"].append(place)
    return odd


def _kind(name: str) -> str:
    return re.sub(r"\d+", "#", name)


# How each kind of odd ones is drawn: sign, colour, and the height where a logarithm has no place.
_SIGNS = {
    "near-dead": ("v", "#7b3fa8", 0.03),
    "exploding": ("^", "#c8321e", 0.97),
    "NaN or infinity": ("X", "#111111", 0.97),
}
_MOST_NAMES = 40  # below the axis; of more layers the numbers stand there
_MOST_ODD = 8  # of each kind that are named


def draw(rows: Sequence[Row], path: str) -> None:
    """Draws the layers of the tensors, in their order, on a logarithmic scale."""
    import matplotlib.style
    from matplotlib.figure import Figure

    layers = layers_of(rows)
    few = len(layers) <= _MOST_NAMES
    names = [_short(layer.name) for layer in layers]
    width = min(max(3 + 0.25 * len(layers), 7), 14)
    upright = 10 * width < sum(len(name) + 3 for name in names)
    height = 5 + (0.07 * max(map(len, names), default=0) if few and upright else 0)
    with faults_of(path), matplotlib.style.context("default"):
        figure = Figure((width, height), layout="constrained")
        axes = figure.subplots()
        axes.set_yscale("log")
        places = range(1, len(layers) + 1)
        for label, colour, values in (
            ("root mean square", "#1668b0", [layer.rms for layer in layers]),
            ("mean magnitude, Σ|w|/n", "#e08a1e", [layer.mean for layer in layers]),
        ):
            drawn = [value if _has_logarithm(value) else math.nan for value in values]
            style = "o-" if few else "."  # lines between so many would hide them
            axes.plot(places, drawn, style, color=colour, ms=5, lw=0.8, label=label)
        if not any(_has_logarithm(layer.rms) for layer in layers):
            axes.set_ylim(0.1, 1)  # there is nothing to scale it by
        said = [f"{len(layers):,} layers, in their order"]
        for kind, found in odd_ones(layers).items():
            if found:
                _mark(axes, layers, kind, found)
                odd = shortened([f"{names[at]} (layer {at + 1})" for at in found], _MOST_ODD)
                said += textwrap.wrap(f"{kind}: {', '.join(odd)}", int(13 * width))
        axes.set_xlim(0.5, max(len(layers), 1) + 0.5)
        if few:
            turned = 90 if upright else 0
            axes.set_xticks(places, names, rotation=turned, fontsize=8, parse_math=False)
        axes.set_xlabel("\n".join(said), loc="left", fontsize=8, parse_math=False)
        axes.set_ylabel("magnitude")
        axes.grid(alpha=0.3)
        files = {row.file for row in rows}
        name = os.path.basename(os.path.normpath(min(files)))
        title = printable(name) if len(files) == 1 else f"{len(files)} files"
        axes.set_title(_short(title), parse_math=False)
        figure.legend(loc="outside upper center", ncols=3, fontsize=8, frameon=False)
        figure.savefig(path, dpi=150, facecolor="white")


def _mark(axes: Any, layers: Sequence[Layer], kind: str, found: Sequence[int]) -> None:
    sign, colour, height = _SIGNS[kind]
    style = {"color": colour, "marker": sign, "ls": "", "ms": 9, "clip_on": False}
    inside = [at for at in found if _has_logarithm(layers[at].rms)]
    outside = [at for at in found if not _has_logarithm(layers[at].rms)]
    heights = [layers[at].rms for at in inside]
    axes.plot([at + 1 for at in inside], heights, label=f"{kind}: {len(found)}", **style)
    edge = axes.get_xaxis_transform()
    axes.plot([at + 1 for at in outside], [height] * len(outside), transform=edge, **style)


def _has_logarithm(value: float) -> bool:
    return 0.0 < value < math.inf


def _short(name: str, most: int = 36) -> str:
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-most // 2 + 1 :]}"
