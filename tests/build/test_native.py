"""The kernels of the source tree without Python: their objects, and other processors."""

from __future__ import annotations

import json
import platform
import re
import shlex
import struct
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import golden
import oracle
import values
from oracle import hexes
from source_tree import SOURCE, build, tool
from source_tree import run as run_tool

DTYPE_NUMBERS = {name: number for number, name in enumerate(oracle.DTYPES)}  # as in dtype.hpp


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of the driver for 64-bit ARM under an emulator."""
    compiler, emulator = tool("aarch64-linux-gnu-g++"), tool("qemu-aarch64")
    driver = build(
        tmp_path_factory.mktemp("aarch64"),
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={compiler}",
    )
    libc = subprocess.check_output([compiler, "-print-file-name=libc.so.6"], text=True).strip()
    return [emulator, "-L", str(Path(libc).resolve().parents[1]), str(driver)]


@cache
def buffers() -> tuple[list[tuple[np.ndarray, int]], list[str]]:
    """Buffers, by how much each misses a multiple of 64 bytes, and what the driver should print."""
    arrays = [golden.array(case) for case in golden.inputs()]
    for dtype, numpy_dtype in oracle.DTYPES.items():
        row, strip = oracle.columns(numpy_dtype), oracle.strip_elements(numpy_dtype)
        block = oracle.block_elements(numpy_dtype)
        lengths = [*range(row + 6), *range(0, block, row // 2)]
        for edge in (2 * row, strip, 2 * strip, 3 * strip, block):
            lengths += range(edge - 9, edge + 10)
        x = values.make("lognormal", dtype, 3 * block)
        arrays += [x[:length] for length in lengths]
        for kind in values.KINDS:
            arrays += [values.make(kind, dtype, length) for length in (5, block, 2 * block + 77)]
    expected = [" ".join(hexes([*oracle.sums(x), oracle.largest(x)])) for x in arrays]
    all_largest = oracle.largest(np.array([oracle.largest(x) for x in arrays]))
    expected.append(" ".join(hexes([*oracle.totals(arrays), all_largest])))
    return [(x, number * 7 % 64) for number, x in enumerate(arrays)], expected


def run(command: list[str], isa: str, what: int | str) -> list[str]:
    message = b"".join(
        struct.pack("<3Q", DTYPE_NUMBERS[x.dtype.name], x.size, offset) + x.tobytes()
        for x, offset in buffers()[0]
    )
    done = subprocess.run(
        [*command, isa, str(what)], input=message, capture_output=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


def stress(driver: list[str], seed: int, lists: int) -> None:
    """Runs the program that is built beside the driver."""
    *emulator, path = driver
    command = [*emulator, str(build(Path(path).parent, target="stress")), str(seed), str(lists)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counted, _, bodies = done.stdout.partition(":")
    assert counted.startswith(f"{lists} lists, ")
    assert [*bodies.split(), "scalar"] == isas(driver)


def isas(command: list[str]) -> list[str]:
    return subprocess.check_output(command, text=True).split()


def test_this_processor(native: list[str]) -> None:
    """Shows that the driver itself is right; the same kernels are tested from Python at length."""
    assert "scalar" in isas(native)
    for isa in isas(native):
        assert run(native, isa, 2) == buffers()[1]


@pytest.mark.parametrize("isa", ["neon", "scalar"])
@pytest.mark.parametrize("threads", [1, 2])
def test_aarch64(aarch64: list[str], isa: str, threads: int) -> None:
    assert isa in isas(aarch64)
    assert run(aarch64, isa, threads) == buffers()[1]


def test_changes_are_the_same_everywhere(native: list[str], request: pytest.FixtureRequest) -> None:
    """Gradients, proximal steps and scalings; from Python they are held to an oracle at length."""
    wanted = run(native, "scalar", "changes")
    assert len(set(wanted)) > len(wanted) // 2
    for isa in isas(native):
        assert run(native, isa, "changes") == wanted, isa
    aarch64 = request.getfixturevalue("aarch64")
    for isa in isas(aarch64):
        assert run(aarch64, isa, "changes") == wanted, isa


def test_random_lists(native: list[str]) -> None:
    """Sums and changes of every body against the scalar ones; a seed shows what it is to repeat."""
    stress(native, seed=0, lists=30_000)


@pytest.mark.slow
def test_a_million_random_lists(native: list[str]) -> None:
    stress(native, seed=1_000_000, lists=1_000_000)


def test_random_lists_on_aarch64(aarch64: list[str]) -> None:
    stress(aarch64, seed=0, lists=3_000)


def objects(driver: list[str]) -> list[Path]:
    """The objects of the instruction sets' kernels."""
    folder = Path(driver[-1]).parent
    names = ("baseline", "avx2", "avx512", "neon")
    found = [path for name in names for path in folder.rglob(f"{name}.cpp.o*")]
    assert found
    return found


