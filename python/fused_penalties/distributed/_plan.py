"""Sums, penalties and norms of tensors that are spread over ranks."""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._evaluate import of_each
from .._numbers import at_least_0, flag
from .._resolve import name_of, resolve
from .._sums import PartialSums, Sums, largest_of_all
from ..regularizers import parts_of_each
from ..typing import Regularizers
from ._agreement import Agreement, Pair, agree, merged
from ._engine import Engine, RankError, engine_of
from ._local import LocalSums
from ._shards import Shard, collect_named, is_tensor, layout_of, local_of, stand_in
from ._wire import Call, Window, Word, hash_of, header, is_common

LIMIT = 300.0

# Of this process's plans. That all ranks' numbers are the same again says that it is the same plan.
_numbers = itertools.count()


@dataclass(eq=False, slots=True)
class DistributedSums(Sums):
    """The sums of whole tensors, the same on every rank, in the order in which ranks named them.

    Attributes:
        exact: True if they have the bits that `fused_penalties.sums` of the whole tensors has.
            False if some tensor is cut within its rows, as `Shard(1)` does: its sums, and the
            totals, then are within the same error bounds, and have the same bits for the same
            shards only.
    """

    exact: bool = True


class Plan:
    """Tensors that are spread over ranks: agreed upon once, then called at every step.

    Making one is a collective of the whole group, and so is each call: every rank makes the same
    calls in the same order. A call is one all-reduce of integers, of some 64 bytes for each tensor,
    and where shards are not cut at multiples of 8 KiB an exchange of the raw edges before. Every
    rank rounds the same integers, so all have the same result, with the bits that
    `fused_penalties.sums` and `fused_penalties.penalty` have for the whole tensors in one process,
    however many ranks there are.

    Args:
        named_shards: a mapping of names to what this rank holds, or ``model.named_parameters()``.
            A DTensor says by itself which part of a tensor lies here; a `Shard` says it for any
            array. A plain torch tensor or NumPy array is a whole one. If several ranks have one of
            the same name, or the same part of one, they are replicas (as DDP has them), which count
            once and have to lie in memory alike; a name that other ranks don't have is this rank's
            alone (as in a pipeline, whose stages need different names). All ranks' shards have to
            make up whole tensors. A rank may hold nothing: ``{}``. All of it counts, also what is
            frozen: `requires_grad` says no more than which tensors get a gradient.
        regularizer: as `fused_penalties.penalty` takes it, over the names of all ranks: one for
            all, or rules; functions among the rules see the names and stand-ins with the global
            shapes and dtypes. Functions as regularizers are refused: they would need whole tensors.
        group: a process group of torch.distributed, None for its default one, or a communicator of
            mpi4py.
        timeout: how many seconds a call waits for the other ranks, at most.
        check_replicas: at every call, compares the sums of all replicas. They are compared at the
            first call in any case, since they may be shards that nobody declared, or different
            tensors of one name.

    Attributes:
        names: those of all tensors, also those of other ranks: in the order of rank 0, then in that
            of rank 1 what is new there, and so on.
        inexact: the names of tensors whose sums have not the bits of one process.

    Raises, on all ranks alike:
        ValueError: ranks that hold the same tensor with different shapes, dtypes or strengths;
            shards that overlap or leave a gap; a rule that decides for no name.
        RankError: a rank that raised an error of its own, or is at another call; replicas that
            differ; a rank that is late or gone. In the last case nothing more can be exchanged with
            this group, and each further call raises the same at once.
        TypeError: an argument that no rank can read. If only some cannot, it is the cause of their
            RankError, whose text says on which ranks.
    """

    _argument = "named_shards"  # what users call that of which it is

    def __init__(
        self,
        named_shards: Any,
        regularizer: Regularizers = None,
        group: Any = None,
        *,
        timeout: float = LIMIT,
        check_replicas: bool = False,
    ) -> None:
        self._begin(
            lambda: collect_named(named_shards, self._argument),
            lambda: self._strengths_of(regularizer),
            group,
            timeout,
            check_replicas,
        )

    @classmethod
    def _with_strengths(
        cls, named: Mapping[str, Any], strengths: Mapping[str, Pair], group: Any, timeout: float
    ) -> Plan:
        """One whose ranks know the strengths, l1 and l2, of what they hold."""
        plan = cls.__new__(cls)
        plan._begin(lambda: dict(named), lambda: dict(strengths), group, timeout, False)
        return plan

    @classmethod
    def _of_grads(cls, params: Any, group: Any, timeout: float) -> Plan:
        """One of gradients themselves."""
        plan = cls.__new__(cls)
        plan._argument = "params"
        plan._begin(lambda: _grads_of(params), dict, group, timeout, False)
        return plan

    def _begin(
        self,
        read: Callable[[], dict[str, Any]],
        strengths: Callable[[], dict[str, Pair]],
        group: Any,
        timeout: float,
        check_replicas: bool,
    ) -> None:
        self._engine: Engine = engine_of(group, LIMIT)  # until `timeout` is known to be one
        self._values: dict[str, Any] = {}

        def layouts() -> Any:
            self._engine.limit = at_least_0(timeout, "timeout")
            self._check_replicas = bool(check_replicas)
            self._values = read()
            table = [layout_of(name, one, self._argument) for name, one in self._values.items()]
            torch_like = any(map(_is_torch, self._values.values()))
            return table, torch_like, self._check_replicas, next(_numbers)

        found = _gather(self._engine, layouts)

        def wanted() -> dict[str, Pair]:
            self._agree(*map(list, zip(*found, strict=True)))
            return strengths()

        tables = _gather(self._engine, wanted)
        self._set(merged(tables), tables[self._engine.rank])

    def _agree(
        self, tables: list[Any], torch_like: list[bool], checks: list[bool], numbers: list[int]
    ) -> None:
        """All that may fail on one rank alone, also the imports of what it needs."""
        if len(set(checks)) > 1:
            raise ValueError("check_replicas: is True on some ranks only; wanted one for all")
        self._agreement: Agreement = agree(self._engine.rank, tables, self._argument)
        self._torch = any(torch_like)
        self._numbers = repr(numbers)
        self.names: tuple[str, ...] = self._agreement.names
        self.inexact: tuple[str, ...] = self._agreement.inexact
        self._places = {name: at for at, name in enumerate(self.names)}
        self._held: dict[int, Any] = {}  # the arrays that lie here
        self._dtensors: list[tuple[int, Any]] = []  # which have to be asked for theirs at each call
        for name, value in self._values.items():
            array = value.array if isinstance(value, Shard) else value
            if hasattr(array, "to_local"):
                self._dtensors.append((self._places[name], array))
            self._held[self._places[name]] = array
        self._strengths: list[Pair] = []
        self._penalized: list[int] = []
        self._stand_ins = [stand_in(one, self._torch) for one in self._agreement.layouts]
        everything = range(len(self.names))
        self._all = self._calls(everything, "sums")
        self._grads = self._calls(everything, "norm")

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"<Plan of {len(self)} tensors, rank {self._engine.rank} of {self._engine.size}>"

    @property
    def held(self) -> dict[str, Any]:
        """What this rank holds, by its names."""
        return dict(self._values)

    def set_regularizer(self, regularizer: Regularizers) -> None:
        """Other strengths, in place of all before.

        No collective: the next `value`, `penalty` or `named` compares what all ranks want, and goes
        by it. If strengths of a tensor differ, since this was called on some ranks only, it raises
        the same ValueError on all ranks, and so does each one after it until this rank or the
        others have set theirs. TypeError and ValueError as for the plan, at once and on this rank
        alone, which then wants what it wanted before.
        """
        self._wanted = self._strengths_of(regularizer)

    def _set_strengths(self, strengths: Mapping[str, Pair]) -> None:
        """The same for a plan that was made `_with_strengths`."""
        self._wanted = dict(strengths)

    def sums(self, *, largest: bool = False) -> DistributedSums:
        """Σ|w| and Σw² of every whole tensor: a collective.

        `largest` finds the largest magnitudes too, in the same read and one more all-reduce.
        """
        limbs, magnitudes = self._exact(largest)
        sizes = np.array(self._agreement.sizes, np.int64)
        found = _core.sums_of_limbs(limbs)
        sums = DistributedSums(*found, sizes, names=self.names, exact=not self.inexact)
        if magnitudes is not None:
            sums.largest, sums.total_largest = magnitudes, largest_of_all(magnitudes)
        return sums

    def partial_sums(self, *, largest: bool = False) -> PartialSums:
        """The exact sums of every whole tensor: a collective. `largest` is as in `sums`."""
        limbs, magnitudes = self._exact(largest)
        return PartialSums(limbs, self.names, magnitudes)

    def _exact(self, largest: bool) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
        """Limbs, and the largest magnitudes if they are asked for."""

        def argument() -> str:
            return " with the largest magnitudes" if flag(largest, "largest") else ""

        # What is neither True nor False raises in `argument`, on all ranks.
        wanted = isinstance(largest, bool | np.bool_) and bool(largest)
        return self._all(self._locals, argument, with_largest=wanted), self._all.largest

    def value(self) -> Any:
        """The penalty of all tensors, which autograd does not see: a collective.

        A NumPy scalar, as `fused_penalties.penalty` has it: float64 if a tensor with a penalty or
        without is, and else float32. Or, if any rank's arrays are torch's, a tensor of rank 0, as
        `fused_penalties.torch.penalty` has it: float64 if a tensor with a penalty is.
        """
        return self._value(self._locals)

    def _value(self, arrays_of: Callable[[], dict[int, Any]]) -> Any:
        number = _core.total(self._terms(arrays_of))
        return self._result(number, self._penalized if self._torch else range(len(self)))

    def named(self) -> dict[str, Any]:
        """Each tensor's penalty by its name, to be logged apart from the loss: a collective."""
        return {
            name: float(_core.scalar(term, _core.RESULT_IS_FLOAT64[layout.dtype]))
            for name, term, layout in zip(
                self.names,
                self._terms(self._locals, lambda: ", by name"),
                self._agreement.layouts,
                strict=True,
            )
        }

    def penalty(self) -> Any:
        """`value`, which torch's autograd differentiates: a collective.

        Its backward is no collective: each rank computes the gradient of what it holds, that of the
        unsharded penalty at the same elements. It is not to be averaged or added up over ranks. A
        rank may call `backward` also if it has nothing that is trained, which then does nothing.
        """
        attach: Any = None

        def read() -> dict[int, Any]:
            nonlocal attach
            if self._torch:
                from ._autograd import attach
            return self._locals()

        value = self._value(read)
        if attach is None:
            return value
        held = {
            name: (one, *self._strengths[self._places[name]]) for name, one in self._values.items()
        }
        return attach(value, held)

    def grad_norm(self, grads: Any = None) -> Any:
        """The square root of the sum of squares of all gradients: a collective.

        Args:
            grads: a mapping of this rank's names to gradients that lie as the tensors do (None, or
                no entry, for a tensor that has none); None for each torch parameter's ``.grad``.
                ValueError for the tensors themselves.

        A NumPy scalar, or a tensor of rank 0 if any rank's arrays are torch's: float64 if a tensor
        is, and else float32.
        The squares are added in float64: those of float16 gradients don't overflow.
        """
        norm = self._norm(lambda: self._found_grads(grads), str)
        return self._result(norm, range(len(self)))

    def clip_grad_norm_(self, max_norm: float, grads: Any = None) -> Any:
        """Scales all gradients by one factor so that their joint norm is at most `max_norm`.

        Each rank scales what lies there, by the same factor. Arguments and result are those of
        `grad_norm`, whose value before the clipping is returned; element by element it does what
        `fused_penalties.Plan.clip_grad_norm` does.
        """
        most = 0.0
        found: dict[str, Any] = {}

        def argument() -> str:
            nonlocal most
            most = at_least_0(max_norm, "max_norm", math.inf)
            return f", clipped to {most!r}"

        def read() -> dict[str, Any]:  # once: `grads` may be an iterator
            found.update(self._found_grads(grads))
            return found

        norm = self._norm(read, argument)
        number = most / (norm + 1e-6)
        if not number >= 1.0:
            _scale([one for one in found.values() if one is not None], number)
        return self._result(norm, range(len(self)))

    def _norm(self, read: Callable[[], dict[str, Any]], argument: Callable[[], str]) -> float:
        limbs = self._grads(lambda: self._grad_locals(read()), argument)
        square: float = _core.sums_of_limbs(limbs)[3]
        return math.sqrt(square)

    def _found_grads(self, grads: Any) -> dict[str, Any]:
        if self._argument == "params":
            return self._values  # which are the gradients
        if grads is None:
            for name, one in self._values.items():
                if not is_tensor(one):
                    raise TypeError(
                        f"grads: got None, and {name!r}, a {type(one).__name__}, has no gradient "
                        "of its own; wanted a mapping of names to gradients"
                    )
            return {name: one.grad for name, one in self._values.items()}
        found = collect_named(grads, "grads", "gradients")
        unknown = [name for name in found if name not in self._values]
        if unknown:
            raise ValueError(f"grads: {unknown[0]!r} is none of the names that this rank holds")
        held = {_address_of(one) for one in self._values.values()} - {None}
        for name, grad in found.items():
            if grad is not None and (_is_parameter(grad) or _address_of(grad) in held):
                raise ValueError(
                    f"grads[{name!r}]: is a tensor of the model itself; wanted its gradient "
                    "(without `grads` it is each parameter's .grad)"
                )
        return {name: found.get(name) for name in self._values}

    def _grad_locals(self, grads: Mapping[str, Any]) -> dict[int, Any]:
        arrays = {}
        for name, grad in grads.items():
            at = self._places[name]
            if grad is None:
                continue
            if not _lies_as(grad, self._values[name]):
                self._check_grad(name, grad)
            arrays[at] = local_of(grad)
        return arrays

    def _check_grad(self, name: str, grad: Any) -> None:
        layout = layout_of(name, grad, "grads")
        wanted = self._agreement.mine[self._places[name]]
        compared: list[tuple[str, Any, Any]] = [("dtype", layout.dtype, wanted.dtype)]
        # A plain array may be what lies here of a tensor that is spread: also nothing of it.
        empty = not (math.prod(layout.shape) or math.prod(wanted.local))
        if layout.declared or not (empty or layout.shape == wanted.local):
            compared.append(("shape", layout.shape, wanted.shape))
            compared.append(("place", (layout.offset, layout.local), (wanted.offset, wanted.local)))
        for what, one, other in compared:
            if one != other:
                raise ValueError(f"grads[{name!r}]: has the {what} {one}; its tensor has {other}")

    def _locals(self) -> dict[int, Any]:
        arrays = self._held.copy()
        for at, value in self._dtensors:
            arrays[at] = local_of(value)
        return arrays

    def _strengths_of(self, regularizer: Regularizers) -> dict[str, Pair]:
        return dict(zip(self.names, _pairs(regularizer, self._stand_ins, self.names), strict=True))

    def _set(self, strengths: Mapping[str, Pair], mine: dict[str, Pair]) -> None:
        """Strengths that all ranks have agreed on, of which this one wanted `mine`."""
        self._wanted = mine
        self._known = mine  # what it has wanted when all ranks agreed
        pairs = [strengths.get(name, (0.0, 0.0)) for name in self.names]
        rounded = [
            (_core.coefficient(one.dtype, l1), _core.coefficient(one.dtype, l2))
            for one, (l1, l2) in zip(self._agreement.layouts, pairs, strict=True)
        ]
        penalized = [at for at, pair in enumerate(rounded) if any(pair)]
        if self._strengths and penalized == self._penalized:
            self._strengths = rounded
            return
        self._strengths, self._penalized = rounded, penalized
        self._value_calls = self._calls(penalized, "value")

    def _news(self) -> int:
        """A number that stands for the strengths that this rank wants; 0 if all know of them."""
        if self._wanted is self._known or self._wanted == self._known:
            return 0
        return hash_of(repr(sorted(self._wanted.items())).encode()) or 1

    def _calls(self, tensors: Sequence[int], kind: str) -> _Calls:
        return _Calls(
            self._engine, self._agreement, tensors, kind, self._check_replicas, self._numbers
        )

    def _terms(
        self, arrays_of: Callable[[], dict[int, Any]], argument: Callable[[], str] = str
    ) -> list[float]:
        """Each tensor's penalty, in float64.

        Sums come first, of the tensors that had a penalty when all ranks agreed the last time, and
        with them word of the ranks that want other strengths since.
        """
        calls = self._value_calls
        limbs = calls(arrays_of, argument, self._news())
        if calls.news:
            mine = self._wanted
            tables = [mine] if calls.common_news else self._engine.all_gather(mine)
            self._set(merged(tables), mine)
            if self._value_calls is not calls:  # other tensors have a penalty now
                limbs = self._value_calls(arrays_of, argument)
        sum_abs, sum_square, *_ = _core.sums_of_limbs(limbs)
        l1, l2 = ([self._strengths[at][k] for at in self._penalized] for k in (0, 1))
        found = [0.0] * len(self)
        for at, term in zip(
            self._penalized, _core.terms(sum_abs, sum_square, l1, l2).tolist(), strict=True
        ):
            found[at] = term
        return found

    def _result(self, number: float, tensors: Sequence[int]) -> Any:
        """In the dtype that a result of these tensors has."""
        layouts = self._agreement.layouts
        wide = any(_core.RESULT_IS_FLOAT64[layouts[at].dtype] for at in tensors)
        if not self._torch:
            return _core.scalar(number, wide)
        import torch

        here = (local_of(one) for one in self._values.values())
        device = next((one.device for one in here if is_tensor(one)), None)
        dtype = torch.float64 if wide else torch.float32
        return torch.tensor(float(_core.scalar(number, wide)), dtype=dtype, device=device)


