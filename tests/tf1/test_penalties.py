"""The penalty of many weights: one pass, whatever mixture; which regularizer goes where; sums."""

from __future__ import annotations

import math
import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import convention_oracle
import fused_penalties as fp
import oracle
import values
from fused_penalties import contrib, regularizers
from fused_penalties.penalties import l2_loss, penalty
from fused_penalties.tf1.losses import Loss, add_n
from messages import exactly

W = np.array([[1, -2], [-3, 4]], np.float32)
coefficients = st.floats(min_value=0.0, max_value=1e3) | st.just(0.0)
buffers = st.builds(
    values.make,
    st.sampled_from(["normal", "lognormal", "zeros"]),
    st.sampled_from(list(oracle.DTYPES)),
    st.integers(0, 300),
    st.integers(0, 9),
)
choices = st.tuples(st.sampled_from(["keras", "contrib", "none"]), coefficients, coefficients)


class Passes:
    """Counts the calls of the core that read weights, and how many bytes of them they read."""

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    counted = Passes()

    def count(name: str) -> None:
        method = getattr(fp._core.HostPlan, name)

        def called(plan: Any, strengths: Any) -> Any:
            counted.count += 1
            counted.bytes += strengths.bytes
            return method(plan, strengths)

        monkeypatch.setattr(fp._core.HostPlan, name, called)

    for name in "value", "values", "terms":
        count(name)
    return counted


def made(kind: str, l1: float, l2: float) -> tuple[Any, tuple[float, float]]:
    """A regularizer of one kind and its coefficients."""
    if kind == "none":
        return None, (0.0, 0.0)
    if kind == "keras":
        return regularizers.L1L2(l1, l2), (l1, l2)
    return contrib.l1_l2_regularizer(l1, l2), (l1, l2 / 2)


def test_any_mixture_is_one_pass(passes: Passes) -> None:
    arrays = [values.make("normal", "float32", 100 + k) for k in range(6)]
    mixture = [
        regularizers.L1(0.1),
        contrib.l2_regularizer(0.2),
        regularizers.L1L2(0.1, 0.2),
        contrib.sum_regularizer([regularizers.L1(0.3), contrib.l2_regularizer(0.1), np.max]),
        np.ptp,
        None,
    ]
    penalty(arrays, mixture)
    assert passes.count == 1
    assert passes.bytes == sum(x.nbytes for x in arrays[:4])


@pytest.mark.parametrize("count", [1, 2, 300])
def test_every_list_form_is_one_pass(passes: Passes, count: int) -> None:
    arrays = [values.make("normal", "float32", 10, seed=k) for k in range(count)]
    named = {f"w{k}": x for k, x in enumerate(arrays)}
    regularizer = contrib.l1_l2_regularizer(0.1, 0.2)
    losses = [Loss(name, [x], [regularizer]) for name, x in named.items()]
    several = contrib.sum_regularizer([regularizers.L1(0.1), regularizers.L2(0.1)])
    for form in (
        lambda: penalty(arrays, regularizer),
        lambda: penalty(named, {r"^w": regularizer}),
        lambda: contrib.apply_regularization(regularizer, arrays),
        lambda: contrib.apply_regularization(several, arrays),
        lambda: add_n(losses),
        lambda: float(sum(losses)),
    ):
        passes.count = passes.bytes = 0
        form()
        assert passes.count == 1
        assert passes.bytes == sum(x.nbytes for x in arrays)


def test_a_buffer_listed_twice_counts_twice_and_is_read_once(passes: Passes) -> None:
    l1, l2 = regularizers.L1(0.5), regularizers.L2(0.5)
    assert penalty([W, W], [l1, l2]) == 20.0
    assert passes.bytes == W.nbytes


