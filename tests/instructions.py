"""Counts the instructions of the hot paths with callgrind. Run, it writes instructions.json anew.

python tests/instructions.py    needs valgrind, the compiler that the file is of, and an
installed package that it has compiled
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import fused_penalties as fp
from source_tree import SOURCE, build, tool

FILE = Path(__file__).with_suffix(".json")
ISAS = ("avx2", "baseline")  # valgrind does not know AVX-512
EXTENSION = Path(fp._core.__file__)


def compiler_of(library: Path) -> str:
    """What compiled it, as "GCC 12"."""
    content = library.read_bytes()
    clang = re.search(rb"clang version (\d+)", content)
    gcc = re.search(rb"GCC: \([^)]*\) (\d+)", content)
    if clang:
        return f"clang {clang[1].decode()}"
    return f"GCC {gcc[1].decode()}" if gcc else "unknown"


def _callgrind(folder: Path, command: list[str | Path], *options: str) -> dict[str, Counter[str]]:
    """For each case that the command dumps, how many instructions each library ran."""
    out = folder / "callgrind"
    environment = {**os.environ, "FUSED_PENALTIES_ISA": "avx2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [tool("valgrind"), "--tool=callgrind", *options, f"--callgrind-out-file={out}", *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts = {}
    for path in folder.glob("callgrind.*"):
        text = path.read_text()
        if found := re.search(r"^desc: Trigger: Client Request: (.*)", text, re.MULTILINE):
            counts[found[1]] = _by_library(text)
        path.unlink()
    assert counts
    return counts


def _by_library(text: str) -> Counter[str]:
    """Of callgrind's format: a line of costs belongs to the last ob=, unless it is a call's."""
    names: dict[str, str] = {}
    counts: Counter[str] = Counter()
    library = ""
    is_of_call = False
    for line in text.splitlines():
        if named := re.match(r"c?ob=(\(\d+\))(?: (.*))?", line):
            if named[2]:
                names[named[1]] = named[2]
            if line.startswith("ob="):
                library = names[named[1]]
        elif line.startswith("calls="):
            is_of_call = True
        elif cost := re.match(r"[-+*\d]\S* (\d+)$", line):
            if not is_of_call:
                counts[library] += int(cost[1])
            is_of_call = False
    assert f"\ntotals: {counts.total()}\n" in text
    return counts


def of_kernels(folder: Path, program: Path, isa: str) -> dict[str, int]:
    counts = _callgrind(folder, [program, isa])
    return {name: counted.total() for name, counted in counts.items()}


def of_calls(folder: Path, library: Path) -> dict[str, dict[str, int]]:
    """Of each call, what the extension runs, and what Python, NumPy and the system do."""
    script = SOURCE / "tests/build/counted_calls.py"
    counts = _callgrind(folder, [sys.executable, script, library], "--instr-atstart=no")
    found = {}
    for name, counted in counts.items():
        own = counted[str(EXTENSION)]
        assert own
        found[name] = {"extension": own, "rest": counted.total() - own}
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        program = build(folder / "native", target="counted")
        library = build(folder / "native", target="counting")
        compilers = {compiler_of(program), compiler_of(EXTENSION)}
        assert len(compilers) == 1, compilers
        found = {
            "compiler": compilers.pop(),
            "kernels": {isa: of_kernels(folder, program, isa) for isa in ISAS},
            "python": sys.version,
            "calls": of_calls(folder, library),
        }
    FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
