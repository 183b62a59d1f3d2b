"""The command `fused-penalties report`, run in the test's process or in one of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from fused_penalties import cli

X = "\N{MULTIPLICATION SIGN}"
NUMBERS = ["size", "Σ|w|", "Σw²", "L1", "L2"]
TINY = {"a.weight": np.array([[1, -2], [-3, 4]], np.float32), "a.bias": np.ones(3, np.float32)}


def unlike_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what makes rich or argparse take a pipe for a terminal, or one of another width."""
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def run(capsys, *argv: object) -> str:
    assert cli.main(["report", *map(str, argv)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def run_json(capsys, *argv: object) -> dict:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(run(capsys, *argv, "--json"), parse_constant=refuse)


def process(*argv: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "fused_penalties", "report", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", **options)


def exact_sums(array: np.ndarray) -> tuple[int, int]:
    values = [int(value) for value in array.ravel()]
    return sum(map(abs, values)), sum(value * value for value in values)
