"""The penalty in a loss: a function of tensors, and a module that knows a model's parameters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch

from .._coefficients import for_each
from .._evaluate import of_each
from .._resolve import name_of, resolve, some_of
from ..plan import at_step
from ..regularizers import parts_of_each
from ..typing import RegularizerLike, Regularizers
from ._ops import WEIGHTS, fused_penalty, result_dtype
from ._plans import Bound, tensor_of, with_bound

if TYPE_CHECKING:
    from ._attach import Handle


class Penalized(NamedTuple):
    """Tensors with a penalty, and what it is."""

    names: list[Any]
    weights: list[Any]
    """Those of L1 and L2 penalties, and in the same order their names."""
    l1: tuple[float, ...]
    l2: tuple[float, ...]
    """Coefficients without a factor 1/2; a single one is that of all."""
    called: list[tuple[Any, Any, RegularizerLike]]
    """Other penalties: a tensor's name, the tensor, and the function to be called for it."""


def penalty(params: Any, regularizer: Regularizers) -> Any:
    """The penalty of many tensors as one operation, which autograd differentiates as another one.

    Args:
        params: a tensor, an iterable of tensors, or a mapping of names to tensors, such as
            ``dict(model.named_parameters())``: float16, bfloat16, float32 or float64, all on one
            device.
        regularizer: as `fused_penalties.penalty` takes it: one for all, a sequence with one for
            each, or rules over names and tensors. A function among them is called with its tensor
            and returns a tensor of rank 0, or None.

    Returns:
        A tensor of rank 0, float64 if a tensor is and else float32, also under autocast. Tensors
        without a penalty do not come into it. Strengths are rounded to the dtype of each tensor
        first, to float32 for those of 16 bits.

    Derivatives of any order are right, in backward and in forward mode, in `torch.func` and in
    `torch.compile`. What is listed twice counts twice.

    Raises:
        TypeError: a tensor with a penalty that is no plain one of floats; a function that returns
            something else, which autograd could not follow.
        ValueError: tensors on several devices, and what `fused_penalties.penalty` says of rules.
    """
    names: list[str] | None = None
    if isinstance(params, torch.Tensor):
        weights = [params]
    elif isinstance(params, Mapping) or hasattr(params, "keys"):  # ParameterDict is no Mapping
        names, weights = [str(name) for name in params], list(params.values())
    else:
        if not isinstance(params, Iterable) or isinstance(params, torch.nn.Module | np.ndarray):
            raise TypeError(
                f"params: got {type(params).__name__}; wanted a tensor, an iterable of tensors "
                "or a mapping of names to them; Penalty takes a model"
            )
        weights = list(params)
    regularizers = resolve(regularizer, weights, names)
    return total(_penalized(names or range(len(weights)), weights, regularizers), weights)


def _penalized(
    keys: Sequence[Any],
    weights: Sequence[Any],
    regularizers: list[RegularizerLike | None],
    spread: bool = False,
) -> Penalized:
    """What there is to do, once it is known that it can be done; with `spread` over ranks too."""
    names: list[Any] = []
    linear: list[Any] = []
    pairs: list[tuple[float, float]] = []
    called: list[tuple[Any, Any, RegularizerLike]] = []
    parts = of_each(parts_of_each(regularizers), len(weights))
    for key, weight, one in zip(keys, weights, parts, strict=True):
        if one.linear is not None:
            _check(key, weight, spread)
            if linear and weight.device != linear[0].device:
                raise ValueError(
                    f"params[{key!r}]: is on {weight.device} but params[{names[0]!r}] is on "
                    f"{linear[0].device}; wanted all on one device"
                )
            names.append(key)
            linear.append(weight)
            pairs.append(one.linear)
        called += [(key, weight, function) for function in one.others]
    if all(pair == pairs[0] for pair in pairs):
        pairs = pairs[:1]
    return Penalized(
        names, linear, tuple(l1 for l1, _ in pairs), tuple(l2 for _, l2 in pairs), called
    )


