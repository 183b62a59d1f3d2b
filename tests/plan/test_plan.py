"""What a plan reads: the values of `penalty` and `sums`, whatever changes; and what it refuses."""

from __future__ import annotations

import gc
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fused_penalties as fp
import oracle
import plan_oracle
import values
from fused_penalties import contrib, regularizers
from oracle import hexes
from plan_oracle import same_number

W = np.array([[1, -2], [-3, 4]], np.float32)
L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2

buffers = st.builds(
    values.make,
    st.sampled_from(values.KINDS),
    st.sampled_from(list(oracle.DTYPES)),
    st.integers(0, 300) | st.integers(4000, 9000),
    st.integers(0, 9),
)
strengths = st.floats(0.0, 1e3) | st.sampled_from([0.0, 1e-45, 1e300])
choices = st.one_of(
    st.none(),
    st.builds(L1L2, strengths, strengths),
    st.builds(contrib.l1_l2_regularizer, strengths, strengths),
    st.sampled_from(
        [
            np.max,
            lambda x: None,
            contrib.sum_regularizer([L1(0.1), lambda x: x.size / 3, contrib.l2_regularizer(0.2)]),
        ]
    ),
)


def assert_like_penalty(plan: fp.Plan, weights: list[np.ndarray], mixture: list[Any]) -> None:
    assert same_number(plan.value(), fp.penalty(weights, mixture))
    each = [fp.penalty(x, one) for x, one in zip(weights, mixture, strict=True)]
    found = plan.values()
    assert found.shape == (len(weights),)
    assert found.dtype == plan.value().dtype
    assert hexes(found.astype(float)) == hexes(map(float, each))


@pytest.mark.usefixtures("isa")
@given(made=st.lists(st.tuples(buffers.filter(np.size), choices), max_size=6))
def test_same_bits_as_penalty(made: list[Any]) -> None:
    arrays, mixture = [x for x, _ in made], [one for _, one in made]
    with np.errstate(all="ignore"):  # a float16 array's own max() may warn
        plan = fp.Plan(arrays, mixture)
        assert_like_penalty(plan, arrays, mixture)
        named = fp.Plan({f"w{k}": x for k, x in enumerate(arrays)}, mixture).named()
        assert list(named) == [f"w{k}" for k in range(len(arrays))]
        for x, one, got in zip(arrays, mixture, named.values(), strict=True):
            assert same_number(got, float(fp.penalty(x, one)))


@pytest.mark.usefixtures("isa")
@given(arrays=st.lists(buffers, max_size=6))
def test_same_bits_as_sums(arrays: list[np.ndarray]) -> None:
    plan, sums = fp.Plan(arrays, None), fp.sums(arrays)
    got = plan.sums()
    assert hexes(got.abs) == hexes(sums.abs)
    assert hexes(got.square) == hexes(sums.square)
    assert hexes([got.total_abs, got.total_square]) == hexes([sums.total_abs, sums.total_square])
    assert hexes([plan.l1_norm()]) == hexes([sums.total_abs])
    assert hexes([plan.l2_norm()]) == hexes([math.sqrt(sums.total_square)])


def test_numbers_that_users_know() -> None:
    assert fp.Plan(W, contrib.l2_regularizer(0.5)).value() == 7.5
    assert fp.Plan(W, L2(0.5)).value() == 15.0
    assert float(fp.Plan([W], L1()).value()).hex() == "0x1.9999980000000p-4"
    assert fp.Plan({"a": W, "b": W}, L1(0.5)).named() == {"a": 5.0, "b": 5.0}
    half = fp.Plan(np.array([300.0], np.float16), L2(0.5)).value()
    assert isinstance(half, np.float32)
    assert half == 45000.0
    assert (fp.Plan(W, None).l1_norm(), fp.Plan(W, None).l2_norm()) == (10.0, math.sqrt(30.0))


def test_norms_are_floats_and_do_not_overflow_in_half_precision() -> None:
    plan = fp.Plan([np.full(10, 60000.0, np.float16), W], L1(0.1))
    assert plan.l1_norm() == 600010.0
    assert plan.l2_norm() == math.sqrt(10 * 60000.0**2 + 30.0)
    assert type(plan.l1_norm()) is type(plan.l2_norm()) is float


def test_nothing() -> None:
    for none in ([], {}, ()):
        plan = fp.Plan(none, L1())
        assert same_number(plan.value(), np.float32(0.0))
        assert plan.values().shape == (0,)
        assert (plan.l1_norm(), plan.l2_norm(), len(plan)) == (0.0, 0.0, 0)
        assert len(plan.sums()) == 0
        plan.add_grad([])
        plan.prox(1.0)
        plan.decay(1.0)
        assert plan.clip_grad_norm([], 1.0) == 0.0
    assert fp.Plan({}, L1()).named() == {}
    assert fp.Plan(np.zeros((0, 3)), L1()).value() == 0.0


def test_changes_in_place_are_seen() -> None:
    x, y = np.ones(5000, np.float32), np.ones(3)
    plan = fp.Plan([x, y[::-2]], L1(0.5))
    assert plan.value() == 2501.0
    x[:] = 2.0
    y[0] = 5.0
    assert plan.value() == 5003.0
    assert plan.values().tolist() == [5000.0, 3.0]
    assert plan.sums().abs.tolist() == [10000.0, 6.0]
    assert (plan.l1_norm(), plan.l2_norm()) == (10006.0, math.sqrt(20026.0))
    x[7] = np.nan
    assert math.isnan(plan.value())


