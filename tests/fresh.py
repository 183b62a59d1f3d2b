"""A fresh Python: for what cannot be undone, or might not come back, in the one of pytest."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path


def run(code: str, timeout: float = 120.0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` with these variables added to the environment, whatever its exit status."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def output(code: str, timeout: float = 120.0, **environment: str) -> str:
    """What `code` prints; it must succeed."""
    done = run(code, timeout, **environment)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr}"
    return done.stdout.strip()


def run_cases(
    files: Iterable[Path], environment: Mapping[str, str], warnings: Iterable[str] = ()
) -> None:
    """Runs files of tests, which must pass; `warnings` are pytest's filters of what others warn."""
    surroundings = {**os.environ, **environment}
    surroundings.pop("PYTEST_ADDOPTS", None)  # meant for the pytest that runs this
    filters = [word for warning in warnings for word in ("-W", warning)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *filters, *files],
        env=surroundings,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
