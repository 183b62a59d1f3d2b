"""The exact sums of absolute values and of squares, in integers: what every result is checked with.

A floating-point number is an integer times a power of two. The integers of each exponent are added
up apart, in pieces small enough that float64 holds every partial sum without rounding.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

# How far off ours may be, relatively, by csrc/CANON.md.
GUARANTEED = {"float32": 2.6e-15, "float64": 2.6e-15, "float16": 9.0e-7, "bfloat16": 9.0e-7}
MOST_ELEMENTS = 1 << 20  # of a piece, which should stay in cache


def sums(x: np.ndarray) -> tuple[Fraction, Fraction]:
    """Those of an array of finite float16, bfloat16, float32 or float64."""
    if not np.isfinite(x).all():
        raise ValueError("x: got NaN or infinity; wanted finite numbers")
    flat = np.ascontiguousarray(x).ravel()
    if flat.dtype == np.float64:
        return _sums(flat, np.uint64, fraction_bits=52, part_bits=18, least=-1074)
    # Narrower numbers are float32 numbers too.
    return _sums(flat, np.uint32, fraction_bits=23, part_bits=12, least=-149)


def _sums(
    x: np.ndarray, word: type, fraction_bits: int, part_bits: int, least: int
) -> tuple[Fraction, Fraction]:
    """`least` is the exponent of the smallest number above zero.

    Integers are cut into parts, so that the product of two of them has at most 2 * part_bits bits.
    """
    floating = np.float64 if word is np.uint64 else np.float32
    parts = range(-(-(fraction_bits + 1) // part_bits))
    pairs = [(i, j) for i in parts for j in parts if i <= j]
    exponents = 1 << (8 * np.dtype(word).itemsize - 1 - fraction_bits)
    sums = np.zeros((len(parts), exponents), object)
    products = np.zeros((len(pairs), exponents), object)
    elements = min(MOST_ELEMENTS, 1 << (53 - 2 * part_bits))
    for start in range(0, x.size, elements):
        bits = np.abs(x[start : start + elements].astype(floating)).view(word)
        exponent = (bits >> word(fraction_bits)).astype(np.int64)
        integer = bits & word((1 << fraction_bits) - 1)
        integer |= (exponent > 0).astype(word) << word(fraction_bits)
        mask = word((1 << part_bits) - 1)
        part = [((integer >> word(i * part_bits)) & mask).astype(np.float64) for i in parts]
        present = np.flatnonzero(np.bincount(exponent))
        for row, values in [
            *((sums[i], part[i]) for i in parts),
            *((row, part[i] * part[j]) for row, (i, j) in zip(products, pairs, strict=True)),
        ]:
            row[present] += [int(total) for total in np.bincount(exponent, values)[present]]
    sum_abs = sum_square = 0
    for e in range(exponents):
        shift = max(e, 1) - 1  # subnormal numbers are as far apart as the smallest normal ones
        sum_abs += sum(int(sums[i, e]) << (shift + i * part_bits) for i in parts)
        for row, (i, j) in zip(products, pairs, strict=True):
            twice = int(i != j)
            sum_square += int(row[e]) << (2 * shift + (i + j) * part_bits + twice)
    unit = Fraction(2) ** least
    return sum_abs * unit, sum_square * unit**2
