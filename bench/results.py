"""The file of figures: what is in it, and how figures of one more run come into it."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

from bench import machine
from bench.work import Row

FORMAT = 1
SAME = ("machine", "package")  # what figures must have in common to stand in one file
# What is measured, not what tells a row from others.
MEASURED = ("contenders", "collectives", "bytes_per_buffer", "peak_bytes")


class Unusable(Exception):
    """A file that cannot be used, and why."""


def key(row: Row) -> tuple[tuple[str, Any], ...]:
    """What tells a row from all others."""
    return tuple(sorted((name, value) for name, value in row.items() if name not in MEASURED))


def new(command: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "date": datetime.date.today().isoformat(),
        "command": command,
        "machine": machine.machine(),
        "package": machine.package(),
        "versions": machine.versions(),
        "left_out": {},
        "rows": [],
    }


def read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise Unusable(f"{path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    except json.JSONDecodeError:
        raise Unusable(f"{path}: not a JSON file") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise Unusable(f"{path}: not a file of figures that `python -m bench run` wrote")
    return found


def joined(old: dict[str, Any], figures: dict[str, Any], path: Path) -> dict[str, Any]:
    """The figures of both; where both have a row, the newer one."""
    for what in SAME:
        if old[what] != figures[what]:
            raise Unusable(f"{path}: has the figures of another {what}; wanted another file")
    rows = {key(row): row for row in old["rows"] + figures["rows"]}
    commands = dict.fromkeys([*old["command"].split(" && "), figures["command"]])
    return {
        **figures,
        "command": " && ".join(commands),
        "left_out": {**old["left_out"], **figures["left_out"]},
        "rows": list(rows.values()),
    }


def write(path: Path, figures: dict[str, Any], old: dict[str, Any] | None) -> None:
    """The figures, joined to those that the file had before."""
    path.parent.mkdir(exist_ok=True)
    whole = joined(old, figures, path) if old else figures
    path.write_text(json.dumps(whole, indent=1) + "\n")


def usual_file(figures: dict[str, Any]) -> Path:
    """Named after the date, the processor and the instruction set."""
    words = f"{figures['date']} {figures['machine']['processor']} {figures['package']['isa']}"
    return Path("bench-results", re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") + ".json")