def _check(key: Any, weight: Any, spread: bool) -> None:
    plain = type(weight) in (torch.Tensor, torch.nn.Parameter) and weight.layout == torch.strided
    if (plain or (spread and hasattr(weight, "to_local"))) and weight.dtype in WEIGHTS:
        return
    label = f"params[{key!r}]"
    if isinstance(weight, tuple):
        raise TypeError(f"{label}: got tuple; wanted a tensor (of pairs with names, dict(pairs))")
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"{label}: got {type(weight).__name__}; wanted a torch tensor")
    if hasattr(weight, "to_local") and not spread:
        raise TypeError(
            f"{label}: got {type(weight).__name__}, which is distributed; wanted a tensor of "
            "this process (to_local()), or fused_penalties.distributed.penalty"
        )
    if hasattr(weight, "materialize"):
        raise TypeError(
            f"{label}: got {type(weight).__name__}, which has no values until its module has "
            "seen data; wanted a tensor"
        )
    if weight.layout != torch.strided:
        raise TypeError(f"{label}: got a tensor of layout {weight.layout}; wanted a dense one")
    if weight.dtype not in WEIGHTS:
        raise TypeError(
            f"{label}: dtype {str(weight.dtype).rpartition('.')[2]} is not supported; wanted "
            "float16, bfloat16, float32 or float64"
        )


def total(penalized: Penalized, beside: Sequence[Any]) -> Any:
    """The penalty; if there is none a zero on the device of these tensors."""
    terms = []
    if penalized.weights:
        terms.append(fused_penalty(penalized.l1, penalized.l2, penalized.weights))
    for key, weight, function in penalized.called:
        terms += called(key, weight, function)
    if not terms:
        return torch.zeros((), device=next((one.device for one in beside), None))
    return sum(terms[1:], start=terms[0])


def called(key: Any, weight: Any, function: RegularizerLike) -> list[Any]:
    """What a function makes of a tensor, and nothing if that is None."""
    result: Any = function(weight)
    if result is None:
        return []
    if not isinstance(result, torch.Tensor):
        raise TypeError(
            f"params[{key!r}]: {name_of(function)} returned {type(result).__name__}, which "
            "autograd cannot follow; wanted a torch tensor of rank 0"
        )
    if result.ndim:
        raise ValueError(
            f"params[{key!r}]: {name_of(function)} returned a tensor of rank {result.ndim}; "
            "wanted rank 0"
        )
    return [result]


class _Ranks(NamedTuple):
    """Those that a penalty is agreed with, and how many seconds they are waited for."""

    group: Any
    timeout: float

    def __deepcopy__(self, memo: Any) -> _Ranks:
        return self  # there is no second group of these ranks


