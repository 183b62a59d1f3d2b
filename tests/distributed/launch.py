"""Programs that run on several ranks: real processes, on the loopback alone, bounded in time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

HERE = Path(__file__).parent
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # ranks share the cores
    "GLOO_SOCKET_IFNAME": "lo",
    "MASTER_ADDR": "127.0.0.1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


class Ended(NamedTuple):
    status: int
    output: str


def torch_ranks(program: str, count: int, folder: Path, *arguments: str) -> list[Ended]:
    """Runs a program of this folder as so many ranks, and waits for all.

    Each is told its rank, how many there are, a folder that they share, and the arguments.
    """
    commands = [
        [sys.executable, str(HERE / program), str(rank), str(count), str(folder), *arguments]
        for rank in range(count)
    ]
    return _run(commands, limit=200.0)


def mpi_ranks(
    launcher: Sequence[str], count: int, folder: Path, which: str, **environment: str
) -> Ended:
    """The same of `mpi_cases.py` under a launcher of MPI, which ends with Python's path."""
    *mpiexec, python = launcher
    command = [*mpiexec, "-n", str(count), python, str(HERE / "mpi_cases.py"), str(folder), which]
    return _run([command], limit=60.0, **environment)[0]


def leave(folder: Path, rank: int, count: int) -> NoReturn:
    """Ends one of torch's ranks when all have come to their end.

    At the end of a process gloo was seen to abort, where another one had gone before.
    """
    (folder / f"{rank}.ended").touch()
    latest = time.monotonic() + 30.0
    while time.monotonic() < latest:
        if all((folder / f"{one}.ended").exists() for one in range(count)):
            break
        time.sleep(0.01)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def told(call: Callable[[], Any]) -> str:
    """What a call raises, or what it returned in its place."""
    try:
        found = call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return f"no error but {found!r}"


def answers(folder: Path, count: int) -> list[dict[str, Any]]:
    """What each rank has written."""
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


def check_pairs(folder: Path, count: int) -> None:
    """Each rank has found what it wanted, bit by bit, and not nothing."""
    for rank, found in enumerate(answers(folder, count)):
        assert found
        for name, (one, other) in found.items():
            assert one == other, f"{name} on rank {rank} of {count}"


def _run(commands: Sequence[Sequence[str]], limit: float, **environment: str) -> list[Ended]:
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **ENVIRONMENT, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a process group of its own, to be killed as one
        )
        for command in commands
    ]
    end = time.monotonic() + limit
    ended = []
    try:
        for process in started:
            output, _ = process.communicate(timeout=max(0.1, end - time.monotonic()))
            ended.append(Ended(process.returncode, output))
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"did not end within {limit:g} s: {error.output!r}") from None
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
    return ended
