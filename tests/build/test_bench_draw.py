"""Pictures, page and table of the benchmarks, from figures that were made up."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("matplotlib", reason="not installed: matplotlib")

X = "\N{MULTIPLICATION SIGN}"
PEERS = {
    "numpy": 10.0,
    "BLAS asum + dot": 2.0,
    "numexpr": 12.0,
    "NumKong moments": 0.8,
    "torch": 5.0,
    "torch._foreach_norm": 5.1,
    "torch.compile": 1.5,
    "JAX jit": 3.0,
    "TensorFlow": 4.0,
    "C++ loop": 1.1,
}
LONG, SHORT = 512 << 20, 256 << 10


@pytest.fixture(scope="module", autouse=True)
def source_tree() -> Iterator[None]:
    """`import bench` finds the folder of the source tree."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2]))
        yield


def module(name: str) -> ModuleType:
    return importlib.import_module(f"bench.draw.{name}")


def timed(nbytes: int, ours: float, **keys: Any) -> dict[str, Any]:
    """A row in which each peer takes so many times as long as we do."""

    def contender(seconds: float) -> dict[str, float]:
        return {"median": seconds, "low": seconds * 0.9, "high": seconds * 1.2, "rounds": 9}

    row = {"case": "cpu", "what": "sums", "dtype": "float32", "bytes": nbytes, "buffers": 1}
    row |= {"threads": 1, "offset": 0, "where": "memory", "unit": "s"} | keys
    contenders = {name: contender(times * ours) for name, times in PEERS.items()}
    own = {"fused_penalties": contender(ours), "read": contender(ours * 0.95)}
    return row | {"contenders": own | contenders}


def accuracy(dtype: str, elements: int, ours: float, numpy: Any) -> dict[str, Any]:
    errors = {
        "fused_penalties": {"abs": ours, "square": ours / 2},
        "numpy": {"abs": 1e-4, "square": numpy},
        "NumKong moments": {"square": 1e-8},
    }
    errors |= {name: {"abs": 1e-6, "square": "nan"} for name in PEERS if name not in errors}
    row = {"case": "accuracy", "data": "extreme", "dtype": dtype, "elements": elements}
    return row | {"unit": "relative error", "contenders": errors}


SIZES = [timed(1 << bits, (1 << bits) / 3e10 + 1e-6) for bits in range(12, 30, 3)]
THREADS = [timed(LONG, 0.01, threads=2), timed(LONG, 0.02)]
MANY = [timed(256 * n, 2e-7 * n, buffers=n, threads=2) for n in (1, 100, 1000)]
ERRORS = [
    accuracy(dtype, 10**n, 1e-16, "inf" if n == 4 else 1e-3)
    for dtype in ("float16", "float32")
    for n in (3, 4)
]
ROWS = [*SIZES, *THREADS, *MANY, *ERRORS]


def written(folder: Path, rows: list[dict[str, Any]], name: str = "made-up") -> Path:
    figures = {
        "format": 1,
        "date": "2026-11-26",
        "command": "python -m bench run",
        "machine": {
            "name": f"Processor <{name}>, 2 cores",
            "processor": f"Processor <{name}>",
            "cores": 2,
            "threads": 2,
            "caches": {"L1d": 32 << 10, "L2": 1 << 20, "L3": 32 << 20},
            "memory_bytes": 24 << 30,
            "system": "Linux",
        },
        "package": {"version": "0.1.0", "isa": "avx2", "cuda": None},
        "versions": {"numpy": "2.4.1"},
        "left_out": {"cupy": "no GPU here"},
        "rows": rows,
    }
    file = folder / f"{name}.json"
    file.write_text(json.dumps(figures))
    return file


def draw(files: list[Path], folder: Path) -> dict[str, Path]:
    return {path.name: path for path in importlib.import_module("bench.draw").draw(files, folder)}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("drawn")
    return draw([written(folder, ROWS)], folder / "pictures")


