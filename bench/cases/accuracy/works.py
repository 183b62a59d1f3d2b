"""The works of this case: data of each kind and dtype, and everybody's sums of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import fused_penalties as fp
from bench import exact, machine, peers, tables
from bench.peers import Peer
from bench.settings import Settings
from bench.weights import DTYPES, STANDARD_DEVIATION
from bench.work import Row

MOST_DIGITS = {"quick": 6, "default": 7, "full": 8}
PIECE = 1 << 20  # elements that are made at a time, in float64
# torch.compile would compile for seconds for each length and dtype, and adds as torch does.
LEFT_OUT = ("torch.compile",)


class Broken(Exception):
    """An error of ours is larger than what is guaranteed."""


def rows(settings: Settings, parts: Sequence[str]) -> Iterator[Row]:
    others = [
        peer
        for peer in peers.every(settings.leave_out, settings.quick)
        if peer.name not in LEFT_OUT
    ]
    lengths = [10**digits for digits in range(3, MOST_DIGITS[settings.pace] + 1)]
    settings.expect(len(parts) * len(DTYPES) * len(lengths))
    broken = []
    for data in parts:
        for dtype in DTYPES:
            if settings.late():
                settings.leave_out(f"accuracy: {data}, {dtype}", "there was no time left for it")
                continue
            settings.doing(f"{data}, {dtype}")
            for row in of_lengths(elements(data, dtype, lengths[-1]), lengths, others):
                row = {"case": "accuracy", "what": "error of sums", "data": data, **row}
                yield row
                for kind, error in row["contenders"]["fused_penalties"].items():
                    if not float(error) <= exact.GUARANTEED[dtype]:
                        broken.append(f"{data}, {dtype}, {row['elements']:,}: {kind} {error}")
    if broken:
        raise Broken("larger errors than guaranteed:\n" + "\n".join(broken))


def of_lengths(x: NDArray[Any], lengths: Sequence[int], others: Sequence[Peer]) -> Iterator[Row]:
    """A row for the first so many elements, for each of the ascending lengths."""
    threads = machine.threads()
    dtype = x.dtype.name
    wanted = (Fraction(0), Fraction(0))
    for start, stop in pairwise([0, *lengths]):
        more = exact.sums(x[start:stop])
        wanted = (wanted[0] + more[0], wanted[1] + more[1])
        part = x[:stop]
        sums = fp.sums(part, threads=threads)
        contenders = {"fused_penalties": errors((sums.abs, sums.square), wanted)}
        for peer in others:
            if dtype in peer.dtypes:
                with np.errstate(over="ignore"):  # which is what is looked for
                    found = peer.sum_abs_and_square([part], threads)
                contenders[peer.name] = errors(found, wanted)
        yield {
            "dtype": dtype,
            "elements": stop,
            "threads": threads,
            "unit": tables.ERROR,
            "contenders": contenders,
        }


def errors(found: tuple[Any, Any], wanted: tuple[Fraction, Fraction]) -> dict[str, Any]:
    """Those of the sums of absolute values, if there are any, and of squares."""
    return {
        kind: relative(float(sums[0]), exactly)
        for kind, sums, exactly in zip(("abs", "square"), found, wanted, strict=True)
        if sums is not None
    }


def relative(got: float, wanted: Fraction) -> float | str:
    """ "inf" or "nan", which JSON has no numbers for, where that is what was got."""
    if not math.isfinite(got):
        return str(abs(got))
    return float(abs(Fraction(got) - wanted) / wanted)


def elements(data: str, dtype: str, count: int) -> NDArray[Any]:
    """So many finite elements, the same each time."""
    rng = np.random.default_rng(0)
    out = np.empty(count, DTYPES[dtype])
    for start in range(0, count, PIECE):
        piece = out[start : start + PIECE]
        piece[:] = _MAKE[data](rng, dtype, len(piece))
    return out


def _normal(rng: np.random.Generator, dtype: str, count: int) -> NDArray[np.float64]:
    return rng.standard_normal(count) * STANDARD_DEVIATION


def _lognormal(rng: np.random.Generator, dtype: str, count: int) -> NDArray[np.float64]:
    return _within(rng.lognormal(sigma=2.0, size=count), dtype)


def _cauchy(rng: np.random.Generator, dtype: str, count: int) -> NDArray[np.float64]:
    return _within(rng.standard_cauchy(count), dtype)


def _constant(rng: np.random.Generator, dtype: str, count: int) -> NDArray[np.float64]:
    return np.full(count, 0.1)


def _extreme(rng: np.random.Generator, dtype: str, count: int) -> NDArray[np.float64]:
    """Of float64 only such as have squares: no library sums those in a wider type."""
    limits = ml_dtypes.finfo(DTYPES[dtype])
    low, high = (-500, 500) if dtype == "float64" else (limits.minexp, limits.maxexp)
    fractions = rng.uniform(-1.0, 1.0, count)
    return np.ldexp(fractions, rng.integers(low, high, count))


def _within(x: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    """float16 ends at 65504."""
    most = float(ml_dtypes.finfo(DTYPES[dtype]).max)
    return np.clip(x, -most, most)


_MAKE = {
    "normal": _normal,
    "lognormal": _lognormal,
    "Cauchy": _cauchy,
    "constant": _constant,
    "extreme": _extreme,
}
