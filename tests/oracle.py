"""canon v2 in plain Python, written from the text of `csrc/CANON.md` and from nothing else.

NumPy does element-wise IEEE arithmetic here, vectorised over lanes and blocks, and never a
floating-point reduction: every order of addition is spelled out below. Block sums are added as
Python integers and rounded once by Python's own correctly rounded division.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from fractions import Fraction

import ml_dtypes
import numpy as np

ROW_BYTES = 128
ROWS = 16  # in a strip
STRIPS = 4  # in a block
STRIP_BYTES = ROWS * ROW_BYTES
BLOCK_BYTES = STRIPS * STRIP_BYTES

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": BFLOAT16,
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}

# Every finite float64 is a whole number of these units of 2**-1074.
UNIT_BITS = 1074
DIGITS = 68
DIGIT_BITS = 32

NAN_BITS = 0x7FF8000000000000


def columns(dtype: np.dtype) -> int:
    """Elements in a row of 128 bytes: 16 of float64, 32 of float32, 64 of the 16-bit types."""
    return ROW_BYTES // dtype.itemsize


def strip_elements(dtype: np.dtype) -> int:
    """Elements in a strip of 2 KiB."""
    return ROWS * columns(dtype)


def lanes(dtype: np.dtype) -> int:
    """The columns of all four strips of a block."""
    return STRIPS * columns(dtype)


def block_elements(dtype: np.dtype) -> int:
    """Elements in a block of 8 KiB."""
    return STRIPS * strip_elements(dtype)


def reading_order(x: np.ndarray) -> np.ndarray:
    """The elements of `x`, 1-D and native-endian, in the order in which they are numbered."""
    axes = [axis for axis, length in enumerate(x.shape) if length != 1]
    upward = x[(..., *(slice(None, None, -1 if stride < 0 else 1) for stride in x.strides))]
    axes.sort(key=lambda axis: upward.strides[axis], reverse=True)
    walk = upward.transpose(*axes, *(axis for axis in range(x.ndim) if axis not in axes))
    address = np.zeros((), np.int64)
    for length, stride in zip(walk.shape, walk.strides, strict=True):
        address = np.add.outer(address, np.arange(length, dtype=np.int64) * stride)
    goes_up = (np.diff(address.ravel()) >= x.itemsize).all()
    flat = (walk if goes_up else x).flatten(order="C")
    return flat.astype(flat.dtype.newbyteorder("="))


def _widened_bfloat16(x: np.ndarray) -> np.ndarray:
    return (x.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def _run_lanes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(blocks, strips, rows, columns) in the accumulators' type to (blocks, lanes): a and s."""
    blocks, strips, rows, columns = x.shape
    a = np.zeros((blocks, strips, columns), x.dtype)
    s = np.zeros((blocks, strips, columns), x.dtype)
    for row in range(rows):
        element = x[:, :, row, :]
        a = a + np.abs(element)
        product = element * element
        s = s + product
    return a.reshape(blocks, strips * columns), s.reshape(blocks, strips * columns)


def _fold(v: np.ndarray) -> np.ndarray:
    """(blocks, lanes) to (blocks,), by halves in float64."""
    v = v.astype(np.float64)
    while v.shape[1] > 1:
        half = v.shape[1] // 2
        v = v[:, :half] + v[:, half:]
    return v[:, 0]


