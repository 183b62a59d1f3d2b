"""The error bounds that the contract promises, against sums that nothing rounds."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fused_penalties as fp
import oracle
import values

pytestmark = pytest.mark.usefixtures("isa")
dtypes = pytest.mark.parametrize("dtype", oracle.DTYPES)

BOUNDS = {
    "float16": Fraction("9.0e-7"),
    "bfloat16": Fraction("9.0e-7"),
    "float32": Fraction("2.6e-15"),
    "float64": Fraction("2.6e-15"),
}
SMALLEST = Fraction(1, 1 << 1074)


@cache
def true_sums(data: bytes, dtype: str) -> tuple[Fraction, Fraction]:
    """Kept from one instruction set to the next: this is slow."""
    return oracle.true_sums(np.frombuffer(data, oracle.DTYPES[dtype]))


def assert_within_bounds(x: np.ndarray) -> None:
    sums = fp.sums(x)
    true_abs, true_square = true_sums(x.tobytes(), x.dtype.name)
    bound = BOUNDS[x.dtype.name]
    # Below the normal range a relative bound cannot hold for any format: each float64 product,
    # and the result itself, may be half of the smallest subnormal off.
    underflow = (x.size + 1) * SMALLEST / 2
    assert abs(Fraction(sums.abs[0]) - true_abs) <= bound * true_abs
    assert abs(Fraction(sums.square[0]) - true_square) <= bound * true_square + underflow


@dtypes
@pytest.mark.parametrize("kind", ["normal", "lognormal", "cauchy", "spread", "subnormal", "zeros"])
def test_distributions(dtype: str, kind: str) -> None:
    block = oracle.block_elements(oracle.DTYPES[dtype])
    for length in (1, 17, block, block + 1, 40 * block - 3):
        assert_within_bounds(values.make(kind, dtype, length, seed=length))


@dtypes
def test_every_exponent(dtype: str) -> None:
    """All magnitudes of the format, as long as neither sum leaves the range of float64."""
    x = values.make("extreme", dtype, 20_000)
    if dtype == "float64":
        x = x[np.abs(x) < 2.0**500]
    assert_within_bounds(x)


def first_rows(block: np.ndarray) -> np.ndarray:
    """What every lane of a block takes first: a view of the first row of each strip."""
    return block.reshape(oracle.STRIPS, oracle.ROWS, -1)[:, 0]


@dtypes
@pytest.mark.parametrize("direction", ["down", "up"])
def test_every_addition_rounds_the_same_way(dtype: str, direction: str) -> None:
    """Half an ulp of what its lane holds in each row after the first: the worst that can come.

    A tie goes to the even 2^12 and is lost each time; a bit more than a tie becomes a whole ulp.
    """
    lane_fraction_bits = 23 if oracle.DTYPES[dtype].itemsize == 2 else 52
    fraction_bits = values.EXPONENT_AND_FRACTION_BITS[dtype][1]
    half_ulp = 2.0 ** (12 - lane_fraction_bits - 1)
    x = np.full(oracle.block_elements(oracle.DTYPES[dtype]), half_ulp, oracle.DTYPES[dtype])
    if direction == "up":
        x *= np.array(1 + 2.0**-fraction_bits, x.dtype)
    first_rows(x)[:] = 2.0**12
    assert_within_bounds(x)
    assert_within_bounds(np.tile(x, 5))


@dtypes
def test_every_square_is_lost(dtype: str) -> None:
    block = oracle.block_elements(oracle.DTYPES[dtype])
    small = 2.0 ** (-12 if oracle.DTYPES[dtype].itemsize == 2 else -27)
    x = np.full(block, small, oracle.DTYPES[dtype])
    first_rows(x)[:] = 1.0
    assert_within_bounds(x)


@dtypes
def test_growing_and_shrinking(dtype: str) -> None:
    exponents = np.linspace(-7, 7, 10_007)
    x = np.exp2(exponents).astype(oracle.DTYPES[dtype])
    assert_within_bounds(x)
    assert_within_bounds(x[::-1].copy())


@dtypes
@given(data=st.data())
def test_any_finite_weights(dtype: str, data: st.DataObject) -> None:
    draw = data.draw
    kind = draw(st.sampled_from(["normal", "lognormal", "cauchy", "spread", "subnormal"]))
    assert_within_bounds(
        values.make(kind, dtype, draw(st.integers(1, 9000)), draw(st.integers(0, 1 << 32)))
    )


def test_square_of_bfloat16_below_float32() -> None:
    """Squares that a float32 cannot hold, alone and beside one that keeps its block in float32."""
    tiny = np.full(5000, 2.0**-120, oracle.BFLOAT16)
    assert_within_bounds(tiny)
    tiny[::100] = 2.0**-50
    assert_within_bounds(tiny)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_does_not_overflow(dtype: str) -> None:
    x = np.full(20_000, 60_000.0, oracle.DTYPES[dtype])
    assert_within_bounds(x)
