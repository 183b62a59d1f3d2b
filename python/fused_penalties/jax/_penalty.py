"""The penalty of a pytree, as JAX differentiates it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from .. import _core, regularizers
from .._evaluate import of_each
from .._resolve import name_of, resolve
from .._weights import dtype_name
from ..regularizers import parts_of_each
from ..typing import RegularizerLike, Regularizers
from . import _handler

Array: TypeAlias = Any
"""A JAX array, or what stands for one while it is traced."""


def penalty(params: Any, regularizer: Regularizers, mask: Any = None) -> Array:
    """The penalty of all leaves of a pytree.

    Args:
        params: any pytree of arrays: a dict, a list, a NamedTuple, Flax's parameters or state, one
            array. Leaves with a penalty are float16, bfloat16, float32 or float64.
        regularizer: as `fused_penalties.penalty` takes it: one for all leaves, a sequence with one
            for each in JAX's order, or rules over their names and the leaves themselves. A name is
            the leaf's path, as ``jax.tree_util.keystr(path, simple=True, separator="/")`` says it:
            ``dense/kernel`` for ``{"dense": {"kernel": w}}``. A function among them is called with
            its leaf and returns a JAX scalar, or None.
        mask: leaves out what it is False for, as optax's masks do: a pytree of bools that is a
            prefix of `params`, or a function from `params` to one. The regularizers, rules and
            sequences alike, are about the leaves that it lets through.

    Returns:
        A scalar, float64 if a leaf is and else float32, so that 16-bit weights do not overflow; 0.0
        without leaves. On the CPU, where `build_info` says "ffi", the same bits as
        `fused_penalties.penalty` gives for the same arrays, with as many threads; else what XLA
        makes of the plain expression. Which of the two it is on the CPU is decided when a function
        is traced.

    Derivatives of any order, in forward and in reverse mode, are plain `jax.numpy`, which XLA fuses
    into what becomes of them: l1·sign(w) + 2·l2·w, with sign(0) = 0. `jax.vmap` makes one call of a
    whole batch. Weights that are sharded over several CPU devices are gathered for the value.

    Strengths are plain numbers, compiled in; one that changes from step to step is a factor of the
    result: ``strength * penalty(params, L2(1.0))``.

    `jax.export` for the CPU refuses what was traced with "ffi", unless it is given
    ``disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("fused_penalties_penalty")]``.
    What it exports then runs on the CPU only in processes that have imported `fused_penalties.jax`
    and whose `build_info` says "ffi". What was traced without "ffi" needs neither.

    Raises:
        TypeError: a leaf with a penalty that is no array of such floats; something that is no
            regularizer or mask; a function that returns something else.
        ValueError: a mask of another structure, and what `fused_penalties.penalty` says of rules.
    """
    leaves = Leaves(params, regularizer, mask)
    weights, pairs, results = [], [], []
    for name, leaf, part in leaves:
        if part.linear is None and not part.others:
            continue
        weight = array_of(name, leaf)
        if part.linear is not None:
            l1, l2 = rounded(part.linear, weight)
            if l1 or l2:
                weights.append(weight)
                pairs.append((l1, l2))
        results += [result for f in part.others if (result := called(name, weight, f)) is not None]
    total = jnp.zeros((), leaves.result_dtype)
    if weights:
        terms = Terms(tuple(pairs), str(leaves.result_dtype), _handler.is_loaded())
        total = _penalty(terms, weights)
    return sum((result.astype(total.dtype) for result in results), start=total)


class Part(NamedTuple):
    """A leaf's regularizer taken apart."""

    linear: tuple[float, float] | None
    """(l1, l2), without a factor 1/2; None if it has no such part."""
    others: tuple[RegularizerLike, ...]
    """Functions from the leaf to a JAX scalar, or to None."""


class Leaves:
    """The leaves of a pytree, by name, and what is known of their penalty: (name, leaf, part)."""

    def __init__(self, params: Any, regularizer: Regularizers, mask: Any) -> None:
        paths, self.structure = jax.tree_util.tree_flatten_with_path(params)
        self.names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
        self.leaves = [leaf for _, leaf in paths]
        asked = [k for k, let in enumerate(_let_through(mask, params, self.names)) if let]
        regularizers_ = resolve(
            regularizer, [self.leaves[k] for k in asked], [self.names[k] for k in asked]
        )
        self.parts = [Part(None, ())] * len(paths)
        for k, (linear, others) in zip(
            asked, of_each(parts_of_each(regularizers_), len(asked)), strict=True
        ):
            self.parts[k] = Part(linear, tuple(map(_differentiable, others)))

    def __iter__(self) -> Any:
        return zip(self.names, self.leaves, self.parts, strict=True)

    @property
    def result_dtype(self) -> Any:
        """Of all leaves, so that no strength or mask changes it."""
        wide = any(str(getattr(leaf, "dtype", None)) == "float64" for leaf in self.leaves)
        # Without JAX's x64 mode its arrays are float32 whatever NumPy's were.
        return jax.dtypes.canonicalize_dtype(np.float64 if wide else np.float32)


def label_of(name: str) -> str:
    return f"params[{name!r}]" if name else "params"


