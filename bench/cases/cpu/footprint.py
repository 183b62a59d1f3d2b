"""Memory beyond inputs and results. In a process of its own, whose peak nothing else has raised."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator

import numpy as np

import fused_penalties as fp
from bench import machine
from bench.settings import Settings
from bench.timing import summary
from bench.work import Row


def rows(settings: Settings) -> Iterator[Row]:
    settings.expect(1)
    threads = machine.threads()
    buffers = [np.ones(64 << 20, np.float32)] + [np.ones(64, np.float32) for _ in range(1000)]
    fp.sums(buffers[:1], threads=threads)  # pays for the threads' stacks
    before = peak()
    fp.sums(buffers, threads=threads)
    yield {
        "case": "cpu",
        "what": "memory beyond a large buffer, 1000 small ones and their sums",
        "dtype": "float32",
        "threads": threads,
        "unit": "bytes",
        "contenders": {"fused_penalties": summary([peak() - before])},
    }


def peak() -> int:
    """The most bytes that the process has had in memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
