"""Copies of a plan: over the copied weights, or none at all."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import fused_penalties as fp
from fused_penalties.regularizers import L1, L2


class Model:
    """Keeps its weights, and a plan over them."""

    def __init__(self) -> None:
        self.flat = np.arange(6, dtype=np.float32)
        self.parts = {"a": self.flat[:3], "b": self.flat[3:]}
        self.steps = 7
        weights: dict[str, Any] = {**self.parts, "steps": self.steps, "tied": self.parts["a"]}
        rules = {"steps": None, "b": largest, "a": L1(2.0), "tied": L2(3.0)}
        self.plan = fp.Plan(weights, [rules[n] for n in ("a", "b", "steps", "tied")], threads=1)


def largest(w: np.ndarray) -> float:
    return float(w.max())


def test_the_copy_of_a_model_has_a_plan_over_its_own_weights() -> None:
    model = Model()
    twin = copy.deepcopy(model)
    assert twin.plan.names == ("a", "b", "steps", "tied")
    expected = {"a": 2.0 * 3, "b": 5.0, "steps": 0.0, "tied": 3.0 * 5}
    assert twin.plan.named() == model.plan.named() == expected
    twin.parts["a"][:] = [0.0, 0.0, 1.0]
    twin.parts["b"][:] = -1.0
    assert twin.plan.named() == {"a": 2.0, "b": -1.0, "steps": 0.0, "tied": 3.0}
    assert model.plan.named() == expected
    twin.plan.set_regularizer(None)
    assert (twin.plan.value(), model.plan.named()) == (0.0, expected)


def test_the_copy_has_the_regularizers_copies() -> None:
    regularizer = L2(1.0)
    model = {"w": np.ones(4, np.float32), "regularizer": regularizer}
    model["plan"] = fp.Plan([model["w"]], regularizer)
    twin: Any = copy.deepcopy(model)
    twin["regularizer"].l2 = 5.0
    twin["plan"].set_regularizer(twin["regularizer"])
    assert (twin["plan"].value(), fp.penalty(model["w"], regularizer)) == (20.0, 4.0)


def test_torch_module_and_its_average() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")

    class Net(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(3, 2)
            self.plan = fp.Plan(dict(self.fc.named_parameters()), L2(1.0))

    net = Net()
    average = torch.optim.swa_utils.AveragedModel(net)
    before = net.plan.value()
    assert average.module.plan.value() == before
    with torch.no_grad():
        for parameter in average.module.parameters():
            parameter.fill_(2.0)
    assert (average.module.plan.value(), net.plan.value()) == (4.0 * 8, before)


def test_a_plan_without_its_weights_is_not_copied() -> None:
    """Nobody but the copied plan would have the copied weights, so they would never change."""
    torch = pytest.importorskip("torch", reason="needs torch")
    module = torch.nn.Linear(3, 2)
    for plan in (
        fp.Plan({"w": np.ones(3)}, L2(1.0)),
        fp.Plan({"w": module.weight}, L2(1.0)),
        fp.Plan({"w": memoryview(np.ones(3))}, L2(1.0)),
    ):
        with pytest.raises(TypeError, match=r"^fused_penalties\.Plan cannot be copied: .*\['w'\]"):
            copy.deepcopy(plan)
    module.plan = fp.Plan(module.state_dict(), L2(1.0))  # other tensors than the module's own
    with pytest.raises(TypeError, match=r"wanted a new plan, over the copied weights"):
        copy.deepcopy(module)


def test_a_shallow_copy_shares_the_weights_and_nothing_else() -> None:
    w = np.ones(3)
    plan = fp.Plan([w], L2(1.0))
    twin = copy.copy(plan)
    twin.set_regularizer(L2(2.0))
    w[:] = 2.0
    assert (plan.value(), twin.value()) == (12.0, 24.0)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_plan_is_not_pickled(protocol: int) -> None:
    plan = fp.Plan([np.ones(3)], L2(1.0))
    with pytest.raises(TypeError, match=r"^fused_penalties\.Plan cannot be pickled: .*new plan"):
        pickle.dumps({"plan": plan}, protocol)
