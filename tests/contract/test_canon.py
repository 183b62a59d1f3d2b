"""The bits of the sums of one buffer, against the oracle: lengths, addresses, values, every ISA."""

from __future__ import annotations

import re
import sys
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fused_penalties as fp
import oracle
import values
from oracle import hexes

pytestmark = pytest.mark.usefixtures("isa")
dtypes = pytest.mark.parametrize("dtype", oracle.DTYPES)


def assert_like_oracle(arrays: list[np.ndarray]) -> None:
    sums = fp.sums(arrays)
    expected = [oracle.sums(x) for x in arrays]
    assert hexes(sums.abs) == hexes(a for a, _ in expected)
    assert hexes(sums.square) == hexes(s for _, s in expected)


@cache
def prefixes(dtype: str) -> tuple[list[np.ndarray], list[str], list[str]]:
    """Buffers of every edge length and the bits of their sums."""
    lengths = values.edge_lengths(dtype)
    x = values.make("lognormal", dtype, lengths[-1])
    arrays = [x[:length] for length in lengths]
    expected = [oracle.sums(array) for array in arrays]
    return arrays, hexes(a for a, _ in expected), hexes(s for _, s in expected)


@dtypes
def test_lengths_around_every_edge(dtype: str) -> None:
    arrays, expected_abs, expected_square = prefixes(dtype)
    sums = fp.sums(arrays)
    assert hexes(sums.abs) == expected_abs
    assert hexes(sums.square) == expected_square


@dtypes
def test_every_byte_offset(dtype: str) -> None:
    row = oracle.columns(oracle.DTYPES[dtype])
    strip = oracle.strip_elements(oracle.DTYPES[dtype])
    block = oracle.block_elements(oracle.DTYPES[dtype])
    for length in (1, 7, row - 1, 2 * row + 3, strip + 1, block - 1, block, 2 * block + strip + 5):
        x = values.make("normal", dtype, length)
        expected_abs, expected_square = oracle.sums(x)
        sums = fp.sums([values.at_offset(x, offset) for offset in range(64)])
        assert hexes(sums.abs) == 64 * hexes([expected_abs])
        assert hexes(sums.square) == 64 * hexes([expected_square])


@dtypes
@pytest.mark.parametrize("kind", values.KINDS)
def test_kinds_of_values(dtype: str, kind: str) -> None:
    block = oracle.block_elements(oracle.DTYPES[dtype])
    lengths = [1, 5, 100, block - 1, block, block + 1, 3 * block + 77]
    assert_like_oracle([values.make(kind, dtype, n, seed) for n in lengths for seed in range(3)])


@dtypes
@given(data=st.data())
def test_any_bits_at_any_address(dtype: str, data: st.DataObject) -> None:
    block = oracle.block_elements(oracle.DTYPES[dtype])
    length = st.integers(0, 70) | st.integers(0, 3 * block) | st.sampled_from([block, 2 * block])
    bits = st.integers(0, (1 << 8 * oracle.DTYPES[dtype].itemsize) - 1)
    arrays = []
    for _ in range(data.draw(st.integers(1, 4))):
        kind, seed = data.draw(st.sampled_from(values.KINDS)), data.draw(st.integers(0, 1 << 32))
        x = values.make(kind, dtype, data.draw(length), seed)
        if x.size:
            patterns = x.view(f"u{x.itemsize}")
            place = st.integers(0, x.size - 1)
            for index, pattern in data.draw(st.dictionaries(place, bits, max_size=5)).items():
                patterns[index] = pattern
        arrays.append(values.at_offset(x, data.draw(st.integers(0, 63))))
    assert_like_oracle(arrays)


@dtypes
def test_every_pattern_alone(dtype: str) -> None:
    """Each 16-bit pattern, or as many patterns of the longer types, in a buffer of its own."""
    itemsize = oracle.DTYPES[dtype].itemsize
    step = (1 << 8 * (itemsize - 2)) + (itemsize > 2)
    bits = np.arange(1 << 16, dtype=np.uint64) * np.uint64(step)
    x = values.from_patterns(bits, dtype)
    sums = fp.sums(list(x.reshape(-1, 1)))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        wide = np.abs(x.astype(np.float64))
        square = wide * wide
    nan = oracle.from_bits(oracle.NAN_BITS)
    assert hexes(sums.abs) == hexes(np.where(np.isnan(wide), nan, wide))
    assert hexes(sums.square) == hexes(np.where(np.isnan(wide), nan, square))


