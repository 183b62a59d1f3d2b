"""The source tree, for tests that compile of it what is not installed, and their tools."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1]

# The tools of the environment that runs pytest come first, whether or not it is activated.
PATH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])


def tool(name: str) -> str:
    """The path of a program that need not be there."""
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def build(folder: Path, *options: str, target: str = "driver") -> Path:
    """Builds the driver, or another program of tests/native, and returns it."""
    cmake, environment = shutil.which("cmake", path=PATH), {**os.environ, "PATH": PATH}
    assert cmake is not None, 'the extra "test" installs cmake'
    configure = [cmake, "-S", SOURCE / "tests/native", "-B", folder, "-G", "Ninja", *options]
    for command in (configure, [cmake, "--build", folder, "--target", target]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning:" not in done.stdout + done.stderr
    return folder / target
