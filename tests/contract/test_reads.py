"""Not a byte outside the weights is read: buffers that end, or begin, where memory does."""

from __future__ import annotations

import sys

import pytest

import fresh
import fused_penalties as fp
import oracle

# A read that strays ends the process, hence a fresh one.
CODE = """
    import ctypes, mmap
    import numpy as np
    import fused_penalties as fp
    import oracle, values

    fp._core.use_isa(isa)
    page = mmap.PAGESIZE
    room = 8 * page
    memory = mmap.mmap(-1, room + 2 * page)
    inside = np.frombuffer(memory, np.uint8)[page : page + room]
    for guard in (inside.ctypes.data - page, inside.ctypes.data + room):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0

    for dtype in oracle.DTYPES:
        lengths = values.edge_lengths(dtype)
        x = values.make("normal", dtype, lengths[-1])
        for length in lengths:
            weights = x[:length]
            expected = oracle.hexes(oracle.sums(weights))
            last = inside[room - weights.nbytes :]
            first = inside[: weights.nbytes]
            for at in (last, first):
                at[...] = weights.view(np.uint8)
                placed = at.view(weights.dtype)
                sums = fp.sums(placed)
                assert oracle.hexes([*sums.abs, *sums.square]) == expected, (dtype, length)
            fp.sums([placed[::-1], placed[::2], placed[::-3], placed[-1:], placed[:1]])
            tail = last.view(weights.dtype)
            fp.sums([tail[::-1], tail[::2], tail[1::2], tail[::-3], tail[-1:]])
    print("all")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="guards pages with mprotect as Linux has it")
@pytest.mark.parametrize("isa", fp._core.supported_isas())
def test_edges_of_memory(isa: str) -> None:
    tests = oracle.__file__.rpartition("/")[0]
    assert fresh.output(f"    isa = {isa!r}\n{CODE}", PYTHONPATH=tests) == "all"
