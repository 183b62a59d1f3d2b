"""Partial sums: shards cut at 8 KiB multiples, merged in any order and grouping."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fused_penalties as fp
import oracle
import values
from oracle import hexes

dtypes = pytest.mark.parametrize("dtype", oracle.DTYPES)


def cut(x: np.ndarray, blocks: list[int]) -> list[np.ndarray]:
    """Shards of `x` that begin at these blocks."""
    return np.split(x, [block * oracle.block_elements(x.dtype) for block in sorted(blocks)])


@dtypes
@pytest.mark.parametrize("kind", values.KINDS)
@pytest.mark.usefixtures("isa")
def test_limbs_are_the_exact_digits(dtype: str, kind: str) -> None:
    block = oracle.block_elements(oracle.DTYPES[dtype])
    arrays = [values.make(kind, dtype, n) for n in (0, 1, block + 1, 5 * block)]
    limbs = fp.partial_sums(arrays).limbs
    assert limbs.shape == (4, 2, 70)
    assert limbs.dtype == np.int64
    np.testing.assert_array_equal(limbs, [oracle.limbs(x) for x in arrays])


@dtypes
@given(data=st.data())
def test_any_order_and_grouping_of_shards(dtype: str, data: st.DataObject) -> None:
    draw = data.draw
    kind = draw(st.sampled_from(values.KINDS))
    x = values.make(kind, dtype, draw(st.integers(0, 9 * 4096)), draw(st.integers(0, 99)))
    other = values.make("cauchy", dtype, 1000)
    shards = cut(x, draw(st.lists(st.integers(0, 40), max_size=8)))
    nothing = other[:0]
    at = draw(st.integers(0, len(shards) - 1))
    parts = [
        fp.partial_sums([shard, other if i == at else nothing]) for i, shard in enumerate(shards)
    ]
    while len(parts) > 1:
        first = parts.pop(draw(st.integers(0, len(parts) - 1)))
        second = parts.pop(draw(st.integers(0, len(parts) - 1)))
        parts.append(first + second)
    whole = fp.partial_sums([x, other])
    np.testing.assert_array_equal(parts[0].limbs, whole.limbs)
    assert_same_sums(parts[0].sums(), fp.sums([x, other]))


def assert_same_sums(sums: fp.Sums, expected: fp.Sums) -> None:
    assert hexes(sums.abs) == hexes(expected.abs)
    assert hexes(sums.square) == hexes(expected.square)
    assert hexes([sums.total_abs, sums.total_square]) == hexes(
        [expected.total_abs, expected.total_square]
    )
    assert sums.names == expected.names


@dtypes
@pytest.mark.parametrize("kind", values.KINDS)
def test_integer_all_reduce(dtype: str, kind: str) -> None:
    x = values.make(kind, dtype, 30 * 4096 + 5)
    limbs = [fp.partial_sums(shard).limbs for shard in cut(x, list(range(1, 30)))]
    reduced = fp.PartialSums(np.sum(limbs, axis=0))
    assert_same_sums(reduced.sums(), fp.sums(x))
    np.testing.assert_array_equal(reduced.limbs, fp.partial_sums(x).limbs)


@st.composite
def exact_sums(draw: st.DrawFn) -> oracle.Exact:
    """Any sum that limbs can hold, often a tie between two float64 or the least bit beside one."""
    exact = oracle.Exact()
    significant = draw(st.integers(1 << 52, (1 << 53) - 1) | st.integers(0, 1 << 70))
    shift = draw(st.integers(0, 80) | st.integers(0, 2176 - 72))
    exact.units = significant << shift
    if shift and draw(st.booleans()):
        exact.units += 1 << (shift - 1)
        exact.units += draw(st.sampled_from([0, 1, -1, 1 << shift // 2, -(1 << shift // 2)]))
    exact.nans, exact.infs = draw(st.sampled_from([(0, 0)] * 6 + [(0, 3), (1, 0), (2, 1)]))
    return exact


@given(st.lists(st.tuples(exact_sums(), exact_sums()), max_size=5))
def test_any_limbs_are_rounded_once(pairs: list[tuple[oracle.Exact, oracle.Exact]]) -> None:
    limbs = np.array([[a.limbs(), s.limbs()] for a, s in pairs], np.int64).reshape(-1, 2, 70)
    sums = fp.PartialSums(limbs).sums()
    assert hexes(sums.abs) == hexes(a.rounded() for a, _ in pairs)
    assert hexes(sums.square) == hexes(s.rounded() for _, s in pairs)


@dtypes
def test_all_reduce_over_a_billion_shards(dtype: str) -> None:
    """Digits that were added 2^30 times over still fit their int64, and carry."""
    x = values.make("lognormal", dtype, 5000)
    limbs = fp.partial_sums(x).limbs
    expected = []
    for part in oracle.exact_pair(x):
        part.units <<= 30
        expected.append(part.rounded())
    sums = fp.PartialSums(limbs << 30).sums()
    assert hexes([*sums.abs, *sums.square]) == hexes(expected)


@pytest.mark.parametrize("exponent", range(32))
def test_carries_of_many_block_sums(exponent: int) -> None:
    """Enough equal block sums to leave the digits that one of them touches, at every alignment."""
    blocks = 5000
    weight = np.float64((2.0 - 2.0**-52) * 2.0**exponent)
    expected = []
    for exact in oracle.exact_pair(np.full(1024, weight)):
        exact.units *= blocks
        expected.append(exact.rounded())
    sums = fp.sums(np.broadcast_to(weight, (blocks, 1024)), threads=1)
    assert hexes([*sums.abs, *sums.square]) == hexes(expected)
    assert hexes([sums.total_abs, sums.total_square]) == hexes(expected)


def test_finite_shards_overflow_to_inf_only_when_rounded() -> None:
    huge = np.array([1.5 * 2.0**1023])
    part = fp.partial_sums(huge)
    assert part.sums().abs[0] == 1.5 * 2.0**1023
    merged = part + part
    assert merged.sums().abs[0] == np.inf
    assert merged.limbs[0, 0, 69] == 0, "no block was infinite"


def test_merging_leaves_its_operands_alone() -> None:
    p, q = fp.partial_sums(np.ones(3)), fp.partial_sums(np.full(5, 2.0))
    before = p.limbs.copy(), q.limbs.copy()
    assert (p + q).sums().abs.tolist() == [13.0]
    np.testing.assert_array_equal(p.limbs, before[0])
    np.testing.assert_array_equal(q.limbs, before[1])


def test_names() -> None:
    shards = [
        {"kernel": np.ones(3), "bias": np.zeros(2)},
        {"kernel": np.ones(4), "bias": np.ones(1)},
    ]
    first, second = (fp.partial_sums(shard) for shard in shards)
    assert first.names == ("kernel", "bias")
    merged = first + second
    assert merged.names == ("kernel", "bias")
    sums = merged.sums()
    assert sums.names == ("kernel", "bias")
    assert sums.abs.tolist() == [7.0, 1.0]
    assert fp.PartialSums(merged.limbs, names=("a", "b")).sums().names == ("a", "b")
    assert fp.PartialSums(merged.limbs).names is None
    assert fp.partial_sums([np.ones(3)]).names is None


def test_empty_list() -> None:
    part = fp.partial_sums([])
    assert part.limbs.shape == (0, 2, 70)
    sums = (part + fp.partial_sums([])).sums()
    assert sums.abs.shape == sums.square.shape == (0,)
    assert hexes([sums.total_abs, sums.total_square]) == hexes([0.0, 0.0])


def test_lengths_must_match() -> None:
    with pytest.raises(ValueError, match=r"\b2\b.*\b3\b|\b3\b.*\b2\b"):
        fp.partial_sums([np.ones(3)] * 2) + fp.partial_sums([np.ones(3)] * 3)


def test_only_partial_sums_can_be_added() -> None:
    with pytest.raises(TypeError):
        fp.partial_sums(np.ones(3)) + 1.0


@pytest.mark.parametrize("shape", [(2, 70), (1, 70, 2), (1, 2, 69), (1, 3, 70), ()])
def test_limbs_of_a_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="limbs"):
        fp.PartialSums(np.zeros(shape, np.int64))


def test_limbs_of_a_wrong_dtype() -> None:
    with pytest.raises((TypeError, ValueError), match="limbs"):
        fp.PartialSums(np.zeros((1, 2, 70), np.float64))


def test_names_of_a_wrong_number() -> None:
    with pytest.raises(ValueError, match="names"):
        fp.PartialSums(np.zeros((2, 2, 70), np.int64), names=("only one",))


def test_sum_of_shards() -> None:
    shards = [fp.partial_sums(np.ones(1024)), fp.partial_sums(np.ones(5))]
    assert sum(shards).sums().total_abs == 1029.0