def test_every_picture_in_both_themes(drawn: dict[str, Path]) -> None:
    names = ("throughput-float32-1", "speedup-cpu", "threads", "buffers", "error-extreme")
    assert set(drawn) == {"index.html"} | {
        name + end for name in names for end in ("-light.svg", "-dark.svg", ".png")
    }


def test_what_has_no_rows_is_left_out(tmp_path: Path) -> None:
    assert set(draw([written(tmp_path, [])], tmp_path)) == {"index.html"}


def test_a_second_drawing_is_the_same_to_the_last_byte(tmp_path: Path) -> None:
    file = written(tmp_path, SIZES[::2])
    first, second = (draw([file], tmp_path / folder) for folder in ("first", "second"))
    assert len(first) == 7
    for name, path in first.items():
        assert path.read_bytes() == second[name].read_bytes(), name


def test_svg_stands_alone(drawn: dict[str, Path]) -> None:
    for name, path in drawn.items():
        if path.suffix == ".svg":
            root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
            tags = {element.tag.partition("}")[2] for element in root.iter()}
            # Text would be drawn in a font that another machine need not have.
            assert "path" in tags, name
            assert not tags & {"text", "image", "script", "date"}, name
            assert [child.tag.partition("}")[2] for child in root][:2] == ["title", "desc"], name


def test_themes_differ_in_colours_only(drawn: dict[str, Path]) -> None:
    style = module("style")
    light, dark = style.LIGHT.all(), style.DARK.all()
    assert list(light) == list(dark)
    # Or it would not be known what to paint another colour.
    assert len(set(light.values())) == len(light)
    for name, path in drawn.items():
        if name.endswith("-dark.svg"):
            text = path.read_text("utf-8")
            assert dark["background"] in text
            assert not set(re.findall("#[0-9a-f]{6}\\b", text)) & set(light.values())
            other = drawn[name.replace("-dark", "-light")].read_text("utf-8")
            assert re.sub("#[0-9a-f]{6}\\b", "", text) == re.sub("#[0-9a-f]{6}\\b", "", other)