class _Calls:
    """One kind of call of a plan: of all tensors, or of those with a penalty, or of a total."""

    def __init__(
        self,
        engine: Engine,
        agreement: Agreement,
        tensors: Sequence[int],
        kind: str,
        check_replicas: bool,
        numbers: str,
    ) -> None:
        self._engine = engine
        self._agreement = agreement
        self._local = LocalSums(agreement, tensors)
        self._total = kind == "norm"
        self._exchange = any(tensor in agreement.spread for tensor in tensors)
        self.news = self.common_news = False  # of the last call
        self.largest: NDArray[np.float64] | None = None  # likewise, if it was to find them
        self._replicas = [one for one in agreement.replicas if one[0] in self._local.rows]
        self._always = check_replicas
        self._compared = False  # whether all replicas were equal at some call
        self._digest = agreement.digest + repr((numbers, kind, list(tensors))).encode()
        self._what = f"{kind} of {len(tensors)} tensors"
        self._window: Window | None = None
        self._ended = time.monotonic()

    def __call__(
        self,
        arrays_of: Callable[[], dict[int, Any]],
        argument: Callable[[], str] = str,
        news: int = 0,
        with_largest: bool = False,
    ) -> NDArray[np.int64]:
        """The limbs of the whole tensors, or of their total; carries have not moved in them.

        What `argument` returns has to be the same on all ranks; `str` returns nothing. At the end
        all ranks know whether one has had `news`, a number other than 0, and all the same.
        """
        engine, local = self._engine, self._local
        engine.past.calls += 1
        error: BaseException | None = None
        arrays: dict[int, Any] = {}
        limbs = np.zeros((len(local.rows), 2, _core.LIMBS), np.int64)
        to_send: Any = None
        said = ""
        try:
            said = argument()
            arrays = arrays_of()
            if len(local.rows) < len(arrays):
                arrays = {at: one for at, one in arrays.items() if at in local.rows}
            local.take(arrays)
            to_send = local.to_send() if self._exchange else None
        except BaseException as fault:  # this rank takes part all the same, or others would wait
            error = fault
        if self._exchange:
            end = engine.all_to_all(
                local.nothing_to_send() if to_send is None else to_send,
                local.sent_bytes,
                local.received_bytes,
            )
        digests: dict[int, int] = {}
        if error is None:
            try:
                limbs = local.limbs(with_largest)
                digests = self._digests()
            except BaseException as fault:
                error = fault
        if self._exchange:
            received = end()
            if error is None:
                try:
                    limbs = local.add_assembled(limbs, received)
                except BaseException as fault:
                    error = fault
        # The owner's digest, as often as others have theirs, less theirs: zero if all are equal.
        difference = sum(
            digests[tensor] * (holders - 1 if owner == engine.rank else -1)
            for tensor, holders, owner in self._replicas
            if tensor in digests
        )
        if self._total:
            limbs = _core.canonical_limbs(limbs.sum(axis=0, keepdims=True))
            local.release()  # gradients, which others may have no use for any more
        found = self._reduced(
            limbs,
            said,
            digests,
            error,
            REPLICAS=difference,
            CHANGED=bool(news),
            CHANGED_TO=news,
        )
        self._compared = True
        self.largest = None
        if with_largest:  # all ranks have come so far, and have found theirs
            assert local.largest is not None
            bits = engine.all_reduce(local.largest.view(np.int64), maximum=True)
            self.largest = bits.view(np.float64)
        return found

    def _digests(self) -> dict[int, int]:
        if self._compared and not self._always:
            return {}
        return {tensor: self._local.digest_of(tensor) for tensor, _, _ in self._replicas}

    def _reduced(
        self,
        limbs: NDArray[np.int64],
        said: str,
        digests: dict[int, int],
        error: BaseException | None,
        **header_words: int,
    ) -> NDArray[np.int64]:
        words, inside = limbs.reshape(-1), True
        window = self._window
        if window is not None:
            words, inside = window.pack(limbs)
        reduced = self._exchanged(words, said, digests, error, OUTSIDE=not inside, **header_words)
        if window is not None and not reduced[Word.OUTSIDE]:
            return window.unpack(reduced[Word.HEADER :])
        if window is not None:
            reduced = self._exchanged(limbs.reshape(-1), said, digests, error, **header_words)
        found = reduced[Word.HEADER :].reshape(limbs.shape)
        if not self._total:
            self._window = Window.around(found, window, self._engine.size)
        return found

    def _exchanged(
        self,
        words: NDArray[np.int64],
        said: str,
        digests: dict[int, int],
        error: BaseException | None,
        **header_words: int,
    ) -> NDArray[np.int64]:
        engine = self._engine
        call = Call(self._digest + said.encode(), engine.past.calls)
        waited = time.monotonic() - self._ended
        mine = header(
            call,
            FAULTS=error is not None,
            LATE=waited > engine.limit / 2,
            **header_words,
        )
        reduced = engine.all_reduce(np.concatenate([mine, words]))
        self._ended = time.monotonic()
        common = is_common(reduced[: Word.HEADER], call, engine.size)
        if not common or reduced[Word.FAULTS] or reduced[Word.REPLICAS]:
            self._raise(error, said, digests)
        if reduced[Word.LATE]:
            # Another rank may have given up just before this one came: see whether all are there.
            engine.all_reduce(header(call))
        self.news = bool(reduced[Word.CHANGED])
        here = [Word.CHANGED, Word.CHANGED_TO]
        self.common_news = bool((reduced[here] == engine.size * mine[here]).all())
        return reduced

    def _raise(self, error: BaseException | None, said: str, digests: dict[int, int]) -> None:
        """The same error on all ranks: of all ranks that have something to say."""
        text = None if error is None else f"{type(error).__name__}: {error}"
        named = {self._agreement.names[tensor]: digest for tensor, digest in digests.items()}
        past = self._engine.past
        found = self._engine.all_gather((text, self._what + said, past.calls, self._digest, named))
        past.calls = max(one[2] for one in found)  # so that ranks are together at the next one
        faults = [f"rank {at}: {one[0]}" for at, one in enumerate(found) if one[0] is not None]
        if not faults:
            faults = _different_calls(found) or _drifted(found)
        message = "; ".join(faults) or "the words that came are not those that were sent"
        everywhere = error is not None and all(one[0] == text for one in found)
        if error is not None and (everywhere or not isinstance(error, Exception)):
            raise error
        raise RankError(message) from error


