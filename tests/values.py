"""Weights to test with: distributions, bit patterns, edge lengths, buffers at odd addresses."""

from __future__ import annotations

import ml_dtypes
import numpy as np

import oracle

EXPONENT_AND_FRACTION_BITS = {
    "float16": (5, 10),
    "bfloat16": (8, 7),
    "float32": (8, 23),
    "float64": (11, 52),
}
FINITE = ["normal", "lognormal", "cauchy", "spread", "subnormal", "zeros", "extreme"]
KINDS = [*FINITE, "nan", "inf", "nan and inf", "any bits"]


def make(kind: str, dtype: str, count: int, seed: int = 0) -> np.ndarray:
    """`count` weights of one kind, the same for the same seed."""
    rng = np.random.default_rng([seed, count, KINDS.index(kind), list(oracle.DTYPES).index(dtype)])
    if kind in ("normal", "nan", "inf", "nan and inf"):
        x = _rounded(rng.standard_normal(count), dtype)
    elif kind == "lognormal":
        x = _rounded(rng.lognormal(0.0, 3.0, count), dtype)
    elif kind == "cauchy":
        x = _rounded(rng.standard_cauchy(count), dtype)
    else:
        x = _patterns(kind, dtype, rng.integers(0, 1 << 64, count, np.uint64, endpoint=False))
    if "nan" in kind:
        _plant(x, rng, fraction=int(rng.integers(1, 4)))
    if "inf" in kind:
        _plant(x, rng, fraction=0)
    return x


def assorted(dtype: str, count: int, seed: int = 0) -> np.ndarray:
    """`count` weights that each are of any kind: zeros, subnormals and NaN among normal ones."""
    kinds = ["normal", "normal", "normal", "spread", "zeros", "subnormal", "extreme", "any bits"]
    choice = np.random.default_rng([seed, count]).integers(len(kinds), size=count)
    x = np.empty(count, oracle.DTYPES[dtype])
    for k, kind in enumerate(kinds):
        chosen = choice == k
        x[chosen] = make(kind, dtype, np.count_nonzero(chosen), seed + k)
    special = [np.nan, np.inf, -np.inf]
    at = np.flatnonzero(choice == 0)[: len(special)]
    x[at] = special[: len(at)]
    return x


def from_patterns(bits: np.ndarray, dtype: str) -> np.ndarray:
    """Weights from their bit patterns, given in the low bits of unsigned integers."""
    numpy_dtype = oracle.DTYPES[dtype]
    return bits.astype(f"u{numpy_dtype.itemsize}").view(numpy_dtype)


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    largest = float(ml_dtypes.finfo(oracle.DTYPES[dtype]).max)
    return np.clip(values, -largest, largest).astype(oracle.DTYPES[dtype])


def _patterns(kind: str, dtype: str, bits: np.ndarray) -> np.ndarray:
    exponent_bits, fraction_bits = EXPONENT_AND_FRACTION_BITS[dtype]
    fraction = np.uint64((1 << fraction_bits) - 1)
    sign = np.uint64(1 << (exponent_bits + fraction_bits))
    special = np.uint64(((1 << exponent_bits) - 1) << fraction_bits)
    if kind == "zeros":
        bits = bits & sign
    elif kind == "subnormal":
        bits = bits & (sign | fraction)
    elif kind == "spread":
        # Exponents far apart, yet no square or sum overflows or underflows.
        bias = (1 << (exponent_bits - 1)) - 1
        exponent = bias - bias // 4 + bits % np.uint64(bias // 2 + 1)
        bits = bits & (sign | fraction) | exponent.astype(np.uint64) << np.uint64(fraction_bits)
    elif kind == "extreme":
        # Every exponent alike, but the one of NaN and Inf becomes the largest finite one.
        bits = np.where(bits & special == special, bits ^ np.uint64(1 << fraction_bits), bits)
    return from_patterns(bits, dtype)


def _plant(x: np.ndarray, rng: np.random.Generator, fraction: int) -> None:
    """One Inf (fraction 0) or NaN, quiet or signalling, of a random sign at a random place."""
    if x.size == 0:
        return
    exponent_bits, fraction_bits = EXPONENT_AND_FRACTION_BITS[x.dtype.name]
    bits = (((1 << exponent_bits) - 1) << fraction_bits) | fraction
    bits |= int(rng.integers(2)) << (exponent_bits + fraction_bits)
    x.view(f"u{x.itemsize}")[rng.integers(x.size)] = bits


def edge_lengths(dtype: str) -> list[int]:
    """Both sides of every edge: of quarters of rows, rows, strips and blocks.

    Every length within a row of the edges of the first block's strips, and every quarter row in it.
    """
    row = oracle.columns(oracle.DTYPES[dtype])
    strip = oracle.strip_elements(oracle.DTYPES[dtype])
    block = oracle.block_elements(oracle.DTYPES[dtype])
    lengths = set(range(2 * row + 2))
    for edge in range(strip, block + 1, strip):
        lengths |= set(range(edge - row - 1, edge + row + 2))
    for edge in range(0, block, row // 4):
        lengths |= {edge + step for step in (0, 1, row // 4 - 1)}
    for edge in range(block, 3 * block + 1, strip):
        lengths |= {edge + step for step in (-1, 0, 1)}
    for edge in (block, 2 * block, 3 * block):
        lengths |= {edge + step for step in range(-17, 18)}
    return sorted(lengths)


def aligned_bytes(size: int) -> np.ndarray:
    """`size` zero bytes from a base at a multiple of 64."""
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


def at_offset(x: np.ndarray, offset: int) -> np.ndarray:
    """A copy of 1-D `x` that begins `offset` bytes after a multiple of 64."""
    copy = np.ndarray(x.shape, x.dtype, aligned_bytes(offset + x.nbytes), offset)
    copy.view(np.uint8)[...] = x.view(np.uint8)
    return copy