# Cases worked by hand from the text of the contract, for the oracle as much as for the kernels.

TINY = 2.0**-53


def place(dtype: str, length: int, **elements: float) -> np.ndarray:
    """Zeros but for the elements named by block, strip, row and column: b0s1r2c3.

    The size of every part is a number here, as it is in the text, and not what the oracle says.
    """
    x = np.zeros(length, oracle.DTYPES[dtype])
    for where, value in elements.items():
        numbers = re.fullmatch(r"b(\d+)s([0-3])r(\d|1[0-5])c(\d+)", where)
        block, strip, row, column = map(int, numbers.groups())
        assert column < 128 // x.itemsize
        byte = 8192 * block + 2048 * strip + 128 * row + x.itemsize * column
        x[byte // x.itemsize] = value
    return x


def test_the_example_in_the_text() -> None:
    x = place("float32", 6144, b2s1r12c8=1.0)
    assert np.flatnonzero(x) == [5000]


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        # Half an ulp added to 1 rounds to even, again and again, in one lane or one after another.
        ({"b0s0r0c0": 1.0, "b0s0r1c0": TINY, "b0s0r2c0": TINY}, 1.0),
        # The small ones first: they meet before the 1 comes.
        ({"b0s0r0c0": TINY, "b0s0r1c0": TINY, "b0s0r2c0": 1.0}, 1.0 + 2 * TINY),
        # Rows go on from 0 to 15 in the same lane, and the order is that of the rows.
        ({"b0s2r0c5": TINY, "b0s2r7c5": TINY, "b0s2r15c5": 1.0}, 1.0 + 2 * TINY),
        ({"b0s2r0c5": 1.0, "b0s2r7c5": TINY, "b0s2r15c5": TINY}, 1.0),
        ({"b0s2r7c5": 1.0, "b0s2r8c5": TINY, "b0s2r9c5": TINY}, 1.0),
        # The first halving adds strip 2 to 0 and 3 to 1, the second these two: strips 1 and 3 meet
        # before they meet strip 0, strips 1 and 2 and strips 2 and 3 do not.
        ({"b0s0r0c0": 1.0, "b0s1r0c0": TINY, "b0s3r0c0": TINY}, 1.0 + 2 * TINY),
        ({"b0s0r0c0": 1.0, "b0s1r0c0": TINY, "b0s2r0c0": TINY}, 1.0),
        ({"b0s0r0c0": 1.0, "b0s2r0c0": TINY, "b0s3r0c0": TINY}, 1.0),
        ({"b0s1r0c0": 1.0, "b0s0r0c0": TINY, "b0s2r0c0": TINY}, 1.0 + 2 * TINY),
        # Strips fold onto strips before columns onto columns: strip 0 meets strip 1 of its column
        # before column 8, and columns 8 of two strips meet each other first.
        ({"b0s0r0c0": 1.0, "b0s1r0c0": TINY, "b0s0r0c8": TINY}, 1.0),
        ({"b0s0r0c0": 1.0, "b0s0r0c8": TINY, "b0s1r0c8": TINY}, 1.0 + 2 * TINY),
        ({"b0s0r0c0": 1.0, "b0s1r7c8": TINY, "b0s2r9c8": TINY}, 1.0 + 2 * TINY),
        # The first column halving, of 16 to 8: columns 5 and 13 meet, column 8 meets column 0
        # before it could meet column 9.
        ({"b0s0r0c0": 1.0, "b0s0r0c5": TINY, "b0s0r0c13": TINY}, 1.0 + 2 * TINY),
        ({"b0s0r0c0": 1.0, "b0s0r0c8": TINY, "b0s0r0c9": TINY}, 1.0),
        # Columns 1 and 3 meet when four are left, and columns 0 and 2 as well.
        ({"b0s0r0c0": 1.0, "b0s0r0c1": TINY, "b0s0r0c3": TINY}, 1.0 + 2 * TINY),
        ({"b0s0r0c0": 1.0, "b0s0r0c2": TINY, "b0s0r0c1": TINY}, 1.0),
        # Column 1 adds up its own rows before it meets column 0.
        ({"b0s0r0c0": 1.0, "b0s0r0c1": TINY, "b0s0r1c1": TINY}, 1.0 + 2 * TINY),
        # Block sums are exact: half an ulp from another block is a tie, and ties go to even.
        ({"b0s0r0c0": 1.0, "b1s0r0c0": TINY}, 1.0),
        ({"b0s0r0c0": 1.0 + 2 * TINY, "b1s0r0c0": TINY}, 1.0 + 4 * TINY),
        # The smallest subnormal breaks the tie, two blocks later.
        ({"b0s0r0c0": 1.0, "b1s0r0c0": TINY, "b2s3r15c15": 2.0**-1074}, 1.0 + 2 * TINY),
        # Overflow inside a block, and only when block sums meet.
        ({"b0s0r0c0": 1.5 * 2.0**1023, "b0s1r3c9": 1.5 * 2.0**1023}, float("inf")),
        ({"b0s0r0c0": 1.5 * 2.0**1023, "b1s0r0c9": 1.5 * 2.0**1023}, float("inf")),
        # The largest finite float64 and less than half an ulp of it stay finite; half does not.
        ({"b0s0r0c0": sys.float_info.max, "b1s0r0c0": 2.0**969}, sys.float_info.max),
        ({"b0s0r0c0": sys.float_info.max, "b1s0r0c0": 2.0**970}, float("inf")),
    ],
)
def test_float64_abs_by_hand(elements: dict[str, float], expected: float) -> None:
    x = place("float64", 3 * 1024, **elements)
    assert hexes([oracle.sums(x)[0]]) == hexes([expected])
    assert hexes(fp.sums(x).abs) == hexes([expected])


