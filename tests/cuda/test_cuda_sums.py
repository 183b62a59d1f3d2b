"""Σ|w| and Σw² of arrays on a GPU: the bits of the CPU, of the oracle and of the golden file."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import fused_penalties as fp
import golden
import gpu
import oracle
import values
from fused_penalties import regularizers
from gpu import Twins, assert_same, assert_same_sums, cupy
from layouts import LAYOUTS, cube
from oracle import hexes

pytestmark = gpu.marks
dtypes = pytest.mark.parametrize("dtype", oracle.DTYPES)


def assert_like_cpu(arrays: list[np.ndarray]) -> fp.Sums:
    """Sums, totals and limbs, with the largest magnitudes and without; and nothing was written."""
    twins = Twins(arrays)
    sums = fp.sums(twins.gpu)
    assert_same_sums(sums, fp.sums(twins.host))
    assert_same_sums(fp.sums(twins.gpu, largest=True), fp.sums(twins.host, largest=True))
    on_gpu, on_cpu = (fp.partial_sums(x, largest=True) for x in (twins.gpu, twins.host))
    np.testing.assert_array_equal(on_gpu.limbs, on_cpu.limbs)
    assert hexes(on_gpu.largest) == hexes(on_cpu.largest)
    np.testing.assert_array_equal(fp.partial_sums(twins.gpu).limbs, on_cpu.limbs)
    twins.check()
    return sums


def assert_like_oracle(arrays: list[np.ndarray]) -> None:
    sums = assert_like_cpu(arrays)
    expected = [oracle.sums(x) for x in arrays]
    assert hexes(sums.abs.get()) == hexes(a for a, _ in expected)
    assert hexes(sums.square.get()) == hexes(s for _, s in expected)
    assert hexes([float(sums.total_abs), float(sums.total_square)]) == hexes(oracle.totals(arrays))


def test_golden_values() -> None:
    cases = golden.written()
    arrays = [golden.array(case) for case in cases]
    sums = assert_like_cpu(arrays)
    assert [value.hex() for value in sums.abs.tolist()] == [c["abs"] for c in cases]
    squares = [value.hex() for value in sums.square.tolist()]
    assert squares == [c["square"] for c in cases]


@dtypes
@pytest.mark.parametrize("elements_off", [0, 1, 3])
def test_lengths(dtype: str, elements_off: int) -> None:
    """Around the edges of all parts of a block; where the base allows wide loads, and not."""
    lengths = values.edge_lengths(dtype)
    x = values.make("lognormal", dtype, lengths[-1] + elements_off)[elements_off:]
    x = values.at_offset(x, elements_off * x.itemsize)
    assert_like_cpu([x[:length] for length in lengths])
    assert_like_oracle([x[:length] for length in lengths[:: len(lengths) // 40]])


@dtypes
def test_addresses(dtype: str) -> None:
    x = values.make("cauchy", dtype, 5003)
    assert_like_oracle([values.at_offset(x, at) for at in range(0, 65, x.itemsize)])


@dtypes
@pytest.mark.parametrize("kind", values.KINDS)
def test_kinds(dtype: str, kind: str) -> None:
    block = oracle.block_elements(oracle.DTYPES[dtype])
    lengths = (1, 5, block // 2, block, 2 * block + 77, 9 * block - 1)
    arrays = [values.make(kind, dtype, length, seed) for length in lengths for seed in range(3)]
    assert_like_oracle([*arrays, *(x[::-2] for x in arrays[9:])])


def test_blocks_of_bfloat16_that_need_the_wide_rule() -> None:
    """One element decides, on either side of both limits, wherever it lies in the block."""
    rng = np.random.default_rng(0)
    block, arrays = 4096, []
    for deciding in ((77 << 7) - 1, 77 << 7, (187 << 7) - 1, 187 << 7, 0, 1, 0x7F80, 0x7FC1):
        for length in (1, 100, 3000, block, 3 * block + 7):
            bits = rng.integers(0, max(deciding, 1), length).astype(np.uint64)
            if 77 << 7 <= deciding < 0x7F80:
                bits = np.maximum(bits, 70 << 7)
            bits[rng.integers(0, length)] = deciding
            bits |= rng.integers(0, 2, length).astype(np.uint64) << np.uint64(15)
            arrays.append(values.from_patterns(bits, "bfloat16"))
    assert_like_oracle([*arrays, *(x[1:] for x in arrays), *(x[::-2] for x in arrays)])


@dtypes
def test_layouts(dtype: str) -> None:
    """All but those whose elements are not aligned, which a GPU cannot read."""
    layouts = [make for name, make in LAYOUTS.items() if "record" not in name]
    arrays = [np.asarray(make(cube(dtype))) for make in layouts]
    assert_like_oracle(arrays)


@dtypes
def test_slices_by_cupy(dtype: str) -> None:
    x = values.make("lognormal", dtype, 60 * 250).reshape(60, 250)
    there = gpu.on_gpu(x)
    views: list[tuple[Any, np.ndarray]] = [
        (there, x),
        (there.T, x.T),
        (there[1:], x[1:]),
        (there[:, 3:], x[:, 3:]),
        (there[::-1, ::2], x[::-1, ::2]),
        (there.reshape(-1)[7:], x.reshape(-1)[7:]),
        (there[5, 6], x[5, 6:7].reshape(())),
        (there[3:3], x[3:3]),
        (cupy.broadcast_to(there[0], (9, 250)), np.broadcast_to(x[0], (9, 250))),
    ]
    assert_same_sums(fp.sums([view for view, _ in views]), fp.sums([host for _, host in views]))
    for view, host in views:
        if host.size:
            assert_same_sums(fp.sums(view), fp.sums(host))


@gpu.seeds(16)
def test_random_lists(seed: int) -> None:
    """Any number of arrays of any dtype, length, alignment, layout and values: 3200 lists."""
    rng = np.random.default_rng(seed)
    for turn in range(200):
        arrays = [x for x in gpu.random_arrays(rng) if turn % 2 or x.size < 5000]
        if not any(x.size for x in arrays):
            continue
        twins = Twins(arrays)
        sums, there = fp.sums(twins.host), fp.sums(twins.gpu)
        assert_same_sums(there, sums)
        if turn % 20 == 0:
            assert_like_oracle(arrays)
        elif turn % 5 == 0:
            found, wanted = fp.partial_sums(twins.gpu), fp.partial_sums(twins.host)
            np.testing.assert_array_equal(found.limbs, wanted.limbs)


def test_one_huge_array_beside_thousands_of_tiny_ones() -> None:
    tiny = [values.make("normal", dtype, n % 37, n) for n in range(750) for dtype in oracle.DTYPES]
    huge = values.make("lognormal", "float32", 3_000_001)
    for at in (0, 1501, 3000):
        assert_like_cpu([*tiny[:at], huge, *tiny[at:]])


def test_totals_are_exact_whatever_cancels_in_rounding() -> None:
    """Sums that differ by hundreds of orders, totals that overflow though no sum does, and NaN."""
    small = np.full(3, 2.0**-500)
    large = np.full(5000, 1e150)
    most = np.full(1, np.finfo(np.float64).max)
    for arrays in (
        [small, large, small, np.float32([2.0**-149])],
        [most, most],
        [most, np.array([np.inf]), small],
        [most, most, np.array([np.nan], np.float16), np.array([np.inf])],
        [np.array([2.0**53]), np.array([1.0]), np.array([2.0**-1074])],
    ):
        assert_like_oracle(arrays)


@pytest.mark.parametrize(
    "length", [9 * 4096 + 5, pytest.param((1 << 32) + 4101, marks=gpu.hardware)]
)
def test_more_elements_than_32_bits_can_count(length: int) -> None:
    """All of them alike, so that the sums of one block, and of the last one, tell those of all."""
    tiny = [values.make("normal", dtype, 512) for dtype in oracle.DTYPES for _ in range(500)]
    twins = Twins(tiny)
    memory = cupy.empty(2 * length + 2, np.uint8)
    memory.data.memset(0x3C, 2 * length + 2)

    def assert_sums(of_one: int) -> None:
        for offset, step in ((0, 1), (2, 1), (0, 3)):
            count = -(-length // step)
            there = cupy.ndarray(count, oracle.BFLOAT16, memory.data + offset, strides=(2 * step,))
            sums = fp.sums([*twins.gpu[:1000], there, *twins.gpu[1000:]])
            block, rest = (
                oracle.exact_pair(np.full(n, of_one, np.uint16).view(oracle.BFLOAT16))
                for n in (4096, count % 4096)
            )
            wanted = []
            for whole, part in zip(block, rest, strict=True):
                whole.units *= count // 4096
                wanted.append((whole + part).rounded())
            assert hexes([sums.abs.get()[1000], sums.square.get()[1000]]) == hexes(wanted)
            others = np.delete(sums.abs.get(), 1000)
            assert hexes(others) == hexes(fp.sums(tiny).abs)

    assert_sums(0x3C3C)
    there = cupy.ndarray(length + 1, oracle.BFLOAT16, memory.data)
    fp.Plan([there], regularizers.L2(0.5)).decay(0.5)
    assert_sums(0x3BBC)  # half as much


def test_one_array_is_one_buffer() -> None:
    x = values.make("normal", "float32", 100)
    sums = fp.sums(gpu.on_gpu(x))
    assert sums.abs.shape == sums.square.shape == (1,)
    assert sums.total_abs.shape == ()
    assert_same_sums(sums, fp.sums(x))


def test_names() -> None:
    arrays = {f"layer{n}/w": values.make("normal", "float32", n * 100) for n in range(5)}
    twins = Twins(arrays.values())
    named = dict(zip(arrays, twins.gpu, strict=True))
    sums = fp.sums(named)
    assert sums.names == tuple(arrays)
    assert_same_sums(sums, fp.sums(arrays))
    part = fp.partial_sums(named)
    assert part.names == tuple(arrays)
    assert len(part) == len(sums) == 5


def test_norms_means_and_json() -> None:
    arrays = {
        "kernel": values.make("normal", "float32", 5000),
        "empty": np.zeros(0, np.float16),
        "bias": np.array([3.0, -4.0]),
    }
    twins = Twins(arrays.values())
    there = dict(zip(arrays, twins.gpu, strict=True))
    for sums, on_cpu in [
        (fp.sums(there), fp.sums(arrays)),
        (fp.Plan(there, None).sums(), fp.Plan(arrays, None).sums()),
    ]:
        for name in "l1_norm", "l2_norm", "rms", "total_l1_norm", "total_l2_norm", "total_rms":
            assert_same(getattr(sums, name), getattr(on_cpu, name))
        assert sums.sizes.tolist() == [5000, 0, 2]
        for name in arrays:
            assert sums[name].size == on_cpu[name].size
            for part in "abs", "square", "l1_norm", "l2_norm", "rms":
                assert_same(getattr(sums[name], part), getattr(on_cpu[name], part))
        assert json.loads(json.dumps(sums.to_dict())) == on_cpu.to_dict()
    twins.check()


def test_unique() -> None:
    x = values.make("normal", "float32", 9000)
    other = values.make("normal", "float64", 10)
    square = x.reshape(90, 100)
    twins = Twins([x, other, x, square, square.T, x[::2], x[::2], x[:-1], other, x.copy(), x[:0]])
    sums = fp.sums(twins.gpu, unique=True)
    assert_same_sums(sums, fp.sums(twins.host, unique=True))
    assert np.count_nonzero(sums.abs.get()) == 5
    assert_same_sums(fp.sums(twins.gpu), fp.sums(twins.host))


def test_empty_arrays_only() -> None:
    """They are on a GPU, and so are their sums."""
    arrays = [np.zeros(0, np.float32), np.zeros((3, 0), np.float16)]
    assert_same_sums(fp.sums(Twins(arrays).gpu), fp.sums(arrays))
    assert fp.partial_sums(Twins(arrays).gpu).limbs.shape == (2, 2, 70)


def test_empty_arrays_may_be_anywhere() -> None:
    x, empty = np.ones(3, np.float32), np.zeros(0, np.float32)
    assert_same_sums(fp.sums([empty, gpu.on_gpu(x), empty]), fp.sums([empty, x, empty]))
    sums = fp.sums([gpu.on_gpu(empty), x])
    assert type(sums.abs) is np.ndarray
    assert sums.abs.tolist() == [0.0, 3.0]


@dtypes
def test_shards_on_both_devices_merge(dtype: str) -> None:
    block = oracle.block_elements(oracle.DTYPES[dtype])
    x = values.make("any bits", dtype, 11 * block + 5)
    first, second, third = np.split(x, [3 * block, 7 * block])
    parts = [fp.partial_sums(gpu.on_gpu(first)), fp.partial_sums(second)]
    whole = fp.partial_sums(gpu.on_gpu(third)) + sum(parts)
    np.testing.assert_array_equal(whole.limbs, fp.partial_sums(x).limbs)
    assert hexes(whole.sums().abs) == hexes(fp.sums(x).abs)


def test_results_do_not_change_with_the_weights() -> None:
    x = gpu.on_gpu(np.ones(5000))
    sums = fp.sums(x)
    x.set(np.full(5000, 5.0))
    assert_same(sums.abs, [5000.0])
    assert_same(sums.total_square, 5000.0)


def test_threads_are_checked_but_mean_nothing() -> None:
    x = gpu.on_gpu(np.ones(3))
    assert_same(fp.sums(x, threads=2).abs, [3.0])
    with pytest.raises(ValueError, match=r"^threads: got 0"):
        fp.sums(x, threads=0)
