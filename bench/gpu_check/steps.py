"""What the check's steps are made of: their time, their commands, and what came of each."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SECONDS = float(os.environ.get("GPU_CHECK_SECONDS", 570))
LEAST = 10.0  # seconds; a step that would get less is not begun

# What ncu and compute-sanitizer print where the machine does not let them do their work.
REFUSED = (
    r"^==.*(ERR_NVGPUCTRPERM|Failed to initialize the profiler|LibraryNotLoaded"
    r"|Device not supported|Internal Sanitizer Error)"
)


@dataclass
class Ran:
    """How a command ended; without a status it was stopped at its limit."""

    status: int | None
    output: str
    seconds: float

    def line(self, pattern: str) -> str:
        """The last line of the output with the pattern, or nothing."""
        lines = [text for text in self.output.splitlines() if re.search(pattern, text)]
        return re.sub(r"^=+(ERROR=+)? *|[ =]+$", "", lines[-1].strip()) if lines else ""


class Steps:
    """Steps that share the time, run in the same environment and leave their logs in `folder`."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.started = time.monotonic()
        self.folder, self.environment = folder, environment
        self.steps: list[dict[str, Any]] = []
        self.processes: list[subprocess.Popen[bytes]] = []

    def left(self) -> float:
        return self.started + SECONDS - time.monotonic()

    def say(self, *text: str) -> None:
        print(*text, sep="\n", flush=True)
        with (self.folder / "check.log").open("a") as log:
            print(*text, sep="\n", file=log)

    def has(self, program: str) -> bool:
        return shutil.which(program, path=self.environment["PATH"]) is not None

    def run(self, command: list[Any], limit: float, log: str = "check.log") -> Ran:
        """Runs a command for at most so many seconds; what it prints is appended to the log."""
        start, path = time.monotonic(), self.folder / log
        with path.open("ab") as file:
            file.write(f"\n$ {shlex.join(map(str, command))}\n".encode())
            file.flush()
            begin = file.tell()
            process = self.start(command, file)
            status = ended(process, limit)
        with path.open("rb") as file:
            file.seek(max(begin, path.stat().st_size - 1_000_000))
            output = file.read().decode(errors="replace")
        cut(path)
        return Ran(status, output, time.monotonic() - start)

    def start(self, command: list[Any], output: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=os.setpgrp,  # to be stopped with all that it started
        )
        self.processes.append(process)
        return process

    def note(self, name: str, result: str, seconds: float = 0.0, **more: Any) -> bool:
        """Takes down what came of a step: passed, failed or not run, and why. True if it passed."""
        self.steps.append({"step": name, "result": result, "seconds": round(seconds, 1), **more})
        self.say(f"== {name}: {result}")
        (self.folder / "summary.json").write_text(json.dumps(self.steps, indent=1) + "\n")
        return result.startswith("passed")

    def begin(self, name: str, share: float, *needs: str) -> float:
        """The seconds that a step gets: a share of those left; 0 and a note if it cannot run."""
        if missing := [program for program in needs if not self.has(program)]:
            self.note(name, f"not run: {missing[0]} is neither on PATH nor in CUDA_HOME")
            return 0.0
        limit = self.left() * share
        if limit < LEAST:
            self.note(name, "not run: the time is used up")
            return 0.0
        self.say(f"== {name}, at most {limit:.0f} s")
        return limit

    def judge(self, name: str, ran: Ran, proof: str, log: str, enough: float = 0.0) -> bool:
        """Passed if the command ended with status 0 and printed a line with the proof.

        One that got less than `enough` seconds and was stopped has not failed.
        """
        line = ran.line(proof)
        if ran.status == 0 and line:
            return self.note(name, f"passed: {line}", ran.seconds)
        if ran.status is None and ran.seconds < enough:
            return self.note(
                name, f"not run: not done within the {ran.seconds:.0f} s that were left"
            )
        if refusal := ran.line(REFUSED):
            return self.note(name, f"not run: the machine refuses it: {refusal}", ran.seconds)
        if ran.status is None:
            why = f"stopped after {ran.seconds:.0f} s"
        else:
            why = f"status {ran.status}" if ran.status else f"no line with {proof}"
        self.say(*ran.output.splitlines()[-20:])
        return self.note(name, f"failed: {why}; see {log}", ran.seconds)

    def failed(self) -> bool:
        return any(step["result"].startswith("failed") for step in self.steps)

    def stop_all(self) -> None:
        """Ends whatever the steps have left running."""
        for process in self.processes:
            if process.poll() is None:
                stop(process)


def ended(process: subprocess.Popen[bytes], limit: float) -> int | None:
    """The exit status, or None if the process had to be stopped after so many seconds."""
    try:
        return process.wait(max(0.0, limit))
    except subprocess.TimeoutExpired:
        stop(process)
        return None


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it started; one of Python's prints its stacks first."""
    process.send_signal(signal.SIGABRT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(2.0)
    with suppress(ProcessLookupError):  # as soon as none of the group is left
        # ninja has its compilers in groups of their own, and ends them only if it is asked to end.
        os.killpg(process.pid, signal.SIGTERM)
        for _ in range(20):
            time.sleep(0.1)
            os.killpg(process.pid, 0)
        os.killpg(process.pid, signal.SIGKILL)
    # One that the driver holds does not even end then, and must not hold this one up.
    with suppress(subprocess.TimeoutExpired):
        process.wait(5.0)


def cut(path: Path, most: int = 8_000_000) -> None:
    """Keeps the end of a log: a run that goes wrong can write without end."""
    if path.stat().st_size > most:
        with path.open("rb") as file:
            file.seek(-most, os.SEEK_END)
            end = file.read()
        path.write_bytes(end)
