"""fused_penalties.jax against the expression that XLA compiles, on the CPU.

The value alone; the value, its gradient and a step of SGD; and the same beside the gradients of a
loss. All are compiled functions of the parameters, whose results are compared before they are
timed. `python -m fused_penalties.jax build` comes before: without it both are XLA's. XLA takes some
minutes to compile what 1000 buffers come to.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fused_penalties.jax import build_info, penalty
from fused_penalties.regularizers import L1L2
from reporting import Contenders, Report
from shapes import L1, L2, WORKS, buffers

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


def contenders(make: Callable[..., Any], *arguments: Any) -> Contenders:
    calls = {}
    for name, loss in (("penalty", fused), ("the expression", expression)):
        compiled = jax.jit(make(loss)).lower(*arguments).compile()
        calls[name] = lambda compiled=compiled: jax.block_until_ready(compiled(*arguments))
    ours, theirs = (jax.tree.leaves(call()) for call in calls.values())
    for one, other in zip(ours, theirs, strict=True):
        # At 0 JAX takes the derivative of |w| for 1, and we for 0.
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2 * RATE * L1)
    return calls


def main() -> None:
    report = Report(__doc__)
    if not build_info()["ffi"]:
        sys.exit(build_info()["why"])
    for name in WORKS:
        params = [jnp.asarray(x) for x in buffers(name)]
        others = [jnp.asarray(x[::-1]) for x in buffers(name)]
        least = [(3.0, 4.5), (1.5, 2.5)] if name == "ResNet-50" else [(), ()]
        for title, make, arguments, target in (
            ("value", value, (params,), least[0]),
            ("value, gradient and SGD", step, (params,), least[1]),
            ("the same beside other gradients", step_beside, (params, others), ()),
        ):
            report.run(f"{name}, {title}", contenders(make, *arguments), {"the expression": target})
    report.write()


if __name__ == "__main__":
    main()