def test_results_do_not_change_with_the_weights() -> None:
    x = np.ones(10)
    plan = fp.Plan([x], L1(0.5))
    found, sums = plan.values(), plan.sums()
    x[:] = 3.0
    plan.values()
    assert (found.tolist(), sums.abs.tolist()) == ([5.0], [10.0])


def test_the_list_of_weights_is_read_once() -> None:
    arrays = [W, W * 2]
    plan = fp.Plan(arrays, L1(0.5))
    arrays[0] = None
    arrays.clear()
    assert plan.value() == 15.0
    assert len(fp.Plan(iter([W, W]), [L1(0.5), None])) == 2


def test_the_weights_stay_alive() -> None:
    plan = fp.Plan([values.make("normal", "float32", 100_000, seed) for seed in range(9)], L1(0.1))
    value = plan.value()
    gc.collect()
    noise = [np.full(100_000, 7, np.float32) for _ in range(20)]
    assert same_number(plan.value(), value)
    del noise


def test_torch_parameters() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.Linear(20, 10))
    weights = dict(model.named_parameters())
    plan = fp.Plan(weights, {r"bias": None, r".*": contrib.l2_regularizer(0.1)})
    for _ in range(3):
        arrays = [x.detach().numpy() for name, x in weights.items() if "bias" not in name]
        assert same_number(plan.value(), fp.penalty(arrays, contrib.l2_regularizer(0.1)))
        with torch.no_grad():
            for x in weights.values():
                x.mul_(1.5)
    bfloats = torch.ones(10, dtype=torch.bfloat16)
    plan = fp.Plan([bfloats], L1(0.5))
    bfloats.mul_(3)
    assert plan.value() == 15.0


# What is refused.


@pytest.mark.parametrize("bad", [W.astype(int), W.astype(complex), np.array(["a"]), None, "text"])
def test_weights_that_are_none(bad: object) -> None:
    for regularizer in (L1(0.5), [None, None, np.max], L1(0.0)):
        with pytest.raises(TypeError, match=r"^weights\[2\]: "):
            fp.Plan([W, W, bad], regularizer)
        with pytest.raises(TypeError, match=r"^weights\['c'\]: "):
            fp.Plan({"a": W, "b": W, "c": bad}, regularizer)


@pytest.mark.parametrize("bad", [None, "text", 3.5 + 1j, W.astype(int)])
def test_what_is_no_weight_at_all(bad: object) -> None:
    with pytest.raises(TypeError, match=r"^weights: "):
        fp.Plan(bad, L1(0.5))


def test_buffers_left_out_may_be_anything() -> None:
    weights = {"step": np.array(3), "w": W, "nothing": None}
    rules = {"^w$": L1(0.5)}
    plan = fp.Plan(weights, rules)
    assert same_number(plan.value(), fp.penalty(weights, rules))
    assert plan.values().tolist() == [0.0, 5.0, 0.0]
    assert plan.named() == {"step": 0.0, "w": 5.0, "nothing": 0.0}
    assert (plan.l1_norm(), plan.sums().abs.tolist()) == (10.0, [0.0, 10.0, 0.0])
    g = np.zeros_like(W)
    plan.add_grad({"w": g})
    plan.add_grad([None, g, None])
    assert g.tolist() == [[1, -1], [-1, 1]]
    with pytest.raises(TypeError, match=r"^weights\['step'\]: was no array of floats"):
        plan.set_regularizer(L1(0.5))
    assert plan.value() == 5.0


def test_a_buffer_left_out_may_get_a_penalty_later() -> None:
    plan = fp.Plan([W, W], [None, L1(0.5)])
    plan.set_regularizer([L1(0.5), None])
    assert plan.values().tolist() == [5.0, 0.0]


def test_no_strength_changes_the_dtype() -> None:
    weights = [W, W.astype(np.float64)]
    for regularizer in (L1(0.5), [L1(0.5), None], None):
        assert isinstance(fp.Plan(weights, regularizer).value(), np.float64)


@pytest.mark.parametrize(
    ("threads", "error"), [(0, ValueError), (-1, ValueError), ("2", TypeError)]
)
def test_threads_are_checked_at_once(threads: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^threads: "):
        fp.Plan([W], L1(0.5), threads=threads)


def test_tied_weights_count_as_often_as_they_are_listed() -> None:
    plan = fp.Plan([W, W, W.T], [L1(0.5), contrib.l2_regularizer(0.5), L1(0.5)])
    assert plan.values().tolist() == [5.0, 7.5, 5.0]
    assert plan.value() == 17.5


def test_repr_and_length() -> None:
    plan = fp.Plan([W, W, W], L1(0.5))
    assert (repr(plan), len(plan)) == ("<Plan of 3 buffers>", 3)


def test_weights_are_not_written_by_what_reads() -> None:
    arrays = [values.assorted(dtype, 5000) for dtype in oracle.DTYPES]
    before = [plan_oracle.bits(x) for x in arrays]
    plan = fp.Plan(arrays, L1L2(0.1, 0.2))
    for read in (plan.value, plan.values, plan.sums, plan.l1_norm, plan.l2_norm):
        read()
    plan.value_and_grad([np.zeros_like(x) for x in arrays])
    for x, bits in zip(arrays, before, strict=True):
        assert np.array_equal(plan_oracle.bits(x), bits)
