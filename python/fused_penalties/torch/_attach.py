"""A penalty that an optimizer's steps see to."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .._numbers import at_least_0
from .._resolve import name_of, some_of
from ..typing import Regularizers
from ._plans import Bound, tensor_of

if TYPE_CHECKING:
    from ._penalty import Penalized, Penalty

_MODES = ("grad", "prox", "decay")

# A second one of the same penalty would count it twice.
_attached: weakref.WeakKeyDictionary[Any, weakref.WeakSet[Handle]] = weakref.WeakKeyDictionary()


class _Part(NamedTuple):
    """The parameters with a penalty, or those of one of the optimizer's groups."""

    group: int
    weights: list[Any]
    names: list[str]
    l1: tuple[float, ...]
    l2: tuple[float, ...]


class Handle:
    """What `Penalty.attach` returns: the penalty as a part of each step of one optimizer.

    Modes:
        "grad": before the step the gradient of the penalty is added to each ``p.grad``, in one pass
            and in place; where that is None it is made, as for a penalty in the loss. This comes
            after everything that you do to the gradients before the step: what is clipped, and
            what GradScaler unscales, is the gradient of the loss alone. In a step that GradScaler
            skips, the penalty has no part either.
        "prox": after the step the proximal step of the penalty with the group's learning rate,
            which gives the exact zeros of L1. With plain SGD this is proximal gradient descent.
        "decay": after the step decoupled weight decay, w = w * (1 - 2 * lr * l2). L1 penalties are
            refused.

    In mode "grad" a step does not wait for a GPU. The other modes do where the learning rate is a
    tensor on the GPU, and where GradScaler works with a fused optimizer: whether the step was
    skipped then is known on the GPU alone. Every parameter with a penalty has to be in the
    optimizer.

    Args:
        penalty: what is penalized, as its rules say it at each step. Functions among them are
            refused: their gradients are not known.
        optimizer: any of torch's but LBFGS. Mode "grad" refuses sparse gradients, and steps with a
            closure: this makes gradients after the penalty's were added.
        mode: "grad", "prox" or "decay".
        schedule: a function of the number of steps that were made, which returns the rules for the
            next one, as `Penalty.set_regularizer` does with `step`.

    Attributes:
        steps: how many steps were made; to be set when training is resumed with a schedule.
    """

    def __init__(
        self,
        penalty: Penalty,
        optimizer: Any,
        mode: str = "grad",
        schedule: Callable[[int], Regularizers] | None = None,
    ) -> None:
        if mode not in _MODES:
            raise ValueError(f"mode: got {mode!r}; wanted one of {', '.join(map(repr, _MODES))}")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer: got {type(optimizer).__name__}; wanted a torch.optim.Optimizer"
            )
        if schedule is not None and not callable(schedule):
            raise TypeError(
                f"schedule: got {type(schedule).__name__}; wanted a function of the step's number"
            )
        if isinstance(optimizer, torch.optim.LBFGS):
            raise TypeError(
                "optimizer: LBFGS evaluates the loss many times in a step; wanted the penalty in "
                "the loss"
            )
        beside = _attached.setdefault(optimizer, weakref.WeakSet())
        if any(one._penalty is penalty for one in beside):
            raise ValueError("optimizer: this penalty is attached to it already")
        self._penalty: Penalty = penalty
        self._mode = mode
        self._schedule = schedule
        self._known: Any = None
        self._parts: list[_Part] = []
        self._bounds: list[Bound | None] = []
        self._value: Any = None
        self.steps = 0
        self._find_parts(optimizer)
        hook = torch.compiler.disable(self._before if mode == "grad" else self._after)
        if mode == "grad":
            self._hook = optimizer.register_step_pre_hook(hook)
        else:
            self._hook = optimizer.register_step_post_hook(hook)
        beside.add(self)

    def value(self) -> Any:
        """The penalty, a tensor to be logged; the call does not wait for a GPU.

        In mode "grad" it is that of the weights before the last step; in the other modes, and
        before the first step, that of the weights as they are.
        """
        if self._value is not None:
            return self._value
        with torch.no_grad():
            return self._penalty()

    def remove(self) -> None:
        """Ends it: the next step is without the penalty."""
        self._hook.remove()
        for beside in _attached.values():
            beside.discard(self)

    def _before(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (len(args) > 1 and args[1] is not None) or kwargs.get("closure") is not None:
            raise TypeError(
                "closure: got one, and the gradients that it makes would be without the penalty; "
                "wanted backward() before a step() without it, or the penalty in the loss"
            )
        scale = getattr(optimizer, "grad_scale", None)  # of gradients that the step itself unscales
        upstream = 1.0 if scale is None else scale
        self._follow_schedule()
        for at, part in enumerate(self._find_parts(optimizer)):
            self._value = self._work(at, partial(_add_gradient, part, upstream))
        self.steps += 1

    def _after(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and float(found_inf):
            return
        self._follow_schedule()
        parts = self._find_parts(optimizer)
        rates = [_rate(optimizer.param_groups[part.group]) for part in parts]
        if self._mode == "decay":
            for part, rate in zip(parts, rates, strict=True):
                _check_decay(part, rate)
        for at, rate in enumerate(rates):
            self._work(at, partial(_shrink, parts[at], self._mode, rate))
        self.steps += 1

    def _follow_schedule(self) -> None:
        if self._schedule is not None:
            self._penalty.set_regularizer(self._schedule, step=self.steps)

    def _work(self, at: int, call: Callable[[Bound], Any]) -> Any:
        """What `call` makes of a part, whose weights may have moved."""
        part, bound = self._parts[at], self._bounds[at]
        if bound is not None:
            try:
                return call(bound)
            except RuntimeError:
                if not bound.has_moved():
                    raise
        bound = self._bounds[at] = Bound(part.weights, part.names)
        return call(bound)

    def _find_parts(self, optimizer: Any) -> list[_Part]:
        """What is penalized at this moment; by the groups, if their learning rates matter."""
        penalized = self._penalty.penalized()
        groups = [len(group["params"]) for group in optimizer.param_groups]
        if self._known is None or self._known[0] is not penalized or self._known[1] != groups:
            parts = self._split(penalized, optimizer)
            known = [*self._bounds, *[None] * len(parts)]
            self._bounds = [
                bound if bound is not None and _same(bound.tensors, part.weights) else None
                for bound, part in zip(known, parts, strict=False)
            ]
            self._parts, self._known = parts, (penalized, groups)
        return self._parts

    def _split(self, penalized: Penalized, optimizer: Any) -> list[_Part]:
        for name, _, function in penalized.called:
            raise TypeError(
                f"params[{name!r}]: no gradient is known of {name_of(function)}; wanted sums of L1 "
                "and L2 penalties, or the penalty in the loss"
            )
        if self._mode == "decay" and any(penalized.l1):
            raise ValueError(
                'mode: "decay" knows nothing of L1 penalties, which there are; wanted L2 alone, or '
                'mode "prox"'
            )
        group_of = {
            id(param): at
            for at, group in enumerate(optimizer.param_groups)
            for param in group["params"]
        }
        outside = [
            name
            for name, weight in zip(penalized.names, penalized.weights, strict=True)
            if id(weight) not in group_of
        ]
        if outside:
            raise ValueError(
                f"optimizer: does not have {len(outside)} parameters with a penalty: "
                f"{some_of(outside)}; wanted one that steps them, or None as their regularizer"
            )
        if self._mode == "grad":
            groups = [0] * len(penalized.weights)
        else:
            groups = [group_of[id(weight)] for weight in penalized.weights]
        parts = []
        for group in sorted(set(groups)):
            at = [k for k, one in enumerate(groups) if one == group]
            l1, l2 = (
                tuple(each[k] for k in at) if len(each) > 1 else each
                for each in (penalized.l1, penalized.l2)
            )
            weights = [penalized.weights[k] for k in at]
            parts.append(_Part(group, weights, [penalized.names[k] for k in at], l1, l2))
        return parts


def _add_gradient(part: _Part, upstream: Any, bound: Bound) -> Any:
    grads = [weight.grad for weight in part.weights]
    missing = [k for k, grad in enumerate(grads) if grad is None]
    for k in missing:
        grads[k] = torch.zeros_like(part.weights[k])
    value = bound.plan.value_and_grad(bound.strengths(part.l1, part.l2), grads, upstream)
    torch.autograd.graph.increment_version(grads)
    for k in missing:
        part.weights[k].grad = grads[k]
    return tensor_of(value, bound.plan.wide)


def _shrink(part: _Part, mode: str, rate: float, bound: Bound) -> None:
    step = bound.plan.prox if mode == "prox" else bound.plan.decay
    step(bound.strengths(part.l1, part.l2), rate)
    torch.autograd.graph.increment_version(part.weights)


def _same(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))


def _rate(group: dict[str, Any]) -> float:
    return at_least_0(float(group["lr"]), "lr")


def _check_decay(part: _Part, rate: float) -> None:
    strongest = max(part.l2)
    if 2.0 * rate * strongest > 1.0:
        raise ValueError(
            f"lr: got {rate!r}, and {part.names[part.l2.index(strongest)]!r} has l2 = "
            f"{strongest:g} (without a factor 1/2); wanted 2 * lr * l2 of at most 1, beyond which "
            "weights change sign"
        )