def test_tied_buffers_among_others_at_the_same_address() -> None:
    """A part of a buffer, or its elements in another order or of another dtype, is no repeat."""
    part, turned, narrow = W[:1], W[::-1, ::2], W.view(np.float16)
    mixture = [W, part, turned, W, narrow, part, turned, W.T, W[:0], W[:0], narrow]
    strengths = [regularizers.L1L2(0.5 + k, 0.25 * k) for k in range(len(mixture))]
    alone = [float(penalty(x, one)) for x, one in zip(mixture, strengths, strict=True)]
    plan = fp.Plan(mixture, strengths)
    assert plan.values().tolist() == alone
    assert plan.value() == penalty(mixture, strengths) == np.float32(math.fsum(alone))


def test_buffers_with_coefficients_of_zero_are_not_read(passes: Passes) -> None:
    arrays = [np.full(3, np.nan, np.float32) for _ in range(4)]
    off = [regularizers.L1(0.0), contrib.l2_regularizer(0.0), None, regularizers.L1L2()]
    assert penalty([*arrays, W], [*off, regularizers.L1(0.5)]) == 5.0
    assert passes.bytes == W.nbytes


class Untouchable:
    """Has a dtype, as most arrays, and must not be asked for more."""

    dtype = np.dtype(np.float64)

    def __getattr__(self, name: str) -> Any:
        if name in ("__dlpack_device__", "__cuda_array_interface__"):
            raise AttributeError(name)
        raise AssertionError(f"asked for {name}")


UNTOUCHED = {
    "None": None,
    "a word": "a word",
    "masked": np.ma.masked_array([1.0], [True]),
    "asked for nothing": Untouchable(),
}


@pytest.mark.parametrize("what", UNTOUCHED)
def test_a_buffer_without_a_penalty_is_not_touched(what: str) -> None:
    """But for its dtype, which the result's follows."""
    untouched = UNTOUCHED[what]
    value = penalty([untouched, W], [None, regularizers.L1(0.5)])
    assert value == 5.0
    assert (value.dtype == np.float64) == hasattr(untouched, "dtype")
    assert penalty({"a": untouched, "b": W}, {"b": regularizers.L1(0.5)}) == 5.0
    assert penalty([untouched], None) == 0.0


def test_a_function_reads_its_array_for_itself() -> None:
    class Own:
        dtype, size = np.dtype(np.float64), 3

    assert penalty([Own(), W], [lambda x: float(x.size), regularizers.L1(0.5)]) == 8.0


@given(made_of=st.lists(st.tuples(buffers, choices), max_size=6))
def test_values_of_any_mixture(made_of: list[Any]) -> None:
    arrays = [x for x, _ in made_of]
    mixture = [made(*choice) for _, choice in made_of]
    value = penalty(arrays, [one for one, _ in mixture])
    assert value.dtype == (np.float64 if any(x.dtype == np.float64 for x in arrays) else np.float32)
    assert float(value) == convention_oracle.penalty(arrays, [pair for _, pair in mixture])


@given(made_of=st.lists(st.tuples(buffers, choices), max_size=6), order=st.randoms())
def test_the_order_of_the_buffers_does_not_matter(made_of: list[Any], order: Any) -> None:
    def value() -> np.floating:
        return penalty([x for x, _ in made_of], [made(*choice)[0] for _, choice in made_of])

    before = value()
    order.shuffle(made_of)
    assert value() == before


def test_functions_beside_regularizers() -> None:
    seen = []

    def largest(x: np.ndarray) -> Any:
        seen.append(x)
        return np.max(x)

    tensor_like = lambda x: np.array(0.5)  # noqa: E731 - a function of any kind
    value = penalty([W, W, W], [largest, regularizers.L1(0.5), tensor_like])
    assert value == 4.0 + 5.0 + 0.5
    assert seen[0] is W
    assert penalty([W, W], lambda x: None) == 0.0


def test_a_function_gets_a_nested_list_as_an_array() -> None:
    assert penalty([[[1.0, -2.0]], W], lambda x: float(x.dtype == np.float32) * x.size) == 6.0


