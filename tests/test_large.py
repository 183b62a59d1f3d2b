"""Sizes past 32 bits, and memory that is not used."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import fresh
import fused_penalties as fp
import oracle
from oracle import hexes


@pytest.mark.slow
@pytest.mark.usefixtures("isa")
def test_more_than_2_to_the_31_elements(tmp_path: Path) -> None:
    """A float16 file of 4.3 GB that takes no room: a hole with a few weights in it."""
    count = (1 << 31) + 3 * 4096 + 5
    marks = [0, 4095, 4096, (1 << 30) + 7, (1 << 31) - 1, 1 << 31, (1 << 31) + 4096, count - 1]
    path = tmp_path / "weights"
    with path.open("wb") as file:
        file.truncate(2 * count)
    x = np.memmap(path, np.float16, "r+")
    assert x.shape == (count,)
    for number, index in enumerate(marks):
        x[index] = (-1) ** number * (number + 1) / 3
    blocks = {index // 4096 * 4096 for index in marks}
    expected = hexes(oracle.totals([x[start : start + 4096] for start in blocks]))
    for weights in (x, x[::-1], x[:, None].T):
        sums = fp.sums(weights)
        assert hexes([*sums.abs, *sums.square]) == expected
    in_two = fp.partial_sums(x[: 1 << 30]) + fp.partial_sums(x[1 << 30 :])
    assert hexes([in_two.sums().total_abs, in_two.sums().total_square]) == expected


@pytest.mark.slow
def test_more_than_2_to_the_31_strided_elements() -> None:
    """Gathered, and over a stride of 0: nothing but the counters is that large."""
    count = (1 << 31) + 4096 + 1
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
