"""Proximal steps and weight decay against their formulas, bit by bit, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import float_environment
import fused_penalties as fp
import oracle
import plan_oracle
import values
from fused_penalties import regularizers
from layouts import LAYOUTS, cube, read_only
from oracle import hexes
from plan_cases import DECAY, PROXIMAL
from plan_oracle import bits, same_bits
from wrapped import OnlyDLPack

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
W = np.array([[1, -2], [-3, 4]], np.float32)
dtypes = pytest.mark.parametrize("dtype", oracle.DTYPES)
UPDATES: dict[str, tuple[list[Any], Callable[..., None], Callable[..., np.ndarray]]] = {
    "prox": (
        PROXIMAL,
        lambda plan, l1, l2, step: plan.prox(step),
        lambda w, l1, l2, step: plan_oracle.proximal(w, l1, l2, step),
    ),
    "decay": (
        [(0.1, l2, rate) for l2, rate in DECAY],
        lambda plan, l1, l2, rate: plan.decay(rate),
        lambda w, l1, l2, rate: plan_oracle.decayed(w, l2, rate),
    ),
}
updates = pytest.mark.parametrize("update", UPDATES)
STRENGTH = (0.1, 0.3, 0.7)


def assert_updates(
    update: str,
    weights: list[np.ndarray],
    strength: tuple[float, float, float] = STRENGTH,
    threads: int | None = None,
) -> None:
    _, call, expected = UPDATES[update]
    wanted = [expected(w, *strength) for w in weights]
    assert call(fp.Plan(weights, L1L2(*strength[:2]), threads=threads), *strength) is None
    for at, (got, want) in enumerate(zip(weights, wanted, strict=True)):
        if not same_bits(got, want):
            worst = np.flatnonzero(bits(got) != bits(want))[0]
            raise AssertionError(
                f"weights[{at}] of {got.dtype}, shape {got.shape}, {strength}: differs first at "
                f"{worst}: got {bits(got)[worst]:#x}, wanted {bits(want)[worst]:#x}"
            )


@dtypes
@updates
@pytest.mark.usefixtures("isa")
def test_strengths(update: str, dtype: str) -> None:
    for strength in UPDATES[update][0]:
        assert_updates(update, [values.assorted(dtype, 20_000)], strength)


@dtypes
@updates
@pytest.mark.usefixtures("isa")
def test_lengths(update: str, dtype: str) -> None:
    x = values.assorted(dtype, 50_000)
    assert_updates(update, [x[:length].copy() for length in values.edge_lengths(dtype)])


@dtypes
@updates
@pytest.mark.usefixtures("isa")
def test_addresses(update: str, dtype: str) -> None:
    x = values.assorted(dtype, 5000)
    assert_updates(update, [values.at_offset(x, offset) for offset in range(65)])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@updates
@pytest.mark.usefixtures("isa")
def test_every_16_bit_weight(update: str, dtype: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint64)
    for strength in UPDATES[update][0]:
        assert_updates(update, [values.from_patterns(every, dtype)], strength)


@dtypes
@updates
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("isa")
def test_layouts(update: str, dtype: str, layout: str) -> None:
    """What lies between the elements of a strided view stays as it was."""
    x = values.assorted(dtype, cube(dtype).size).reshape(cube(dtype).shape)
    # The same view of the elements' numbers says which of them it shows.
    shown = np.asarray(LAYOUTS[layout](np.arange(x.size).reshape(x.shape))).flatten()
    hidden = np.setdiff1d(np.arange(x.size), shown)
    for order in "=>" if dtype != "bfloat16" else "=":
        w = np.asarray(LAYOUTS[layout](x.astype(x.dtype.newbyteorder(order))))
        base = w if w.base is None else w.base
        if not w.flags.writeable:
            continue
        before = base.flatten()
        assert_updates(update, [w])
        if base.dtype.names:
            assert not base["tag"].any()
            before, base = before["w"], base["w"]
        if base.size == x.size:
            assert np.array_equal(bits(base)[hidden], bits(before)[hidden])


@updates
@pytest.mark.usefixtures("isa")
@given(
    made=st.lists(
        st.tuples(
            st.sampled_from(list(oracle.DTYPES)),
            st.integers(0, 400),
            st.sampled_from([1, -1, 2, -3]),
        ),
        max_size=5,
    ),
    strength=st.tuples(st.floats(0, 10), st.floats(0, 0.5), st.floats(0, 1)),
    threads=st.integers(1, 3),
)
def test_any_views(
    update: str, made: list[Any], strength: tuple[float, float, float], threads: int
) -> None:
    weights = [values.assorted(dtype, size * abs(step))[::step] for dtype, size, step in made]
    assert_updates(update, weights, strength, threads)


@updates
@pytest.mark.usefixtures("isa")
def test_any_number_of_threads(update: str) -> None:
    sizes = [1_500_011, 70_001, 9000, *range(100)]
    kept = [values.make("normal", dtype, size) for size in sizes for dtype in oracle.DTYPES]
    for threads in (None, *range(1, 9)):
        weights = [x.copy() for x in kept]
        assert_updates(update, [*weights[4:], weights[0][::-2]], STRENGTH, threads)


@pytest.mark.parametrize("mode", float_environment.MODES)
@updates
@pytest.mark.usefixtures("isa")
def test_hostile_modes(update: str, mode: str) -> None:
    _, call, expected = UPDATES[update]
    kept = [values.assorted(dtype, 60_000) for dtype in oracle.DTYPES]
    for strength in (STRENGTH, (0.1, 1e-39, 1.0)):
        wanted = [expected(w, *strength) for w in kept]
        for threads in (1, 2):
            weights = [x.copy() for x in kept]
            plan = fp.Plan(weights, L1L2(*strength[:2]), threads=threads)
            with float_environment.hostile(mode) as control:
                call(plan, *strength)
                assert float_environment.control() == control
            assert all(map(same_bits, weights, wanted))


@updates
def test_the_next_value_sees_it(update: str) -> None:
    w = W.copy()
    plan = fp.Plan([w], L1L2(0.5, 0.25))
    UPDATES[update][1](plan, *STRENGTH)
    assert hexes([plan.value()]) == hexes([fp.penalty([w], L1L2(0.5, 0.25))])


@updates
def test_torch_weights(update: str) -> None:
    torch = pytest.importorskip("torch")
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        name = str(dtype).rpartition(".")[2]
        x = values.make("normal", name, 600)
        unsigned = torch.from_numpy(x.view(f"i{x.itemsize}").copy())
        weights = unsigned.view(dtype).reshape(20, 30)
        before = x.reshape(20, 30).T
        plan = fp.Plan([torch.nn.Parameter(weights).T.detach()], L1L2(*STRENGTH[:2]))
        UPDATES[update][1](plan, *STRENGTH)
        got = values.from_patterns(unsigned.numpy().view(f"u{x.itemsize}"), name).reshape(20, 30)
        assert same_bits(got.T, UPDATES[update][2](before, *STRENGTH))


@updates
@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (-1.0, ValueError),
        (-1e-300, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        (10**400, ValueError),
        (np.ones(1), ValueError),
        (True, TypeError),
        ("0.1", TypeError),
        (None, TypeError),
        (1j, TypeError),
    ],
)
def test_what_is_no_step_or_rate(update: str, bad: Any, error: type[Exception]) -> None:
    w = W.copy()
    plan = fp.Plan([w], L1L2(0.5, 0.25))
    name = {"prox": "step", "decay": "rate"}[update]
    with pytest.raises(error, match=f"^{name}: got "):
        getattr(plan, update)(bad)
    with pytest.raises(error, match=r"^max_norm: got "):
        plan.clip_grad_norm([w], -bad if isinstance(bad, float) and bad > 0 else bad)
    assert np.array_equal(w, W)


UNWRITABLE = {
    "read-only": lambda: read_only(W),
    "broadcast": lambda: np.broadcast_to(np.float32(1.0), (2, 2)),
    "memoryview": lambda: memoryview(W.copy()),
    "NumPy scalar": lambda: np.float32(1.0),
    "read-only, by DLPack": lambda: OnlyDLPack(read_only(W)),
}


@updates
@pytest.mark.parametrize("what", UNWRITABLE)
def test_weights_that_cannot_be_written(update: str, what: str) -> None:
    good, bad = W.copy(), UNWRITABLE[what]()
    for weights, label in (
        ([good, bad], r"^weights\[1\]: "),
        ({"a": good, "b": bad}, r"^weights\['b'\]: "),
        (bad, r"^weights"),
    ):
        plan = fp.Plan(weights, L1L2(0.5, 0.25))
        with pytest.raises(ValueError, match=label):
            getattr(plan, update)(0.1)
        assert np.array_equal(good, W)
        plan.value()
    plan = fp.Plan([good, bad], [L1L2(0.5, 0.25), None])
    getattr(plan, update)(0.1)
    assert not np.array_equal(good, W)
