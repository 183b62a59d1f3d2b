"""Pictures and tables of what `python -m bench run` has measured.

`draw` writes each picture as SVG, for light and for dark backgrounds, and as PNG; and index.html,
one page with all of them and all figures, that needs nothing else. The same files give the same
pictures to the last byte, with the same matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def draw(files: Sequence[Path], folder: Path) -> list[Path]:
    """Writes the pictures of some results, of several machines side by side, and returns them.

    ImportError without matplotlib, which only this needs.
    """
    from .figures import load

    results = load([Path(file) for file in files])  # what is wrong with them needs no matplotlib
    from . import page, pictures
    from .render import render

    folder.mkdir(parents=True, exist_ok=True)
    written, shown = [], []
    for picture in pictures.every(results):
        svg, png = render(picture, results)
        for theme, text in svg.items():
            written.append(folder / f"{picture.name}-{theme}.svg")
            written[-1].write_text(text, encoding="utf-8")
        written.append(folder / f"{picture.name}.png")
        written[-1].write_bytes(png)
        shown.append((picture, svg["light"]))
    written.append(folder / "index.html")
    written[-1].write_text(page.page(results, shown), encoding="utf-8")
    return written
