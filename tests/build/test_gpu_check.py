"""bench/gpu_check.sh without a GPU: every tool is a stub, and each in turn goes wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"
CARD = "NVIDIA Stub 1"

PROGRAMS = {
    "python3": f'exec {sys.executable} "$@"',
    "nvidia-smi": f"""
        case "$*" in
            -L) echo "GPU 0: {CARD} (UUID: GPU-0)" ;;
            *name,driver_version*) echo "{CARD}, 580.1" ;;
            *clocks.sm*) echo "1980, 3201, 400.5, 50"; exec sleep 60 ;;
        esac""",
    "nvcc": 'echo "Cuda compilation tools, release 13.0"',
    "ncu": 'echo "gpu__time_duration.sum us 300"',
    # Run on the tests it finds an error; otherwise it does what it is told to.
    "compute-sanitizer": """
        echo "$*"
        case "$*" in
            *racecheck*) echo "RACECHECK SUMMARY: 0 hazards displayed" ;;
            *test_stub*) echo "ERROR SUMMARY: 1 error"; exit 9 ;;
            *) echo "ERROR SUMMARY: 0 errors" ;;
        esac""",
    **dict.fromkeys(("cmake", "ninja", "c++"), "true"),
}
PACKAGE = """
from types import SimpleNamespace as Names
build_info = dict
cuda = Names(is_available=lambda: True)
"""
PIP = f"""
import sys, time, zipfile
from pathlib import Path
words = sys.argv[1:]
if "." in words:
    BUILD
    target = Path(words[words.index("--target") + 1], "fused_penalties")
    target.mkdir(parents=True)
    (target / "__init__.py").write_text({PACKAGE!r})
elif "install" in words:
    folder, target = (words[words.index(w) + 1] for w in ("--find-links", "--target"))
    (wheel,) = Path(folder).glob(words[-1] + "-*.whl")
    zipfile.ZipFile(wheel).extractall(target)
"""
CUPY = """
from types import SimpleNamespace as Names
error = None
def synchronize():
    if error:
        raise RuntimeError(error)
cuda = Names(Device=lambda: Names(synchronize=synchronize))
"""
SCRIPTS = {
    "cases/gpu/measure.py": """
import sys
from pathlib import Path
print("Must reach")
Path(sys.argv[2]).write_text('{"results": []}')
Path(sys.argv[4]).write_text("a picture")
""",
    "gpu_check/variants.py": """
import sys
from pathlib import Path
print("times as fast", [word.split("=")[0] for word in sys.argv[5:]])
Path(sys.argv[2]).write_text('{"results": []}')
""",
    "gpu_check/short.py": "",
}
CONFTEST = """
def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true")
"""
GOOD_TESTS = "def test_good(): pass"
BAD_TESTS = """
import ctypes, os, time
import cupy

def test_fails(): assert 0, "the reason"
def test_waits_for_ever(): ctypes.PyDLL(None).sleep(60)  # nothing else can run meanwhile
def test_is_slow(): time.sleep(0.8)
def test_loses_the_gpu():
    cupy.error = "cudaErrorIllegalAddress"
    assert 0
