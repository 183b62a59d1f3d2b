"""The tests of the `cuda` marker without a GPU: the kernels' own source, run by the host."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from source_tree import SOURCE, build_package, run

ROOM = SOURCE / "tests" / "cuda"
# What only real hardware can show.
LEFT_OUT = {
    "test_torch",
    "test_a_graph_of_torch",
    "test_a_penalty_in_a_loss_waits_for_nothing",
    "test_more_elements_than_32_bits_can_count",
}


@pytest.fixture(scope="module")
def python_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where Python finds this source tree with an extension for which the host plays the GPU."""
    package = build_package(
        tmp_path_factory.mktemp("emulated"),
        FUSED_PENALTIES_CUDA="EMULATED",
        FUSED_PENALTIES_EMULATOR=str(SOURCE / "tests/native/emulated"),
    )
    return os.pathsep.join([str(package), str(ROOM / "emulated")])


def test_it_is_the_emulation(python_path: str) -> None:
    """Not a copy that is installed somewhere, nor a real CuPy."""
    code = """if True:
        import cupy, fused_penalties as fp
        print(fp.__file__, cupy.__file__, fp.build_info()["cuda"], fp.cuda.is_available())
    """
    package, stand_in, cuda, available = run(
        [sys.executable, "-c", code], PYTHONPATH=python_path
    ).split()
    assert (cuda, available) == ("emulated", "available")
    folders = python_path.split(os.pathsep)
    assert [str(Path(package).parents[1]), str(Path(stand_in).parent)] == folders


def test_everything_for_the_gpu(
    python_path: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    files = sorted(ROOM.glob("test_cuda*.py"))
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", *files]
    if pytestconfig.getoption("--run-slow"):
        command.append("--run-slow")
    output = run([*command, f"--junitxml={report}"], PYTHONPATH=python_path)
    cases = list(ElementTree.parse(report).iter("testcase"))
    skipped = [case for case in cases if case.find("skipped") is not None]
    assert {case.attrib["name"].partition("[")[0] for case in skipped} == LEFT_OUT, output
    ran = {case.attrib["classname"].rpartition(".")[2] for case in cases if case not in skipped}
    assert ran == {file.stem for file in files if "gpu.marks" in file.read_text()}, output
    assert len(cases) - len(skipped) > 800, output
