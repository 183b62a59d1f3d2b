"""The command `fused-penalties report`, run in the test's process or in one of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import ml_dtypes
import numpy as np

from fused_penalties import cli
from weight_files import ints

X = "\N{MULTIPLICATION SIGN}"
NUMBERS = ["size", "Σ|w|", "Σw²", "rms", "max|w|", "L1", "L2"]
TINY = {"a.weight": np.array([[1, -2], [-3, 4]], np.float32), "a.bias": np.ones(3, np.float32)}


def model() -> dict[str, np.ndarray]:
    return {
        "embed.weight": ints(50, 40, dtype=ml_dtypes.bfloat16),
        "embed.position_ids": np.arange(50)[None],
        "layer.0.kernel": ints(300, 200, seed=1),
        "layer.0.bias": ints(200, seed=2),
        "layer.1.kernel": ints(200, 100, dtype=np.float16, seed=3),
        "layer.1.scale": np.array(-3.0, np.float64),
        "layer.1.mask": np.ones((3, 3), bool),
        "layer.2.pruned": np.zeros((0, 100), np.float32),
    }


def run(capsys, *argv: object) -> str:
    assert cli.main(["report", *map(str, argv)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def run_json(capsys, *argv: object) -> dict:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(run(capsys, *argv, "--json"), parse_constant=refuse)


def failing(capsys, status: int, *argv: object) -> tuple[str, list[str]]:
    """What the report prints, and the lines on stderr, each of which begins with its name."""
    assert cli.main(["report", *map(str, argv)]) == status
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert all(line.startswith("fused-penalties: ") for line in lines)
    return out, [line.removeprefix("fused-penalties: ") for line in lines]


def process(*argv: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "fused_penalties", "report", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", **options)


def exact_sums(array: np.ndarray) -> tuple[int, int]:
    values = [int(value) for value in array.ravel()]
    return sum(map(abs, values)), sum(value * value for value in values)
