"""20,000 values of 1 to 2000 buffers, call upon call: a sum that loses an update shows itself."""

from __future__ import annotations

import numpy as np
import pytest

import fused_penalties as fp
import gpu
import oracle
import values
from fused_penalties.regularizers import L1L2
from gpu import Twins, assert_same, cupy

pytestmark = gpu.marks
MOST, TOGETHER = 2000, 25
# The emulation has no race to lose; there a few calls show that this test itself is right.
STEP, CALLS = (25, 2) if gpu.EMULATED else (1, 10)


@pytest.fixture(scope="module")
def twins() -> Twins:
    """All dtypes in turn; most buffers are smaller than a block, some have several."""
    rng = np.random.default_rng(0)
    arrays = []
    for at, dtype in enumerate(list(oracle.DTYPES) * (MOST // len(oracle.DTYPES))):
        block = oracle.block_elements(oracle.DTYPES[dtype])
        length = int(rng.integers(0, 4 * block if at % 50 == 0 else block // 4))
        arrays.append(values.make("normal", dtype, length, at))
    return Twins(arrays)


def assert_like_cpu(twins: Twins, count: int) -> None:
    """Every call in a row of them, on two streams by turns, of a plan of the first buffers."""
    on_gpu, on_cpu = (fp.Plan(x[:count], L1L2(0.1, 0.3)) for x in (twins.gpu, twins.host))
    streams = gpu.streams(2)
    results = []
    for call in range(CALLS):
        with streams[call % 2]:
            results.append(on_gpu.value())
    cupy.cuda.Device().synchronize()
    wanted = on_cpu.value()
    for result in results:
        assert_same(result, wanted)


@pytest.mark.parametrize("first", range(1, MOST + 1, TOGETHER))
def test_every_value_is_that_of_the_cpu(twins: Twins, first: int) -> None:
    for count in range(first, first + TOGETHER, STEP):
        assert_like_cpu(twins, count)


def test_a_wrong_value_is_noticed(twins: Twins) -> None:
    largest = max(twins.gpu[:100], key=lambda x: x.size)
    before = largest.get()
    largest.set(before + before.dtype.type(1))
    with pytest.raises(AssertionError, match="got"):
        assert_like_cpu(twins, 100)
    largest.set(before)
    assert_like_cpu(twins, 100)