def test_float64_product_is_rounded_before_it_is_added() -> None:
    # The square of 1 + 2^-27 is 1 + 2^-26 + 2^-54, and rounding drops the last term. A fused
    # multiply-add would add it to the 2^-54 and a bit that are there already: past half an ulp.
    x = place("float64", 1024, b0s0r0c0=2.0**-27 + 2.0**-37, b0s0r1c0=1.0 + 2.0**-27)
    assert hexes([oracle.sums(x)[1]]) == hexes([1.0 + 2.0**-26])
    assert hexes(fp.sums(x).square) == hexes([1.0 + 2.0**-26])


def test_bfloat16_product_is_rounded_before_it_is_added() -> None:
    # In units of 2^-149, the smallest float32: 1.125 rounds to 1 and then 0.5, a tie, to 0. Fused,
    # 1.5 would be the tie, and round to 2. 2^-50 keeps the block in float32.
    x = place("bfloat16", 4096, b0s0r0c0=2.0**-50, b0s0r0c1=1.5 * 2.0**-75, b0s0r1c1=2.0**-75)
    assert hexes([oracle.sums(x)[1]]) == hexes([2.0**-100 + 2.0**-149])
    assert hexes(fp.sums(x).square) == hexes([2.0**-100 + 2.0**-149])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_lanes_of_the_16_bit_types_are_float32(dtype: str) -> None:
    # 256 + 2^-16: half an ulp of float32, lost in one lane; in two lanes float64 keeps it, be they
    # two columns or the same column of two strips.
    small = 2.0**-16
    one_lane = place(dtype, 4096, b0s0r0c0=256.0, b0s0r1c0=small)
    two_columns = place(dtype, 4096, b0s0r0c0=256.0, b0s0r1c63=small)
    two_strips = place(dtype, 4096, b0s0r0c0=256.0, b0s2r0c0=small)
    sums = fp.sums([one_lane, two_columns, two_strips])
    assert hexes(sums.abs) == hexes([256.0, 256.0 + small, 256.0 + small])


def test_lanes_of_float32_are_float64() -> None:
    one_lane = place("float32", 2048, b0s0r0c0=1.0, b0s0r1c0=2.0**-40)
    assert hexes(fp.sums(one_lane).abs) == hexes([1.0 + 2.0**-40])


