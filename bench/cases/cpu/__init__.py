"""fp.sums on the CPU against the pure read of the same memory and against what people use.

The read is as fast as the fastest of the reads in limits.cpp, with as many threads; it does nothing
with what it reads. Memory lies on a cache line (offset 0), as torch puts it, or 16 bytes past one,
as NumPy puts large arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench import child, machine
from bench.settings import Settings
from bench.work import Row

PARTS = {
    "memory": "one buffer that no cache holds, in each dtype, one thread",
    "cache": "one buffer in cache, in each dtype, with and without the call",
    "sizes": "one buffer of float32, from 4 KiB on, one thread",
    "threads": "one buffer that no cache holds, with more threads",
    "small": "from one to 10,000 buffers of 64 float32",
    "largest": "the largest magnitude in the same read, in each dtype, one thread",
    "streaming": "StreamingSums in chunks, one thread",
    "footprint": "memory that a call takes beyond its inputs",
}
MODULE = "bench.cases.cpu.works"


def run(parts: Sequence[str], settings: Settings) -> Iterator[Row]:
    cores = machine.threads()
    in_one_thread = ("memory", "cache", "sizes", "largest", "streaming")
    if alone := [part for part in parts if part in in_one_thread]:
        yield from child.rows(MODULE, settings, threads=1, parts=alone)
    if "threads" in parts:
        for threads in (2**n for n in range(1, cores.bit_length())):
            with_small = threads == cores and "small" in parts
            yield from child.rows(
                MODULE, settings, threads=threads, parts=["threads"] + ["small"] * with_small
            )
    elif "small" in parts:
        yield from child.rows(MODULE, settings, threads=cores, parts=["small"])
    if "footprint" in parts:
        yield from child.rows("bench.cases.cpu.footprint", settings, threads=min(2, cores))