class Penalty(torch.nn.Module):  # type: ignore[misc]
    """The penalty of a model's parameters: ``loss = criterion(model(x), y) + penalty()``.

    It has no parameters of its own, and does not make the model a part of itself. Tied parameters
    count once, frozen ones (``requires_grad`` is False) do not count while they are frozen.
    Parameters that are moved, converted or replaced are followed; those of modules that are added
    to the model later are not: make a new `Penalty` then.

    Of a model with DTensors, of FSDP2 or tensor parallelism, it is the penalty of the whole
    tensors, by `fused_penalties.distributed.Plan`: a call is a collective of `group`, and the
    derivative is made on each rank for what lies there. Every rank may call `backward`. Tensors
    that stand in for DTensors, as in FSDP2's forward pass, are not meant: plain ones, or DTensors
    on some of the mesh's dimensions. Other rules, and parameters that are frozen or trained again,
    are compared at the next call: if ranks differ, it is the same ValueError on all of them.

    Args:
        model: the module whose parameters are meant.
        regularizer: as `fused_penalties.Plan` takes it: one for all; or rules, regular expressions
            over the parameters' names, or functions of name and parameter, of which the first that
            holds decides. They are checked against frozen parameters too.
        skip_1d: leaves out parameters of rank 0 and 1: the biases and the scales of norm layers,
            whatever their names are. The rules are about the others.
        no_weight_decay: True leaves out what ``model.no_weight_decay()`` names, as timm's models
            do; a collection leaves out these names, in which ``*`` stands for anything.
        group: of a model with DTensors, the process group of all ranks that hold a part of it, also
            where it lies on meshes of several dimensions; None for the default group.
        timeout: of such a model, how many seconds a call waits for the other ranks, at most.

    Raises:
        TypeError: a model that is none, or has no `no_weight_decay`; a trained parameter with a
            penalty that is no plain tensor of floats.
        ValueError: a model without trained parameters; a rule that decides for no parameter, or a
            name in `no_weight_decay` that no parameter has; parameters on several devices.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        regularizer: Regularizers,
        skip_1d: bool = False,
        *,
        no_weight_decay: bool | Collection[str] = False,
        group: Any = None,
        timeout: float = 300.0,
    ) -> None:
        super().__init__()
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"model: got {type(model).__name__}; wanted a torch.nn.Module")
        self._model = (model,)  # in a tuple, or it would become a submodule
        self._skip_1d = skip_1d
        self._left_out = _names_of(model, no_weight_decay)
        self._spread = any(hasattr(param, "to_local") for param in model.parameters())
        self._ranks = _Ranks(group, timeout)
        self._plan: Any = None  # of tensors that are spread over ranks
        self._planned: Penalized | None = None
        self._held: list[tuple[int, Any]] = []  # what the plan is of
        self._places: list[tuple[dict[str, Any], str]] = []  # in the dicts that modules keep
        self._params: list[Any] = []
        self._find(regularizer)
        if not any(self._was_trained):
            raise ValueError(
                f"model: none of the {len(self._params)} parameters of this "
                f"{type(model).__name__} is trained; wanted one whose requires_grad is True"
            )

    def forward(self) -> Any:
        """The penalty, a tensor of rank 0 to be added to the loss."""
        if self._spread:
            return self._agreed().penalty()
        return total(self.penalized(), self._params)

    def named(self) -> dict[str, Any]:
        """The penalty of each parameter that has one, for a log: tensors without a gradient."""
        penalized = self.penalized()
        found: dict[str, Any] = {}
        if self._spread:
            named = self._agreed().named()
            return {
                name: torch.tensor(named[name], dtype=result_dtype([weight]))
                for name, weight in zip(penalized.names, penalized.weights, strict=True)
            }
        if penalized.weights:
            scalars = with_bound(penalized.weights, lambda bound: _values(bound, penalized))
            found = dict(zip(penalized.names, scalars, strict=True))
        with torch.no_grad():
            for name, weight, function in penalized.called:
                for result in called(name, weight, function):
                    found[name] = found[name] + result if name in found else result
        return found

    def set_regularizer(
        self, regularizer: Regularizers | Callable[[Any], Regularizers], step: Any = None
    ) -> None:
        """Other rules, or other strengths in them, in place of all before.

        With `step` it is a schedule, a function of the step's number that returns them.
        """
        self._find(cast(Any, regularizer) if step is None else at_step(regularizer, step))

    def attach(
        self,
        optimizer: Any,
        *,
        mode: str = "grad",
        schedule: Callable[[int], Regularizers] | None = None,
    ) -> Handle:
        """Makes the penalty part of the optimizer's steps; leave it out of the loss then.

        See `Handle` for what the modes do. TypeError for a model with DTensors.
        """
        if self._spread:
            raise TypeError(
                "model: has DTensors, which this cannot step; wanted the penalty in the loss"
            )
        from ._attach import Handle

        return Handle(self, optimizer, mode, schedule)

    def extra_repr(self) -> str:
        counts: dict[str, list[int]] = {}
        for param, regularizer in zip(self._params, self._regularizers, strict=True):
            text = "frozen" if not param.requires_grad else name_of(regularizer)
            count = counts.setdefault(text, [0, 0])
            count[0] += 1
            count[1] += param.numel()
        return "\n".join(
            f"{text}: {tensors} tensors, {elements:,} elements"
            for text, (tensors, elements) in counts.items()
        )

    def penalized(self) -> Penalized:
        """What has a penalty at this moment."""
        now: list[Any] = [there.get(key) for there, key in self._places]
        if self._spread:
            now = [
                known if _stands_in(one, known) else one
                for one, known in zip(now, self._params, strict=True)
            ]
        if not all(map(is_, now, self._params)):
            self._find(self._regularizer)
        elif [param.requires_grad for param in now] != self._was_trained:
            self._penalize()
        return self._penalized

    def _agreed(self) -> Any:
        """The plan of all ranks: a collective at first, and when tensors were replaced."""
        from ..distributed import Plan

        penalized = self.penalized()
        both = zip(self._names, self._params, strict=True)
        named = {name: param for name, param in both if param.dtype in WEIGHTS}
        # A DTensor that is converted stays the same object.
        held = [(id(param), param.dtype) for param in named.values()]
        if held != self._held:
            self._plan = self._planned = None
        if self._planned is not penalized:
            pairs = zip(
                for_each(penalized.l1, len(penalized.names)),
                for_each(penalized.l2, len(penalized.names)),
                strict=True,
            )
            # Others have none here, which ranks that hold them too have to agree with.
            strengths = dict.fromkeys(named, (0.0, 0.0))
            strengths |= zip(penalized.names, pairs, strict=True)
            if self._plan is None:
                self._plan = Plan._with_strengths(named, strengths, *self._ranks)
                self._held = held
            else:
                self._plan._set_strengths(strengths)
            self._planned = penalized
        return self._plan

    def __getstate__(self) -> dict[str, Any]:
        """A copy agrees with the other ranks anew."""
        return {**self.__dict__, "_plan": None, "_planned": None}

    def _find(self, regularizer: Regularizers) -> None:
        """Finds the model's parameters, and the regularizer of each."""
        known = {
            (id(there), key): param
            for (there, key), param in zip(self._places, self._params, strict=True)
        }
        places: list[tuple[dict[str, Any], str]] = []
        names: list[str] = []
        params: list[Any] = []
        seen = set()
        for prefix, module in self._model[0].named_modules():
            for key, param in module._parameters.items():
                before = known.get((id(module._parameters), key))
                if _stands_in(param, before):
                    param = before
                if param is None or id(param) in seen:
                    continue
                seen.add(id(param))
                places.append((module._parameters, key))
                names.append(f"{prefix}.{key}" if prefix else key)
                params.append(param)
        asked = [
            k
            for k, (name, param) in enumerate(zip(names, params, strict=True))
            if not (self._skip_1d and param.ndim < 2) and not _listed(name, self._left_out)
        ]
        found = resolve(regularizer, [params[k] for k in asked], [names[k] for k in asked])
        regularizers: list[RegularizerLike | None] = [None] * len(params)
        for k, one in zip(asked, found, strict=True):
            regularizers[k] = one
        penalized = _trained_of(names, params, regularizers, self._spread)
        self._places, self._names, self._params = places, names, params
        self._regularizer, self._regularizers = regularizer, regularizers
        self._penalized = penalized
        self._was_trained = [param.requires_grad for param in params]

    def _penalize(self) -> None:
        self._penalized = _trained_of(self._names, self._params, self._regularizers, self._spread)
        self._was_trained = [param.requires_grad for param in self._params]


