"""Which regularizer applies to which of a plan's weights."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import fused_penalties as fp
from fused_penalties import contrib, regularizers
from messages import exactly
from oracle import hexes
from plan_oracle import same_number

W = np.array([[1, -2], [-3, 4]], np.float32)
L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2


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
    with pytest.raises(TypeError, match=r"^regularizer: got dict beside a step; wanted a schedule"):
        plan.set_regularizer({".": None}, step=1)
    with pytest.raises(TypeError, match=r"^regularizer: got float"):
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
