"""Interleaved timing: every contender once per round, and what the rounds say of each.

These machines are shared. A round runs all contenders one after the other, so that a slow moment
hits them all; of each the median over the rounds counts, with the quartiles beside it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Contenders = Mapping[str, Callable[[], object]]

LEAST_SECONDS = 2e-3  # a measurement repeats its call until it lasts at least this long
LEAST_ROUNDS = 3
# Threads of the one before may wait for work in a loop for some time, before they sleep.
REST = 0.01


def measured(
    contenders: Contenders, rounds: int, most_seconds: float, threads: int = 1
) -> dict[str, dict[str, Any]]:
    """Of every contender: the median of the seconds per call, and the quartiles."""
    times = interleaved(contenders, rounds, most_seconds, REST if threads > 1 else 0.0)
    return {name: summary(seconds) for name, seconds in times.items()}


def summary(seconds: list[float]) -> dict[str, Any]:
    low = high = seconds[0]
    if len(seconds) > 1:
        low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    median = statistics.median(seconds)
    return {"median": median, "low": low, "high": high, "rounds": len(seconds)}


def interleaved(
    contenders: Contenders, rounds: int, most_seconds: float = math.inf, rest: float = 0.0
) -> dict[str, list[float]]:
    """Seconds per call of every contender, one figure for each round in which it took part.

    What would take longer than `most_seconds` in all rounds takes part in fewer, spread over all;
    where one call takes longer than that, it is one call.
    """
    repeats, every = {}, {}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for name, call in contenders.items():
        once = _seconds(call, 1)  # warms caches and threads
        if once > most_seconds:
            once = _seconds(call, 1)  # the first one may have compiled
        if once > most_seconds:
            times[name].append(once)
            continue
        once = min(_seconds(call, 1) for _ in range(2))
        repeats[name] = max(1, round(LEAST_SECONDS / once))
        least = min(rounds, LEAST_ROUNDS)
        affordable = most_seconds / (once * repeats[name])
        every[name] = math.ceil(rounds / max(least, min(rounds, affordable)))
    for at in range(rounds):
        for name in every:
            if at % every[name]:
                continue
            call = contenders[name]
            if rest:
                time.sleep(rest)
                if repeats[name] > 1:
                    call()  # after the rest the caches are cold
            times[name].append(_seconds(call, repeats[name]))
    return times


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
