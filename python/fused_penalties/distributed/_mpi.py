"""Collectives over a communicator of mpi4py."""

from __future__ import annotations

import atexit
import pickle
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from ._engine import GREETING, Past, check_greetings, failed, not_in_it, too_late

_SPINS = 2000  # tests of a request before this begins to sleep between them: about a millisecond
_SLEEP = 50e-6
_GRACE = 1.0  # seconds in which other ranks, which waited as long, may say what they saw

# What MPI may still write to: a collective that has begun cannot be taken back.
_given_up: list[Any] = []

# Under which a communicator keeps its `Past`: MPI's own way to attach something to it, whichever
# of mpi4py's objects it is given as.
_PAST = MPI.Comm.Create_keyval()


class MpiEngine:
    """An `Engine`."""

    def __init__(self, comm: Any, limit: float) -> None:
        if comm == MPI.COMM_NULL:
            raise not_in_it()
        self._comm = comm
        past = comm.Get_attr(_PAST)
        if past is None:
            past = Past()
            comm.Set_attr(_PAST, past)
        self.past: Past = past
        self.rank = comm.Get_rank()
        self.size = comm.Get_size()
        self.limit = limit

    def all_reduce(self, words: NDArray[np.int64], *, maximum: bool = False) -> NDArray[np.int64]:
        reduced = np.empty_like(words)
        how = MPI.MAX if maximum else MPI.SUM
        work = self._start(lambda: self._comm.Iallreduce(words, reduced, how))
        self._wait(work, words, reduced)
        return reduced

    def all_to_all(
        self, data: Any, sent: Sequence[int], received: Sequence[int]
    ) -> Callable[[], Any]:
        source = data if isinstance(data, np.ndarray) else data.cpu().numpy()
        target = np.empty(sum(received), np.uint8)
        work = self._start(
            lambda: self._comm.Ialltoallv([source, list(sent)], [target, list(received)])
        )

        def end() -> Any:
            self._wait(work, source, target)
            return target

        return end

    def all_gather(self, mine: Any) -> list[Any]:
        message = np.frombuffer(pickle.dumps(mine), np.uint8)
        greeting = np.array([[GREETING, len(message)]], np.int64)
        greetings = np.empty((self.size, 2), np.int64)
        work = self._start(lambda: self._comm.Iallgather(greeting, greetings))
        self._wait(work, greeting, greetings)
        lengths = check_greetings(greetings, self.past)
        messages = np.empty(sum(lengths), np.uint8)
        work = self._start(lambda: self._comm.Iallgatherv(message, [messages, lengths]))
        self._wait(work, message, messages)
        parts = np.split(messages, np.cumsum(lengths)[:-1])
        return [pickle.loads(part.tobytes()) for part in parts]

    def _start(self, collective: Callable[[], Any]) -> Any:
        self.past.check()
        return collective()

    def _wait(self, work: Any, *memory: Any) -> None:
        error: MPI.Exception | None = None
        try:
            if self._has_come(work):
                return
        except MPI.Exception as fault:  # such as a message of another length
            error = fault
        if not _given_up:
            atexit.register(self._abort)
        _given_up.append((work, memory))
        found = too_late(self.limit) if error is None else failed(self.rank, error)
        raise self.past.give_up(found) from error

    def _has_come(self, work: Any) -> bool:
        """Waits; False if it has not come within the limit."""
        end = time.monotonic() + self.limit
        spins = 0
        while not work.Test():
            spins += 1
            if spins < _SPINS:
                continue
            if time.monotonic() > end:
                return False
            time.sleep(_SLEEP)
        return True

    def _abort(self) -> None:
        """In place of the end of MPI, which would wait for ranks that do not come."""
        time.sleep(_GRACE)
        self._comm.Abort(1)
