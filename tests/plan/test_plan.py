"""What a plan reads: the values of `penalty` and `sums`, whatever changes; and what it refuses."""

from __future__ import annotations

import gc
import json
import math
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fresh
import fused_penalties as fp
import oracle
import plan_oracle
import values
from fused_penalties import contrib, regularizers
from messages import exactly
from oracle import hexes

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


def same_number(got: Any, wanted: Any) -> bool:
    return type(got) is type(wanted) and hexes([float(got)]) == hexes([float(wanted)])


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


# Which regularizer applies.


def test_patterns() -> None:
    weights = {"dense/kernel": W, "dense/bias": W * 10, "norm/scale": W * 10, "out/kernel": W}
    rules = {r"bias|norm": None, r"^dense": L1(0.5), r".*": contrib.l2_regularizer(0.5)}
    plan = fp.Plan(weights, rules)
    assert plan.names == tuple(weights)
    assert plan.sums().names == tuple(weights)
    assert plan.value() == 12.5
    assert plan.named() == {
        "dense/kernel": 5.0,
        "dense/bias": 0.0,
        "norm/scale": 0.0,
        "out/kernel": 7.5,
    }
    plan.set_regularizer({"out": L1(0.5)})
    assert plan.values().tolist() == [0.0, 0.0, 0.0, 5.0]


def test_a_pattern_that_matches_nothing_lists_the_names() -> None:
    rules = {"kernal": L1(0.5), ".": None}
    with pytest.raises(ValueError, match=r"^regularizer\['kernal'\]: .* 2 names: kernel, bias$"):
        fp.Plan({"kernel": W, "bias": W}, rules)
    plan = fp.Plan({"kernel": W, "bias": W}, L1(0.5))
    with pytest.raises(ValueError, match=r"^regularizer\['kernal'\]: "):
        plan.set_regularizer(rules)


def test_named_needs_names() -> None:
    with pytest.raises(ValueError, match=r"^named: the weights were given without names"):
        fp.Plan([W], L1(0.5)).named()


def test_named_is_rounded_as_each_buffer_alone_and_is_json() -> None:
    weights = {name: np.ones(7, name) for name in ("float16", "float32", "float64")}
    plan = fp.Plan(weights, L1(0.1))
    single = float(np.float32(0.7))
    wanted = {"float16": single, "float32": single, "float64": 0.1 * 7}
    assert json.loads(json.dumps(plan.named())) == wanted
    assert plan.values().dtype == np.float64


def test_describe() -> None:
    """What a rule that was meant for every normalization misses is seen at once."""
    weights = {
        "conv1.weight": np.ones((8, 3, 7), np.float32),
        "bn1.weight": np.ones(8, np.float16),
        "fc.bias": np.ones(1, np.float64),
        "steps": np.array(3),
        "\x1b[2J": None,
    }
    rules = {"bias|norm|steps|J": None, "fc|bn": np.max, ".": L2(1e-4)}
    x = "\N{MULTIPLICATION SIGN}"
    plan = fp.Plan(weights, rules)
    assert plan.describe().splitlines() == [
        f"conv1.weight  8{x}3{x}7  float32   L2(l2=0.0001)",
        "bn1.weight    8      float16   max",
        "fc.bias       1      float64   None",
        "steps                ndarray   None",
        r"\x1b[2J              NoneType  None",
    ]
    plan.set_regularizer([L1(0.5), L1(0.5), None, None, None])
    assert plan.describe().splitlines()[1] == "bn1.weight    8      float16   L1(l1=0.5)"
    assert fp.Plan([W, W], [None, L1(0.5)]).describe().splitlines() == [
        f"0  2{x}2  float32  None",
        f"1  2{x}2  float32  L1(l1=0.5)",
    ]
    assert fp.Plan([], None).describe() == ""


def test_a_store_or_a_regularizer() -> None:
    with pytest.raises(
        TypeError, match=r"^regularizer: got nothing; wanted a regularizer, or None"
    ):
        fp.Plan([W])


def test_set_regularizer() -> None:
    plan = fp.Plan([W, W], L1(0.5))
    l1 = contrib.l1_regularizer(0.5)
    for regularizer in (L2(0.5), [None, l1], [np.max, L2(0.1)], None, l1):
        plan.set_regularizer(regularizer)
        assert same_number(plan.value(), fp.penalty([W, W], regularizer))
        made_so = fp.Plan([W, W], regularizer)
        assert hexes(plan.values().astype(float)) == hexes(made_so.values().astype(float))


