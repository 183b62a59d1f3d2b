"""The machine code that nvcc makes of the kernels. No GPU is needed.

With --run-slow for every architecture of the default build, else for one.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from source_tree import PATH, SOURCE

KERNELS = {
    "sum_kernel",
    "sum_and_largest_kernel",
    "gradient_kernel",
    "update_kernel",
    "finish_kernel",
}

# The parts of the kernels, from tests/native/machine_code.cu: what each computes with, and what
# would be one rounding too few, or one of the wrong width. Where a square is exact, it may be fused
# with its sum. FMNMX3 is the maximum of three numbers, which sm_100 and sm_110 have.
BLOCKS = {
    "sums_Float16": ("FADD FFMA", "DMUL DFMA"),
    "sums_BFloat16": ("FADD FMUL", "FFMA DMUL DFMA"),
    "sums_WideBFloat16": ("DADD DFMA", "FADD FMUL FFMA"),
    "sums_Float32": ("DADD DFMA", "FADD FMUL FFMA"),
    "sums_Float64": ("DADD DMUL", "FADD FMUL FFMA DFMA"),
    "largest_Float16": ("FADD FFMA FMNMX3?", "DMUL DFMA"),
    "largest_BFloat16": ("FADD FMUL FMNMX3?", "FFMA DMUL DFMA"),
    "largest_Float32": ("DADD DFMA FMNMX3?", "FADD FMUL FFMA"),
    "largest_Float64": (r"DADD DMUL DSETP\.MAX", "FADD FMUL FFMA DFMA"),
    "differentiate_Float16_Float16": ("FADD FMUL", "DMUL DFMA"),
    "differentiate_Float16_Float32": ("FADD FMUL", "DMUL DFMA"),
    "differentiate_BFloat16_BFloat16": ("FADD FMUL", "FFMA DMUL DFMA"),
    "differentiate_BFloat16_Float32": ("FADD FMUL", "FFMA DMUL DFMA"),
    "differentiate_Float32_Float32": ("FADD FMUL DADD DFMA", "FFMA"),
    "differentiate_Float64_Float64": ("DADD DMUL", "FADD FMUL FFMA DFMA"),
    "store_Float16_Float16": ("FADD FMUL", "FFMA DADD DMUL DFMA"),
    "store_Float16_Float32": ("FADD FMUL", "FFMA DADD DMUL DFMA"),
    "store_BFloat16_BFloat16": ("FADD FMUL", "FFMA DADD DMUL DFMA"),
    "store_BFloat16_Float32": ("FADD FMUL", "FFMA DADD DMUL DFMA"),
    "store_Float32_Float32": ("FADD FMUL", "FFMA DADD DMUL DFMA"),
    "store_Float64_Float64": ("DADD DMUL", "FADD FMUL FFMA DFMA"),
    "replace_Float16": ("FMUL", "FADD FFMA DADD DMUL DFMA"),
    "replace_BFloat16": ("FMUL", "FADD FFMA DADD DMUL DFMA"),
    "replace_Float32": ("FMUL", "FADD FFMA DADD DMUL DFMA"),
    "replace_Float64": ("DMUL", "FADD FMUL FFMA DADD DFMA"),
}
# How many loads there are before the first result is used: of 16 bytes, and of one element where
# they do not lie on 16 bytes. The sums ask for all 16 rows of a block together, what would not fit
# the registers for 4, or for 2 where gradients are wider than weights. The sums have such code
# twice: for whole blocks and for short ones.
TOGETHER = {
    "sums_Float16": (2 * 16, 2 * 4 * 8),
    "sums_BFloat16": (2 * 16, 2 * 4 * 8),
    "sums_WideBFloat16": (2 * 4, 2 * 4 * 8),
    "sums_Float32": (2 * 16, 2 * 4 * 4),
    "sums_Float64": (2 * 16, 2 * 4 * 2),
    "largest_Float16": (2 * 16, 2 * 4 * 8),
    "largest_BFloat16": (2 * 8, 2 * 4 * 8),
    "largest_Float32": (2 * 16, 2 * 4 * 4),
    "largest_Float64": (2 * 16, 2 * 4 * 2),
    "differentiate_Float16_Float16": (4 + 4, 4 * 8 + 4 * 8),
    "differentiate_Float16_Float32": (2 + 2 * 2, 2 * 8 + 2 * 8),
    "differentiate_BFloat16_BFloat16": (4 + 4, 4 * 8 + 4 * 8),
    "differentiate_BFloat16_Float32": (2 + 2 * 2, 2 * 8 + 2 * 8),
    "differentiate_Float32_Float32": (4 + 4, 4 * 4 + 4 * 4),
    "differentiate_Float64_Float64": (4 + 4, 4 * 2 + 4 * 2),
    "store_Float16_Float16": (4, 4 * 8),
    "store_Float16_Float32": (4, 4 * 8),
    "store_BFloat16_BFloat16": (4, 4 * 8),
    "store_BFloat16_Float32": (4, 4 * 8),
    "store_Float32_Float32": (4, 4 * 4),
    "store_Float64_Float64": (4, 4 * 2),
    "replace_Float16": (4, 4 * 8),
    "replace_BFloat16": (4, 4 * 8),
    "replace_Float32": (4, 4 * 4),
    "replace_Float64": (4, 4 * 2),
}
# What four blocks of 128 threads on a multiprocessor leave to each thread.
REGISTERS = 128
IN_FLOAT32 = ["Float16", "BFloat16", "Float32"]
FORMULAS = {
    **{f"gradient_{dtype}": ("FADD FMUL", "FFMA DADD DMUL DFMA") for dtype in IN_FLOAT32},
    **{f"stored_{dtype}": ("FADD FMUL", "FFMA DADD DMUL DFMA") for dtype in IN_FLOAT32},
    **{f"scale_{dtype}": ("FMUL", "FADD FFMA DADD DMUL DFMA") for dtype in IN_FLOAT32},
    "gradient_Float64": ("DADD DMUL", "FADD FMUL FFMA DFMA"),
    "stored_Float64": ("DADD DMUL", "FADD FMUL FFMA DFMA"),
    "scale_Float64": ("DMUL", "FADD FMUL FFMA DADD DFMA"),
}
DIVISIONS = {f"{name}_{dtype}" for name in ("proximal", "quotient") for dtype in IN_FLOAT32}
DIVISIONS_64 = {"proximal_Float64", "quotient_Float64"}


@dataclass(repr=False)
class Function:
    """What one architecture runs for one kernel."""

    architecture: str
    name: str
    code: list[str] = field(default_factory=list)  # "LDG.E.128 R24, desc[UR6][R66.64]"
    resources: dict[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"{self.name} for {self.architecture}"

    def count(self, pattern: str) -> int:
        """How many instructions begin with it."""
        return sum(re.match(pattern, one) is not None for one in self.code)

    def operations(self, names: str) -> dict[str, int]:
        """How many instructions do each of these (patterns), with whatever modifiers."""
        return {name: self.count(rf"{name}\b") for name in names.split()}

    def together(self, load: str) -> int:
        """The most loads of a kind with no floating-point operation between them."""
        most = run = 0
        for one in self.code:
            if re.match(r"[DF](ADD|MUL|FMA)\b|HADD2", one):
                run = 0
            elif re.match(load, one):
                run += 1
                most = max(most, run)
        return most

    def flushing(self) -> set[str]:
        """What treats subnormals as zeros, but for the conversions of an integer division."""
        operations = {one.split()[0] for one in self.code}
        return {op for op in operations if ".FTZ" in op and not op.startswith("F2I.FTZ.U32")}


@dataclass(repr=False)
class Compiled:
    functions: list[Function]
    parts: str  # the object's, by name

    def named(self, *names: str) -> list[Function]:
        """Of every architecture."""
        found = [function for function in self.functions if function.name in names]
        assert {function.name for function in found} == set(names)
        return found


def nvcc() -> str:
    found = shutil.which(os.environ.get("CUDACXX") or "nvcc", path=PATH)
    if found is None:
        pytest.skip("there is no CUDA compiler")
    return found


def disassembler() -> tuple[str, dict[str, str]]:
    """cuobjdump, and the environment in which it finds nvdisasm."""
    folders = [PATH]
    for name in ("cuobjdump", "nvdisasm"):
        try:
            files = importlib.metadata.files(f"nvidia-cuda-{name}") or []
        except importlib.metadata.PackageNotFoundError:
            continue
        folders += [str(Path(file.locate()).parent) for file in files if file.stem == name]
    environment = {**os.environ, "PATH": os.pathsep.join(folders)}
    cuobjdump, nvdisasm = (
        shutil.which(name, path=environment["PATH"]) for name in ("cuobjdump", "nvdisasm")
    )
    if cuobjdump is None or nvdisasm is None:
        pytest.skip("CUDA's disassembler is not installed (cuobjdump, nvdisasm)")
    return cuobjdump, environment


def compile_command(folder: Path, source: Path, every_architecture: bool) -> list[str]:
    """How the build compiles a source. The last three words: the source, -o, the object."""
    cmake = shutil.which("cmake", path=PATH)
    assert cmake is not None, 'the extra "test" installs cmake'
    options = {
        "FUSED_PENALTIES_PYTHON": "OFF",
        "FUSED_PENALTIES_CUDA": "ON",
        "CMAKE_EXPORT_COMPILE_COMMANDS": "ON",
    }
    if not every_architecture:
        options["CMAKE_CUDA_ARCHITECTURES"] = "90"
    configure = [cmake, "-S", SOURCE, "-B", folder, "-G", "Ninja"]
    configure += [f"-D{name}={value}" for name, value in options.items()]
    environment = {**os.environ, "PATH": PATH}
    environment.pop("CUDAARCHS", None)  # the default is wanted
    done = subprocess.run(configure, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    commands = json.loads((folder / "compile_commands.json").read_text())
    (command,) = (one["command"] for one in commands if one["file"] == str(source))
    words = shlex.split(command)
    assert words[-4:-1] == ["-c", str(source), "-o"]
    return words


def disassemble(built: Path) -> Compiled:
    program, environment = disassembler()

    def ask(*options: str) -> str:
        return subprocess.check_output([program, *options, built], env=environment, text=True)

    functions: dict[tuple[str, str], Function] = {}
    architecture, function = "", Function("", "")
    for line in f"{ask('-sass')}\n{ask('-res-usage')}".splitlines():
        if found := re.match(r"arch = (\w+)", line):
            architecture = found[1]
        elif found := re.match(r"\s*Function ?:? (\w+)", line):
            # The library's kernels are in namespaces: their names come with their lengths.
            name = next((one for one in KERNELS if f"{len(one)}{one}E" in found[1]), found[1])
            function = functions.setdefault((architecture, name), Function(architecture, name))
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([^;]*\S)\s*;", line):
            function.code.append(found[1])
        elif line.startswith("  REG:"):
            pairs = re.findall(r"(REG|STACK|LOCAL):(\d+)", line)
            function.resources = {name: int(number) for name, number in pairs}
    assert all(one.code and len(one.resources) == 3 for one in functions.values())
    return Compiled(list(functions.values()), ask("-lelf", "-lptx"))


def compile_source(command: list[str | Path], built: Path) -> Compiled:
    done = subprocess.run([*command, "-o", built], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    return disassemble(built)


@pytest.fixture(scope="module")
def compiled(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> dict[str, Compiled]:
    nvcc()
    disassembler()
    folder = tmp_path_factory.mktemp("machine-code")
    library = SOURCE / "csrc/cuda/launch.cu"
    command = compile_command(folder, library, pytestconfig.getoption("--run-slow"))
    sources = {"kernels": library, "parts": SOURCE / "tests/native/machine_code.cu"}

    def build(name: str) -> Compiled:
        return compile_source([*command[:-3], sources[name]], folder / f"{name}.o")

    with ThreadPoolExecutor() as pool:
        return dict(zip(sources, pool.map(build, sources), strict=True))


@pytest.fixture(scope="module")
def kernels(compiled: dict[str, Compiled]) -> Compiled:
    return compiled["kernels"]


@pytest.fixture(scope="module")
def parts(compiled: dict[str, Compiled]) -> Compiled:
    return compiled["parts"]


@pytest.mark.slow
def test_every_major_architecture_is_there(kernels: Compiled, parts: Compiled) -> None:
    listed = subprocess.check_output([nvcc(), "--list-gpu-arch"], text=True)
    numbers = sorted({int(number) for number in re.findall(r"compute_(\d+)\b", listed)})
    major = [number for number in numbers if number % 10 == 0 or number == numbers[0]]
    wanted = {f"sm_{number}" for number in major}
    every = {(one, name) for one in wanted for name in KERNELS}
    assert {(one.architecture, one.name) for one in kernels.functions} == every
    assert {one.architecture for one in parts.functions} == wanted
    assert set(re.findall(r"(sm_\d+)\.cubin", kernels.parts)) == wanted
    assert re.findall(r"(sm_\d+)\.ptx", kernels.parts) == [f"sm_{major[-1]}"], "for later ones"


def test_every_part_is_looked_at(parts: Compiled) -> None:
    """The parts of every element type, of which dtype.hpp has the list."""
    known = {*BLOCKS, *FORMULAS, *DIVISIONS, *DIVISIONS_64}
    assert {function.name for function in parts.functions} == known
    assert BLOCKS.keys() == TOGETHER.keys()


def test_everything_is_in_registers(kernels: Compiled) -> None:
    """No array is indexed at run time, and there are registers for all values."""
    for function in kernels.functions:
        assert function.resources["STACK"] == function.resources["LOCAL"] == 0, function
        assert function.resources["REG"] <= REGISTERS, function
        assert function.count(r"(LDL|STL)\b") == 0, function


@pytest.mark.slow
@pytest.mark.parametrize("option", ["GPU_ROWS=8", "GPU_GRADIENT_PREFETCH=1"])
def test_what_is_timed_beside_the_default(option: str, tmp_path: Path) -> None:
    """By bench/gpu_check.py, which builds both. Here for one architecture."""
    nvcc()
    disassembler()
    library = SOURCE / "csrc/cuda/launch.cu"
    command = compile_command(tmp_path, library, every_architecture=False)
    words = [*command[:-4], f"-DFUSED_PENALTIES_{option}", "-c", library]
    built = compile_source(words, tmp_path / "kernels.o")
    test_everything_is_in_registers(built)
    (sums,), (gradient,) = built.named("sum_kernel"), built.named("gradient_kernel")
    rows = 8 if option == "GPU_ROWS=8" else 16
    # For whole blocks and for short ones, as in TOGETHER.
    assert sums.together(r"LDG\S*\.128\b") == 2 * rows
    assert (gradient.count(r"CCTL\S*\.PF2\b") > 0) == (option == "GPU_GRADIENT_PREFETCH=1")


@pytest.mark.parametrize("name", [*BLOCKS, *sorted(KERNELS - {"finish_kernel"})])
def test_memory_is_accessed_16_bytes_at_a_time(
    name: str, kernels: Compiled, parts: Compiled
) -> None:
    """And as the device's own memory: what might be shared memory too takes longer."""
    for function in (kernels if name in KERNELS else parts).named(name):
        assert function.count(r"LDG\S*\.128\b") > 0, function
        writes = not name.startswith(("sum", "largest"))
        assert (function.count(r"STG\S*\.128\b") > 0) == writes, function
        assert function.count(r"(LD|ST)\.\S*128\b") == 0, function