@pytest.mark.parametrize(
    ("largest", "wide"),
    [
        (2.0**-50, False),
        (255 / 128 * 2.0**-51, True),
        (255 / 128 * 2.0**59, False),
        (2.0**60, True),
        (2.0**-133, True),
    ],
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_bfloat16_wide_thresholds(largest: float, wide: bool, sign: float) -> None:
    # Less than half an ulp of the largest: lost in a float32 lane, kept in a float64 lane.
    small = largest * 2.0**-25 if largest > 2.0**-100 else 0.0
    x = place("bfloat16", 4096, b0s1r3c7=sign * largest, b0s1r4c7=small)
    assert sorted(float(abs(v)) for v in x[x != 0]) == [v for v in (small, largest) if v]
    kept = Fraction(small) if wide else Fraction(0)
    expected_abs = oracle.nearest(Fraction(largest) + kept)
    expected_square = oracle.nearest(Fraction(largest) ** 2 + kept**2)
    assert hexes(oracle.sums(x)) == hexes([expected_abs, expected_square])
    sums = fp.sums(x)
    assert hexes([*sums.abs, *sums.square]) == hexes([expected_abs, expected_square])


def test_bfloat16_wide_is_decided_block_by_block() -> None:
    block = 4096
    plain = values.make("normal", "bfloat16", block)
    low = plain * np.array(2.0**-60, oracle.BFLOAT16)
    high = plain.copy()
    high[1234] = 2.0**60
    zeros = np.zeros(block, oracle.BFLOAT16)
    nan = plain.copy()
    nan[77] = np.nan
    pieces = [plain, low, high, zeros, low[:9]]
    arrays = [np.concatenate(pieces[i:] + pieces[:i]) for i in range(len(pieces))]
    arrays += [np.concatenate([plain, nan, high]), np.concatenate([low, plain[:1]])]
    # One block that holds both: the large one decides for all.
    mixed = np.concatenate([low[:2000], plain[:2096]])
    assert_like_oracle([*arrays, mixed])


@dtypes
def test_nan_and_inf(dtype: str) -> None:
    block = oracle.block_elements(oracle.DTYPES[dtype])
    plain = values.make("normal", dtype, 2 * block + 3)
    inf, nan, both = plain.copy(), plain.copy(), plain.copy()
    inf[-1] = -np.inf
    nan[block] = -np.nan
    both[0], both[-1] = np.inf, np.nan
    sums = fp.sums([inf, nan, both])
    the_nan = f"{oracle.NAN_BITS:016x}"
    assert hexes(sums.abs) == [*hexes([np.inf]), the_nan, the_nan]
    assert hexes(sums.square) == [*hexes([np.inf]), the_nan, the_nan]
    assert hexes([sums.total_abs, sums.total_square]) == [the_nan, the_nan]


@dtypes
def test_empty_and_negative_zero_are_plus_zero(dtype: str) -> None:
    arrays = [np.zeros(0, oracle.DTYPES[dtype]), -np.zeros(3, oracle.DTYPES[dtype])]
    sums = fp.sums(arrays)
    plus_zero = hexes([0.0])
    assert hexes(sums.abs) == hexes(sums.square) == 2 * plus_zero
    assert hexes([sums.total_abs, sums.total_square]) == 2 * plus_zero


@dtypes
@given(data=st.data())
def test_totals_merge_block_sums_exactly(dtype: str, data: st.DataObject) -> None:
    seeds = data.draw(st.lists(st.integers(0, 1 << 20), max_size=6))
    kinds = st.sampled_from(data.draw(st.sampled_from([values.FINITE, values.KINDS])))
    arrays = [values.make(data.draw(kinds), dtype, seed % 5000, seed) for seed in seeds]
    sums = fp.sums(arrays)
    assert hexes([sums.total_abs, sums.total_square]) == hexes(oracle.totals(arrays))


def test_totals_are_rounded_once() -> None:
    # Rounded per buffer, or added in float64, every one of the small ones would be lost.
    one, small = np.array([1.0]), np.array([2.0**-53], np.float32)
    smaller = np.array([2.0**-54], oracle.BFLOAT16)
    sums = fp.sums([one, small, smaller, smaller.astype(np.float64)])
    assert hexes([sums.total_abs]) == hexes([1.0 + 2.0**-52])
