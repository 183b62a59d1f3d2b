"""Kernels and binding under AddressSanitizer and UndefinedBehaviorSanitizer, which end the process.

test_native.py has the thread pool under them, and test_cuda_program.py the GPU's program.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import fresh
from source_tree import SOURCE, build, build_package, run
from test_native import isas, stress

pytestmark = pytest.mark.slow

COMPILER = shlex.split(os.environ.get("CXX") or "c++")
# With sanitizers GCC takes memory for uninitialized that is not, in its own headers too.
FLAGS = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -Wno-uninitialized"
FLAGS += " -Wno-maybe-uninitialized"
# Memory of any owner and layout, objects that return anything, and all that a plan writes.
RAN = ["hostile", "inputs", "entries", "layouts", "streaming"]
RAN += ["plan", "plan_memory", "plan_updates"]
# Python itself leaves memory behind when it ends. Tests want to see the signal of a bad access.
OPTIONS = "detect_leaks=0:handle_segv=0"


@pytest.fixture(scope="module", autouse=True)
def needs_sanitizers(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("empty")
    (folder / "empty.cpp").write_text("int main() {}\n")
    command = [*COMPILER, *FLAGS.split(), "empty.cpp"]
    tried = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"{COMPILER[0]} has no sanitizers: {tried.stderr.strip()}")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What lets Python, which is built without sanitizers, load an extension that has them."""
    libraries = []
    # The C++ library, too: AddressSanitizer looks for what throws exceptions when it is loaded.
    for name in ("libasan.so", "libubsan.so", "libstdc++.so"):
        asked = subprocess.check_output([*COMPILER, f"-print-file-name={name}"], text=True)
        if not Path(asked.strip()).is_absolute():
            pytest.skip(f"{COMPILER[0]} has no {name} that could be loaded into Python")
        libraries.append(asked.strip())
    package = build_package(
        tmp_path_factory.mktemp("sanitized"), CMAKE_CXX_FLAGS=FLAGS, FUSED_PENALTIES_CUDA="OFF"
    )
    return {
        "LD_PRELOAD": ":".join(libraries),
        "ASAN_OPTIONS": OPTIONS,
        "PYTHONPATH": str(package),
    }


def test_random_lists(tmp_path: Path) -> None:
    """Every body of this processor; no byte beside a buffer is read or written."""
    options = ["-DCMAKE_BUILD_TYPE=Debug", f"-DCMAKE_CXX_FLAGS_DEBUG={FLAGS}"]
    driver = [str(build(tmp_path, *options))]
    assert len(isas(driver)) > 1
    stress(driver, seed=2_000_000, lists=200_000)


def test_a_read_beyond_an_array_is_seen(environment: dict[str, str]) -> None:
    """Else the next test would show nothing."""
    code = """
        import numpy as np
        import fused_penalties as fp

        x = np.ones(1000, np.float32)
        print(fp.sums(x).total_abs, flush=True)
        fp.sums(np.lib.stride_tricks.as_strided(x, (1001,)))
        print("not seen")
    """
    done = fresh.run(code, **environment)
    assert done.stdout == "1000.0\n"
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr


def test_hostile_and_clumsy_input(environment: dict[str, str]) -> None:
    files = [path for name in RAN for path in (SOURCE / "tests").rglob(f"test_{name}.py")]
    assert len(files) == len(RAN)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    passed = re.search(r"^(\d+) passed", run(command, **environment), re.MULTILINE)
    assert passed
    assert int(passed[1]) > 1500
