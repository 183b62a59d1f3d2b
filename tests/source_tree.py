"""The source tree, for tests that compile of it what is not installed, and their tools."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
import pytest

import fused_penalties as fp

SOURCE = Path(__file__).resolve().parents[1]
if not (SOURCE / "CMakeLists.txt").exists():
    pytest.skip("needs the source tree", allow_module_level=True)

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


def run(command: list[str | Path], **environment: str) -> str:
    """Runs a command, which must succeed, and returns what it prints."""
    surroundings = {**os.environ, "PATH": PATH, **environment}
    surroundings.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(
        command, cwd=SOURCE, env=surroundings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    return done.stdout + done.stderr


def build_package(folder: Path, **options: str) -> Path:
    """Builds the package in `folder`/build, and returns where Python finds it."""
    package = folder / "package" / "fused_penalties"
    options |= {
        # Compiles faster, the kernels too; the tests take as long with it.
        "CMAKE_BUILD_TYPE": "Debug",
        "CMAKE_CXX_FLAGS_DEBUG": "-O1",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "SKBUILD_PROJECT_VERSION_FULL": fp.__version__,
    }
    definitions = [f"-D{name}={value}" for name, value in options.items()]
    build = folder / "build"
    run(["cmake", "-S", SOURCE, "-B", build, "-G", "Ninja", *definitions])
    assert "warning:" not in run(["cmake", "--build", build])
    shutil.copytree(SOURCE / "python" / "fused_penalties", package)
    (extension,) = build.glob("_core*.so")
    shutil.copy(extension, package)
    return package.parent
