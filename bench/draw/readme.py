"""What the README shows of the benchmarks: a table between two markers, and a picture.

    python -m bench.draw.readme

brings both up to date with FILE, the figures of one machine. The table's rows are chosen in LINES.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .figures import TIMES, Result, faster, load, times_faster

README = Path(__file__).parents[2] / "README.md"
FILE = Path(__file__).parents[1] / "results" / "zen4.json"
PICTURE = "throughput-float32-1"  # of those that are drawn
FILES = {theme: FILE.with_name(f"speed-{theme}.svg") for theme in ("light", "dark")}
BLOCK = re.compile(r"(?<=<!-- bench: begin -->\n).*?(?=<!-- bench: end -->)", re.DOTALL)


@dataclass(frozen=True)
class Line:
    work: str
    row: dict[str, Any]  # what the row of figures has under these keys
    name: str  # what it is compared with, in words
    against: str  # the contender

    def text(self, result: Result) -> str:
        ratios = [
            times_faster(row, self.against)
            for row in result.timed()
            if self.against in row["contenders"]
            and all(row.get(key) == value for key, value in self.row.items())
        ]
        if not ratios:
            raise ValueError(f"{result.file}: has no row of {self.row} with {self.against}")
        ratio = min(ratios)  # the memory lies at several offsets: the worst for us counts
        text = faster(ratio).removesuffix(TIMES)
        return f"| {self.work} | {self.name} | {f'**{text}**' if ratio < 1 else text} |"


BUFFER = {"case": "cpu", "what": "sums", "dtype": "float32", "buffers": 1, "threads": 1}
LARGE = BUFFER | {"bytes": 512 << 20}
IN_CACHE = BUFFER | {"bytes": 256 << 10}
SMALL = {"case": "cpu", "what": "sums", "dtype": "float32", "bytes": 256_000, "buffers": 1000}
PLAN = {"case": "plan", "what": "value and gradient", "model": "ResNet-50", "threads": 2}
LINES = (
    Line("float32, 512 MiB, 1 thread", LARGE, "NumPy expressions", "numpy"),
    Line("float32, 512 MiB, 1 thread", LARGE, "OpenBLAS `asum` and `dot`", "BLAS asum + dot"),
    Line(
        "1000 buffers of 64 float32",
        SMALL,
        "`torch._foreach_norm`, orders 1 and 2",
        "torch._foreach_norm",
    ),
    Line(
        "ResNet-50, penalty and gradient, 2 threads",
        PLAN,
        "PyTorch expression and `backward()`",
        "torch expression and backward",
    ),
    Line(
        "float32, 256 KiB in cache, 1 thread",
        IN_CACHE,
        "OpenBLAS `asum` and `dot`",
        "BLAS asum + dot",
    ),
)
HEAD = "| work | compared with | times as fast |\n|---|---|---|\n"


def table(result: Result) -> str:
    """ValueError if the figures lack a row."""
    return HEAD + "".join(line.text(result) + "\n" for line in LINES)


def main() -> None:
    from . import pictures  # needs matplotlib
    from .render import render

    results = load([FILE])
    text = table(results[0])
    readme, found = BLOCK.subn(lambda _: text, README.read_text(encoding="utf-8"))
    if found != 1:
        raise SystemExit(f"{README}: has no markers <!-- bench: begin --> and <!-- bench: end -->")
    README.write_text(readme, encoding="utf-8")
    (picture,) = (one for one in pictures.throughput(results) if one.name == PICTURE)
    svg, _ = render(picture, results)
    for theme, text in svg.items():
        FILES[theme].write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
