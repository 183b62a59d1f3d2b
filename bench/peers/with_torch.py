"""PyTorch: the expression, torch._foreach_norm of both orders, and torch.compile of the expression.

Half precision is added in float32, as torch's reductions do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.peers import Buffers, Numbers, Peer, pairs


def tensors(buffers: Buffers, threads: int) -> list[torch.Tensor]:
    """Over the same memory."""
    torch.set_num_threads(threads)
    if buffers[0].dtype.name == "bfloat16":
        words = [torch.from_numpy(buffer.view(np.int16)) for buffer in buffers]
        return [word.view(torch.bfloat16) for word in words]
    return [torch.from_numpy(buffer) for buffer in buffers]


def wider(weights: list[torch.Tensor]) -> torch.dtype:
    """What sums are taken in: those of float16 would overflow."""
    return torch.float32 if weights[0].itemsize == 2 else weights[0].dtype


def sums(weights: list[torch.Tensor]) -> Any:
    wide = wider(weights)
    return [(w.abs().sum(dtype=wide), w.square().sum(dtype=wide)) for w in weights]


def expression(buffers: Buffers, threads: int) -> Callable[[], Any]:
    """Into memory that is there already: to make it anew takes longer than all the rest."""
    weights = tensors(buffers, threads)
    rooms = {weight.numel(): torch.empty_like(weight) for weight in weights}
    work = [(weight, rooms[weight.numel()]) for weight in weights]
    wide = wider(weights)

    def call() -> Any:
        return [
            (
                torch.abs(weight, out=room).sum(dtype=wide),
                torch.square(weight, out=room).sum(dtype=wide),
            )
            for weight, room in work
        ]

    return call


def compiled(buffers: Buffers, threads: int) -> Callable[[], Any]:
    weights = tensors(buffers, threads)
    torch.compiler.reset()
    function = torch.compile(sums, dynamic=False)
    return lambda: function(weights)


def foreach(buffers: Buffers, threads: int) -> Callable[[], Any]:
    weights = tensors(buffers, threads)
    wide = torch.float32 if buffers[0].itemsize == 2 else None
    norm = torch._foreach_norm
    return lambda: (norm(weights, 1, dtype=wide), norm(weights, 2, dtype=wide))


def norms(result: Any) -> Numbers:
    first, second = result
    return [float(norm) for norm in first], [float(norm) ** 2 for norm in second]


DTYPES = frozenset({"float16", "bfloat16", "float32", "float64"})
PEERS = [
    Peer("torch", DTYPES, expression, pairs),
    Peer("torch._foreach_norm", DTYPES, foreach, norms),
    Peer("torch.compile", DTYPES, compiled, pairs, most_buffers=20),
]
