"""The penalty of a JAX model's parameters, in its loss or in its optimizer's steps.

`penalty` is the penalty of a pytree, with its derivatives: on the CPU the value is one read of all
weights, by the package's own kernels, once `python -m fused_penalties.jax build` has compiled what
XLA calls for it; `build_info` says whether. Else, and on GPUs and TPUs, it is plain `jax.numpy`.
`add_penalty` and `proximal` are transformations for optax. Nothing else of the package imports JAX.
"""

from __future__ import annotations

from ._handler import build_info
from ._optax import add_penalty, proximal
from ._penalty import penalty

__all__ = ["add_penalty", "build_info", "penalty", "proximal"]


def __dir__() -> list[str]:
    return __all__