def _stands_in(param: Any, known: Any) -> bool:
    """True for what FSDP2 puts in the place of a DTensor during the forward pass, or longer.

    It has gathered the tensor along its own dimensions of the mesh. If there are others, as of
    tensor parallelism, a DTensor on these is left.
    """
    if param is known or param is None or not hasattr(known, "to_local"):
        return False
    if not hasattr(param, "to_local"):
        return True
    here, there = (one.device_mesh.mesh_dim_names for one in (param, known))
    if here is None or there is None or param.shape != known.shape:
        return False
    return set(here) < set(there)


def _trained_of(
    names: Sequence[str],
    params: Sequence[Any],
    regularizers: Sequence[RegularizerLike | None],
    spread: bool,
) -> Penalized:
    trained = [k for k, param in enumerate(params) if param.requires_grad]
    found = _penalized(
        [names[k] for k in trained],
        [params[k] for k in trained],
        [regularizers[k] for k in trained],
        spread,
    )
    for name, _, function in found.called if spread else ():
        raise TypeError(
            f"params[{name!r}]: {name_of(function)} would need the whole tensor, and the model has "
            "DTensors; wanted sums of L1 and L2 penalties"
        )
    return found


def _names_of(model: torch.nn.Module, no_weight_decay: bool | Collection[str]) -> set[str]:
    """The names, or patterns of names, that are left out."""
    if isinstance(no_weight_decay, bool):
        if not no_weight_decay:
            return set()
        method: Any = getattr(model, "no_weight_decay", None)
        if method is None:
            raise TypeError(
                f"no_weight_decay: {type(model).__name__} has no method of this name; wanted a "
                "collection of names, or False"
            )
        return set(method())  # which may have names that this model has no parameter of
    if isinstance(no_weight_decay, str):
        raise TypeError(f"no_weight_decay: got {no_weight_decay!r}; wanted a collection of names")
    known = [name for name, _ in model.named_parameters()]
    for pattern in no_weight_decay:
        if not any(_listed(name, (pattern,)) for name in known):
            raise ValueError(
                f"no_weight_decay: {pattern!r} is none of the {len(known)} names: {some_of(known)}"
            )
    return set(no_weight_decay)


def _listed(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _values(bound: Bound, penalized: Penalized) -> list[Any]:
    values = bound.plan.values(bound.strengths(penalized.l1, penalized.l2))
    scalars = bound.plan.scalars(values)
    return [
        tensor_of(one, dtype == "float64")
        for one, dtype in zip(scalars, bound.plan.dtypes, strict=True)
    ]