class Page(HTMLParser):
    """What is open must be closed again, but for the tags that need not be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.used: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        self.handle_attributes(tag, attributes)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_attributes(tag, attributes)

    def handle_attributes(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id":
                self.ids.append(str(value))
            elif name in ("href", "src", "xlink:href"):
                self.links.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def test_page_needs_nothing_else(drawn: dict[str, Path]) -> None:
    text = drawn["index.html"].read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    targets = page.links + [f"#{name}" for name in re.findall(r"url\(#([^)]*)\)", text)]
    assert targets
    assert {target.removeprefix("#") for target in targets} <= set(page.ids)
    assert "<script" not in text
    assert "prefers-color-scheme: dark" in text
    assert len(re.findall("<svg", text)) == 5


def test_page_has_all_figures(drawn: dict[str, Path]) -> None:
    page = Page()
    page.feed(drawn["index.html"].read_text(encoding="utf-8"))
    for text in ("Processor <made-up>, 2 cores", "numpy 2.4.1", "cupy: no GPU here", "2026-11-26"):
        assert text in page.text
    # The row of 512 MiB and 1 thread: 20 ms, of which the peer takes 0.8, at 33.6 GB/s.
    for text in ("20 ms", "16 ms", "33.6", f"0.80{X}", f"10{X}", "inf", "1e-08"):
        assert text in page.text.split("\n"), text


def texts(figure: Any) -> dict[str, Any]:
    """The boxes of all texts that are seen, in pixels."""
    from matplotlib.text import Text

    figure.draw_without_rendering()
    outside = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low <= tick.get_loc() <= high:
                    outside |= {tick.label1, tick.label2}
    seen = [text for text in figure.findobj(Text) if text not in outside and text.get_visible()]
    return {
        f"{text.get_text()} ({at})": text.get_window_extent()
        for at, text in enumerate(seen)
        if text.get_text().strip()
    }


def test_no_text_is_clipped_or_lies_over_another(tmp_path: Path) -> None:
    files = [written(tmp_path, ROWS, name) for name in ("one", "another")]
    results = module("figures").load(files)
    style = module("style")
    for picture in module("pictures").every(results):
        with style.settings():
            figure = picture.draw()
            boxes = texts(figure)
        assert len(boxes) > 10
        width, height = figure.bbox.size
        for name, box in boxes.items():
            inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
            assert inside, f"{picture.name}: {name} is clipped: {box}"
        for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
            # A pixel is what letters are rounded by.
            apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
            assert apart, f"{picture.name}: {one} lies over {other}"


@given(
    st.lists(st.floats(0, 100), max_size=12).map(sorted),
    st.floats(1, 20),
)
def test_names_are_moved_apart(wanted: list[float], gap: float) -> None:
    at = module("charts").apart(wanted, gap, 0.0, 100.0)
    assert len(at) == len(wanted)
    assert all(b - a >= gap * 0.999 for a, b in itertools.pairwise(at))
    if (len(at) - 1) * gap < 100 and at:
        assert at[0] >= -1e-9
        assert at[-1] <= 100 + 1e-9


def test_names_with_room_stay_where_they_are() -> None:
    assert module("charts").apart([3.0, 50.0, 97.0], 10.0, 0.0, 100.0) == [3.0, 50.0, 97.0]
    assert module("charts").apart([50.0, 50.0], 10.0, 0.0, 100.0) == [45.0, 55.0]


def luminance(color: str) -> float:
    """As WCAG 2 defines it."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_stand_out_from_the_background() -> None:
    """By WCAG 2: 3 to 1 for what is drawn, 4.5 to 1 for text."""
    for theme in module("style").THEMES:
        ground = luminance(theme.background) + 0.05
        for color in theme.colors.values():
            one = luminance(color) + 0.05
            assert max(one / ground, ground / one) >= 3, (theme.name, color)
        for color in (theme.text, theme.quiet):
            one = luminance(color) + 0.05
            assert max(one / ground, ground / one) >= 4.5, (theme.name, color)


def test_contenders_of_one_colour_have_other_markers() -> None:
    look = module("style").look
    names = ("torch", "torch._foreach_norm", "torch.compile", "JAX jit", "TensorFlow", "numpy")
    names += (
        "BLAS asum + dot",
        "NumKong moments",
        "numexpr",
        "C++ loop",
        "fused_penalties",
        "CuPy",
    )
    assert len({(look(name).color, look(name).marker) for name in names}) == 12
    assert look("torch").color == look("torch.compile").color


def test_bars_show_the_worse_place_of_the_memory(tmp_path: Path) -> None:
    better, worse = timed(SHORT, 1e-5), timed(SHORT, 1e-5, offset=16)
    worse["contenders"]["numpy"]["median"] = 7e-5
    results = module("figures").load([written(tmp_path, [better, worse])])
    (picture,) = module("pictures").speedups(results)
    (panel,) = picture.draw.args[0]
    assert panel.title == "float32, 256 KiB, 1 thread"
    assert panel.ratios == pytest.approx(PEERS | {"numpy": 7.0})


def test_each_framework_has_bars_of_its_own(tmp_path: Path) -> None:
    rows = [
        timed(SHORT, 1e-5, case="frameworks", what=what)
        for what in ("torch, attached", "torch, forward", "Keras on jax, attached")
    ]
    results = module("figures").load([written(tmp_path, rows)])
    pictures = {one.name: one.draw.args[0] for one in module("pictures").speedups(results)}
    assert {name: len(panels) for name, panels in pictures.items()} == {
        "speedup-torch": 2,
        "speedup-keras-on-jax": 1,
    }
    assert pictures["speedup-torch"][0].title.startswith("attached, float32")
