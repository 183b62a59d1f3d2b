"""A picture as files: SVG that is the same each time and looks the same everywhere, and PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape

from .figures import Result
from .pictures import Picture
from .style import THEMES, painted, settings

SAID_BY_MATPLOTLIB = ("Creator", "Date", "Format", "Type")  # of itself, in an SVG


def render(picture: Picture, results: Sequence[Result]) -> tuple[dict[str, str], bytes]:
    """As SVG, for each theme, and as PNG."""
    text, png = io.StringIO(), io.BytesIO()
    with settings():
        figure = picture.draw()
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # all is in its place: no need to look for it again
        figure.savefig(text, format="svg", metadata=dict.fromkeys(SAID_BY_MATPLOTLIB))
        figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
    sources = ", ".join(f"{result.file} (SHA-256 {result.digest})" for result in results)
    description = f"<title>{escape(picture.caption)}</title>\n <desc>Drawn from {sources}.</desc>"
    start, end, rest = re.split(r"(?<=<svg)([^>]*>)", text.getvalue(), maxsplit=1)
    svg = f'{start} role="img"{end}\n {description}{rest}'
    svg = re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE)
    return {theme.name: painted(svg, theme.all()) for theme in THEMES}, png.getvalue()