@pytest.mark.parametrize(
    ("result", "rank"), [(np.ones(1), 1), ([1.0, 2.0], 1), (np.ones((1, 1)), 2)]
)
def test_a_function_that_is_not_scalar(result: object, rank: int) -> None:
    message = f"regularizer must return a scalar Tensor instead of a Tensor with rank {rank}."
    with pytest.raises(ValueError, match=exactly(message)):
        penalty([W], lambda x: result)


@pytest.mark.parametrize("result", ["1.0", object(), 1j])
def test_a_function_that_returns_no_number(result: object) -> None:
    with pytest.raises(TypeError, match=r"^regularizer returned \w+; wanted a scalar"):
        penalty([W], lambda x: result)


def test_no_weights() -> None:
    for nothing in ([], {}, ()):
        value = penalty(nothing, regularizers.L1())
        assert isinstance(value, np.float32)
        assert value == 0.0
    assert penalty(np.zeros((0, 3)), regularizers.L1()) == 0.0


def test_a_nested_list_of_numbers_is_one_array() -> None:
    value = penalty([[1, -2], [-3, 4]], regularizers.L1(0.5))
    assert isinstance(value, np.float32)
    assert value == 5.0


def test_weights_by_name() -> None:
    weights = {
        "dense/kernel": W,
        "dense/bias": np.full(3, 100, np.float32),
        "norm/scale": np.full(3, 100, np.float32),
        "out/kernel": W,
    }
    rules = {r"bias|norm": None, r"^dense": regularizers.L1(0.5), r".*": regularizers.L2(0.5)}
    assert penalty(weights, rules) == 5.0 + 15.0
    assert penalty(weights, {r"out": regularizers.L1(0.5)}) == 5.0
    assert penalty(weights, [None, None, None, regularizers.L1(0.5)]) == 5.0
    assert penalty(weights, {re.compile("DENSE/K", re.I): regularizers.L1(0.5)}) == 5.0


def test_the_first_pattern_wins() -> None:
    assert penalty({"ab": W, "b": W}, {"a": regularizers.L1(0.5), ".": None}) == 5.0
    assert penalty({"ab": W, "b": W}, {"a": None, ".": regularizers.L1(0.5)}) == 5.0
    assert penalty({"ab": W, "b": W}, {"^b": None, "a|b": regularizers.L1(0.5)}) == 5.0


def test_a_pattern_that_matches_nothing_lists_the_names() -> None:
    with pytest.raises(ValueError, match=r"^regularizer\['kernal'\]: .* 2 names: kernel, bias$"):
        penalty({"kernel": W, "bias": W}, {"kernal": regularizers.L1(0.5), ".": None})


def test_of_many_names_an_error_lists_the_first() -> None:
    weights = {f"w{k}": W for k in range(100)}
    wanted = ", ".join(f"w{k}" for k in range(10))
    with pytest.raises(ValueError, match=rf"none of the 100 names: {wanted} and 90 more$"):
        penalty(weights, {"kernel": None})
    with pytest.raises(ValueError, match=r": w0 by regularizer\['w'\], w1 by .* and 90 more$"):
        penalty(weights, {"w": None, "[0-9]": None})


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {".": None, "a": regularizers.L1(0.5)},
            "regularizer['a']: decides nothing, because earlier rules do wherever it holds: "
            "ab by regularizer['.']",
        ),
        (
            {"a": None, "b$": None, "ab|b": regularizers.L1(0.5)},
            "regularizer['ab|b']: decides nothing, because earlier rules do wherever it holds: "
            "ab by regularizer['a'], b by regularizer['b$']",
        ),
        (
            [("a", None), ("b", None), (lambda name, w: w.ndim == 2, regularizers.L1(0.5))],
            "regularizer[2]: decides nothing, because earlier rules do wherever it holds: "
            "ab by regularizer[0], b by regularizer[1]",
        ),
        (
            [(lambda name, w: w.ndim > 2, None), (".", None)],
            "regularizer[0]: <lambda> is true for none of the 2 names: ab, b",
        ),
        ([("ab", None), ("c", None)], "regularizer[1]: 'c' is found in none of the 2 names: ab, b"),
    ],
)
def test_a_rule_that_decides_nothing(rules: Any, message: str) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        penalty({"ab": W, "b": W}, rules)


