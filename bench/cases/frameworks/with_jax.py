"""fused_penalties.jax against the expression that XLA compiles, on the CPU.

The value alone; the value, its gradient and a step of SGD; and the same beside the gradients of a
loss. All are compiled functions of the parameters, whose results are compared before they are
timed. `python -m fused_penalties.jax build` comes before: without it both are XLA's. XLA takes some
minutes to compile what 1000 buffers come to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.cases.frameworks.buffers import L1, L2, buffers, keys, models
from bench.settings import Settings
from bench.timing import Contenders
from bench.work import Row, Work
from bench.work import rows as measured_rows
from fused_penalties.jax import build_info, penalty
from fused_penalties.regularizers import L1L2

RATE = 0.1


def expression(params: Any) -> Any:
    """What people write."""
    return sum(L1 * jnp.sum(jnp.abs(w)) + L2 * jnp.sum(jnp.square(w)) for w in params)


def fused(params: Any) -> Any:
    return penalty(params, L1L2(L1, L2))


def value(loss: Callable[[Any], Any]) -> Callable[..., Any]:
    return loss


def step(loss: Callable[[Any], Any]) -> Callable[..., Any]:
    def call(params: Any) -> Any:
        found, gradients = jax.value_and_grad(loss)(params)
        return found, [w - RATE * g for w, g in zip(params, gradients, strict=True)]

    return call


def step_beside(loss: Callable[[Any], Any]) -> Callable[..., Any]:
    def call(params: Any, others: Any) -> Any:
        found, gradients = jax.value_and_grad(loss)(params)
        every = zip(params, gradients, others, strict=True)
        return found, [w - RATE * (other + g) for w, g, other in every]

    return call


def contenders(make: Callable[..., Any], arguments: Any, errors: dict[str, float]) -> Contenders:
    calls = {}
    for name, loss in (("fused_penalties", fused), ("the expression", expression)):
        compiled = jax.jit(make(loss)).lower(*arguments).compile()
        calls[name] = lambda compiled=compiled: jax.block_until_ready(compiled(*arguments))
    ours, theirs = (jax.tree.leaves(call()) for call in calls.values())
    for one, other in zip(ours, theirs, strict=True):
        # At 0 JAX takes the derivative of |w| for 1, and we for 0.
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2 * RATE * L1)
    return calls


def rows(settings: Settings) -> Iterator[Row]:
    if not build_info()["ffi"]:
        settings.leave_out("frameworks/jax", build_info()["why"])
        return iter(())
    works = []
    for name in models(settings):
        if name == "1000 x 64" and settings.pace != "full":
            settings.leave_out(
                f"frameworks/jax, {name}", "XLA would compile for minutes; with --full"
            )
            continue
        arrays = buffers(name)
        params = [jnp.asarray(x) for x in arrays]
        others = [jnp.asarray(x[::-1]) for x in arrays]
        works += [
            Work(keys("JAX", what, name, arrays), partial(contenders, make, arguments))
            for what, make, arguments in (
                ("value", value, (params,)),
                ("value, gradient and SGD", step, (params,)),
                ("the same beside other gradients", step_beside, (params, others)),
            )
        ]
    return measured_rows("frameworks", works, settings)
