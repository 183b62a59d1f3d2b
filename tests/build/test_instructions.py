"""A guard against slow-downs: the hot paths run as many instructions as instructions.json says.

Whoever changes them on purpose, to fewer or to more, runs `python tests/instructions.py`, and
the change of the file shows what it came to. Instructions are not time, but they can be counted on
any machine, however busy. The counts are of one compiler; with another these tests are skipped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fused_penalties as fp
import instructions
from source_tree import build, tool

COMMITTED = json.loads(instructions.FILE.read_text())
# Minor versions of a compiler differ by less, and what is worth a warning by more. What Python runs
# in a call also differs from one release of NumPy to the next.
TOLERANCE, TOLERANCE_OF_THE_REST = 0.03, 0.15


def needs_isa(isa: str) -> None:
    if isa not in fp._core.supported_isas():
        pytest.skip(f"this processor has no {isa}")


def needs_compiler(path: Path) -> None:
    found = instructions.compiler_of(path)
    if found != COMMITTED["compiler"]:
        pytest.skip(f"the counts are of {COMMITTED['compiler']}; this compiler is {found}")


@pytest.fixture(scope="module")
def programs(native: list[str]) -> Path:
    """The folder that has them."""
    tool("valgrind")
    asked = ["c++", "-E", "-x", "c++", "-include", "valgrind/callgrind.h", "/dev/null"]
    if subprocess.run(asked, capture_output=True, check=False).returncode:
        pytest.skip("valgrind's headers are not installed")
    folder = Path(native[0]).parent
    build(folder, target="counting")
    return build(folder, target="counted").parent


@pytest.fixture(scope="module")
def calls(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    needs_isa("avx2")
    return instructions.of_calls(tmp_path_factory.mktemp("calls"), programs / "counting")


def compare(found: dict[str, int], committed: dict[str, int], tolerance: float) -> None:
    assert found.keys() == committed.keys()
    off = {name: n / committed[name] for name, n in found.items()}
    off = {name: ratio for name, ratio in off.items() if abs(ratio - 1) > tolerance}
    said = [f"{name}: {found[name]:,}, {ratio:.3f} of what it was" for name, ratio in off.items()]
    assert not off, "\n".join(said)


@pytest.mark.parametrize("isa", instructions.ISAS)
def test_kernels_and_sweeps(programs: Path, tmp_path: Path, isa: str) -> None:
    needs_isa(isa)
    needs_compiler(programs / "counted")
    found = instructions.of_kernels(tmp_path, programs / "counted", isa)
    compare(found, COMMITTED["kernels"][isa], TOLERANCE)


@pytest.mark.parametrize(
    ("part", "tolerance"), [("extension", TOLERANCE), ("rest", TOLERANCE_OF_THE_REST)]
)
def test_calls_from_python(calls: dict[str, dict[str, int]], part: str, tolerance: float) -> None:
    needs_compiler(instructions.EXTENSION)
    if part == "rest" and sys.version != COMMITTED["python"]:
        pytest.skip(f"the counts are of Python {COMMITTED['python']}, and not of this Python")
    compare(
        {name: counts[part] for name, counts in calls.items()},
        {name: counts[part] for name, counts in COMMITTED["calls"].items()},
        tolerance,
    )
