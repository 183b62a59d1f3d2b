"""How much is measured, and whom a case tells what it cannot measure."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

# Rounds, and the most seconds that one contender gets in all of them.
PACES = {"quick": (5, 0.3), "default": (9, 0.7), "full": (15, 5.0)}


@dataclass
class Settings:
    pace: str = "default"  # or "quick", "full"
    # No work is begun after this (time.time()); it is left out.
    deadline: float = float("inf")
    # leave_out(what, why): a peer that is not installed, work for which there is no time.
    leave_out: Callable[[str, str], None] = lambda what, why: None
    # doing(what): shown beside the progress bar.
    doing: Callable[[str], None] = lambda what: None
    # expect(n): so many rows more are to come.
    expect: Callable[[int], None] = lambda n: None

    @property
    def rounds(self) -> int:
        return PACES[self.pace][0]

    @property
    def most_seconds(self) -> float:
        return PACES[self.pace][1]

    @property
    def quick(self) -> bool:
        return self.pace == "quick"

    def late(self) -> bool:
        return time.time() > self.deadline
