"""What people use today for the sums of many buffers: one module for each package.

A module imports its package at the top and has a list, PEERS. Where the package is not installed,
or cannot work on this machine, importing the module raises ImportError, whose text says why.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# The modules' names, and what is installed for each: the distributions whose versions count.
PACKAGES: dict[str, tuple[str, ...]] = {
    "with_numpy": ("numpy",),
    "with_scipy": ("scipy",),
    "with_numexpr": ("numexpr",),
    "with_numkong": ("numkong",),
    "with_torch": ("torch",),
    "with_jax": ("jax",),
    "with_tensorflow": ("tensorflow", "tensorflow-cpu"),
    "with_cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
    "with_loop": (),
}

# Modules and peers that import or compile for seconds: not with --quick.
START_SLOWLY = ("with_tensorflow", "torch.compile")
SLOWLY = "it takes seconds to start; not with --quick"

Buffers = Sequence[np.ndarray]
Numbers = tuple[list[float] | None, list[float]]  # sums of absolute values, if any, and of squares


@dataclass(frozen=True)
class Peer:
    """One way to the sums of all buffers.

    prepare(buffers, threads) does what is done once: it converts, compiles, and makes the memory
    that calls work in. The function that it returns is what is timed; it waits for its result.
    numbers(result) turns what that function returned into floats.
    """

    name: str
    dtypes: frozenset[str]
    prepare: Callable[[Buffers, int], Callable[[], Any]]
    numbers: Callable[[Any], Numbers]
    most_buffers: int = 1_000_000  # with more, prepare would take too long
    on_gpu: bool = False

    def sum_abs_and_square(self, buffers: Buffers, threads: int = 1) -> Numbers:
        return self.numbers(self.prepare(buffers, threads)())


def load(module: str) -> list[Peer]:
    """The peers of one module; ImportError, with the reason, where it cannot be used."""
    try:
        return importlib.import_module(f"bench.peers.{module}").PEERS
    except ModuleNotFoundError as error:
        raise ImportError(f"not installed: {error.name}") from error


def every(leave_out: Callable[[str, str], None], quick: bool = False) -> list[Peer]:
    """All peers on the CPU that can be used here; the others are left out, with the reason."""
    found = []
    for module in PACKAGES:
        if quick and module in START_SLOWLY:
            leave_out(module.removeprefix("with_"), SLOWLY)
            continue
        try:
            found += [peer for peer in load(module) if not peer.on_gpu]
        except ImportError as error:
            leave_out(module.removeprefix("with_"), str(error))
    for peer in found:
        if quick and peer.name in START_SLOWLY:
            leave_out(peer.name, SLOWLY)
    return [peer for peer in found if not (quick and peer.name in START_SLOWLY)]


def pairs(result: Any) -> Numbers:
    """For results that are a pair of numbers for each buffer."""
    return [float(a) for a, _ in result], [float(s) for _, s in result]
