"""The figures of one or several machines, as pictures and tables need them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import results
from bench.tables import OURS
from bench.work import Row

TIMES = "\N{MULTIPLICATION SIGN}"
ISAS = {"avx2": "AVX2", "avx512": "AVX-512", "neon": "NEON"}
LABELS = {
    OURS: "fused-penalties",
    "numpy": "NumPy",
    "read": "reading alone",
    "exchange": "reading and writing alone",
}
# What a row need not say.
USUAL: Row = {"dtype": "", "bytes": None, "buffers": 1, "threads": None, "offset": 0}


@dataclass(frozen=True)
class Result:
    """The figures of one machine. `name` tells them from others that are drawn with them."""

    name: str
    file: str
    digest: str  # SHA-256 of the file
    figures: dict[str, Any]

    @property
    def rows(self) -> list[Row]:
        return self.figures["rows"]

    def timed(self) -> list[Row]:
        """The rows that hold seconds per call, with all keys."""
        return [
            {**USUAL, **row}
            for row in self.rows
            if row["unit"] == "s" and OURS in row["contenders"]
        ]


def load(files: Sequence[Path]) -> list[Result]:
    """results.Unusable if one is no file of figures."""
    found = []
    for file in files:
        figures = results.read(file)
        isa = figures["package"]["isa"]
        name = f"{figures['machine']['name']}, {ISAS.get(isa, isa)}"
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        found.append(Result(name, file.name, digest, figures))
    count = Counter(result.name for result in found)
    return [
        result
        if count[result.name] == 1
        else Result(f"{result.name}, {result.file}", result.file, result.digest, result.figures)
        for result in found
    ]


def label(contender: str) -> str:
    """Its name for people."""
    return LABELS.get(contender, contender)


def seconds(row: Row, contender: str) -> float:
    return float(row["contenders"][contender]["median"])


def bytes_per_second(row: Row, contender: str) -> float:
    return float(row["bytes"]) / seconds(row, contender)


def times_faster(row: Row, contender: str) -> float:
    """How many times as fast as a contender we are."""
    return seconds(row, contender) / seconds(row, OURS)


def series(
    rows: Sequence[Row],
    along: str,
    same: Callable[[Row], Hashable],
    least: int,
) -> list[list[Row]]:
    """Groups of rows that differ in the key `along` only, in its order; none of fewer values."""
    groups: dict[Hashable, dict[Any, Row]] = {}
    for row in rows:
        groups.setdefault(same(row), {}).setdefault(row[along], row)
    return [
        [group[value] for value in sorted(group)]
        for group in groups.values()
        if len(group) >= least
    ]


def faster(value: float) -> str:
    """A ratio as the tables and pictures print it."""
    return f"{value:.{2 if value < 1 else 1 if value < 9.95 else 0}f}{TIMES}"
