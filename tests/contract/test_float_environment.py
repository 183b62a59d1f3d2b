"""The sums depend on no rounding mode and no flushing of subnormals, and leave both alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import float_environment
import fused_penalties as fp
import oracle
import values
from fused_penalties import contrib
from fused_penalties.regularizers import L1, L1L2
from fused_penalties.tf1.losses import Loss
from oracle import hexes

modes = pytest.mark.parametrize("mode", float_environment.MODES)


def weights() -> list[np.ndarray]:
    """Sums that round, subnormal weights, and squares that are subnormal in the lane's type."""
    kinds = ("lognormal", "subnormal", "extreme", "spread")
    arrays = [values.make(kind, dtype, 20_000) for kind in kinds for dtype in oracle.DTYPES]
    in_float32 = values.make("subnormal", "bfloat16", 20_000)
    in_float32[::1000] = 2.0**-50
    small = values.make("spread", "bfloat16", 9000) * np.array(2.0**-40, oracle.BFLOAT16)
    arrays += [in_float32, small]
    arrays += [values.make("subnormal", "float64", 3), np.full(3, 2.0**-530)]
    return [np.asarray(x) for x in arrays]


@modes
def test_the_modes_are_hostile(mode: str) -> None:
    """Were the register not set at all, the tests below would show nothing."""
    one, tiny = np.array([1.0]), np.array([2.0**-30 * 2.0**-30])
    small, subnormal = np.array([2.0**-1000]), np.array([2.0**-1040])

    def arithmetic() -> list[str]:
        results = [one + tiny, one - tiny, subnormal + subnormal, small * tiny]
        return hexes(float(x[0]) for x in results)

    usual = arithmetic()
    with float_environment.hostile(mode):
        unusual = arithmetic()
    assert unusual != usual


@modes
@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_and_the_mode_stays(mode: str, threads: int, isa: str) -> None:
    arrays = weights()
    swapped = [x.astype(x.dtype.newbyteorder(">")) for x in arrays if x.dtype != oracle.BFLOAT16]
    strided = [x[::-3] for x in arrays]
    expected = [oracle.sums(x) for x in [*arrays, *swapped, *strided]]
    expected_totals = oracle.totals([*arrays, *swapped, *strided])
    parts_of = np.split(arrays[0], [4096, 8192])
    with float_environment.hostile(mode) as control:
        sums = fp.sums([*arrays, *swapped, *strided], threads=threads)
        after_sums = float_environment.control()
        first, *others = (fp.partial_sums(x, threads=threads) for x in parts_of)
        for other in others:
            first += other
        merged = first.sums()
        after_merging = float_environment.control()
        totals = [sums.total_abs, sums.total_square]
    assert after_sums == after_merging == control
    assert hexes(sums.abs) == hexes(a for a, _ in expected)
    assert hexes(sums.square) == hexes(s for _, s in expected)
    assert hexes(totals) == hexes(expected_totals)
    assert hexes([*merged.abs, *merged.square]) == hexes(expected[0])


ENTRIES: dict[str, Callable[[list[np.ndarray]], Any]] = {
    "value": lambda w: fp.Plan(w, L1L2(0.3, 0.7)).value(),
    "values": lambda w: fp.Plan(w, L1L2(0.3, 0.7)).values(),
    "by functions": lambda w: fp.Plan(w, contrib.sum_regularizer([L1(0.3), zero])).value(),
    "values by functions": lambda w: fp.Plan(w, contrib.sum_regularizer([L1(0.3), zero])).values(),
    "named": lambda w: list(fp.Plan(dict(zip("abc", w, strict=True)), L1(0.3)).named().values()),
    "l2_norm": lambda w: fp.Plan(w, None).l2_norm(),
    "clip_grad_norm": lambda w: fp.Plan(w, None).clip_grad_norm([x.copy() for x in w], np.inf),
    "penalty": lambda w: fp.penalty(w, L1L2(0.3, 0.7)),
    "of float32": lambda w: fp.penalty(w[:1], L1(1.0)),
    "one": lambda w: L1(1.0)(w[0]),
    "add_n": lambda w: fp.add_n([Loss("l", w, [L1(0.3)] * 3), np.float32(1e-42)]),
    "l2_loss": lambda w: fp.l2_loss(w[2]),
    "partial sums": lambda w: fp.partial_sums(w).sums().square,
    "largest": lambda w: fp.sums(w, largest=True).largest,
    "largest of all": lambda w: fp.sums(w[:1], largest=True).total_largest,
    "largest, merged": lambda w: parts_with_largest(w[:1]).total_largest,
    "largest, streaming": lambda w: streamed(w[0], largest=True).sums().largest,
    "streaming": lambda w: streamed(w[0]).sums().square,
    "streaming, whole blocks": lambda w: streamed(np.tile(w[0], 5000)).sums().square,
    "streaming, strided": lambda w: streamed(np.tile(w[0], 9999)[::2]).sums().square,
    "streaming, merged": lambda w: merged(np.tile(w[0], 1500)).sums().square,
}


def parts_with_largest(w: list[np.ndarray]) -> fp.Sums:
    parts = fp.partial_sums(w, largest=True)
    return (parts + parts).sums()


def streamed(w: np.ndarray, start: int = 0, largest: bool = False) -> fp.StreamingSums:
    stream = fp.StreamingSums(start=start, largest=largest)
    stream.update(w)
    return stream


def merged(w: np.ndarray) -> fp.StreamingSums:
    stream = streamed(w[:1000])
    stream.merge(streamed(w[1000:], 1000))
    return stream


def zero(w: np.ndarray) -> float:
    """A regularizer that has to be called."""
    return 0.0


@modes
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_number_is_the_same_and_the_mode_stays(entry: str, mode: str) -> None:
    """Also where it is a subnormal float32, or ends in a root."""
    small = np.array([3e-42, -1e-41], np.float32)
    arrays = [small, np.full(3, 1e-160), values.make("normal", "float16", 99)]
    call = ENTRIES[entry]
    wanted = call(arrays)
    with float_environment.hostile(mode) as control:
        found = call(arrays)
        after = float_environment.control()
    assert after == control
    assert type(found) is type(wanted)
    assert np.asarray(found).tobytes() == np.asarray(wanted).tobytes()
