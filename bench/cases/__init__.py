"""What can be measured: one module or package for each case.

A case has
- PARTS, what it consists of: name -> one line; the command line may ask for some, as in `cpu/cache`
- run(part, settings), which yields rows (see bench/README.md) as they are measured

Importing a case imports no framework: what needs one has a process of its own (bench/child.py).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, Protocol

from bench.settings import Settings

NAMES = ("cpu", "plan", "frameworks", "scale", "accuracy", "gpu")

Row = dict[str, Any]


class Case(Protocol):
    __doc__: str
    PARTS: dict[str, str]

    def run(self, part: str, settings: Settings) -> Iterator[Row]: ...


def load(name: str) -> Case:
    return importlib.import_module(f"bench.cases.{name}")  # type: ignore[return-value]