def test_rules_of_names_and_arrays() -> None:
    weights = {"kernel": W, "bn1.weight": W[0], "bn1.bias": W[1], "head": W}
    l1, l2 = regularizers.L1(0.5), regularizers.L2(0.5)
    seen = []

    def small(name: str, w: np.ndarray) -> bool:
        seen.append((name, w))
        return w.ndim < 2

    assert penalty(weights, [(small, None), ("head", l1), (".", l2)]) == 15.0 + 5.0
    assert [name for name, _ in seen] == list(weights)
    assert all(w is weights[name] for name, w in seen)
    assert penalty(weights, [("kernel|head", l1), (small, l2)]) == 10.0 + 15.0
    assert penalty(weights, [(re.compile("KERNEL", re.I), l1)]) == 5.0
    assert penalty(weights, ((lambda name, w: re.search("head", name), l1),)) == 5.0
    assert penalty({"k": W}, {lambda name, w: True: l1}) == 5.0


@pytest.mark.parametrize("pattern", ["(", 3, b"w"])
@pytest.mark.parametrize("pairs", [False, True])
def test_what_is_no_rule(pattern: object, pairs: bool) -> None:
    rules = [(pattern, None)] if pairs else {pattern: None}
    with pytest.raises(
        ValueError, match=r"^regularizer\[.*\]: got .*; wanted a regular expression"
    ):
        penalty({"w": W}, rules)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda w: w.ndim < 2, "got <lambda> as a rule: too many positional arguments"),
        (regularizers.L1(0.5), "got L1(l1=0.5) as a rule: too many positional arguments"),
        (lambda name, w: w < 2, "<lambda> returned ndarray for 'w'"),
    ],
)
def test_what_is_no_function_of_name_and_array(rule: Any, message: str) -> None:
    wanted = "wanted a function of name and array that returns True or False"
    with pytest.raises(TypeError, match=exactly(f"regularizer[1]: {message}; {wanted}")):
        penalty({"v": W, "w": W}, [("v", None), (rule, None)])


@pytest.mark.parametrize(
    ("bad", "got"),
    [(("a", None, 1), "a tuple of 3"), (regularizers.L1(), "L1"), (("a",), "a tuple of 1")],
)
def test_what_is_no_pair(bad: Any, got: str) -> None:
    message = f"regularizer[1]: got {got}; wanted a pair of a rule and a regularizer"
    with pytest.raises(TypeError, match=exactly(message)):
        penalty({"a": W, "b": W}, [("a", None), bad])


@pytest.mark.parametrize("rules", [{".*": None}, [(lambda name, w: True, None)]])
def test_rules_need_names(rules: Any) -> None:
    with pytest.raises(ValueError, match=r"^regularizer: got rules for weights without names; wan"):
        penalty([W], rules)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_sequence_has_one_for_each(count: int) -> None:
    with pytest.raises(ValueError, match=f"sequence of {count}; wanted one for each of 2 b"):
        penalty([W, W], [None] * count)


@pytest.mark.parametrize(
    ("regularizer", "label"),
    [
        ("l2", "regularizer: got str"),
        (0.1, "regularizer: got float"),
        (regularizers.L2, "regularizer: got the class L2"),
        ([None, "l2"], r"regularizer\[1\]: got str"),
        ([regularizers.L1, None], r"regularizer\[0\]: got the class L1"),
        ({"a": None, "b": 0.1}, r"regularizer\['b'\]: got float"),
        ([("a", None), ("b", "l2")], r"regularizer\[1\]: got str"),
    ],
)
def test_what_is_no_regularizer(regularizer: Any, label: str) -> None:
    with pytest.raises(TypeError, match=f"^{label}; wanted"):
        penalty({"a": W, "b": W}, regularizer)


