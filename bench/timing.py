"""Interleaved timing: every contender once per round, medians of the rounds' own ratios.

These machines are shared. A round runs all contenders one after the other, so that a slow moment
hits them all; the ratio is taken within each round, and the median over the rounds is reported.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

LEAST_SECONDS = 2e-3  # a measurement repeats its call until it lasts at least this long


def interleaved(
    contenders: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Seconds per call of every contender, one figure a round."""
    repeats = {}
    for name, call in contenders.items():
        call()  # warm caches, threads and lazy imports
        once = min(_seconds(call, 1) for _ in range(2))
        repeats[name] = max(1, round(LEAST_SECONDS / once))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            times[name].append(_seconds(call, repeats[name]))
    return times


def ratio(times: Mapping[str, list[float]], slower: str, faster: str) -> float:
    """How many times faster ``faster`` is than ``slower``: the median over the rounds."""
    return statistics.median(a / b for a, b in zip(times[slower], times[faster], strict=True))


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