def _let_through(mask: Any, params: Any, names: Sequence[str]) -> list[bool]:
    if mask is None:
        return [True] * len(names)
    if callable(mask) and jax.tree_util.all_leaves([mask]):  # not a module that is a pytree
        mask = mask(params)
    try:
        broadcast = jax.tree.map(
            lambda one, below: [one] * len(jax.tree.leaves(below)), mask, params
        )
    except ValueError as error:
        raise ValueError(
            f"mask: got a pytree of another structure than params; wanted a prefix of it: {error}"
        ) from None
    found: list[bool] = jax.tree.leaves(broadcast)
    for name, one in zip(names, found, strict=True):
        if not isinstance(one, bool | np.bool_):
            raise TypeError(
                f"mask: got {type(one).__name__} for {label_of(name)}; wanted True or False"
            )
    return found


def array_of(name: str, leaf: Any) -> Array:
    """A leaf with a penalty as an array; TypeError for one that cannot have any."""
    try:
        array = jnp.asarray(leaf)
    except (TypeError, ValueError):
        raise TypeError(f"{label_of(name)}: got {type(leaf).__name__}; wanted an array") from None
    try:
        dtype_name(array.dtype)
    except TypeError as error:
        raise TypeError(f"{label_of(name)}: {error}") from None
    return array


def rounded(linear: tuple[float, float], weight: Array) -> tuple[float, float]:
    """Coefficients as they multiply this weight."""
    dtype = dtype_name(weight.dtype)
    return _core.coefficient(dtype, linear[0]), _core.coefficient(dtype, linear[1])


def called(name: str, weight: Array, function: RegularizerLike) -> Array | None:
    """What a function makes of a leaf."""
    result: Any = function(weight)
    if result is None:
        return None
    if not isinstance(result, jax.Array):
        raise TypeError(
            f"{label_of(name)}: {name_of(function)} returned {type(result).__name__}, which JAX "
            "cannot differentiate; wanted a JAX scalar"
        )
    if result.ndim:
        raise ValueError(
            f"{label_of(name)}: {name_of(function)} returned an array of rank {result.ndim}; "
            "wanted a scalar"
        )
    return result


def widened(weight: Array) -> Array:
    """float32 for what has 16 bits."""
    return weight if weight.dtype == np.float64 else weight.astype(np.float32)


def slope(weight: Array, l1: float, l2: float) -> Array:
    """The derivative by each element, float32 for 16-bit weights.

    A term whose coefficient is zero is left out: zero times infinity is none.
    """
    w = widened(weight)
    terms = [2.0 * l2 * w] if l2 else []
    terms += [l1 * jnp.sign(w)] if l1 else []
    return sum(terms[1:], start=terms[0]) if terms else jnp.zeros_like(w)


class Terms(NamedTuple):
    """What is compiled in of a penalty."""

    pairs: tuple[tuple[float, float], ...]
    """The rounded coefficients of each weight."""
    dtype: str
    """The result's."""
    by_handler: bool
    """True if XLA can call the package on the CPU."""


def _plain(terms: Terms, *weights: Array) -> Array:
    found = []
    for weight, (l1, l2) in zip(weights, terms.pairs, strict=True):
        w = widened(weight)
        found += [l1 * jnp.abs(w).sum().astype(terms.dtype)] if l1 else []
        found += [l2 * jnp.square(w).sum().astype(terms.dtype)] if l2 else []
    return sum(found[1:], start=found[0])


def _by_handler(terms: Terms, *weights: Array) -> Array:
    call = jax.ffi.ffi_call(
        _handler.TARGET,
        jax.eval_shape(partial(_plain, terms), *weights),  # which knows of jax.shard_map's axes
        vmap_method="expand_dims",  # then the axes of the result are those of the batch
    )
    l1, l2 = (np.array(each, np.float64) for each in zip(*terms.pairs, strict=True))
    return call(*weights, l1=l1, l2=l2)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_derivatives(terms: Terms, weights: list[Array]) -> Array:
    plain = partial(_plain, terms)
    if not terms.by_handler:
        return plain(*weights)
    return jax.lax.platform_dependent(*weights, cpu=partial(_by_handler, terms), default=plain)


def _tangent(terms: Terms, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (weights,), (directions,) = primals, tangents
    total = jnp.zeros((), terms.dtype)
    for weight, direction, pair in zip(weights, directions, terms.pairs, strict=True):
        if not isinstance(direction, SymbolicZero):  # as those of frozen weights are
            total += (slope(weight, *pair) * widened(direction)).sum().astype(terms.dtype)
    return _with_derivatives(terms, weights), total


_with_derivatives.defjvp(_tangent, symbolic_zeros=True)

# Also for calls outside of any jax.jit, which are then compiled once.
_penalty: Callable[[Terms, list[Array]], Array] = jax.jit(
    _with_derivatives, static_argnums=0, inline=True
)


def _differentiable(function: RegularizerLike) -> RegularizerLike:
    """The package's own computes in NumPy."""
    if type(function) is regularizers.OrthogonalRegularizer:
        return partial(_orthogonal, function)
    return function


def _orthogonal(of: regularizers.OrthogonalRegularizer, weight: Array) -> Array:
    w = widened(weight)
    if w.ndim != 2:
        raise ValueError(
            f"Inputs to OrthogonalRegularizer must have rank 2. Received: inputs.shape={w.shape}"
        )
    if of.mode == "columns":
        w = w.T
    squares = jnp.square(w).sum(axis=1, keepdims=True)
    unit = w / jnp.sqrt(jnp.maximum(squares, 1e-14))  # a norm of at least 1e-7, as in Keras
    cosines = jnp.tril(jnp.abs(unit @ unit.T), -1)
    pairs = w.shape[0] * (w.shape[0] - 1) / 2
    return of.factor / max(pairs, 1) * cosines.sum()
