"""All that must hold on a machine with a GPU, in one command and under ten minutes.

    bash bench/gpu_check.sh [FOLDER [WHEELS]]

Builds for this GPU, runs the tests of the `cuda` marker, the benchmark cases/gpu, the comparison of
builds variants.py, Nsight Compute on the kernel of the sums, and compute-sanitizer on short.py. At
most eight files are left in FOLDER (gpu-check): check.log, which begins with the
versions of everything; build.log, tests.log, sanitizer.log; summary.json; and figures for
bench/results, named after the card and the date, with a picture.

The machine needs nvcc, a C++ compiler, CMake and ninja and, in its python3, the packages in
PACKAGES below; no network. Packages that it lacks can be brought as wheels in the folder WHEELS.
Nothing is installed into that python3.

All must be done GPU_CHECK_SECONDS (570) after the start: each step gets a part of the time that is
left, and what comes first matters most. What the machine does not have or does not allow is "not
run", and no failure. Exit status: 0 if nothing failed, 1 if something did, 2 if nothing can run.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from cuda_tests import TestRun, pytest_command
from steps import LEAST, REFUSED, ROOT, Ran, Steps, cut, ended

# What python3 must have, by the step that first needs it: module, and its package's other name.
PACKAGES = {
    "build": {
        "scikit_build_core": "scikit-build-core",
        "pybind11": "",
        "packaging": "",
        "pathspec": "",
        "numpy": "",
        "ml_dtypes": "ml-dtypes",
        "rich": "",
        "safetensors": "",
        "cupy": "cupy-cuda13x",
    },
    "tests": {"pytest": "", "hypothesis": ""},
    "bench": {"torch": "", "matplotlib": ""},
}
PIP: list[Any] = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps"]
PROGRAMS = ("nvcc", "cmake", "ninja", "c++")

# The first is what users get; the others are compiled with one option changed, and timed beside it.
VARIANTS = {
    "default": "",
    "8 rows": "-DFUSED_PENALTIES_GPU_ROWS=8",
    "prefetch": "-DFUSED_PENALTIES_GPU_GRADIENT_PREFETCH=1",
}

FIGURES = "to be committed: bench/results/"  # in check.log, before the name of the file
METRICS = (
    "gpu__time_duration.sum",
    "dram__bytes_read.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
    "launch__occupancy_limit_registers",
    "sm__maximum_warps_per_active_cycle_pct",
    "launch__grid_size",
)
SUM_KERNEL = """
import cupy, fused_penalties as fp
weights = cupy.arange(1 << 28, dtype=cupy.float32)
plan = fp.Plan([weights], fp.regularizers.L2(0.5))
for _ in range(4):
    plan.value()
cupy.cuda.Device().synchronize()
"""
LACKS = """
import importlib, sys
for module in sys.argv[1:]:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        print("lacks", module, error.name.split(".")[0])
    except Exception:
        pass  # it is there, and the step that uses it will say what is wrong with it
