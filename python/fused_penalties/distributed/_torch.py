"""Collectives over torch.distributed: gloo, and NCCL, with which this was never run."""

from __future__ import annotations

import pickle
import re
import time
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from ._engine import (
    GREETING,
    Past,
    RankError,
    check_greetings,
    failed,
    not_in_it,
    too_late,
)

_AWAKE = 0.005  # seconds

# What gloo, and torch of NCCL, say when the others are late or gone: "Operation timed out!",
# "Timed out waiting 3000ms for recv operation", "Connection closed by peer", "Read error …:
# Connection reset by peer", "Broken pipe", "Watchdog caught collective operation timeout",
# "ncclRemoteError: … a remote process exiting prematurely", "NCCL communicator was aborted".
_GONE = re.compile(r"tim(ed |e)out|closed|closure|by peer|remote|broken pipe|was aborted", re.I)

_pasts: weakref.WeakKeyDictionary[Any, Past] = weakref.WeakKeyDictionary()


class TorchEngine:
    """An `Engine`."""

    def __init__(self, group: Any, limit: float) -> None:
        self._group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self.limit = limit
        if self.rank < 0:
            raise not_in_it()
        self.past = _pasts.setdefault(dist.group.WORLD if group is None else group, Past())
        # "cpu:gloo,cuda:nccl" is what a group has without a choice: small words go by gloo only
        # where there is nothing else.
        on_gpu = "cuda:nccl" in dist.get_backend_config(group) and torch.cuda.is_available()
        self._device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else "cpu"

    def all_reduce(self, words: NDArray[np.int64], *, maximum: bool = False) -> NDArray[np.int64]:
        reduced = torch.from_numpy(words).to(self._device)
        how = dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM
        work = self._start(lambda: dist.all_reduce(reduced, how, self._group, async_op=True))
        self._wait(work)
        return reduced.cpu().numpy()  # type: ignore[no-any-return]

    def all_to_all(
        self, data: Any, sent: Sequence[int], received: Sequence[int]
    ) -> Callable[[], Any]:
        source = (data if isinstance(data, torch.Tensor) else torch.from_numpy(data)).to(
            self._device
        )
        target = torch.empty(sum(received), dtype=torch.uint8, device=self._device)
        work = self._start(
            lambda: dist.all_to_all_single(
                target, source, list(received), list(sent), group=self._group, async_op=True
            )
        )

        def end() -> Any:
            self._wait(work)
            return target

        return end

    def all_gather(self, mine: Any) -> list[Any]:
        message = np.frombuffer(pickle.dumps(mine), np.uint8)
        greeting = torch.tensor([[GREETING, len(message)]], device=self._device)
        greetings = self._gathered(greeting)
        lengths = check_greetings(greetings.cpu().numpy(), self.past)
        padded = np.zeros((1, max(lengths)), np.uint8)
        padded[0, : len(message)] = message
        rows = self._gathered(torch.from_numpy(padded).to(self._device)).cpu().numpy()
        return [
            pickle.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)
        ]

    def _gathered(self, row: Any) -> Any:
        rows = [torch.empty_like(row) for _ in range(self.size)]
        self._wait(
            self._start(lambda: dist.all_gather(rows, row, group=self._group, async_op=True))
        )
        return torch.cat(rows)

    def _start(self, collective: Callable[[], Any]) -> Any:
        self.past.check()
        try:
            return collective()
        except RuntimeError as error:
            raise self._failed(error) from error

    def _failed(self, error: RuntimeError) -> RankError:
        """What a collective has raised: mostly that another rank did not come, or is gone."""
        gone = _GONE.search(str(error))
        return self.past.give_up(too_late(self.limit) if gone else failed(self.rank, error))

    def _wait(self, work: Any) -> None:
        # A processor that has gone to sleep may take longer to wake than the words to arrive.
        soon = time.monotonic() + min(_AWAKE, self.limit)
        while not work.is_completed() and time.monotonic() < soon:
            time.sleep(0)  # lets the engine's threads have this processor
        try:
            work.wait(timedelta(seconds=self.limit))
        except RuntimeError as error:
            raise self._failed(error) from error
