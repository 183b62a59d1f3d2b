"""The penalty in an optimizer's steps: transformations for optax, in plain `jax.numpy`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._numbers import at_least_0
from .._resolve import name_of
from ..typing import Regularizers
from ._penalty import Array, Leaves, Part, array_of, called, label_of, rounded, slope, widened


def add_penalty(regularizer: Regularizers, mask: Any = None) -> Any:
    """Adds the gradient of the penalty to the updates, as `optax.add_decayed_weights` adds decay.

    It stands where updates are still gradients: `chain(add_penalty(L2(1e-4)), sgd(0.1))` trains as
    a loss with the penalty does. After `adam`'s scaling, before the learning rate, L2 is decoupled
    decay. The loss is then without it; `penalty` is for the log.

    Args:
        regularizer: as `penalty` takes it; functions are differentiated.
        mask: as `penalty` takes it.

    Returns:
        An `optax.GradientTransformation`, whose update needs `params`.

    Raises, from its `init` and `update`: what `penalty` raises.
    """
    import optax

    def init(params: Any) -> Any:
        _check(params, regularizer, mask)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def added(name: str, gradient: Array, weight: Array, part: Part) -> Array:
            more = gradient
            if part.linear is not None:
                more = more + slope(weight, *rounded(part.linear, weight))
            if part.others:
                more = more + widened(jax.grad(lambda w: _sum_of(name, w, part))(weight))
            return more.astype(gradient.dtype)

        return _each(added, updates, Leaves(_given(params), regularizer, mask)), state

    return optax.GradientTransformation(init, update)


def proximal(
    regularizer: Regularizers,
    mask: Any = None,
    *,
    learning_rate: float | Callable[[Array], Any] = 1.0,
) -> Any:
    """Ends a step with the proximal step of the penalty, which gives the exact zeros of L1.

    It comes last: `chain(sgd(0.1), proximal(L1(1e-4), learning_rate=0.1))` is proximal gradient
    descent on the loss plus the penalty. The updates are changed so that the parameters become,
    within the rounding of that sum, sign(w)·max(|w| - rate·l1, 0) / (1 + 2·rate·l2), w being what
    they would have become; what becomes zero is exactly zero. Updates of a narrower dtype than
    their parameters' are widened to it for that.

    Args:
        regularizer: as `penalty` takes it; functions are refused: their proximal steps are not
            known.
        mask: as `penalty` takes it.
        learning_rate: the length of the step, the optimizer's learning rate: a number, or a
            schedule of optax's, a function of the number of steps that were made. With 1.0, the
            default, the strengths are those of one step: L1 takes l1 off each weight.

    Returns:
        An `optax.GradientTransformation`, whose update needs `params`.

    Raises, from its `init` and `update`: what `penalty` raises; TypeError for functions.
    """
    import optax

    scheduled = callable(learning_rate)
    if isinstance(learning_rate, int | float | str):
        at_least_0(learning_rate, "learning_rate")

    def init(params: Any) -> Any:
        _check(params, regularizer, mask, _refuse_functions)
        if not scheduled:
            return optax.EmptyState()
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        rate: Any = learning_rate
        if scheduled:
            rate = rate(state.count)
            state = optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

        def shrunk(name: str, update: Array, weight: Array, part: Part) -> Array:
            _refuse_functions(name, part)
            l1, l2 = rounded(part.linear or (0.0, 0.0), weight)
            w = weight + widened(update)
            rest = jnp.abs(w) - rate * l1
            to = jnp.where(rest > 0, jnp.sign(w) * rest / (1.0 + 2.0 * rate * l2), 0.0)
            to = jnp.where(jnp.isnan(w), w, to)
            # A narrower update would not reach the weight's zero.
            return (to - weight).astype(jnp.promote_types(update.dtype, weight.dtype))

        return _each(shrunk, updates, Leaves(_given(params), regularizer, mask)), state

    return optax.GradientTransformation(init, update)


def _given(params: Any) -> Any:
    if params is None:
        raise ValueError("params: got None; wanted update(updates, state, params)")
    return params


def _check(
    params: Any,
    regularizer: Regularizers,
    mask: Any,
    check: Callable[[str, Part], None] = lambda name, part: None,
) -> None:
    """What is wrong with rules and masks is said before the first step."""
    if not jax.tree.leaves(params):  # optax's tree_map_params has something stand for them
        return
    for name, leaf, part in Leaves(params, regularizer, mask):
        if part.linear is not None or part.others:
            array_of(name, leaf)
        check(name, part)


def _refuse_functions(name: str, part: Part) -> None:
    for function in part.others:
        raise TypeError(
            f"{label_of(name)}: no proximal step is known of {name_of(function)}; wanted sums of "
            "L1 and L2 penalties"
        )


def _each(change: Callable[[str, Array, Array, Part], Array], updates: Any, leaves: Leaves) -> Any:
    """The updates of what has a penalty, changed; optax allows None in the place of one."""
    return leaves.structure.unflatten(
        update
        if update is None or (part.linear is None and not part.others)
        else change(name, jnp.asarray(update), array_of(name, leaf), part)
        for update, (name, leaf, part) in zip(
            leaves.structure.flatten_up_to(updates), leaves, strict=True
        )
    )


def _sum_of(name: str, weight: Array, part: Part) -> Array:
    results = [r for f in part.others if (r := called(name, weight, f)) is not None]
    return sum(results, start=jnp.zeros((), widened(weight).dtype))
