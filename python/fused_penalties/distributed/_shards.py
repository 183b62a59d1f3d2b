"""What a rank holds of a tensor: its name, its global shape, and the box that lies here."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._weights import dtype_name


class Shard(NamedTuple):
    """A part of a tensor that is spread over ranks: for arrays that cannot say so themselves.

    ``Shard(array, (1000, 64), (250, 0))`` says that `array`, of shape (250, 64), holds the rows
    250 to 499.
    """

    array: Any
    """What lies on this rank: a NumPy array or a torch tensor."""
    global_shape: Sequence[int]
    """The shape of the whole tensor."""
    offset: Sequence[int]
    """Where the array's first element lies in the whole tensor, in each dimension."""


class Layout(NamedTuple):
    """All that other ranks have to know of what a rank holds of one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: tuple[int, ...]
    local: tuple[int, ...]
    """The shape of what lies here: all zeros if nothing does."""
    declared: bool
    """False for a plain array, which does not know whether other ranks have one of its name."""


def collect_named(
    named: Any, argument: str, wanted: str = "what this rank holds, or model.named_parameters()"
) -> dict[str, Any]:
    """Names and what is held of them: of a mapping, or of the pairs of ``named_parameters()``."""
    if isinstance(named, Mapping) or hasattr(named, "keys"):  # ParameterDict is no Mapping
        pairs = [(name, named[name]) for name in named.keys()]  # noqa: SIM118 (it iterates so)
    elif isinstance(named, Iterable) and not hasattr(named, "dtype"):
        pairs = list(named)
        if not all(isinstance(one, tuple) and len(one) == 2 for one in pairs):
            pairs = [(None, None)]
    else:
        pairs = [(None, None)]
    if any(name is None for name, _ in pairs):
        raise TypeError(
            f"{argument}: got {type(named).__name__}; wanted a mapping of names to {wanted}: "
            "ranks know tensors by their names"
        )
    found = {str(name): value for name, value in pairs}
    if len(found) < len(pairs):
        raise ValueError(f"{argument}: two keys read the same; wanted different names")
    return found


def layout_of(name: str, value: Any, argument: str = "named_shards") -> Layout:
    """What is held of the tensor of this name. TypeError or ValueError if that cannot be known."""
    label = f"{argument}[{name!r}]"
    if isinstance(value, Shard):
        shape, offset = _sizes(value.global_shape), _sizes(value.offset)
        local = _sizes(_checked(value.array, label).shape)
        if not len(shape) == len(offset) == len(local) or any(
            first < 0 or first + size > whole
            for first, size, whole in zip(offset, local, shape, strict=False)
        ):
            raise ValueError(
                f"{label}: got an array of shape {local} at {offset} in a tensor of shape {shape}; "
                "wanted one that lies within it"
            )
        return _box(name, shape, _dtype(value.array, label), offset, local, True)
    if hasattr(value, "to_local"):
        shape = _sizes(value.shape)
        if any(one.is_partial() for one in value.placements):
            raise ValueError(
                f"{label}: got a DTensor with the placements {value.placements}, whose parts still "
                "have to be added up; wanted one that is sharded or replicated (redistribute())"
            )
        offset, local = _offset(value)
        if math.prod(local) and _sizes(_local_tensor(value).shape) != local:
            raise ValueError(
                f"{label}: torch says that this rank holds {local} of it, but its local tensor has "
                f"the shape {_sizes(_local_tensor(value).shape)}"
            )
        return _box(name, shape, _dtype(value, label), offset, local, True)
    shape = _sizes(_checked(value, label).shape)
    return _box(name, shape, _dtype(value, label), (0,) * len(shape), shape, False)


def local_of(value: Any) -> Any:
    """The array that lies on this rank."""
    if isinstance(value, Shard):
        value = value.array
    elif hasattr(value, "to_local"):
        value = _local_tensor(value)
    return value.detach() if is_tensor(value) else value


def is_tensor(value: Any) -> bool:
    """True for torch's tensors, without an import of torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def stand_in(layout: Layout, torch_like: bool) -> Any:
    """What rules see of a tensor that may lie elsewhere: its global shape and its dtype."""
    if torch_like:
        import torch

        return torch.empty(layout.shape, dtype=getattr(torch, layout.dtype), device="meta")
    return np.broadcast_to(np.zeros((), numpy_dtype(layout.dtype)), layout.shape)


def numpy_dtype(name: str) -> Any:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _local_tensor(value: Any) -> Any:
    import torch

    with torch.no_grad():  # else it is recorded
        local = value.to_local()
    return local.wait() if hasattr(local, "wait") else local  # what a collective still fills


def _offset(value: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    # torch has no public function for it. tests/distributed pins what it answers.
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if value.device_mesh.get_coordinate() is None:  # this rank is not in its mesh
        return (0,) * value.ndim, (0,) * value.ndim
    local, offset = compute_local_shape_and_global_offset(
        value.shape, value.device_mesh, value.placements
    )
    return _sizes(offset), _sizes(local)


def _box(
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    offset: tuple[int, ...],
    local: tuple[int, ...],
    declared: bool,
) -> Layout:
    if not math.prod(local):  # what is empty is nowhere
        offset = local = (0,) * len(shape)
    return Layout(name, shape, dtype, offset, local, declared)


def _checked(array: Any, label: str) -> Any:
    if not (is_tensor(array) or isinstance(array, np.ndarray)):
        raise TypeError(
            f"{label}: got {type(array).__name__}; wanted a torch tensor, a DTensor, a NumPy "
            "array or a Shard of one"
        )
    return array


def _dtype(array: Any, label: str) -> str:
    try:
        return dtype_name(array.dtype)
    except TypeError as error:
        raise TypeError(f"{label}: {error}") from None


def _sizes(sizes: Iterable[Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in sizes)
