"""The largest magnitudes that come with the sums: every ISA, dtype, layout, cut and stream."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fused_penalties as fp
import oracle
import values
from layouts import LAYOUTS, cube
from oracle import hexes

dtypes = pytest.mark.parametrize("dtype", oracle.DTYPES)
THE_NAN = oracle.from_bits(oracle.NAN_BITS)


def assert_largest(sums: fp.Sums, arrays: list[np.ndarray]) -> None:
    """Beside sums with the bits that they have alone."""
    assert sums.largest is not None
    wanted = [oracle.largest(x) for x in arrays]
    assert hexes(sums.largest) == hexes(wanted)
    assert hexes([sums.total_largest]) == hexes([oracle.largest(np.array(wanted))])
    alone = fp.sums(arrays)
    assert (alone.largest, alone.total_largest) == (None, None)
    assert hexes([*sums.abs, *sums.square]) == hexes([*alone.abs, *alone.square])
    assert hexes([sums.total_abs, sums.total_square]) == hexes(
        [alone.total_abs, alone.total_square]
    )


@dtypes
@pytest.mark.usefixtures("isa")
def test_lengths_around_every_edge(dtype: str) -> None:
    """The largest one is the last: none may be left out."""
    arrays = []
    for length in values.edge_lengths(dtype):
        x = values.make("normal", dtype, length)
        x[-1:] = -77
        arrays.append(x)
    assert_largest(fp.sums(arrays, largest=True), arrays)


@dtypes
@pytest.mark.usefixtures("isa")
def test_every_place_of_a_block(dtype: str) -> None:
    block = oracle.block_elements(oracle.DTYPES[dtype])
    x = np.zeros((block, block), oracle.DTYPES[dtype])
    np.fill_diagonal(x, -1.5)
    sums = fp.sums(list(x), largest=True)
    assert sums.largest is not None
    assert (np.asarray(sums.largest) == 1.5).all()
    np.fill_diagonal(x, np.nan)
    assert np.isnan(fp.sums(list(x), largest=True).largest).all()


@dtypes
@pytest.mark.parametrize("kind", values.KINDS)
@pytest.mark.usefixtures("isa")
def test_kinds_of_values(dtype: str, kind: str) -> None:
    block = oracle.block_elements(oracle.DTYPES[dtype])
    lengths = [0, 1, 5, 100, block - 1, block, block + 1, 3 * block + 77]
    arrays = [values.make(kind, dtype, n, seed) for n in lengths for seed in range(3)]
    for x in arrays:
        assert_largest(fp.sums([x], largest=True), [x])
    assert_largest(fp.sums(arrays, largest=True), arrays)


@dtypes
@pytest.mark.usefixtures("isa")
def test_every_pattern_alone(dtype: str) -> None:
    itemsize = oracle.DTYPES[dtype].itemsize
    step = (1 << 8 * (itemsize - 2)) + (itemsize > 2)
    x = values.from_patterns(np.arange(1 << 16, dtype=np.uint64) * np.uint64(step), dtype)
    with np.errstate(invalid="ignore"):
        wanted = np.abs(x.astype(np.float64))
    sums = fp.sums(list(x.reshape(-1, 1)), largest=True)
    assert sums.largest is not None
    assert hexes(sums.largest) == hexes(np.where(np.isnan(wanted), THE_NAN, wanted))


@dtypes
@given(data=st.data())
@pytest.mark.usefixtures("isa")
def test_any_bits_at_any_address(dtype: str, data: st.DataObject) -> None:
    draw = data.draw
    block = oracle.block_elements(oracle.DTYPES[dtype])
    length = st.integers(0, 70) | st.integers(0, 3 * block) | st.sampled_from([block, 2 * block])
    kinds = st.sampled_from(draw(st.sampled_from([values.FINITE, values.KINDS])))
    arrays = [
        values.at_offset(
            values.make(draw(kinds), dtype, draw(length), draw(st.integers(0, 1 << 32))),
            draw(st.integers(0, 63)),
        )
        for _ in range(draw(st.integers(0, 4)))
    ]
    assert_largest(fp.sums(arrays, largest=True), arrays)


@dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(dtype: str, layout: str) -> None:
    x = np.asarray(LAYOUTS[layout](cube(dtype)))
    arrays = [x] if dtype == "bfloat16" else [x, x.astype(x.dtype.newbyteorder())]
    assert_largest(fp.sums(arrays, largest=True), arrays)


@dtypes
@pytest.mark.parametrize("threads", [1, 2, 5, None])
def test_threads(dtype: str, threads: int | None) -> None:
    """Large buffers are cut between the threads, small ones are not."""
    sizes = (3_000_001, 5, 0, 1_500_000, 700)
    arrays = [values.make("lognormal", dtype, n, seed) for seed, n in enumerate(sizes)]
    assert_largest(fp.sums(arrays, threads=threads, largest=True), arrays)
    arrays[3][1_234_567] = np.nan
    assert_largest(fp.sums(arrays, threads=threads, largest=True), arrays)
    assert_largest(fp.Plan(arrays, None, threads=threads).sums(largest=True), arrays)


def test_total_over_dtypes() -> None:
    arrays = [values.make("normal", dtype, 9000) for dtype in oracle.DTYPES]
    for at, special in enumerate([3e38, math.inf, math.nan]):
        arrays[at + 1][at * 4000] = -special
        assert_largest(fp.sums(arrays, largest=True), arrays)


def test_of_nothing() -> None:
    sums = fp.sums([], largest=True)
    assert (np.asarray(sums.largest).tolist(), sums.total_largest) == ([], 0.0)
    assert_largest(fp.sums(np.zeros((0, 3)), largest=True), [np.zeros((0, 3))])
    negative = -np.zeros(3, np.float16)
    assert_largest(fp.sums(negative, largest=True), [negative])


def test_how_users_see_it() -> None:
    weights = {"kernel": np.array([[1, -2], [-3, 4]], np.float32), "bias": np.array([-7.5])}
    for sums in (fp.sums(weights, largest=True), fp.Plan(weights, None).sums(largest=True)):
        assert sums["kernel"] == (10.0, 30.0, 4, 4.0)
        assert type(sums["bias"].largest) is float
        assert (sums.largest.tolist(), sums.total_largest) == ([4.0, 7.5], 7.5)
        assert type(sums.total_largest) is float
        assert json.loads(json.dumps(sums.to_dict()))["largest"] == [4.0, 7.5]
        assert sums.to_dict()["total_largest"] == 7.5
    none = fp.sums(weights).to_dict()
    assert (none["largest"], none["total_largest"]) == (None, None)
    tied = fp.sums([weights["bias"]] * 2, largest=True, unique=True)
    assert tied.largest.tolist() == [7.5, 0.0]


TRUE_OR_FALSE = r"^largest: got .*; wanted True or False"


@pytest.mark.parametrize("wrong", [None, 1, "yes", np.ones(2)])
def test_true_or_false(wrong: Any) -> None:
    x = np.ones(3)
    for call in (fp.sums, fp.partial_sums):
        with pytest.raises(TypeError, match=TRUE_OR_FALSE):
            call(x, largest=wrong)
    with pytest.raises(TypeError, match=TRUE_OR_FALSE):
        fp.Plan(x, None).sums(largest=wrong)
    with pytest.raises(TypeError, match=TRUE_OR_FALSE):
        fp.StreamingSums(largest=wrong)
    assert fp.sums(x, largest=np.bool_(True)).largest is not None


# Partial sums.


@dtypes
@given(data=st.data())
def test_any_order_and_grouping_of_shards(dtype: str, data: st.DataObject) -> None:
    draw = data.draw
    x = values.make(draw(st.sampled_from(values.KINDS)), dtype, draw(st.integers(0, 9 * 4096)))
    other = values.make("cauchy", dtype, 1000)
    block = oracle.block_elements(x.dtype)
    cuts = sorted(block * at for at in draw(st.lists(st.integers(0, 40), max_size=8)))
    shards = np.split(x, cuts)
    parts = [
        fp.partial_sums([shard, other if at == 0 else other[:0]], largest=True)
        for at, shard in enumerate(shards)
    ]
    reduced = np.max([part.largest.view(np.int64) for part in parts], axis=0)
    while len(parts) > 1:
        first = parts.pop(draw(st.integers(0, len(parts) - 1)))
        parts.append(first + parts.pop(draw(st.integers(0, len(parts) - 1))))
    assert_largest(parts[0].sums(), [x, other])
    assert hexes(reduced.view(np.float64)) == hexes(parts[0].largest)
    assert hexes(fp.PartialSums(parts[0].limbs, None, reduced.view(np.float64)).sums().largest) == (
        hexes(parts[0].largest)
    )


def test_partial_sums_with_it_and_without() -> None:
    x = np.ones(5)
    with_it, without = fp.partial_sums(x, largest=True), fp.partial_sums(x)
    assert (without.largest, without.sums().largest, (without + without).largest) == 3 * (None,)
    for one, other in ((with_it, without), (without, with_it)):
        with pytest.raises(ValueError, match=r"^cannot merge .*; wanted both made with largest=T"):
            one + other
    assert sum([with_it, with_it]).sums().total_largest == 1.0


def test_largest_that_partial_sums_are_given() -> None:
    limbs = fp.partial_sums([np.ones(5), np.ones(0)]).limbs
    wrong: Any
    for wrong in ([1.0], [[1.0, 2.0]], 3.0, np.ones(2, np.float32), np.ones(2, np.int64), "ab"):
        with pytest.raises(ValueError, match=r"^largest: got .*; wanted float64 of shape \(2,\)"):
            fp.PartialSums(limbs, largest=wrong)
    for wrong in ([1.0, -1.0], [-math.inf, 0.0], [-5e-324, 0.0]):
        with pytest.raises(ValueError, match=r"^largest: got a negative number; wanted magn"):
            fp.PartialSums(limbs, largest=wrong)
    other_nan = oracle.from_bits(0xFFF0000000000001)
    given = fp.PartialSums(limbs, largest=np.array([other_nan, 5.0])[::1])
    assert hexes(given.largest) == hexes([THE_NAN, 5.0])
    assert hexes(fp.PartialSums(limbs, largest=[-0.0, 0.0]).largest) == hexes([0.0, 0.0])
    apart = fp.PartialSums(limbs, largest=np.arange(4.0)[::2])
    assert apart.largest.tolist() == [0.0, 2.0]


# Streams.


@dtypes
@given(data=st.data())
@pytest.mark.usefixtures("isa")
def test_streams(dtype: str, data: st.DataObject) -> None:
    """In any chunks, of parts that are merged, and by way of a state."""
    draw = data.draw
    kinds = draw(st.lists(st.sampled_from(values.KINDS), min_size=1, max_size=3))
    counts = st.integers(0, 5 * 4096) | st.integers(0, 300)
    x = np.concatenate([values.make(kind, dtype, draw(counts)) for kind in kinds])
    cuts = sorted(draw(st.lists(st.integers(0, x.size), max_size=8)))
    apart = draw(st.sets(st.sampled_from(cuts))) if cuts else set()
    streams = [fp.StreamingSums(dtype, largest=True)]
    for start, chunk in zip([0, *cuts], np.split(x, cuts), strict=True):
        if start in apart and start > streams[-1].start:
            streams.append(fp.StreamingSums(dtype, start=start, largest=True))
        wide = np.zeros((chunk.size, 2), x.dtype)
        wide[:, 1] = chunk
        streams[-1].update(wide[:, 1] if draw(st.booleans()) else chunk)
    while len(streams) > 1:
        after = streams.pop()
        streams[-1].merge(fp.StreamingSums.from_state(json.loads(json.dumps(after.state()))))
    assert_largest(streams[0].sums(), [x])
    assert_largest(streams[0].partial_sums().sums(), [x])


def test_streams_with_it_and_without() -> None:
    with_it, without = fp.StreamingSums(largest=True), fp.StreamingSums()
    assert (without.sums().largest, without.state()["largest"]) == (None, "")
    assert (with_it.sums().total_largest, with_it.state()["largest"]) == (0.0, "0x0.0p+0")
    for one, other in ((with_it, without), (without, with_it)):
        with pytest.raises(ValueError, match=r"^other: made with largest=.*; wanted a stream like"):
            one.merge(other)
    for special in (math.inf, math.nan):
        with_it.update(np.full(3000, special))
        again = fp.StreamingSums.from_state(with_it.state())
        assert hexes([again.sums().total_largest]) == hexes([special])