@pytest.mark.parametrize("name", BLOCKS)
def test_rows_are_asked_for_together(name: str, parts: Compiled) -> None:
    """Memory's latency is waited for once in several rows, not in each."""
    sixteen, single = TOGETHER[name]
    for function in parts.named(name):
        assert function.together(r"LDG\S*\.128\b") >= sixteen, function
        assert function.together(r"LDG(?!\S*\.128\b)") >= single, function


def test_subnormals_stay(kernels: Compiled, parts: Compiled) -> None:
    for function in [*kernels.functions, *parts.functions]:
        if function.name in DIVISIONS | {"update_kernel"}:
            # NVIDIA's routine for divisions by or of what is very large or small: this is how it
            # compares with infinity, negates a number in the normal range, and passes a NaN on.
            allowed = {"FADD.FTZ", "FSETP.GTU.FTZ.AND", "FSETP.NEU.FTZ.AND"}
            assert function.flushing() <= allowed, function
        else:
            assert function.flushing() == set(), function


@pytest.mark.parametrize("name", [*BLOCKS, *FORMULAS])
def test_roundings(name: str, parts: Compiled) -> None:
    has, lacks = {**BLOCKS, **FORMULAS}[name]
    for function in parts.named(name):
        assert 0 not in function.operations(has).values(), function
        assert set(function.operations(lacks).values()) == {0}, function


