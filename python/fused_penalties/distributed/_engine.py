"""What carries words between ranks: torch.distributed or MPI, behind one Protocol."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class RankError(RuntimeError):
    """Some rank could not take part in a call, and no rank has a result.

    Every rank that lives raises it, with the same message. Where a rank came too late, or is gone,
    nothing can be exchanged with it any more: the process group, or the communicator, is to be
    given up.
    """


@dataclass(eq=False, slots=True)
class Past:
    """What became of a group so far: one for all engines, and so for all plans, of the group."""

    calls: int = 0
    """How many a rank has made. They are in one order, so all ranks have the same number."""
    given_up: str = ""
    """Why nothing can be exchanged any more: ranks are not at the same collective, and an engine
    would take one for another, wait for ever, or end the process."""

    def give_up(self, error: RankError) -> RankError:
        self.given_up = str(error)
        return error

    def check(self) -> None:
        if self.given_up:
            raise RankError(self.given_up)


class Engine(Protocol):
    """Collectives of one group. Each ends within its limit, in seconds, or raises RankError.

    After a collective that did not come to its end each further one raises the same at once.
    """

    rank: int
    size: int
    limit: float
    past: Past

    def all_reduce(self, words: NDArray[np.int64], *, maximum: bool = False) -> NDArray[np.int64]:
        """The sums of these words over all ranks, or the largest of each."""

    def all_to_all(
        self, data: Any, sent: Sequence[int], received: Sequence[int]
    ) -> Callable[[], Any]:
        """Starts to send so many bytes of `data` to each rank, and to receive so many of each.

        What it returns waits for the end, and returns what came, in the order of the ranks.
        """

    def all_gather(self, mine: Any) -> list[Any]:
        """What each rank has given, in their order: any objects that can be pickled.

        A message of fixed size goes first: ranks may be at different calls, and engines abort, or
        return garbage, where sizes differ.
        """


def engine_of(group: Any, limit: float) -> Engine:
    """The engine of a process group of torch, of None for its default one, or of a communicator."""
    if type(group).__module__.partition(".")[0] == "mpi4py":
        from ._mpi import MpiEngine

        return MpiEngine(group, limit)
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available():
        given = isinstance(group, torch.distributed.ProcessGroup)
        if given or (group is None and torch.distributed.is_initialized()):
            from ._torch import TorchEngine

            return TorchEngine(group, limit)
        if group is torch.distributed.GroupMember.NON_GROUP_MEMBER:  # what new_group returns
            raise not_in_it()
    if group is None:
        raise RuntimeError(
            "group: got None, and torch.distributed has no default group; wanted "
            "torch.distributed.init_process_group() before, or a communicator of mpi4py"
        )
    raise TypeError(
        f"group: got {type(group).__name__}; wanted None, a process group of torch.distributed "
        "or a communicator of mpi4py"
    )


def not_in_it() -> ValueError:
    return ValueError("group: this rank is not in it; wanted a group that it is in")


GREETING = 0x6675736564  # the first word of every handshake: "fused"


def check_greetings(words: NDArray[np.int64], past: Past) -> list[int]:
    """How long each rank's message is, in a table with a row (greeting, length) of each."""
    if (words[:, 0] != GREETING).any():
        raise past.give_up(
            RankError("ranks are not at the same call of fused_penalties.distributed")
        )
    return [int(length) for length in words[:, 1]]


def too_late(limit: float) -> RankError:
    """The same on every rank; its cause is what the engine said."""
    return RankError(
        f"not all ranks took part in this call within its limit of {limit:g} s: one is late, is "
        "gone, or raised an error before it"
    )


def failed(rank: int, error: Exception) -> RankError:
    """Of an error that says nothing about other ranks, which wait until their limit."""
    return RankError(f"rank {rank}: a collective failed: {type(error).__name__}: {error}")
