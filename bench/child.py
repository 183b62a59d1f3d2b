"""A process of its own for what it measures, with as many cores as it may have threads.

Libraries choose their threads when they are imported, by the cores that the process may use, and
threads of one may disturb another. `rows` starts such a process, which imports a module and sends
what its function `rows` yields.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.settings import Settings

ROOT = Path(__file__).parents[1]


class Failed(Exception):
    """The process ended early; the text is the end of what it said."""


def rows(
    module: str,
    settings: Settings,
    threads: int | None = None,
    environment: dict[str, str] | None = None,
    **arguments: Any,
) -> Iterator[dict[str, Any]]:
    """The rows that `module.rows(settings, **arguments)` yields in a process of its own."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    more = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    job = {
        "module": module,
        "threads": threads,
        "pace": settings.pace,
        "deadline": settings.deadline,
        "arguments": arguments,
    }
    reading, writing = os.pipe()
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.child", str(writing), json.dumps(job)],
            env={
                **os.environ,
                **more,
                **(environment or {}),
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            },
            pass_fds=[writing],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
        os.close(writing)
        try:
            with open(reading) as messages:
                for line in messages:
                    what, *content = json.loads(line)
                    if what == "row":
                        yield content[0]
                    else:
                        getattr(settings, what)(*content)
            if process.wait():
                said.seek(0)
                lines = said.read().strip().splitlines() or ["without a word"]
                raise Failed("\n".join(lines[-30:]))
        finally:
            process.kill()
            process.wait()


def main() -> None:
    job = json.loads(sys.argv[2])
    if job["threads"] is not None and hasattr(os, "sched_setaffinity"):
        # The last ones: systems like to do their own work on the first.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-job["threads"] :])
    with os.fdopen(int(sys.argv[1]), "w", buffering=1) as out:

        def send(*message: Any) -> None:
            print(json.dumps(message), file=out)

        settings = Settings(
            job["pace"],
            job["deadline"],
            leave_out=lambda *of: send("leave_out", *of),
            doing=lambda *of: send("doing", *of),
            expect=lambda *of: send("expect", *of),
        )
        for row in importlib.import_module(job["module"]).rows(settings, **job["arguments"]):
            send("row", row)


if __name__ == "__main__":
    main()
