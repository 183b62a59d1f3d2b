"""Plans of lists of tensors, remembered from one call to the next.

An operation is given its tensors anew at each call. The plan of before is taken up again if they
are where they were: their memory is kept as long as the plan is remembered, so that nothing else
can come to lie there. It is forgotten when one of the tensors is gone; and when one has moved, the
next time that a plan is made.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from .. import _core
from .._bind import BoundPlan, bind
from .._coefficients import strengths_of

Result = TypeVar("Result")

_MOST = 64  # lists of tensors; a penalty may be of many parts

# By the place of their tensors, the last used at the end. A call takes its plan out and puts it
# back, so that it has it to itself: others meanwhile make their own.
_remembered: dict[bytes, Bound] = {}


class Bound:
    """Tensors whose memory is found, and the strengths that they were last given."""

    def __init__(self, tensors: list[Any], names: Sequence[str] | None = None) -> None:
        self.tensors = tensors
        self._place = _core.place_of(tensors)
        # Aliases keep the memory, should the tensors be given other memory while a call reads it.
        self._memory = [tensor.detach() for tensor in tensors]
        self.plan: BoundPlan = bind(tensors, names, keep=True)
        self._given: Any = None
        self._strengths: Any = None
        self._watched: list[Any] = []
        self.gone = False

    def forget_with(self, tensors: Sequence[Any], place: bytes) -> None:
        """Forgets it when one of the tensors is gone."""
        itself = weakref.ref(self)

        def forget(_: Any) -> None:
            if (bound := itself()) is not None:
                bound.gone = True
                if _remembered.get(place) is bound:
                    _remembered.pop(place, None)

        self._watched = [weakref.ref(tensor, forget) for tensor in tensors]

    def is_left(self, place: bytes) -> bool:
        """True if the tensors of `forget_with` are not there any more."""
        tensors = [watched() for watched in self._watched]
        return any(tensor is None for tensor in tensors) or _core.place_of(tensors) != place

    def has_moved(self) -> bool:
        """True if the tensors have. A call of the plan finds out too, before it changes anything,
        and raises RuntimeError."""
        return self._place != _core.place_of(self.tensors)

    def strengths(self, l1: Sequence[float], l2: Sequence[float]) -> Any:
        """One in the list is that of all tensors."""
        given = (tuple(l1), tuple(l2))
        if given != self._given:
            self._given = None
            self._strengths = strengths_of(self.plan, *given)
            self._given = given
        return self._strengths


def with_bound(tensors: list[Any], call: Callable[[Bound], Result]) -> Result:
    """What `call` makes of these tensors, whose plan may be known."""
    place = _core.place_of(tensors)
    bound = None if place is None else _remembered.pop(place, None)
    # A storage can be given other memory, and somebody else its old one, who is at the place now.
    if bound is None or bound.has_moved():
        for known, other in list(_remembered.items()):
            if other.is_left(known) and _remembered.get(known) is other:
                _remembered.pop(known, None)
        bound = Bound([tensor.detach() for tensor in tensors])  # which lets the tensors go
        if place is not None:
            bound.forget_with(tensors, place)
    result = call(bound)
    if place is not None and not bound.gone:
        _remembered[place] = bound
        for oldest in list(_remembered)[:-_MOST]:
            _remembered.pop(oldest, None)
    return result


def tensor_of(result: Any, wide: bool) -> Any:
    """A number that a plan gave, as a tensor: on a GPU it is one already."""
    dtype = torch.float64 if wide else torch.float32
    if isinstance(result, torch.Tensor):
        return result.to(dtype)
    return torch.tensor(float(result), dtype=dtype)
