"""What a case measures, one work after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench import limits
from bench.settings import Settings
from bench.timing import Contenders, measured

Row = dict[str, Any]


@dataclass
class Work:
    """`keys` tells it from all others; `prepare` makes its memory and checks every result.

    It writes the relative errors of those that do not work exactly into the dictionary it is given.
    """

    keys: dict[str, Any]
    prepare: Callable[[dict[str, float]], Contenders]


def rows(case: str, works: Sequence[Work], settings: Settings) -> Iterator[Row]:
    settings.expect(len(works))
    for work in works:
        row = {"case": case, **work.keys, "unit": "s"}
        if settings.late():
            settings.leave_out(f"{case}: {title(row)}", "there was no time left for it")
            continue
        settings.doing(title(row))
        threads = work.keys.get("threads") or 1
        errors: dict[str, float] = {}
        contenders = work.prepare(errors)
        found = measured(contenders, settings.rounds, settings.most_seconds, threads)
        row["contenders"] = limits.fastest(found)
        del contenders  # their memory goes before the next one's is made
        for name, error in errors.items():
            row["contenders"][name]["error"] = error
        yield row


def title(row: Row) -> str:
    """What a row measures, for people."""
    parts = [row["what"]]
    if row.get("dtype"):
        parts.append(row["dtype"])
    if row.get("model"):
        parts.append(row["model"])
    else:
        if row.get("buffers", 1) > 1:
            parts.append(f"{row['buffers']:,} buffers")
        if row.get("bytes"):
            parts.append(size(row["bytes"]))
    if row.get("threads"):
        parts.append(f"{row['threads']} thread{'s' * (row['threads'] > 1)}")
    if row.get("offset"):
        parts.append(f"{row['offset']} bytes off a cache line")
    return ", ".join(parts)


def size(nbytes: float) -> str:
    """In powers of 1024, as caches are."""
    for unit in ("bytes", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.3g} GiB"