def _different_calls(found: Sequence[Any]) -> list[str]:
    calls = [one[1:4] for one in found]
    if all(call == calls[0] for call in calls):
        return []
    each = ", ".join(
        f"rank {at} at call {number} of this group, {what}"
        for at, (what, number, _) in enumerate(calls)
    )
    return [f"ranks are not at the same call of the same plan: {each}"]


def _drifted(found: Sequence[Any]) -> list[str]:
    seen: dict[str, tuple[int, int]] = {}
    for rank, one in enumerate(found):
        for name, digest in one[4].items():
            there, at = seen.setdefault(name, (digest, rank))
            if there != digest:
                return [
                    f"replicas differ: {name!r} has other sums on rank {rank} than on rank {at}; "
                    "wanted equal ones (what is a part of a tensor has to be a DTensor or a Shard, "
                    "different tensors need different names, and plain arrays, which are summed in "
                    "the order of their addresses, the same order of axes in memory)"
                ]
    return []


def _gather(engine: Engine, make: Callable[[], Any]) -> list[Any]:
    """What `make` returns on each rank. If it raises on one, all raise."""
    mine: Any = None
    error: BaseException | None = None
    try:
        mine = make()
    except BaseException as fault:  # this rank takes part all the same, or others would wait
        error = fault
    text = None if error is None else f"{type(error).__name__}: {error}"
    found = engine.all_gather((text, mine))
    faults = [f"rank {at}: {text}" for at, (text, _) in enumerate(found) if text is not None]
    everywhere = all(one[0] == text for one in found)  # a rule that holds nowhere, say
    if error is not None and (everywhere or not isinstance(error, Exception)):
        raise error
    if faults:
        raise RankError("; ".join(faults)) from error
    return [one for _, one in found]