@pytest.mark.parametrize(("built", "nm"), [("native", "nm"), ("aarch64", "aarch64-linux-gnu-nm")])
def test_objects_of_one_isa_export_nothing_but_their_table(
    built: str, nm: str, request: pytest.FixtureRequest
) -> None:
    """The linker might keep the copy of a weak symbol that only a newer processor can run."""
    for path in objects(request.getfixturevalue(built)):
        listing = subprocess.check_output([tool(nm), "--defined-only", path], text=True)
        symbols = [line.split()[1:] for line in listing.splitlines()]
        exported = [symbol for symbol in symbols if symbol[0].isupper() or symbol[0] in "uvw"]
        assert len(exported) == 1, exported
        assert exported[0][0] in "DR", exported


def compiled_for(folder: Path, flags: str) -> dict[str, str]:
    """What the compiler defines in each source of the kernels, if users give it these flags."""
    cmake = ["cmake", "-S", SOURCE, "-B", folder, "-G", "Ninja", "-DFUSED_PENALTIES_PYTHON=OFF"]
    cmake += ["-DFUSED_PENALTIES_CUDA=OFF", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    run_tool([*cmake, f"-DCMAKE_CXX_FLAGS={flags}"])
    macros = {}
    for entry in json.loads((folder / "compile_commands.json").read_text()):
        command = shlex.split(entry["command"])
        command[command.index("-o") :] = ["-dM", "-E", entry["file"]]
        macros[Path(entry["file"]).stem] = run_tool(command)
    return macros


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an x86-64 processor")
def test_no_flag_of_the_user_widens_an_instruction_set(tmp_path: Path) -> None:
    """What is for AVX2 would else use AVX-512, and the rest not run where the package is taken."""
    macros = compiled_for(tmp_path / "none", "")
    assert macros.keys() > {"avx2", "avx512", "baseline", "scalar", "sweep"}
    assert compiled_for(tmp_path / "wide", "-march=x86-64-v4") == macros
    has = {name: set(re.findall("__(SSE3|AVX2|AVX512F)__", text)) for name, text in macros.items()}
    assert has.pop("avx2") == {"SSE3", "AVX2"}
    assert has.pop("avx512") == {"SSE3", "AVX2", "AVX512F"}
    assert not any(has.values()), has


@pytest.mark.parametrize(
    ("built", "objdump"), [("native", "objdump"), ("aarch64", "aarch64-linux-gnu-objdump")]
)
def test_no_kernel_prefetches(built: str, objdump: str, request: pytest.FixtureRequest) -> None:
    """What a prefetch should ask for differs from processor to processor.

    Memory is read in the order of its addresses, which all of them foresee by themselves.
    """
    for path in objects(request.getfixturevalue(built)):
        listing = subprocess.check_output([tool(objdump), "-d", path], text=True)
        mnemonics = re.findall(r"^\s*[0-9a-f]+:\s+[0-9a-f ]+\t(\w+)", listing, re.MULTILINE)
        assert any(name.startswith("ret") for name in mnemonics), path.name
        prefetches = {name for name in mnemonics if name.startswith(("prefetch", "prf"))}
        assert not prefetches, f"{path.name}: {prefetches}"


@pytest.mark.parametrize(("sanitizers", "forks"), [("thread", 0), ("address,undefined", 5)])
def test_calls_that_share_threads(tmp_path: Path, sanitizers: str, forks: int) -> None:
    """Many at once, within one another, and after a fork (which one sanitizer does not support)."""
    flags = f"-O1 -g -fsanitize={sanitizers} -fno-sanitize-recover=all"
    program = build(tmp_path, f"-DCMAKE_CXX_FLAGS_RELEASE={flags}", target="pool")
    done = subprocess.run(
        [program, "2000", str(forks)], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
