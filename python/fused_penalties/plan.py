"""The penalties of weights that stay where they are: bound once, evaluated at every step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsFloat, TypeAlias, overload

from . import _core
from ._bind import bind
from ._evaluate import NOTHING, AllParts, Evaluation, Parts, evaluation_of, of_each, value, values
from ._numbers import at_least_0, flag, number
from ._resolve import name_of, resolve, some_of
from ._sums import Sums
from ._weights import collect, is_weight, with_dtype
from .regularizers import Regularizer, parts_of_each
from .typing import Array, RegularizerLike, Regularizers, Scalar, Vector, Weights

if TYPE_CHECKING:
    from .tf1.store import VariableStore

Grads: TypeAlias = Array | Sequence[Array | None] | Mapping[str, Array | None]


class _Applied(NamedTuple):
    """What a plan's regularizers came to. A call takes all of it at once, at its start, so that it
    has the old ones or the new ones while `set_regularizer` gives the plan others."""

    evaluation: Evaluation
    l1: list[float]
    l2: list[float]
    regularizers: list[RegularizerLike | None]


class Plan:
    """Many weights under any mixture of regularizers, for the calls that every step repeats.

    The weights are found and checked once, here; each call reads what they hold at that moment.
    The plan keeps the weights' memory alive. When they are given other memory (``module.half()``,
    ``parameter.data = ...``, ``array.resize(...)``), the next call finds out and asks for a new
    plan. It cannot know that a module has exchanged its parameters themselves for others
    (``load_state_dict(..., assign=True)``): make a new plan then.

    A buffer's penalty is l1 * sum(|w|) + l2 * sum(w**2), with **no factor 1/2**
    (`contrib.l2_regularizer(s)` has l2 = s / 2) and with l1 and l2 rounded to the weight's dtype,
    float32 for 16-bit weights. Buffers whose coefficients are both zero are neither read nor
    written by anything but `sums`, the norms and `clip_grad_norm`.

    The element formulas below hold bit by bit, whatever the processor, its instruction set and the
    number of threads. rnd() rounds to float32, or to float64 for float64 weights, to nearest even;
    no step is fused with another one; a factor such as 2 * upstream * l2 is a product of float64
    numbers that is rounded once. What is stored in a 16-bit array is rounded once more. NaN stays
    NaN, the quiet one without a sign.

    A buffer that is listed twice (tied weights) counts, and changes, twice. Writing into torch
    tensors is not seen by autograd: do it after `backward`, as an optimizer does.

    Weights on a GPU have the same bits. Results, also those documented as floats, are arrays there:
    torch's, on torch's current stream, if torch tensors are among the weights, else CuPy's, on
    CuPy's. A call waits for the GPU only if functions are among the regularizers, or if `upstream`,
    `step`, `rate` or `max_norm` is itself an array there. Calls on several streams take turns.

    A call can be captured in a CUDA graph. A replay uses what the weights, the grads and the
    strengths hold at that moment, but the numbers (`step`, `rate`, `upstream`, `max_norm`) of the
    capture. Call the plan once with these grads before the capture. A replay does not take turns
    with other calls: where one of the two writes what the other uses, order their streams. Graphs
    captured from one plan share its memory and must not run at once. Keep the plan and the captured
    results for as long as the graph.

    Threads may share a plan: `sums`, `value`, `values`, `named`, `l1_norm` and `l2_norm` only read
    and are safe beside each other. What writes, into weights or grads, needs them to itself.
    `set_regularizer` may come at any time: a call has the strengths that it began with. Functions
    among the regularizers are called as they are.

    `copy.deepcopy` of a module that keeps its weights and a plan over them gives the copy a plan
    over its own weights; a plan without its weights is not deep-copied, and never pickled.

    Ctrl-C, or what another signal's handler raises, ends a long call on the main thread. One that
    only reads leaves everything as it was. One that changes weights or grads leaves some elements
    as they were, the others as they would have become, and adds to the exception's arguments that
    the change is half done.

    Args:
        weights: an array, an iterable of arrays, or a mapping of names to arrays, as `sums` takes
            them. A buffer without a penalty may be no array of floats at all (a step counter in a
            state dict); it then counts nowhere. What can only be copied is refused (lists of
            numbers, ``tf.Variable``, HDF5 datasets): the plan would not see it change.
        regularizer: as `penalty` takes it: one for all, a sequence with one for each, or rules
            over the names and the arrays; `describe` shows what they came to. A `VariableStore` in
            place of the weights brings its own.
        threads: at most this many, for every call; None as in `sums`.

    Attributes:
        names: the buffers' names if the weights were a mapping, else None.

    Raises:
        TypeError: a regularized buffer of another dtype, or of which only copies can be had;
            something that is no regularizer.
        ValueError: a sequence of the wrong length, a rule that holds for no buffer or only where
            earlier ones do, rules for weights without names, buffers on several devices, `threads`
            below 1.
        RuntimeError: buffers on a device that cannot be read (`fused_penalties.cuda.is_available`
            says why); an error of CUDA; a plan made, strengths set or grads used for the first
            time while the stream is captured; a call whose grads have to be waited for on a stream
            that is captured into another graph than the call's; by later calls, a weight that has
            other memory, another shape or another dtype.
    """

    __slots__ = ("_applied", "_items", "_memory", "_no_weights", "_plan", "_threads", "names")

    @overload
    def __init__(
        self,
        weights: Weights | VariableStore,
        regularizer: Regularizers,
        *,
        threads: int | None = None,
    ) -> None: ...
    @overload
    def __init__(self, weights: VariableStore, *, threads: int | None = None) -> None: ...

    def __init__(self, weights: Any, regularizer: Any = ..., *, threads: int | None = None) -> None:
        from .tf1.store import VariableStore  # not above, because a store makes plans

        if isinstance(weights, VariableStore):
            if regularizer is ...:
                regularizer = list(weights.regularizers.values())
            weights = weights.variables
        elif regularizer is ...:
            raise TypeError(
                "regularizer: got nothing; wanted a regularizer, or None for no penalty (only a "
                "VariableStore brings its own)"
            )
        found, names = collect(weights)
        items = list(found)  # whatever the regularizers' own code does to the caller's list
        single = len(items) == 1 and items[0] is weights
        regularizers = resolve(regularizer, items, names)
        parts = parts_of_each(regularizers)
        self._threads = _core.checked_threads(threads) or None  # a plain number from now on
        self.names = names
        self._items = items
        self._no_weights: set[int] = set()
        if not (isinstance(parts, Parts) and any(parts)):
            each = enumerate(zip(items, of_each(parts, len(items)), strict=True))
            self._no_weights = {
                at for at, (item, one) in each if not any(one) and not is_weight(item)
            }
        bound = [NOTHING if at in self._no_weights else item for at, item in enumerate(items)]
        self._plan = bind(bound, names, single, threads=self._threads, keep=True)
        # Aliases of torch tensors, which may be given other memory while another thread still reads
        # the old one.
        self._memory = [x.detach() for x in bound if hasattr(x, "detach")]
        self._applied = self._apply(regularizers, parts)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"<Plan of {len(self)} buffers>"

    def __copy__(self) -> Plan:
        return self._over(self._items, self._applied.regularizers)

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        """A plan over the weights' copies, if `copy.deepcopy` has made them before, as it has when
        a module keeps its weights and then a plan of them. TypeError if not: nobody else would ever
        change copies that are made here.
        """
        items = []
        for at, item in enumerate(self._items):
            if id(item) not in memo and at not in self._no_weights:
                raise TypeError(
                    f"fused_penalties.Plan cannot be copied: the copy of {self._label(at)} is not "
                    "known; wanted a new plan, over the copied weights"
                )
            items.append(memo.get(id(item), item))
        return self._over(items, copy.deepcopy(self._applied.regularizers, memo))

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "fused_penalties.Plan cannot be pickled: it is tied to its weights' memory; wanted a "
            "new plan, over the weights where they are loaded"
        )

    def describe(self) -> str:
        """A line for each buffer: its name or place, shape and dtype, and its regularizer.

        To be printed, and looked through for what a rule has missed: `bias|norm` is not found in
        the `bn1.weight` and `downsample.1.weight` of a ResNet.
        """
        regularizers = self._applied.regularizers
        lines = []
        for at, (item, dtype) in enumerate(zip(self._items, self._plan.dtypes, strict=True)):
            name = str(at if self.names is None else self.names[at])
            lines.append(
                (
                    name if name.isprintable() else repr(name)[1:-1],  # it may move the cursor
                    "\N{MULTIPLICATION SIGN}".join(map(str, getattr(item, "shape", ()))),
                    type(item).__name__ if at in self._no_weights else dtype,
                    name_of(regularizers[at]),
                )
            )
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)][:-1]
        return "\n".join("  ".join([*map(str.ljust, line, widths), line[-1]]) for line in lines)

    def set_regularizer(
        self, regularizer: Regularizers | Callable[[Any], Regularizers], step: Any = None
    ) -> None:
        """Other strengths, or other regularizers, for the same weights, in place of all before.

        Args:
            regularizer: as for the plan itself. If `step` is given it is a schedule instead, a
                callable of the step number that returns such a regularizer:
                ``plan.set_regularizer(lambda step: regularizers.L2(1e-4 * 0.9**step), step=k)``.
                (Without a step a callable is a regularizer: a function from an array to a scalar.)
            step: the step number, handed to the schedule as it is.

        Errors as for the plan itself, TypeError for a schedule that cannot be called; the plan then
        stays as it was.
        """
        found = regularizer if step is None else at_step(regularizer, step)
        regularizers = resolve(found, self._items, self.names)
        self._applied = self._apply(regularizers, parts_of_each(regularizers))

    def sums(self, *, largest: bool = False) -> Sums:
        """Σ|w| and Σw² of every buffer, with a penalty or without, as `fused_penalties.sums`.

        `largest` finds the largest magnitudes too, in the same read.
        """
        return Sums(*self._plan.sums(flag(largest, "largest")), self.names)

    def l1_norm(self) -> Scalar:
        """Σ|w| over all buffers, with a penalty or without: a float, sums().total_abs."""
        return self._plan.sums(False)[2]

    def l2_norm(self) -> Scalar:
        """The square root of Σw² over all buffers, with a penalty or without: a float.

        The squares are added in float64: those of float16 weights don't overflow, those of float64
        weights beyond 1e154 do.
        """
        return self._plan.l2_norm()

    def value(self) -> Scalar:
        """The penalty of all buffers: the number, and the NumPy scalar, that `penalty` gives."""
        found = value(self._plan, self._applied.evaluation)
        return self._plan.rounded_total([]) if found is None else found

    def values(self) -> Vector:
        """Each buffer's penalty, in the order given: shape (n,), of the dtype of `value`.

        Each is rounded as `penalty` rounds that of this buffer alone: to float32 unless the buffer
        is float64. Their sum may differ in its last digit from `value`, which is rounded once.
        """
        return values(self._plan, self._applied.evaluation)

    def named(self) -> dict[str, Scalar]:
        """Each buffer's penalty by its name, to be logged apart from the loss.

        Floats, which `json.dumps` takes: the numbers that `penalty` gives for each buffer alone.
        On a GPU they are arrays there, float64 for float64 buffers and float32 for others.
        ValueError for weights that were given without names.
        """
        if self.names is None:
            raise ValueError(
                "named: the weights were given without names; wanted a mapping of names to arrays "
                "(values() has the penalties in their order)"
            )
        return dict(zip(self.names, self._plan.scalars(self.values()), strict=True))

    def add_grad(self, grads: Grads, upstream: SupportsFloat = 1.0) -> None:
        """grads[i] += upstream * (l1 * sign(w) + 2 * l2 * w), in place, reading each weight once.

        The 2 comes from the square; with `contrib.l2_regularizer(s)`, whose l2 is s / 2, it is
        s * w. Element by element, with a = rnd(upstream * l1) and b = rnd(2 * upstream * l2)::

            u = a * sign(w)                    where b is zero; +0 where w is ±0
            u = rnd(b * w)                     where a or w is zero
            u = rnd(rnd(b * w) + a * sign(w))  else
            g = rnd(g + u)

        A buffer for which a and b are both zero is not read, nor its grad touched.

        Args:
            grads: a sequence with one array for each buffer, a mapping with the same names, or the
                array itself if there is one buffer. Each has the shape of its weight, in any
                layout, and its dtype, or float32 for 16-bit weights. A buffer without a penalty
                needs none: None, or no entry in a mapping.
            upstream: what the penalty is multiplied by further on, d loss / d penalty: a number or
                an array of rank 0.

        Raises, before anything is written:
            TypeError: a grad of another dtype, or no array; a function among the regularizers,
                whose gradient is not known; an `upstream` that is no number.
            ValueError: a grad of another shape, read-only, missing, or overlapping its weight (the
                memory from the first element to the last one counts); a name that no weight has; an
                `upstream` of rank above 0.
        """
        factor = number(upstream, "upstream")
        applied = self._linear("gradient")
        listed = self._listed(grads, applied)
        try:
            self._plan.add_grad(applied.evaluation.strengths, listed, factor)
        except TypeError:
            self._refuse_frozen(listed, applied)
            raise

    def value_and_grad(self, grads: Grads, upstream: SupportsFloat = 1.0) -> Scalar:
        """`value`, and `add_grad` in the same read of the weights; the value is not
        multiplied by `upstream`. Arguments and errors as in `add_grad`.
        """
        factor = number(upstream, "upstream")
        applied = self._linear("gradient")
        listed = self._listed(grads, applied)
        try:
            return self._plan.value_and_grad(applied.evaluation.strengths, listed, factor)
        except TypeError:
            self._refuse_frozen(listed, applied)
            raise

    def prox(self, step: SupportsFloat) -> None:
        """The proximal step of the penalty, in place: the exact zeros that a gradient never gives.

        w = sign(w) * max(|w| - step * l1, 0) / (1 + 2 * step * l2), which minimises
        (x - w)**2 / 2 + step * (l1 * |x| + l2 * x**2). To be called after each step of plain
        gradient descent (without the penalty) with the same step size. Element by element, with
        t = rnd(step * l1) and d = rnd(1 + 2 * step * l2)::

            r = rnd(|w| - t)
            w = +0 unless r > 0, else rnd(r / d) with the sign of w

        Args:
            step: the step size, finite and at least 0: a number or an array of rank 0.

        Raises, before anything is written:
            TypeError: a `step` that is no number; a function among the regularizers.
            ValueError: another `step`; a weight with a penalty that is read-only or a copy.
        """
        size = at_least_0(step, "step")
        self._plan.prox(self._linear("proximal step").evaluation.strengths, size)

    def decay(self, rate: SupportsFloat) -> None:
        """Decoupled weight decay, in place: w = w * (1 - 2 * rate * l2).

        With plain gradient descent of step size `rate` this is what the gradient of the L2 penalty
        does too. With Adam and other optimizers that rescale the gradient it is not: the penalty's
        gradient is divided by the running size of all gradients, so weights with large gradients
        hardly shrink, while `decay` shrinks every weight by the same share (AdamW).

        In numbers, torch's SGD with ``weight_decay=s`` is `contrib.l2_regularizer(s)` (**with** the
        factor 1/2) is `regularizers.L2(s / 2)` (**without** it), and `rate` is the learning rate.
        Element by element, with f = rnd(1 - 2 * rate * l2): w = rnd(w * f), and nothing is written
        where f is 1. L1 has no part in it, nor have functions among the regularizers.

        Args:
            rate: finite, at least 0, and small enough that no weight changes its sign:
                2 * rate * l2 <= 1. A number or an array of rank 0.

        Raises, before anything is written:
            TypeError: a `rate` that is no number.
            ValueError: another `rate`; a weight with an L2 penalty that is read-only or a copy.
        """
        factor = at_least_0(rate, "rate")
        applied = self._applied
        strongest = max(applied.l2, default=0.0)
        if 2.0 * factor * strongest > 1.0:
            at = applied.l2.index(strongest)
            raise ValueError(
                f"rate: got {factor!r}, and {self._label(at)} has l2 = {strongest:g} (without a "
                "factor 1/2); wanted 2 * rate * l2 of at most 1, beyond which weights change sign"
            )
        self._plan.decay(applied.evaluation.strengths, factor)

    def clip_grad_norm(self, grads: Grads, max_norm: SupportsFloat) -> Scalar:
        """Scales all grads by one factor so that their joint L2 norm is at most `max_norm`.

        As torch's `clip_grad_norm_`: with c = min(1, max_norm / (norm + 1e-6)) rounded to float32,
        or to float64 for float64 grads, g = rnd(g * c); where c is 1 nothing is written. The norm
        is taken in float64, so float16 grads whose squares overflow float16 are clipped as well.

        Args:
            grads: as in `add_grad`, but None for any weight that has none. The strengths do not
                matter here.
            max_norm: at least 0; inf only measures a finite norm. A number or an array of rank 0.

        Returns the norm before clipping, a float. Raises, before anything is written, what
        `add_grad` raises about grads; TypeError or ValueError for another `max_norm`.
        """
        most = at_least_0(max_norm, "max_norm", math.inf)
        return self._plan.clip_grad_norm(self._listed(grads, self._applied), most)

    def _over(self, items: list[Any], regularizers: list[RegularizerLike | None]) -> Plan:
        weights = items if self.names is None else dict(zip(self.names, items, strict=True))
        return type(self)(weights, regularizers, threads=self._threads)

    def _apply(self, regularizers: list[RegularizerLike | None], parts: AllParts) -> _Applied:
        for at, one in enumerate(of_each(parts, len(self))) if self._no_weights else ():
            if at in self._no_weights and any(one):
                raise TypeError(
                    f"{self._label(at)}: was no array of floats when the plan was made, and cannot "
                    "get a penalty; wanted None for it"
                )
        buffers = list(self._items)
        if not isinstance(parts, Parts) or parts.others:
            for at, one in enumerate(of_each(parts, len(self))):
                if one.others:
                    buffers[at], _ = with_dtype(buffers[at], self._label(at))
        evaluation = evaluation_of(self._plan, buffers, parts)
        strengths = evaluation.strengths
        return _Applied(evaluation, strengths.l1, strengths.l2, regularizers)

    def _label(self, at: int, argument: str = "weights") -> str:
        return f"{argument}[{at if self.names is None else self.names[at]!r}]"

    def _linear(self, what: str) -> _Applied:
        """What is applied, if there are no functions among it."""
        applied = self._applied
        for at, _, functions in applied.evaluation.functions:
            raise TypeError(
                f"regularizer: no {what} is known of {functions[0]!r}, which {self._label(at)} "
                "has; wanted regularizers that are sums of L1 and L2 penalties"
            )
        return applied

    def _refuse_frozen(self, grads: list[Any], applied: _Applied) -> None:
        """TypeError if a weight with a penalty has no grad because it is not trained."""
        each = zip(self._items, grads, applied.l1, applied.l2, strict=True)
        for at, (item, grad, l1, l2) in enumerate(each):
            if grad is None and (l1 or l2) and (why := _frozen(item)):
                raise TypeError(
                    f"{self._label(at, 'grads')}: got None, for {self._label(at)} is frozen "
                    f"({why}); wanted an array, or None as the regularizer of this weight"
                ) from None

    def _listed(self, grads: Any, applied: _Applied) -> list[Any]:
        """One grad, or None, for each buffer; what they are is for the core to check."""
        if isinstance(grads, Mapping):
            listed = self._by_name(grads, applied)
        elif isinstance(grads, list | tuple):
            listed = list(grads)
        elif hasattr(grads, "shape"):
            if len(self) != 1:
                raise TypeError(
                    f"grads: got one array; wanted a sequence of {len(self)}, one for each weight"
                )
            listed = [grads]
        elif isinstance(grads, Iterable) and not isinstance(grads, str | bytes):
            listed = list(grads)
        else:
            raise TypeError(
                f"grads: got {'None' if grads is None else type(grads).__name__}; wanted "
                "a sequence or a mapping of arrays"
            )
        if len(listed) != len(self):
            raise ValueError(
                f"grads: got {len(listed)}; wanted one for each of {len(self)} weights"
            )
        return listed

    def _by_name(self, grads: Mapping[Any, Any], applied: _Applied) -> list[Any]:
        if self.names is None:
            raise ValueError(
                "grads: got a mapping for weights without names; wanted a sequence of arrays"
            )
        if tuple(grads) == self.names:
            return list(grads.values())
        by_name = {str(name): grad for name, grad in grads.items()}
        trained = not all(map(_frozen, self._items))  # else it says nothing of one that it is not
        missing = [
            f"{name} (frozen: {why})" if trained and (why := _frozen(item)) else name
            for name, item, l1, l2 in zip(
                self.names, self._items, applied.l1, applied.l2, strict=True
            )
            if (l1 or l2) and name not in by_name
        ]
        if missing:
            raise ValueError(f"grads: nothing for the weights named {some_of(missing)}")
        if extra := by_name.keys() - set(self.names):
            raise ValueError(f"grads: no weights are named {some_of(sorted(extra))}")
        return [by_name.get(name) for name in self.names]


def at_step(schedule: Any, step: Any) -> Any:
    """What a schedule gives for a step. TypeError if it is a regularizer, which may be callable."""
    if not callable(schedule) or isinstance(schedule, Regularizer):
        raise TypeError(
            f"regularizer: got {type(schedule).__name__} beside a step; wanted a "
            "schedule, a callable of the step that returns a regularizer"
        )
    return schedule(step)


def _frozen(item: Any) -> str:
    """How one sees that a weight is not trained; "" if one does not."""
    for attribute in "requires_grad", "trainable":  # torch's, then Keras' and TensorFlow's
        if getattr(item, attribute, None) is False:
            return f"its {attribute} is False"
    return ""