def test_good_after_that(): assert cupy.error is None
def test_crashes(): os.abort()
def test_good(): pass
"""


class Machine:
    """A copy of what is tested, among stubs."""

    def __init__(self, folder: Path) -> None:
        self.root, self.out, self.wheels = folder / "root", folder / "out", folder / "wheels"
        self.programs, self.packages = folder / "programs", folder / "packages"
        for path in (self.root / "tests" / "cuda", self.wheels, self.programs):
            path.mkdir(parents=True)
        shutil.copytree(BENCH / "gpu_check", self.root / "bench" / "gpu_check")
        shutil.copy(BENCH / "gpu_check.sh", self.root / "bench")
        (self.root / "pytest.ini").write_text("[pytest]\nmarkers = cuda\n")
        (self.root / "tests" / "conftest.py").write_text(CONFTEST)
        for name, code in SCRIPTS.items():
            path = self.root / "bench" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code)
        for name, code in PROGRAMS.items():
            self.program(name, code)
        script = (self.root / "bench" / "gpu_check" / "__main__.py").read_text()
        needed = re.search(r"^PACKAGES = (\{.*?^\})", script, re.MULTILINE | re.DOTALL)
        assert needed is not None
        for module in (module for step in eval(needed[1]).values() for module in step):
            if module not in ("pytest", "hypothesis"):
                self.package(module, "")
        self.package("cupy", CUPY)
        self.package("pip", "")
        self.build_does("pass")
        self.write_tests(GOOD_TESTS)
        self.change("LEAST = 10.0", "LEAST = 1.0", "steps.py")
        patience = "PATIENCE, MORE_PATIENCE = "
        self.change(f"{patience}3.0, 20.0", f"{patience}0.5, 2.0", "cuda_tests.py")

    def program(self, name: str, code: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{code}\n")
        path.chmod(0o755)

    def package(self, name: str, code: str) -> None:
        path = self.packages / (f"{name}.py" if "/" in name else f"{name}/__init__.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)

    def build_does(self, code: str) -> None:
        self.package("pip/__main__", PIP.replace("BUILD", code))

    def write_tests(self, code: str) -> None:
        mark = "import pytest\npytestmark = pytest.mark.cuda  # as gpu.marks has it\n"
        (self.root / "tests" / "cuda" / "test_stub.py").write_text(mark + code)

    def change(self, old: str, new: str, script: str = "__main__.py") -> None:
        path = self.root / "bench" / "gpu_check" / script
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))

    def check(self, *arguments: Path, seconds: float = 100.0) -> int:
        environment = {
            **os.environ,
            "PATH": f"{self.programs}:/usr/bin:/bin",
            "PYTHONPATH": str(self.packages),
            "GPU_CHECK_SECONDS": str(seconds),
        }
        environment.pop("PYTEST_ADDOPTS", None)
        command = ["bash", self.root / "bench" / "gpu_check.sh", self.out, *arguments]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=150, check=False
        )
        self.printed = done.stdout + done.stderr
        files = [path for path in self.out.rglob("*") if path.is_file()]
        assert len(files) <= 8, files
        return done.returncode

    def steps(self) -> dict[str, Any]:
        steps = json.loads((self.out / "summary.json").read_text())
        return {step["step"]: step for step in steps}

    def results(self) -> dict[str, str]:
        """Only whether each step passed, failed or was not run."""
        return {name: step["result"].partition(":")[0] for name, step in self.steps().items()}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


ALL = ["build", "build, 8 rows", "build, prefetch", "tests", "bench", "variants", "ncu"]
ALL += ["memcheck", "racecheck"]


def test_all_is_well(machine: Machine) -> None:
    assert machine.check() == 0, machine.printed
    assert machine.results() == dict.fromkeys(ALL, "passed"), machine.printed
    (figures,) = machine.out.glob("nvidia-stub-1-????-??-??.json")
    found = json.loads(figures.read_text())
    assert (found["card"], found["driver"]) == (CARD, "580.1")
    assert found["date"] in figures.name
    assert found["clocks"]["clocks.sm"]["median"] == 1980
    assert found.keys() >= {"gpu", "variants", "nvcc", "python", "command"}
    assert str(machine.root) not in figures.read_text()
    assert figures.with_suffix(".png").read_text() == "a picture"
    assert "['default', '8 rows', 'prefetch']" in machine.printed


def test_tests_go_on_whatever_happens(machine: Machine) -> None:
    machine.write_tests(BAD_TESTS)
    (machine.root / "tests" / "cuda" / "test_broken.py").write_text("gpu.marks\n")
    machine.program("ncu", 'echo "==ERROR== ERR_NVGPUCTRPERM - no permission"; exit 1')
    assert machine.check() == 1, machine.printed
    found = machine.steps()["tests"]
    file = "tests/cuda/test_stub.py::test_"
    assert found["not_passed"] == {
        f"{file}fails": "failed",
        f"{file}waits_for_ever": "hung, stopped after 2 s",
        f"{file}loses_the_gpu": "failed",
        f"{file}crashes": "crashed",
        "tests/cuda/test_broken.py": "not collected",
    }
    assert "3 passed" in found["result"]  # the good ones and the slow one
    log = (machine.out / "tests.log").read_text()
    assert "the reason" in log
    assert re.search(r"Timeout \(.*\n(.*\n)+?.*in test_waits_for_ever", log), log
    # The first that lost the GPU, and none of the others, is looked at.
    results = machine.results()
    again = "memcheck of the first failure"
    assert results.pop(again) == "failed"
    assert "test_loses_the_gpu" in (machine.out / "sanitizer.log").read_text()
    assert results == dict.fromkeys(ALL, "passed") | {"tests": "failed", "ncu": "not run"}


def test_the_same_folder_on_another_day(machine: Machine) -> None:
    """What is not of this check stays; its own figures of the day before do not."""
    assert machine.check() == 0, machine.printed
    before = {path.name for path in machine.out.iterdir()}
    others = machine.out / "another-card-2031-01-01.json"
    others.write_text("{}")
    machine.change("datetime.date.today()", "datetime.date(2031, 1, 2)")
    assert machine.check() == 0, machine.printed
    after = {path.name for path in machine.out.iterdir()}
    assert others.name in after
    of_the_day = {f"nvidia-stub-1-2031-01-02.{end}" for end in ("json", "png")}
    assert after - before == {others.name, *of_the_day}
    assert len(before - after) == 2


def test_a_line_that_a_process_did_not_write_to_its_end(machine: Machine) -> None:
    machine.write_tests(
        """
