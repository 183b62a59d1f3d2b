"""The gradient in the place of grads, where that is more than adding to zeros.

The bits of every dtype, layout and instruction set are in test_plan_gradients.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fused_penalties as fp
import plan_oracle
import values
from fused_penalties import regularizers
from layouts import read_only
from plan_cases import FLAT, GRAD_LAYOUTS, PAIRS, write_grad
from plan_oracle import bits, same_bits

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
W = np.array([[1, -2], [-3, 4]], np.float32)


@pytest.mark.usefixtures("isa")
@given(
    made=st.lists(
        st.tuples(
            st.sampled_from(PAIRS),
            st.integers(0, 300) | st.integers(0, 20_000),
            st.sampled_from(list(GRAD_LAYOUTS)),
            st.sampled_from([None, L1(0.1), L2(0.3), L1L2(0.1, 0.3)]),
        ),
        max_size=5,
    ),
    upstream=st.floats(),
    threads=st.integers(1, 3),
)
def test_it_is_what_zeros_become(made: list[Any], upstream: float, threads: int) -> None:
    """Grads of buffers without a penalty too, whether the others have a gradient or not."""
    weights = [values.assorted(dtype, size, 1) for (dtype, _), size, _, _ in made]
    dtypes = [values.assorted(dtype, 0).dtype for (_, dtype), _, _, _ in made]
    added = [np.zeros(w.shape, dtype) for w, dtype in zip(weights, dtypes, strict=True)]
    written = [
        GRAD_LAYOUTS[layout](w.shape, dtype)
        for w, dtype, (_, _, layout, _) in zip(weights, dtypes, made, strict=True)
    ]
    for g in written:
        g[...] = np.nan
    plan = fp.Plan(weights, [one for *_, one in made], threads=threads)
    plan.add_grad(added, upstream)
    write_grad(plan, written, upstream)
    assert all(map(same_bits, written, added))


@pytest.mark.parametrize("strength", FLAT)
@pytest.mark.parametrize("layout", GRAD_LAYOUTS)
@pytest.mark.usefixtures("isa")
def test_no_gradient_is_zero_of_nan_too(layout: str, strength: tuple[float, float, float]) -> None:
    """And nothing but the elements is written, in one block or in many."""
    l1, l2, upstream = strength
    for shape in ((3, 5), (130, 171)):
        w = np.full(shape, np.nan, np.float32)
        for threads in (1, 2):
            g = GRAD_LAYOUTS[layout](shape, w.dtype)
            g[...] = -np.nan
            around = g if g.base is None else g.base
            names = around.dtype.names
            if not names:
                around[...] = -np.nan
            write_grad(fp.Plan(w, L1L2(l1, l2), threads=threads), [g], upstream)
            assert not bits(g).any()
            if not names:
                assert np.count_nonzero(bits(around)) == around.size - g.size


def test_grads_that_are_not_given() -> None:
    plan = fp.Plan([W, W, W], [None, L1(0.5), L1(0.0)])
    for first, last in ((None, None), (W.copy(), None), (None, W.copy()), (W.copy(), W.copy())):
        g = W.copy()
        write_grad(plan, [first, g, last])
        assert g.tolist() == [[0.5, -0.5], [-0.5, 0.5]]
        assert all(x is None or not bits(x).any() for x in (first, last))


@pytest.mark.usefixtures("isa")
def test_minus_zero_is_never_written() -> None:
    for dtype, _ in PAIRS:
        w = np.array([0.0, -0.0, 1e-30, -1e-30], "float64").astype(values.assorted(dtype, 0).dtype)
        for one in (L1(0.5), L2(0.5), L1L2(0.5, 0.5)):
            g = np.full_like(w, np.nan)
            write_grad(fp.Plan(w, one), [g])
            assert not bits(g)[:2].any()


BAD_GRADS: dict[str, tuple[Any, type[Exception]]] = {
    "float64": (np.zeros((2, 2)), TypeError),
    "float16": (np.zeros((2, 2), np.float16), TypeError),
    "other shape": (np.zeros(4, np.float32), ValueError),
    "read-only": (read_only(np.zeros((2, 2), np.float32)), ValueError),
    "broadcast": (np.broadcast_to(np.float32(0.0), (2, 2)), ValueError),
    "the weight": (W, ValueError),
    "the weight, transposed": (W.T, ValueError),
}


@pytest.mark.parametrize("penalized", [True, False])
@pytest.mark.parametrize("bad", BAD_GRADS)
def test_errors_leave_everything_untouched(bad: str, penalized: bool) -> None:
    """Of a grad whose buffer has no penalty as well: it would be written too."""
    grad, error = BAD_GRADS[bad]
    good = [np.ones_like(W) for _ in range(2)]
    before = W.copy()
    plan = fp.Plan([W.copy(), W, W.copy()], [L1(0.5), L1(0.5) if penalized else None, L1(0.5)])
    with pytest.raises(error, match=r"^grads\[1\]: "):
        write_grad(plan, [good[0], grad, good[1]])
    assert np.array_equal(good, np.ones((2, 2, 2)))
    assert np.array_equal(W, before)


def test_a_penalty_without_a_grad() -> None:
    g = W.copy()
    with pytest.raises(TypeError, match=r"^grads\[1\]: got None; wanted an array$"):
        write_grad(fp.Plan([W, W], L1(0.5)), [g, None])
    assert np.array_equal(g, W)


def test_strengths_of_another_plan() -> None:
    plan, other = fp.Plan([W], L1(0.5)), fp.Plan([W], L1(0.5))
    g = W.copy()
    with pytest.raises(ValueError, match=r"^strengths: these are another plan's$"):
        plan._plan.write_grad(other._applied.evaluation.strengths, [g], 1.0)
    assert np.array_equal(g, W)


@pytest.mark.usefixtures("isa")
def test_of_grads_that_share_memory_the_last_one_stays() -> None:
    w = values.make("normal", "float32", 300_000)
    for threads in (1, 2, 5):
        g = np.full_like(w, np.nan)
        write_grad(fp.Plan([w, w], [L1(0.5), L1(0.25)], threads=threads), [g, g])
        assert np.array_equal(g, np.sign(w) * np.float32(0.25))
        write_grad(fp.Plan([w, w], [L1(0.5), None], threads=threads), [g, g])
        assert not bits(g).any()


@pytest.mark.usefixtures("isa")
def test_a_gradient_in_the_place_of_another_weight() -> None:
    memory = values.make("normal", "float32", 600_000)
    first = memory[:300_000]
    stored = plan_oracle.stored_gradient(first, first.dtype, 0.1, 0.3)
    wanted = plan_oracle.stored_gradient(stored, first.dtype, 0.1, 0.3)
    for threads in (1, 2, 5):
        here = memory.copy()
        weights, g = [here[:300_000], here[300_000:]], np.full_like(first, np.nan)
        write_grad(fp.Plan(weights, L1L2(0.1, 0.3), threads=threads), [weights[1], g])
        assert same_bits(weights[1], stored)
        assert same_bits(g, wanted)