@pytest.mark.parametrize("bad", [W.astype(int), W.astype(complex), np.array(["a"]), None, "text"])
def test_errors_say_which_buffer(bad: object) -> None:
    off, l1 = contrib.l1_regularizer(0.0), regularizers.L1(0.5)
    for regularizer in (l1, [off, off, l1], [None, None, np.max], regularizers.L1(0.0)):
        with pytest.raises(TypeError, match=r"^weights\[2\]: "):
            penalty([W, W, bad], regularizer)
        with pytest.raises(TypeError, match=r"^weights\['c'\]: "):
            penalty({"a": W, "b": W, "c": bad}, regularizer)


def test_errors_of_the_core_say_which_buffer() -> None:
    masked = np.ma.array(W)
    with pytest.raises(TypeError, match=r"^weights\[2\]: got a masked array"):
        penalty([W, W, masked], [None, regularizers.L1(), regularizers.L1()])


def test_buffers_left_out_may_be_anything() -> None:
    weights = {"step": np.array(3), "w": W, "nothing": None}
    value = penalty(weights, {"^w$": regularizers.L1(0.5)})
    assert isinstance(value, np.float32)
    assert value == 5.0


def test_l2_loss() -> None:
    assert l2_loss(W) == 15.0
    assert isinstance(l2_loss(W), np.float32)
    half = l2_loss(np.array([300.0], np.float16))
    assert isinstance(half, np.float32)
    assert half == 45000.0
    assert isinstance(l2_loss(W.astype(np.float64)), np.float64)
    assert l2_loss(W.astype(ml_dtypes.bfloat16)) == 15.0
    assert l2_loss([[1, -2], [-3, 4]]) == 15.0
    assert l2_loss(np.zeros(0)) == 0.0
    with pytest.raises(TypeError, match=r"^weights: dtype int64 is not supported"):
        l2_loss(W.astype(np.int64))


@given(x=buffers)
def test_l2_loss_of_any_weights(x: np.ndarray) -> None:
    assert float(l2_loss(x)) == convention_oracle.penalty([x], [(0.0, 0.5)])


def test_add_n() -> None:
    value = add_n([np.float32(0.5), 1, 0.25])
    assert isinstance(value, np.float32)
    assert value == 1.75
    assert isinstance(add_n([np.float32(0.5), np.float64(1.0)]), np.float64)
    assert add_n([l2_loss(W), l2_loss(W)]) == 30.0
    assert add_n([Loss("a", [W], [regularizers.L1(0.5)]), 0.5]) == 5.5
    assert isinstance(add_n([Loss("a", [W.astype(float)], [np.max]), 0.5]), np.float64)
    assert add_n(x for x in (1.0, 2.0)) == 3.0


def test_add_n_rounds_once() -> None:
    tiny = 2.0**-24
    assert add_n([1.0, tiny, tiny]) == np.float32(1 + 2 * tiny)
    assert np.float32(1.0) + np.float32(tiny) + np.float32(tiny) == 1.0


@pytest.mark.parametrize("inputs", [[], (), iter(()), {}])
def test_add_n_of_nothing(inputs: Any) -> None:
    message = (
        "Inputs must be an iterable of at least one Tensor/IndexedSlices with the same dtype and "
        "shape."
    )
    with pytest.raises(ValueError, match=exactly(message)):
        add_n(inputs)


def test_add_n_of_what_is_no_scalar() -> None:
    with pytest.raises(ValueError, match=r"^inputs\[1\]: got an array of shape \(2, 2\); wanted"):
        add_n([1.0, W])
    with pytest.raises(TypeError, match=r"^inputs\[0\]: got str; wanted a scalar"):
        add_n(["1.0"])
    with pytest.raises(TypeError, match=r"^inputs\[1\]: dtype int32 is not supported"):
        add_n([1.0, np.int32(3)])
