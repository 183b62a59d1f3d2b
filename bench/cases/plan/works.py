"""The works of this case that one process measures, with as many threads as it has cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

import fused_penalties as fp
from bench import exact, limits, machine
from bench.settings import Settings
from bench.timing import Contenders
from bench.weights import OFFSETS, STANDARD_DEVIATION, memory, values
from bench.work import Row, Work
from bench.work import rows as measured_rows
from fused_penalties.regularizers import L1L2

try:
    import torch

    from bench.cases.plan.with_torch import TorchPeers
except ImportError:
    torch = None

L1, L2 = 1e-5, 1e-4
REGULARIZER = L1L2(L1, L2)
MAY_ERR = 1e-6  # the plan's results are float32; those who add in float32 may err by OTHERS_MAY_ERR
OTHERS_MAY_ERR = 0.05


def rows(settings: Settings, parts: Sequence[str]) -> Iterator[Row]:
    if torch is None:
        settings.leave_out("torch", "not installed: torch")
    else:
        torch.set_num_threads(machine.threads())
    offsets = OFFSETS[:1] if settings.quick else OFFSETS
    works = {
        "small": [work for offset in offsets for work in small(offset)],
        "resnet50": [work for offset in offsets for work in resnet50(offset)],
        "empty": [Work(keys("value of an empty plan", 0, 0, 0), empty)],
    }
    return measured_rows("plan", [work for part in parts for work in works[part]], settings)


def keys(what: str, buffers: int, nbytes: int, offset: int, **more: Any) -> dict[str, Any]:
    """`nbytes` are those that are read and written."""
    return {
        "what": what,
        "dtype": "float32",
        "bytes": nbytes,
        "buffers": buffers,
        "threads": machine.threads(),
        "offset": offset,
        "where": machine.where(nbytes),
        **more,
    }


class Model:
    """Weights and gradients at one offset, the plan over them, and the same memory in torch."""

    def __init__(self, weights: list[np.ndarray], offset: int) -> None:
        self.weights = [placed(w, offset) for w in weights]
        self.grads = [placed(np.zeros_like(w), offset) for w in weights]
        # For those who are timed beside the plan: what they leave there nobody else should add to.
        self.other_grads = [placed(np.zeros_like(w), offset) for w in weights]
        self.plan = fp.Plan(self.weights, REGULARIZER, threads=machine.threads())
        sums = [exact.sums(w) for w in self.weights]
        self.exactly = sum(L1 * float(a) + L2 * float(s) for a, s in sums)
        self.check()

    def check(self) -> None:
        """A wrong result must not be timed."""
        self.check_value("plan.value", self.plan.value(), MAY_ERR)
        self.check_value("plan.value_and_grad", self.value_and_grad(), MAY_ERR)
        for got, weight in zip(self.grads, self.weights, strict=True):
            wide = weight.astype(np.float64)
            np.testing.assert_allclose(got, L1 * np.sign(wide) + 2 * L2 * wide, rtol=MAY_ERR)

    def check_value(self, name: str, value: Any, bound: float) -> float:
        error = abs(float(value) / self.exactly - 1)
        if not error <= bound:
            raise ValueError(f"{name}: got {float(value)!r}; wanted {self.exactly!r}")
        return error

    def value_and_grad(self) -> Any:
        return self.plan.value_and_grad(self.grads)

    def numpy_value(self) -> float:
        return sum(L1 * np.abs(w).sum() + L2 * np.square(w).sum() for w in self.weights)

    def numpy_value_and_grad(self) -> float:
        for weight, grad in zip(self.weights, self.other_grads, strict=True):
            grad += L1 * np.sign(weight) + 2 * L2 * weight
        return self.numpy_value()

    def exchange(self) -> Contenders:
        return limits.exchanges(self.weights, self.other_grads, machine.threads())

    def value_peers(self) -> Contenders:
        peers: dict[str, Callable[[], Any]] = {"numpy": self.numpy_value}
        if torch is not None:
            peers["torch._foreach_norm"] = self.torch_peers().foreach_value
        return peers

    def gradient_peers(self) -> Contenders:
        peers: dict[str, Callable[[], Any]] = {"numpy": self.numpy_value_and_grad}
        if torch is not None:
            torch_peers = self.torch_peers()
            peers["torch expression and backward"] = torch_peers.expression_and_backward
            peers["torch._foreach by hand"] = torch_peers.foreach_by_hand
        return peers

    def torch_peers(self) -> TorchPeers:
        return TorchPeers(
            *(list(map(torch.from_numpy, x)) for x in (self.weights, self.other_grads))
        )

    def checked(self, peers: Contenders, errors: dict[str, float]) -> Contenders:
        for name, call in peers.items():
            errors[name] = self.check_value(name, call(), OTHERS_MAY_ERR)
        return peers


def placed(x: np.ndarray, offset: int) -> np.ndarray:
    """A copy whose memory lies so many bytes past a cache line."""
    copy = memory(x.size, x.dtype, offset).reshape(x.shape)
    copy[...] = x
    return copy


def thousand() -> list[np.ndarray]:
    drawn = np.random.default_rng(0).standard_normal((1000, 64), np.float32)
    return list(drawn * np.float32(STANDARD_DEVIATION))


def small(offset: int) -> list[Work]:
    nbytes = 1000 * 64 * 4

    def value(errors: dict[str, float]) -> Contenders:
        model = Model(thousand(), offset)
        peers = model.checked(model.value_peers(), errors)
        return {"fused_penalties": model.plan.value, **peers}

    def gradient(errors: dict[str, float]) -> Contenders:
        model = Model(thousand(), offset)
        peers = model.checked(model.gradient_peers(), errors)
        return {"fused_penalties": model.value_and_grad, **peers}

    def making(convert: Callable[[np.ndarray], Any], errors: dict[str, float]) -> Contenders:
        weights = list(map(convert, Model(thousand(), offset).weights))
        return {"fused_penalties": partial(fp.Plan, weights, REGULARIZER)}

    def without_plan(errors: dict[str, float]) -> Contenders:
        model = Model(thousand(), offset)
        peers = model.checked(model.value_peers(), errors)
        return {"fused_penalties": partial(fp.penalty, model.weights, REGULARIZER), **peers}

    works = [
        Work(keys("value", 1000, nbytes, offset), value),
        Work(keys("fp.penalty, without a plan", 1000, nbytes, offset), without_plan),
        Work(keys("value and gradient", 1000, 3 * nbytes, offset), gradient),
        Work(
            keys("making a plan of NumPy arrays", 1000, nbytes, offset), partial(making, np.asarray)
        ),
    ]
    if torch is not None:
        what = keys("making a plan of torch tensors", 1000, nbytes, offset)
        works.append(Work(what, partial(making, torch.from_numpy)))
    return works


def resnet50(offset: int) -> list[Work]:
    weights = list(values("resnet50", "float32", 0).values())
    nbytes = 3 * sum(w.nbytes for w in weights)
    model = partial(Model, weights, offset)

    def with_value(errors: dict[str, float]) -> Contenders:
        made = model()
        peers = made.checked(made.gradient_peers(), errors)
        return {"fused_penalties": made.value_and_grad, **made.exchange(), **peers}

    def gradient(errors: dict[str, float]) -> Contenders:
        made = model()
        return {"fused_penalties": partial(made.plan.add_grad, made.grads), **made.exchange()}

    named = {"model": "ResNet-50"}
    count = len(weights)
    return [
        Work(keys("value and gradient", count, nbytes, offset, **named), with_value),
        Work(keys("gradient alone", count, nbytes, offset, **named), gradient),
    ]


def empty(errors: dict[str, float]) -> Contenders:
    return {"fused_penalties": fp.Plan([], REGULARIZER).value}
