"""What is built with a CUDA compiler and without one, and what it needs where there is no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import fresh
import fused_penalties as fp
from source_tree import PATH, SOURCE, tool

EXTENSION = Path(fp._core.__file__)
CUDA = fp.build_info()["cuda"]


def configure(folder: Path, *options: str, **environment: str) -> tuple[int, str]:
    """Finds out what a build would do: CMake's exit status, and what it says."""
    cmake = shutil.which("cmake", path=PATH)
    assert cmake is not None, 'the extra "test" installs cmake'
    command = [cmake, "-S", SOURCE, "-B", folder, "-G", "Ninja", "-DFUSED_PENALTIES_PYTHON=OFF"]
    command += [f"-D{option}" for option in options]
    done = subprocess.run(
        command,
        env={**os.environ, "PATH": PATH, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, re.sub(r"\s+", " ", done.stdout)


def ninja(folder: Path) -> str:
    return (folder / "build.ninja").read_text()


@pytest.fixture(params=["there is none", "it does not work"])
def no_compiler(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    compiler = tmp_path / "bin/nvcc"
    if request.param == "it does not work":
        compiler.parent.mkdir()
        compiler.write_text("#!/bin/sh\necho cannot compile >&2\nexit 1\n")
        compiler.chmod(0o755)
    return str(compiler)


def test_cuda_without_a_compiler_is_an_error(no_compiler: str, tmp_path: Path) -> None:
    status, said = configure(tmp_path / "build", "FUSED_PENALTIES_CUDA=ON", CUDACXX=no_compiler)
    assert status != 0
    assert "FUSED_PENALTIES_CUDA is ON, but there is no CUDA compiler" in said


def test_without_a_compiler_the_rest_is_built(no_compiler: str, tmp_path: Path) -> None:
    status, said = configure(tmp_path / "build", CUDACXX=no_compiler)
    assert status == 0, said
    assert "No CUDA compiler: building for the CPU only" in said
    assert "fused_penalties_cuda" not in ninja(tmp_path / "build")


def test_cuda_can_be_left_out(tmp_path: Path) -> None:
    status, said = configure(tmp_path, "FUSED_PENALTIES_CUDA=OFF")
    assert status == 0, said
    assert "CUDA" not in said
    assert "fused_penalties_cuda" not in ninja(tmp_path)


def test_the_emulated_gpu_has_to_be_named(tmp_path: Path) -> None:
    """It is the tests', not the package's."""
    status, said = configure(tmp_path, "FUSED_PENALTIES_CUDA=EMULATED")
    assert status != 0
    assert "FUSED_PENALTIES_EMULATOR does not name the folder" in said


@pytest.mark.parametrize("how", ["option", "variable"])
def test_the_architectures_can_be_chosen(how: str, tmp_path: Path) -> None:
    """Without asking for CUDA: a compiler that is there is used."""
    if shutil.which(os.environ.get("CUDACXX") or "nvcc", path=PATH) is None:
        pytest.skip("there is no CUDA compiler")
    if how == "option":
        status, said = configure(tmp_path, "CMAKE_CUDA_ARCHITECTURES=90-real")
    else:
        status, said = configure(tmp_path, CUDAARCHS="90-real")
    assert status == 0, said
    (flags,) = re.findall(r"launch\.cu\.o: .*\n(?:  .*\n)*?  FLAGS = (.*)", ninja(tmp_path))
    assert re.findall(r"(?:sm|compute)_\d+", flags) == ["compute_90", "sm_90"]
    assert "-fmad=false" in flags


def test_the_extension_needs_no_library_of_cuda() -> None:
    dynamic = subprocess.check_output([tool("readelf"), "--dynamic", EXTENSION], text=True)
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert any(name.startswith("libc.") for name in needed)
    assert [name for name in needed if re.match("libcu|libnv", name)] == []
    assert not re.search(r"\((RPATH|RUNPATH)\)", dynamic)


def test_the_extension_names_no_folder_of_the_build() -> None:
    content = EXTENSION.read_bytes()
    assert bytes(SOURCE) not in content
    if CUDA and CUDA != "emulated":
        assert b"csrc/cuda/launch.cu" in content, "which errors name"


def test_no_kernel_is_of_another_library() -> None:
    assert not re.search(rb"\dcub\d|cub::|\d(thrust|cooperative_groups)\d", EXTENSION.read_bytes())


def test_all_but_the_gpu_works_where_there_is_none() -> None:
    if CUDA == "emulated":
        pytest.skip("the GPU is emulated")
    code = """
    import numpy as np
    import fused_penalties as fp
    print(bool(fp.cuda.is_available()), fp.cuda.is_available(), sep="\\n")
    print(fp.sums([np.arange(-2000, 2001, dtype=np.float32)]).abs[0])
    """
    available, reason, total = fresh.output(code, CUDA_VISIBLE_DEVICES="").splitlines()
    assert available == "False"
    assert re.search(r"GPU.*cudaError[A-Z]" if CUDA else "no CUDA", reason)
    assert float(total) == 2000 * 2001