import os, sys
def test_good(): pass
def test_ends():
    journal = sys.argv[sys.argv.index("--journal") + 1]
    with open(journal, "a") as file:
        file.write('{"test": "tests/cuda/test_st')
    os._exit(3)
def test_another(): pass
"""
    )
    assert machine.check() == 1, machine.printed
    found = machine.steps()["tests"]
    assert found["not_passed"] == {"tests/cuda/test_stub.py::test_ends": "crashed"}
    assert "2 passed" in found["result"]


def test_what_the_machine_does_not_allow_is_no_failure(machine: Machine) -> None:
    machine.program("compute-sanitizer", 'echo "========= Error: Device not supported."; exit 1')
    (machine.programs / "ncu").unlink()
    assert machine.check() == 0, machine.printed
    left_out = dict.fromkeys(("ncu", "memcheck", "racecheck"), "not run")
    assert machine.results() == dict.fromkeys(ALL, "passed") | left_out


def test_a_build_fails(machine: Machine) -> None:
    machine.build_does("sys.exit('no such header')")
    assert machine.check() == 1, machine.printed
    assert set(machine.results().values()) == {"failed"}
    assert "no such header" in machine.printed


def test_one_variant_fails(machine: Machine) -> None:
    machine.build_does("if 'GPU_ROWS=8' in str(words): sys.exit(1)")
    assert machine.check() == 1, machine.printed
    assert machine.results() == dict.fromkeys(ALL, "passed") | {"build, 8 rows": "failed"}
    assert "['default', 'prefetch']" in machine.printed


def test_a_build_hangs(machine: Machine) -> None:
    machine.build_does("time.sleep(60)")
    machine.change('self.begin("build", 0.45)', "1.0")
    assert machine.check() == 1
    assert set(machine.results().values()) == {"failed"}
    assert "Fatal Python error: Aborted" in (machine.out / "build.log").read_text()


def test_the_benchmark_gets_too_little_time(machine: Machine) -> None:
    """It is stopped, with its stacks in the log; that is no failure, and the others go on."""
    (machine.root / "bench/cases/gpu/measure.py").write_text("import time\ntime.sleep(60)\n")
    machine.change('self.begin("bench", 0.6)', "1.0")
    assert machine.check() == 0, machine.printed
    assert machine.results() == dict.fromkeys(ALL, "passed") | {"bench": "not run"}
    assert "Fatal Python error: Aborted" in (machine.out / "check.log").read_text()


def test_the_time_is_used_up(machine: Machine) -> None:
    assert machine.check(seconds=0.1) == 2
    assert machine.results() == {"build": "not run"}
    assert "the time is used up" in machine.printed


def test_nothing_can_run(machine: Machine) -> None:
    machine.program("nvidia-smi", "exit 9")
    assert machine.check() == 2
    assert "no NVIDIA GPU" in machine.printed


def test_what_is_missing_can_be_brought(machine: Machine) -> None:
    machine.change('"pybind11": ""', '"surely_not_there": "its-package"')
    assert machine.check() == 2
    assert "pip download" in machine.printed
    assert "its-package" in machine.printed
    with zipfile.ZipFile(machine.wheels / "its_package-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("surely_not_there.py", "")
    assert machine.check(machine.wheels) == 0, machine.printed
