"""A fresh Python: for what cannot be undone, or might not come back, in the one of pytest."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap


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