"""
IMPORTED = """
import sys, fused_penalties as fp
print(fp.__file__, fp.build_info())
assert fp.__file__.startswith(sys.argv[1]), "another build is imported"
available = fp.cuda.is_available()
print("the GPU can be used" if available else available)
"""


class Check(Steps):
    def __init__(self, folder: Path, wheels: Path | None, scratch: Path) -> None:
        self.wheels, self.scratch = wheels, scratch
        self.suspect = ""  # the first test that took the GPU from its process
        self.clocks: dict[str, Any] = {}
        self.more = scratch / "more"  # what is there for Python beside the package
        self.more.mkdir()
        shutil.copy(Path(__file__).with_name("gpu_watch.py"), self.more)
        programs = [f"{self.more}/bin", os.environ.get("PATH", "")]
        programs += [f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin", "/usr/local/cuda/bin"]
        environment = {
            **os.environ,
            "PATH": os.pathsep.join(programs),
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            # Plugins that happen to be on the machine have no say in the tests.
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "COLUMNS": "120",
        }
        super().__init__(folder, environment)
        self.use(self.site("default"))

    def site(self, variant: str) -> Path:
        """Where one build of the package is installed."""
        return self.scratch / variant.replace(" ", "")

    def use(self, site: Path) -> None:
        paths = [str(site), str(self.more), os.environ.get("PYTHONPATH", "")]
        self.environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))

    def versions(self) -> None:
        commands = [
            "nvidia-smi",
            "nvidia-smi -q -d CLOCK",
            "nvcc --version",
            "c++ --version",
            "cmake --version",
            "compute-sanitizer --version",
            "ncu --version",
            "uname -a",
            f"{sys.executable} --version",
            f"{sys.executable} -m pip list",
        ]
        for command in map(str.split, commands):
            if self.has(command[0]):
                self.run(command, 20.0)
            else:
                self.say(f"{command[0]} is not here")

    def unpack_wheels(self) -> None:
        assert self.wheels is not None
        install = [*PIP, "--find-links", self.wheels, "--target", self.more]
        names = sorted({path.name.split("-")[0] for path in self.wheels.glob("*.whl")})
        if self.run([*install, *names], 30.0).status == 0:
            return
        for name in names:  # one that does not fit this Python must not keep the others away
            if self.run([*install, name], 30.0).status != 0:
                self.say(f"{name}: no wheel in WHEELS can be installed here; see check.log")

    def missing(self) -> dict[str, list[str]]:
        """The packages that python3 lacks, by step; says how to bring them."""
        modules = [module for step in PACKAGES.values() for module in step]
        ran = self.run([sys.executable, "-c", LACKS, *modules], 60.0)
        lacks = dict(re.findall(r"^lacks (\S+) (\S+)", ran.output, re.MULTILINE))
        missing: dict[str, list[str]] = {step: [] for step in PACKAGES}
        for step, packages in PACKAGES.items():
            for module in packages.keys() & lacks.keys():
                # What is not there may also be what a package that is there needs.
                lacking = packages[module] if lacks[module] == module else ""
                missing[step].append(lacking or lacks[module].replace("_", "-"))
        if names := [name for packages in missing.values() for name in packages]:
            python = f"{sys.version_info[0]}.{sys.version_info[1]}"
            self.say(
                f"python3 lacks {', '.join(names)}. Where there is a network, fetch the wheels:",
                "  python3 -m pip download -d WHEELS --no-deps --only-binary=:all:"
                f" --python-version {python} --platform manylinux_2_28_{platform.machine()}"
                f" --platform manylinux2014_{platform.machine()} {' '.join(names)}",
                "and bring the folder along: bash bench/gpu_check.sh FOLDER WHEELS",
            )
        return missing

    def build(self) -> dict[str, Ran]:
        """Builds all variants side by side."""
        limit, start = self.begin("build", 0.45), time.monotonic()
        if not limit:
            return {}
        processes = {}
        for name, flags in VARIANTS.items():
            target = self.site(name)
            options = ["FUSED_PENALTIES_CUDA=ON", "CMAKE_CUDA_ARCHITECTURES=native"]
            options += [f"CMAKE_CUDA_FLAGS={flags}"] if flags else []
            command = [*PIP, "-v", "--no-build-isolation", "--target", target, "."]
            for option in options:
                command += ["-C", f"cmake.define.{option}"]
            with (self.scratch / f"{target.name}.log").open("wb") as log:
                # Where processors are few, the first one is done first.
                processes[name] = self.start(["nice", *command] if flags else command, log)
        builds = {}
        for name, process in processes.items():
            status = ended(process, start + limit - time.monotonic())
            output = (self.scratch / f"{self.site(name).name}.log").read_text(errors="replace")
            with (self.folder / "build.log").open("a") as log:
                print(f"== {name} {VARIANTS[name]}", output, sep="\n", file=log)
            builds[name] = Ran(status, output, time.monotonic() - start)
        cut(self.folder / "build.log")
        return builds

    def built(self, builds: dict[str, Ran]) -> list[str]:
        """The variants that can be used, of which the first is a must."""
        usable = []
        for name, ran in builds.items():
            site, what = self.site(name), "build" if name == "default" else f"build, {name}"
            if ran.status == 0:
                self.use(site)
                proof = self.run(
                    [sys.executable, "-c", IMPORTED, f"{site}{os.sep}"], 60.0, "build.log"
                )
                ran = Ran(proof.status, proof.output, ran.seconds)
            if self.judge(what, ran, "^the GPU can be used$", "build.log"):
                usable.append(name)
                if self.has("cuobjdump"):  # registers and spills of every kernel
                    extension = next(site.glob("fused_penalties/_core*.so"), "")
                    self.run(["cuobjdump", "--dump-resource-usage", extension], 20.0, "build.log")
        self.use(self.site("default"))
        return usable

    def tests(self) -> None:
        limit, start = self.begin("tests", 0.5), time.monotonic()
        if not limit:
            return
        room = ROOT.glob("tests/cuda/test_*.py")
        files = [path for path in room if "gpu.marks" in path.read_text()]
        tests = TestRun(self, sorted(files), start + limit, LEAST)
        tests.everything()
        tests.slow_ones_again()
        self.suspect = tests.suspect
        counts = Counter(tests.outcomes.values())
        text = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
        if tests.left:
            text += f", {tests.left} not reached"
        others = {test: o for test, o in tests.outcomes.items() if o != "passed"}
        bad = [test for test, outcome in others.items() if outcome != "skipped"]
        for test in bad:
            self.say(f"{others[test]}: {test}")
        passed = counts["passed"] > 0 and not bad and not tests.left
        result = f"{'passed' if passed else 'failed'}: {text or 'none ran; see tests.log'}"
        self.note("tests", result, time.monotonic() - start, not_passed=others)

    def bench(self) -> None:
        if not (limit := self.begin("bench", 0.6)):
            return
        command = [sys.executable, "-m", "bench.cases.gpu.measure"]
        command += ["--json", self.scratch / "gpu.json"]
        command += ["--picture", self.scratch / "gpu.png"]
        # Its last work may take a while, and the picture is drawn at the end.
        command += ["--latest", f"{0.7 * limit:.0f}"] if limit > 100 else ["--quick"]
        ran = self.run(command, limit)
        if self.judge("bench", ran, "Must reach", "check.log", enough=195.0):
            print(ran.output[ran.output.find("Must reach") :])

    def variants(self, usable: list[str]) -> None:
        if len(usable) < 2:
            self.note("variants", "not run: there is only one build")
        elif limit := self.begin("variants", 0.5):
            command = [sys.executable, "-m", "bench.gpu_check.variants"]
            command += ["--json", self.scratch / "variants.json"]
            command += ["--seconds", f"{0.8 * limit:.0f}"]
            ran = self.run([*command, *(f"{name}={self.site(name)}" for name in usable)], limit)
            if self.judge("variants", ran, "times as fast", "check.log", enough=60.0):
                print(ran.output)

    def profile(self) -> None:
        """Figures only: whatever keeps ncu from giving them is no failure of ours."""
        if not (limit := self.begin("ncu", 0.4, "ncu")):
            return
        command = ["ncu", "--clock-control", "none"]  # the card's settings are left as they are
        command += ["--kernel-name", "regex:sum_kernel", "--launch-skip", "2"]
        command += ["--launch-count", "1", "--metrics", ",".join(METRICS)]
        ran = self.run([*command, sys.executable, "-c", SUM_KERNEL], min(limit, 60.0))
        if ran.status == 0 and (line := ran.line("gpu__time_duration")):
            self.note("ncu", f"passed: {' '.join(line.split())}", ran.seconds)
            print(ran.output)
        else:
            why = ran.line(REFUSED) or ran.line(r"\S") or "it says nothing"
            self.note("ncu", f"not run: {why}", ran.seconds)

    def sanitize(self, name: str, share: float, tool: str, proof: str, *command: Any) -> None:
        if not (limit := self.begin(name, share, "compute-sanitizer")):
            return
        # What the libraries ask the driver in vain is no error of ours: our own calls raise.
        options: list[Any] = ["--target-processes", "all", "--report-api-errors", "no"]
        options += ["--print-limit", 100, "--error-exitcode", 9]
        tool_and_options = ["compute-sanitizer", "--tool", tool, *options]
        ran = self.run([*tool_and_options, sys.executable, *command], limit, "sanitizer.log")
        self.judge(name, ran, proof, "sanitizer.log", enough=60.0)

    def sanitizers(self) -> None:
        proof = "ERROR SUMMARY: 0 errors"
        if self.suspect:
            command = pytest_command(self.scratch / "suspect", 300.0, self.suspect)
            self.sanitize("memcheck of the first failure", 0.5, "memcheck", proof, *command)
        self.sanitize("memcheck", 0.5, "memcheck", proof, "bench/gpu_check/short.py")
        proof = "RACECHECK SUMMARY: 0 hazards"
        self.sanitize("racecheck", 0.95, "racecheck", proof, "bench/gpu_check/short.py")

    @contextmanager
    def watched_clocks(self) -> Iterator[None]:
        """Notes the card's clocks while something runs."""
        query = ["clocks.sm", "clocks.mem", "power.draw", "temperature.gpu"]
        path = self.scratch / "clocks"
        with path.open("wb") as file:
            command = ["nvidia-smi", f"--query-gpu={','.join(query)}"]
            command += ["--format=csv,noheader,nounits", "-l", "3"]
            process = self.start(command, file)
        try:
            yield
        finally:
            process.kill()
            process.wait()
        rows = [line.split(",") for line in path.read_text(errors="replace").splitlines()]
        for at, name in enumerate(query):
            cells = [row[at].strip() for row in rows if len(row) == len(query)]
            if numbers := sorted(float(cell) for cell in cells if re.fullmatch(r"[\d.]+", cell)):
                least, most = numbers[0], numbers[-1]
                self.clocks[name] = {"least": least, "median": median(numbers), "most": most}
        self.say(
            "clocks (MHz), power (W) and temperature during the benchmarks:",
            json.dumps(self.clocks),
        )

    def figures(self) -> None:
        """Puts the figures together in one file that can be committed as it is."""
        parts = {name: self.scratch / f"{name}.json" for name in ("gpu", "variants")}
        figures = {
            name: json.loads(path.read_text()) for name, path in parts.items() if path.is_file()
        }
        if not figures:
            return
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        card, driver = (self.run(query, 20.0).line(",") or "unknown, unknown").split(",")[:2]
        release = self.run(["nvcc", "--version"], 20.0).line("release")
        date = datetime.date.today().isoformat()
        facts = {
            "card": card.strip(),
            "driver": driver.strip(),
            "nvcc": release,
            "python": ".".join(map(str, sys.version_info[:3])),
            "date": date,
            "command": "bash bench/gpu_check.sh",
            "clocks": self.clocks,
        }
        name = re.sub(r"[^a-z0-9]+", "-", f"{card} {date}".lower()).strip("-")
        text = json.dumps({**facts, **figures}, indent=1)
        (self.folder / f"{name}.json").write_text(text + "\n")
        if (picture := self.scratch / "gpu.png").is_file():
            shutil.copy(picture, self.folder / f"{name}.png")
        self.say(f"{FIGURES}{name}.json")

    def everything(self) -> int:
        self.versions()
        if not self.has("nvidia-smi") or not self.run(["nvidia-smi", "-L"], 20.0).line("^GPU "):
            self.note("build", "not run: no NVIDIA GPU here, says nvidia-smi")
            return 2
        if self.wheels:
            self.unpack_wheels()
        missing = self.missing()
        lacking = [program for program in PROGRAMS if not self.has(program)] + missing["build"]
        if lacking:
            self.note("build", f"not run: this needs {', '.join(lacking)}")
            return 2
        usable = self.built(self.build())
        if "default" not in usable:
            return 1 if self.failed() else 2
        if missing["tests"]:
            self.note("tests", f"not run: they need {', '.join(missing['tests'])}")
        else:
            self.tests()
        if missing["bench"]:
            self.note("bench", f"not run: it needs {', '.join(missing['bench'])}")
        else:
            with self.watched_clocks():
                self.bench()
                self.variants(usable)
        self.profile()
        self.run(["nvidia-smi", "-q", "-d", "CLOCK"], 20.0)
        self.figures()
        if missing["bench"]:
            self.note("sanitizers", f"not run: they need {', '.join(missing['bench'])}")
        else:
            self.sanitizers()
        return int(self.failed())


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "gpu-check").resolve()
    wheels = Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else None
    if len(sys.argv) > 3 or (wheels and not wheels.is_dir()):
        sys.exit("usage: bash bench/gpu_check.sh [FOLDER [WHEELS]]; WHEELS is a folder with wheels")
    folder.mkdir(parents=True, exist_ok=True)
    names = ["check.log", "build.log", "tests.log", "sanitizer.log", "summary.json"]
    if (log := folder / "check.log").is_file():  # names the figures, which may be of another day
        for name in re.findall(
            f"^{FIGURES}(.*)\\.json$", log.read_text(errors="replace"), re.MULTILINE
        ):
            names += [f"{name}.json", f"{name}.png"]
    for name in names:
        (folder / name).unlink(missing_ok=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what is stopped leaves no memory behind
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        check = Check(folder, wheels, Path(scratch))
        try:
            status = check.everything()
        finally:
            check.stop_all()
        check.say(
            "", *(f"{s['step']:30} {s['seconds']:6.1f} s  {s['result']}" for s in check.steps)
        )
        check.say(f"results: {folder}")
    return status


if __name__ == "__main__":
    sys.exit(main())
