"""Sizes past 32 bits, and memory that is not used."""

from __future__ import annotations

import mmap
import sys

import numpy as np
import pytest

import fresh
import fused_penalties as fp
import oracle
from oracle import hexes


@pytest.mark.slow
@pytest.mark.usefixtures("isa")
def test_more_than_2_to_the_32_elements() -> None:
    """8.6 GB of float16 of which the system provides only the pages with a few weights in them."""
    count = (1 << 32) + 3 * 4096 + 5
    no_reserve = 0x4000 if sys.platform == "linux" else 0
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    x = np.frombuffer(mmap.mmap(-1, 2 * count, flags=flags), np.float16)
    edges = [0, 4096, 1 << 30, 1 << 31, 1 << 32, count]
    marks = [edge + step for edge in edges for step in (-1, 0, 7) if 0 <= edge + step < count]
    for number, index in enumerate(marks):
        x[index] = (-1) ** number * (number + 1) / 3
    blocks = {index // 4096 * 4096 for index in marks}
    expected = hexes(oracle.totals([x[start : start + 4096] for start in blocks]))
    sums = fp.sums(x)
    assert hexes([*sums.abs, *sums.square]) == expected
    merged = fp.partial_sums(x[: 1 << 31]) + fp.partial_sums(x[1 << 31 :])
    assert hexes([*merged.sums().abs, *merged.sums().square]) == expected


@pytest.mark.slow
def test_more_than_2_to_the_32_strided_elements() -> None:
    """Gathered, and over a stride of 0: nothing but the counters is that large."""
    count = (1 << 32) + 4096 + 1
    x = np.broadcast_to(np.float16(0.5), (count,))
    assert fp.sums(x).abs.tolist() == [count * 0.5]
    assert fp.sums(x).square.tolist() == [count * 0.25]


MEMORY = """
    import numpy as np
    import fused_penalties as fp

    def status(field):
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(field))

    x = np.ones((4096, 4096), np.float32)
    weights = {
        "one": lambda: [x],
        "flipped": lambda: [x.T[::-1]],
        "strided": lambda: [x[:, ::2]],
        "big-endian": lambda: [x.view(">f4")],
        "broadcast": lambda: [np.broadcast_to(x[0], (9999, 4096))],
        "many": lambda: list(x.reshape(-1, 64)[:20_000]),
    }[what]()
    fp.sums([np.ones(9999), np.ones((99, 99)).T[::2]], threads=2)  # from here on the threads exist
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before = status("VmRSS")
    fp.sums(weights, threads=2)
    print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(
    ("what", "buffers"),
    [
        ("one", 1),
        ("flipped", 1),
        ("strided", 1),
        ("big-endian", 1),
        ("broadcast", 1),
        ("many", 20_000),
    ],
)
def test_memory_beyond_the_weights(what: str, buffers: int) -> None:
    """64 KiB for each of two threads, 2 KiB for each buffer."""
    grown_kib = int(fresh.output(f"    what = {what!r}\n{MEMORY}"))
    assert grown_kib <= 2 * 64 + 2 * buffers