@pytest.mark.parametrize("name", sorted(DIVISIONS | DIVISIONS_64))
def test_roundings_beside_a_division(name: str, parts: Compiled) -> None:
    """A division is itself made of fused operations: there are no more than in one alone."""
    formula, dtype = name.split("_")
    add, fused = ("DADD", "DFMA") if dtype == "Float64" else ("FADD", "FFMA")
    alone = {one.architecture: one for one in parts.named(f"quotient_{dtype}")}
    for function in parts.named(name):
        quotient = alone[function.architecture]
        adds = function.count(rf"{add} ") - quotient.count(rf"{add} ")
        assert (adds > 0) == (formula == "proximal"), function
        assert function.count(fused) == quotient.count(fused) > 0, function


def test_nothing_is_computed_in_16_bits(kernels: Compiled, parts: Compiled) -> None:
    """Halves become float32 by adding zero; a product of zeros brings a constant to a register."""
    conversion = r"HADD2\.F32 R\d+, (-RZ, R\d+\S*|R\d+\S*, -RZ\S*)$"
    move = r"HFMA2(\.MMA)? R\d+, -RZ, RZ, "
    for function in [*kernels.functions, *parts.functions]:
        halves = function.count(r"H(ADD|MUL|FMA|MNMX|SET|SETP)2")
        assert halves == function.count(conversion) + function.count(move), function
