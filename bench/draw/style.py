"""What every picture shares: the two backgrounds, and each contender's name, colour and marker.

The colours were chosen so that any two of them can be told apart also by people who see no red or
no green, and stand out from the background. Contenders of one library share its colour, and differ
in marker and dash.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib

from .figures import label


@dataclass(frozen=True)
class Theme:
    name: str
    background: str
    text: str
    quiet: str  # what is no contender: axes, notes
    grid: str
    colors: dict[str, str]

    def all(self) -> dict[str, str]:
        ground = {name: getattr(self, name) for name in ("background", "text", "quiet", "grid")}
        return ground | self.colors


LIGHT = Theme(
    "light",
    background="#ffffff",
    text="#1f2328",
    quiet="#59636e",
    grid="#dde2e7",
    colors={
        "ours": "#0550ae",
        "limit": "#111417",
        "numpy": "#9a3300",
        "blas": "#6fa039",
        "numkong": "#ad46d8",
        "torch": "#5d2812",
        "numexpr": "#936c1a",
        "xla": "#349ca3",
        "tensorflow": "#78126d",
        "loop": "#57606a",
    },
)
DARK = Theme(
    "dark",
    background="#0d1117",
    text="#f0f6fc",
    quiet="#9198a1",
    grid="#2a3038",
    colors={
        "ours": "#58a6ff",
        "limit": "#fdfeff",
        "numpy": "#eda68c",
        "blas": "#36915c",
        "numkong": "#9363fb",
        "torch": "#f93b54",
        "numexpr": "#cae26a",
        "xla": "#1fe0f4",
        "tensorflow": "#fb66d1",
        "loop": "#8b949e",
    },
)
THEMES = (LIGHT, DARK)

# By what the contender's name begins with, whatever its capitals; the first that fits.
FAMILIES = (
    (r"fused.penalties|fp\.", "ours"),
    (r"read|exchange", "limit"),
    (r"numpy|cupy", "numpy"),
    (r"blas|openblas|scipy", "blas"),
    (r"numkong", "numkong"),
    (r"torch", "torch"),
    (r"numexpr", "numexpr"),
    (r"jax|xla", "xla"),
    (r"tensorflow|tf|keras", "tensorflow"),
    (r"", "loop"),
)
SOLID, DASHED, DOTTED, MIXED = "-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5))
# Those that share their library's colour with another.
MARKERS = {
    "torch": ("s", SOLID),
    "torch._foreach_norm": ("D", DASHED),
    "torch.compile": ("P", MIXED),
    "cupy": ("P", DASHED),
}
USUAL = {
    "ours": ("o", SOLID),
    "limit": ("", DOTTED),
    "numpy": ("^", SOLID),
    "blas": ("v", SOLID),
    "numkong": ("X", SOLID),
    "torch": ("s", DASHED),
    "numexpr": ("<", SOLID),
    "xla": (">", SOLID),
    "tensorflow": ("p", SOLID),
    "loop": ("h", SOLID),
}


class Look(NamedTuple):
    label: str
    color: str
    marker: str
    dash: object
    width: float
    layer: int  # the higher one lies over the others

    def line(self) -> dict[str, Any]:
        """For matplotlib's lines."""
        return {
            "color": self.color,
            "marker": self.marker,
            "markersize": 5,
            "markeredgewidth": 0,
            "linestyle": self.dash,
            "linewidth": self.width,
        }


def look(contender: str) -> Look:
    """The same for a contender in every picture, whatever else is in it."""
    name = contender.lower()
    family = next(family for start, family in FAMILIES if re.match(start, name))
    marker, dash = MARKERS.get(name, USUAL[family])
    emphasis = {"ours": (2.6, 6), "limit": (1.6, 5)}.get(family, (1.4, 4))
    return Look(label(contender), LIGHT.colors[family], marker, dash, *emphasis)


def painted(svg: str, colors: dict[str, str]) -> str:
    """A picture, which is drawn in the colours of LIGHT, in others: name -> what stands for it."""
    names = {color: name for name, color in LIGHT.all().items()}
    return re.sub(
        "#[0-9a-f]{6}\\b",
        lambda found: colors[names[found[0]]] if found[0] in names else found[0],
        svg,
    )


SETTINGS = {
    "font.family": "DejaVu Sans",  # which matplotlib brings
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.facecolor": LIGHT.background,
    "axes.edgecolor": LIGHT.quiet,
    "axes.labelcolor": LIGHT.text,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT.grid,
    "grid.linewidth": 0.8,
    "figure.facecolor": LIGHT.background,
    "text.color": LIGHT.text,
    "xtick.color": LIGHT.quiet,
    "ytick.color": LIGHT.quiet,
    "xtick.labelcolor": LIGHT.text,
    "ytick.labelcolor": LIGHT.text,
    "savefig.facecolor": LIGHT.background,
    "svg.fonttype": "path",  # looks the same without the font
    "svg.hashsalt": "fused-penalties",  # the same file each time
}


@contextmanager
def settings() -> Iterator[None]:
    """matplotlib's, while a picture is drawn and saved."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever is usual on this machine
        matplotlib.rcParams.update(SETTINGS)
        yield
