"""What one warp of the GPU's kernels does, on the host, without Python and under sanitizers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from source_tree import build

# The parts of tests/native/warp, and how many cases each has at least.
PARTS = {
    "trees": 1_500_000,
    "changes": 8_000_000,
    "search": 5_000_000,
    "sweep": 30_000,
    "limbs": 160_000,
    "lists": 60_000,
}


@pytest.fixture(scope="module", params=["", pytest.param("GPU_ROWS=8", marks=pytest.mark.slow)])
def warp(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, which ends at the first access beyond an array and at undefined behaviour.

    Also with the number of rows that the benchmark times beside the default.
    """
    flags = "-O2 -fsanitize=address,undefined -fno-sanitize-recover=all"
    if request.param:
        flags += f" -DFUSED_PENALTIES_{request.param}"
    # In the place of -O3, which takes twice as long to compile and runs no faster.
    option = f"-DCMAKE_CXX_FLAGS_RELEASE={flags}"
    return build(tmp_path_factory.mktemp("warp"), option, target="warp")


@pytest.mark.parametrize("part", PARTS)
def test_like_the_plain_code(warp: Path, part: str) -> None:
    """Blocks of every length, tables of any shape, any limbs, lists of buffers."""
    done = subprocess.run(
        [warp, part, "1"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.fullmatch(r"(\d+) cases\n", done.stdout)
    assert found
    assert int(found[1]) >= PARTS[part]