def _pairs(regularizer: Any, items: Sequence[Any], names: Sequence[str]) -> list[Pair]:
    pairs = []
    regularizers = resolve(regularizer, items, names)
    each = of_each(parts_of_each(regularizers), len(items))
    for name, one, parts in zip(names, regularizers, each, strict=True):
        if parts.others:
            raise TypeError(
                f"regularizer: {name_of(one)} of {name!r} would need the whole tensor; wanted sums "
                "of L1 and L2 penalties"
            )
        pairs.append(parts.linear or (0.0, 0.0))
    return pairs


def _is_torch(value: Any) -> bool:
    with contextlib.suppress(TypeError):
        return is_tensor(local_of(value))
    return False


def _lies_as(grad: Any, value: Any) -> bool:
    """True if it certainly lies as the other one does; False asks for a closer look."""
    if hasattr(grad, "to_local") and hasattr(value, "to_local"):
        return bool(
            grad.placements == value.placements
            and grad.device_mesh is value.device_mesh
            and grad.shape == value.shape
            and grad.dtype == value.dtype
        )
    return False


def _is_parameter(value: Any) -> bool:
    """True for torch's parameters, which no gradient is; without an import of torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Parameter)


def _address_of(value: Any) -> int | None:
    """Where its elements begin on this rank; None if it has none, or is no array."""
    array = local_of(value)
    if is_tensor(array):
        return int(array.data_ptr()) or None
    if isinstance(array, np.ndarray) and array.size:
        return int(array.__array_interface__["data"][0])
    return None


def _scale(grads: Sequence[Any], number: float) -> None:
    tensors = [local_of(one) for one in grads if _is_torch(one)]
    if tensors:
        import torch

        torch._foreach_mul_(tensors, number)
    for one in grads:
        if not _is_torch(one):
            array = local_of(one)
            exact = np.float64 if array.dtype == np.float64 else np.float32
            array[...] = (array.astype(exact) * exact(number)).astype(array.dtype)


def sums(
    named_shards: Any, group: Any = None, *, timeout: float = LIMIT, largest: bool = False
) -> DistributedSums:
    """Σ|w| and Σw² of tensors that are spread over ranks: a collective.

    ``Plan(named_shards, None, group).sums(largest=largest)``, for one call: a loop makes its plan
    once.
    """
    return Plan(named_shards, None, group, timeout=timeout).sums(largest=largest)


def penalty(
    named_shards: Any, regularizer: Regularizers, group: Any = None, *, timeout: float = LIMIT
) -> Any:
    """The penalty of tensors that are spread over ranks: a collective.

    ``Plan(named_shards, regularizer, group)`` for one call: differentiable if any rank's arrays are
    torch's, and else a NumPy scalar.
    """
    return Plan(named_shards, regularizer, group, timeout=timeout).penalty()


def grad_norm(params: Any, group: Any = None, *, timeout: float = LIMIT) -> Any:
    """The joint L2 norm of gradients that are spread over ranks: a collective.

    Args:
        params: a mapping of names to torch parameters, whose ``.grad`` is meant, or to NumPy arrays
            and Shards, which are the gradients themselves; or ``model.named_parameters()``.
        group, timeout: as for `Plan`, which has the same for every step.
    """
    return Plan._of_grads(params, group, timeout).grad_norm()


def clip_grad_norm_(
    params: Any, max_norm: float, group: Any = None, *, timeout: float = LIMIT
) -> Any:
    """Scales gradients that are spread over ranks so that their joint norm is at most `max_norm`.

    Arguments as for `grad_norm`, whose value before the clipping is returned.
    """
    return Plan._of_grads(params, group, timeout).clip_grad_norm_(max_norm)


def _grads_of(params: Any) -> dict[str, Any]:
    """The gradients of parameters; what is no parameter of torch's is one itself."""
    grads = {}
    for name, one in collect_named(params, "params").items():
        if not is_tensor(one):
            grads[name] = one
            continue
        import torch

        if isinstance(one, torch.nn.Parameter) or one.requires_grad:
            one = one.grad
        if one is not None:
            grads[name] = one
    return grads