def block_sums(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The float64 sums of |x| and of x*x of every block, before the exact accumulator."""
    flat = reading_order(x)
    per_block = block_elements(flat.dtype)
    blocks = -(-flat.size // per_block)
    padded = np.zeros(blocks * per_block, flat.dtype)
    padded[: flat.size] = flat
    padded = padded.reshape(blocks, STRIPS, ROWS, columns(flat.dtype))

    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if flat.dtype == np.float64:
            a, s = _run_lanes(padded)
        elif flat.dtype == np.float32:
            a, s = _run_lanes(padded.astype(np.float64))
        elif flat.dtype == np.float16:
            a, s = _run_lanes(padded.astype(np.float32))
        elif flat.dtype == BFLOAT16:
            widened = _widened_bfloat16(padded)
            a, s = (lane.astype(np.float64) for lane in _run_lanes(widened))
            # The largest of integers: the order of this reduction cannot change it.
            m = (padded.view(np.uint16) & 0x7FFF).max(axis=(1, 2, 3), initial=0)
            wide = (m != 0) & ((m < 77 * 128) | (m >= 187 * 128))
            a[wide], s[wide] = _run_lanes(widened[wide].astype(np.float64))
        else:
            raise TypeError(f"canon v2 has no rule for {flat.dtype}")
        return _fold(a), _fold(s)


class Exact:
    """A sum of float64 values that nothing rounds: an integer, a count of NaN, a count of Inf."""

    def __init__(self, values: Iterable[float] = ()) -> None:
        self.units = 0
        self.nans = 0
        self.infs = 0
        for value in values:
            bits = to_bits(value)
            exponent, fraction = bits >> 52 & 0x7FF, bits & ((1 << 52) - 1)
            if exponent == 0x7FF:
                if fraction:
                    self.nans += 1
                else:
                    self.infs += 1
            elif exponent == 0:
                self.units += fraction
            else:
                self.units += (fraction | 1 << 52) << (exponent - 1)

    def __add__(self, other: Exact) -> Exact:
        result = Exact()
        result.units = self.units + other.units
        result.nans = self.nans + other.nans
        result.infs = self.infs + other.infs
        return result

    def rounded(self) -> float:
        if self.nans:
            return from_bits(NAN_BITS)
        if self.infs:
            return float("inf")
        return nearest(Fraction(self.units, 1 << UNIT_BITS))

    def limbs(self) -> list[int]:
        mask = (1 << DIGIT_BITS) - 1
        digits = [self.units >> DIGIT_BITS * k & mask for k in range(DIGITS)]
        return [*digits, self.nans, self.infs]


def nearest(value: Fraction) -> float:
    """The float64 nearest to a fraction, ties to even, subnormals included, overflow to Inf."""
    try:
        return value.numerator / value.denominator  # Python rounds int / int correctly
    except OverflowError:
        return float("inf")


def exact_pair(x: np.ndarray) -> tuple[Exact, Exact]:
    """The exact sums of the block sums of one buffer: abs and square."""
    a, s = block_sums(x)
    return Exact(a.tolist()), Exact(s.tolist())


def sums(x: np.ndarray) -> tuple[float, float]:
    """What canon v2 answers for one buffer: abs and square."""
    a, s = exact_pair(x)
    return a.rounded(), s.rounded()


def limbs(x: np.ndarray) -> np.ndarray:
    """(2, 70) int64: the digits and counts of abs and of square."""
    return np.array([part.limbs() for part in exact_pair(x)], np.int64)


def totals(arrays: Iterable[np.ndarray]) -> tuple[float, float]:
    """What canon v2 answers for the totals over many buffers: merged exactly, rounded once."""
    a, s = Exact(), Exact()
    for x in arrays:
        more_a, more_s = exact_pair(x)
        a, s = a + more_a, s + more_s
    return a.rounded(), s.rounded()


def largest(x: np.ndarray) -> float:
    """The largest magnitude of one buffer, the NaN of results if there is one, 0 for none."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        found = np.max(np.abs(x.astype(np.float64)), initial=0.0)
    return from_bits(NAN_BITS) if np.isnan(found) else float(found)


def true_sums(x: np.ndarray) -> tuple[Fraction, Fraction]:
    """The sums of |w| and of w*w of finite weights with no rounding anywhere."""
    flat = reading_order(x)
    if flat.dtype == BFLOAT16:
        flat = _widened_bfloat16(flat)
    fractions, exponents = np.frexp(np.abs(flat.astype(np.float64)))
    a = s = Fraction(0)
    for exponent in np.unique(exponents).tolist():
        # A fraction of float64 has 53 bits: times 2^53 it is an integer.
        integers = np.ldexp(fractions[exponents == exponent], 53).astype(np.int64).tolist()
        unit = Fraction(2) ** (exponent - 53)
        a += sum(integers) * unit
        s += sum(integer * integer for integer in integers) * unit**2
    return a, s


def to_bits(value: float) -> int:
    """The 64 bits of a float64."""
    return int.from_bytes(struct.pack("<d", value), "little")


def from_bits(bits: int) -> float:
    """The float64 with these 64 bits."""
    return float(struct.unpack("<d", bits.to_bytes(8, "little"))[0])


def hexes(values: Iterable[float]) -> list[str]:
    """The bits of float64 values as text: what the tests compare, so that NaN and -0 count too."""
    bits = np.fromiter(values, np.float64).view(np.uint64)
    return [f"{one:016x}" for one in bits.tolist()]