@pytest.mark.parametrize(
    ("bad", "error"),
    [("l2", TypeError), (L2, TypeError), ([None], ValueError), ({".": None}, ValueError)],
)
def test_a_regularizer_that_is_refused_changes_nothing(bad: Any, error: type[Exception]) -> None:
    plan = fp.Plan([W, W], L1(0.5))
    with pytest.raises(error, match=r"^regularizer"):
        plan.set_regularizer(bad)
    assert plan.value() == 10.0
    with pytest.raises(error, match=r"^regularizer"):
        fp.Plan([W, W], bad)


def test_schedules() -> None:
    def schedule(step: int) -> Any:
        return {"a": None, ".": L1(0.5 * 2**step)}

    plan = fp.Plan({"a": W, "b": W}, L1(0.5))
    for step in (0, 1, 2):
        plan.set_regularizer(schedule, step=step)
        assert plan.value() == 5.0 * 2**step
    plan.set_regularizer(lambda step: lambda x: float(step), step=3)
    assert plan.value() == 6.0
    plan.set_regularizer(lambda x: float(x.size))
    assert plan.value() == 8.0


def test_what_is_no_schedule() -> None:
    plan = fp.Plan(W, L1(0.5))
    with pytest.raises(
        TypeError, match=r"^regularizer: got a dict beside a step; wanted a schedule"
    ):
        plan.set_regularizer({".": None}, step=1)
    with pytest.raises(TypeError, match=r"^regularizer: got a float"):
        plan.set_regularizer(lambda step: 0.1, step=1)

    def failing(step: int) -> Any:
        raise LookupError("no such step")

    with pytest.raises(LookupError, match="no such step"):
        plan.set_regularizer(failing, step=1)
    assert plan.value() == 5.0


def test_functions_are_called_each_time() -> None:
    x = np.ones(3)
    seen = []

    def largest(w: np.ndarray) -> Any:
        seen.append(w)
        return w.max()

    plan = fp.Plan([x, x], [contrib.sum_regularizer([largest, L1(0.5)]), L1(0.5)])
    assert plan.value() == 4.0
    x[0] = 5.0
    assert plan.value() == 12.0
    assert plan.values().tolist() == [8.5, 3.5]
    assert len(seen) == 3
    assert all(w is x for w in seen)


def test_a_function_gets_a_nested_list_as_an_array() -> None:
    sizes = fp.penalty([[[1.0, -2.0]], W], lambda x: float(x.dtype == np.float32) * x.size)
    assert sizes == 6.0


def test_a_function_that_is_not_scalar() -> None:
    message = "regularizer must return a scalar Tensor instead of a Tensor with rank 2."
    for ask in (lambda plan: plan.value(), lambda plan: plan.values()):
        with pytest.raises(ValueError, match=exactly(message)):
            ask(fp.Plan([W], lambda x: x))


# What is not read.

GUARDED = """
    import ctypes, mmap
    import numpy as np
    import fused_penalties as fp
    from fused_penalties import contrib
    from fused_penalties.regularizers import L1, L2, L1L2

    memory = mmap.mmap(-1, 8 * mmap.PAGESIZE)
    hidden = np.frombuffer(memory, np.float32)
    def protect(how):
        at = ctypes.c_void_p(hidden.ctypes.data)
        assert ctypes.CDLL(None).mprotect(at, ctypes.c_size_t(hidden.nbytes), how) == 0
    w = np.full(3, 2.0, np.float32)
    g = np.zeros(3, np.float32)
    # Too small for a float32, and the sum of nothing, are no penalty either.
    off = [None, L1(0.0), L1L2(1e-46, 1e-300), contrib.l2_regularizer(0.0)]
    weights = [hidden[k : k + 2000] for k in range(len(off))] + [w]
    grads = [hidden[k : k + 2000] for k in range(4000, 4000 + len(off))] + [g]
    plan = fp.Plan(weights, [*off, L1L2(0.5, 0.25)])
    protect(0)
"""

