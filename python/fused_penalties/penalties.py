"""The penalty of many weights under any mixture of regularizers, in one read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._evaluate import bind_once, evaluation_of, value
from ._resolve import resolve
from ._weights import collect
from .regularizers import L2, parts_of_each
from .typing import Array, Numbers, RegularizerLike, Regularizers, Scalar, Weights


def penalty(weights: Weights, regularizer: Regularizers) -> Scalar:
    """The sum of the penalties of all buffers; each is read once, whatever applies to it.

    A plain number, without a gradient: where it is added to a torch loss, `backward` does not know
    of it. `Plan.value_and_grad` adds its gradient to the loss's; `fused_penalties.torch.penalty`
    and its like are functions that a framework differentiates.

    Args:
        weights: an array, an iterable of arrays, or a mapping of names to arrays, as `sums` takes
            them.
        regularizer: a regularizer for all of them; a sequence with one for each, None for no
            penalty; or, for named weights, a mapping of regular expressions, of which the first
            that is found in the name decides (`re.search`; a name in which none is found has no
            penalty): ``{r"bias|norm": None, r".*": regularizers.L2(1e-4)}``. A sequence of pairs
            may have functions of name and array among the rules:
            ``[(lambda name, w: w.ndim < 2, None), (r".*", regularizers.L2(1e-4))]``. A regularizer
            is an object of `regularizers` or `contrib`, whose convention (the factor 1/2 of L2)
            counts, or any function from an array to a scalar, which reads the array for itself.

    Returns:
        A NumPy scalar; for weights on a GPU an array of rank 0 there, torch's for torch tensors,
        else CuPy's. float64 if a buffer is, else float32; 0.0 for no weights. The buffers' float64
        penalties are added exactly and rounded once, so their order does not matter. Buffers with
        no penalty, or with coefficients of zero, are not read. The call does not wait for the GPU,
        unless a function is among the regularizers.

    Raises:
        TypeError: a regularized buffer of another dtype, or something that is no regularizer.
        ValueError: a sequence of the wrong length, a rule that holds for no buffer or only where
            earlier ones do, rules for weights without names, a function that does not return a
            scalar, buffers to be read that are on several devices.
        RuntimeError, KeyboardInterrupt: as `sums`.
    """
    items, names = collect(weights)
    single = len(items) == 1 and items[0] is weights
    return penalty_of(items, names, resolve(regularizer, items, names), single)


def penalty_of(
    items: Sequence[Any],
    names: Sequence[str] | None,
    regularizers: Sequence[RegularizerLike | None],
    single: bool = False,
) -> Scalar:
    """`penalty` of buffers whose regularizers are known."""
    parts = parts_of_each(regularizers)

    def label(at: int) -> str:
        return "weights" if single else f"weights[{at if names is None else names[at]!r}]"

    plan, buffers = bind_once(items, parts, names, single, label)
    found = value(plan, evaluation_of(plan, buffers, parts))
    return plan.rounded_total([]) if found is None else found


def l2_loss(w: Array | Numbers) -> Scalar:
    """sum(w**2) / 2 of one array: **with** the factor 1/2, as `tf.nn.l2_loss`.

    A NumPy scalar, or an array of rank 0 there for an array on a GPU; float32 for 16-bit weights
    too, so float16 [300.] gives 45000.0 where TensorFlow's float16 result overflows. TypeError for
    another dtype.
    """
    return L2(0.5)(w)
