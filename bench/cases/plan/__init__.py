"""fp.Plan on the CPU: what a training step pays, against what people write.

The exchange reads the weights and the gradients and writes the gradients, with the same threads and
next to no arithmetic, as fast as the fastest of those in limits.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench import child, machine
from bench.settings import Settings
from bench.work import Row

PARTS = {
    "small": "1000 buffers of 64 float32: value, value and gradient, and making a plan",
    "resnet50": "the weights of ResNet-50: value and gradient, gradient alone",
    "empty": "the value of an empty plan",
}


def run(parts: Sequence[str], settings: Settings) -> Iterator[Row]:
    counts = dict.fromkeys((machine.threads(), 1))  # so that --quick has time for all
    for threads in counts:
        here = [part for part in parts if part == "resnet50" or threads == max(counts)]
        if here and not (settings.quick and threads != max(counts)):
            yield from child.rows("bench.cases.plan.works", settings, threads=threads, parts=here)