USES = {
    "making": "fp.Plan(weights, [*off, L1(0.5)])",
    "value": "assert plan.value() == 6.0",
    "values": "assert plan.values().tolist() == [0, 0, 0, 0, 6]",
    "set_regularizer": "plan.set_regularizer([*off, L2(0.5)]); assert plan.value() == 6.0",
    "add_grad": "plan.add_grad(grads); assert g.tolist() == [1.5] * 3",
    "value_and_grad": "assert plan.value_and_grad(grads) == 6.0; assert g.tolist() == [1.5] * 3",
    "prox": "plan.prox(1.0); assert w.tolist() == [1.0] * 3",
    "decay": "plan.decay(0.5); assert w.tolist() == [1.5] * 3",
    "decay of L1": "plan.set_regularizer([L1(0.5)] * 4 + [L2(0.5)]); plan.decay(0.5)",
    "add_grad of nothing": "plan.set_regularizer(L1L2(0.5, 0.5)); plan.add_grad(grads, 0.0)",
    "add_grad of less than nothing": (
        "plan.set_regularizer(L1L2(0.5, 0.5)); plan.add_grad(grads, -1e-46)"
    ),
}
needs_mprotect = pytest.mark.skipif(
    sys.platform != "linux", reason="guards pages with mprotect as Linux has it"
)


@needs_mprotect
@pytest.mark.parametrize("use", USES)
def test_buffers_without_a_penalty_are_not_read(use: str) -> None:
    fresh.output(f"{GUARDED}    {USES[use]}\n")


@needs_mprotect
def test_the_memory_is_guarded() -> None:
    """Could it be read, the test above would show nothing."""
    assert fresh.run(f"{GUARDED}    plan.sums()\n").returncode < 0


EDGES = """
    import ctypes, mmap
    import numpy as np
    import fused_penalties as fp
    import oracle, plan_oracle, values
    from fused_penalties.regularizers import L1L2

    fp._core.use_isa(isa)
    page = mmap.PAGESIZE
    room = 4 * page
    def guarded():
        memory = mmap.mmap(-1, room + 2 * page)
        inside = np.frombuffer(memory, np.uint8)[page : page + room]
        for guard in (inside.ctypes.data - page, inside.ctypes.data + room):
            at = ctypes.c_void_p(guard)
            assert ctypes.CDLL(None).mprotect(at, ctypes.c_size_t(page), 0) == 0
        return inside
    for_weights, for_grads = guarded(), guarded()

    def placed(inside, x, last):
        at = inside[room - x.nbytes :] if last else inside[: x.nbytes]
        at[...] = x.view(np.uint8)
        return at.view(x.dtype)

    l1, l2, step = 0.25, 0.125, 0.5
    for dtype in oracle.DTYPES:
        x, y = values.assorted(dtype, 300, 1), values.assorted(dtype, 300, 2)
        for length in [*range(140), 255, 256, 257]:
            w, g = x[:length], y[:length]
            for last in (True, False):
                at, to = placed(for_weights, w, last), placed(for_grads, g, last)
                plan = fp.Plan(at, L1L2(l1, l2))
                plan.value_and_grad(to, -2.0)
                wanted = plan_oracle.gradient(w, g, l1, l2, -2.0)
                assert plan_oracle.same_bits(to, wanted), (dtype, length, "gradient")
                plan.prox(step)
                wanted = plan_oracle.proximal(w, l1, l2, step)
                assert plan_oracle.same_bits(at, wanted), (dtype, length, "prox")
                to = placed(for_grads, np.nan_to_num(g), last)
                plan.clip_grad_norm(to, 1e-3)
                plan.decay(step)
                assert plan_oracle.same_bits(at, plan_oracle.decayed(wanted, l2, step))
                if length > 3:
                    fp.Plan(at[::-3], L1L2(l1, l2)).add_grad(to[::-3])
                    fp.Plan(at[::3], L1L2(l1, l2)).prox(step)
    print("all")
"""


@needs_mprotect
@pytest.mark.parametrize("isa", fp._core.supported_isas())
def test_edges_of_memory(isa: str) -> None:
    tests = oracle.__file__.rpartition("/")[0]
    assert fresh.output(f"    isa = {isa!r}\n{EDGES}", PYTHONPATH=tests) == "all"


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
