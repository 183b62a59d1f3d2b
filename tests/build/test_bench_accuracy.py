"""The benchmarks' accuracy case: its data, its errors, and that it fails if ours are too large."""

from __future__ import annotations

import importlib
import io
import json
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from rich.console import Console

from oracle import true_sums

DTYPES = ("float32", "float16", "bfloat16", "float64")
DATA = ("normal", "extreme", "constant", "Cauchy", "lognormal")
ELEMENTS = [1000, 10_000]


@pytest.fixture(scope="module")
def works() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2]))
        yield importlib.import_module("bench.cases.accuracy.works")


@pytest.fixture
def numpy_alone(works: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Settings of a run of a few elements with one peer, which is always there."""
    only = works.peers.load("with_numpy")
    monkeypatch.setattr(works.peers, "every", lambda leave_out, quick: only)
    monkeypatch.setitem(works.MOST_DIGITS, "quick", 4)
    return works.Settings("quick")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("data", DATA)
def test_data_are_finite_and_the_same_each_time(works: ModuleType, data: str, dtype: str) -> None:
    x = works.elements(data, dtype, 5000)
    assert x.dtype.name == dtype
    assert len(x) == 5000
    assert np.isfinite(x).all()
    assert (works.elements(data, dtype, 5000) == x).all()
    assert (len(np.unique(x.astype(np.float64))) == 1) == (data == "constant")


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_data_reach_all_over_the_dtype(works: ModuleType, dtype: str) -> None:
    x = np.abs(works.elements("extreme", dtype, 100_000).astype(np.float64))
    limits = ml_dtypes.finfo(x.dtype if dtype == "float64" else dtype)
    if dtype == "float64":  # whose squares nobody could sum
        assert 1e300 < np.square(x).max() < math.inf
        assert 0 < np.square(x[x > 0]).min() < 1e-280
    else:
        assert x.max() > float(limits.max) / 4
        assert x[x > 0].min() < 2 * float(limits.tiny)
        assert np.square(x).max() > float(limits.max)


def test_error_is_exact(works: ModuleType) -> None:
    assert works.relative(1.5, Fraction(1)) == 0.5
    assert works.relative(0.5, Fraction(1)) == 0.5
    assert works.relative(0.1, Fraction(0.1)) == 0.0
    # A float64 is off from a third by less than float64 can tell by subtracting.
    assert works.relative(1 / 3, Fraction(1, 3)) == float(1 - Fraction(1 / 3) * 3)
    assert works.relative(math.inf, Fraction(1)) == "inf"
    assert works.relative(math.nan, Fraction(1)) == "nan"


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows(works: ModuleType, numpy_alone: Any, dtype: str) -> None:
    rows = [row for row in works.rows(numpy_alone, ["lognormal"]) if row["dtype"] == dtype]
    assert [row["elements"] for row in rows] == ELEMENTS
    for row in rows:
        json.dumps(row, allow_nan=False)
        x = works.elements("lognormal", dtype, ELEMENTS[-1])[: row["elements"]]
        exact_abs, exact_square = true_sums(x)
        sums = works.fp.sums(x)
        assert row["contenders"]["fused_penalties"] == {
            "abs": float(abs(Fraction(float(sums.abs[0])) - exact_abs) / exact_abs),
            "square": float(abs(Fraction(float(sums.square[0])) - exact_square) / exact_square),
        }
        assert set(row["contenders"]) == {"fused_penalties", "numpy"} - (
            {"numpy"} if dtype == "bfloat16" else set()
        )


def test_overflow_is_shown_as_such(works: ModuleType, numpy_alone: Any) -> None:
    rows = list(works.rows(numpy_alone, ["extreme"]))
    assert [row for row in rows if row["dtype"] == "float16"]
    for row in rows:
        if row["dtype"] == "float16":
            assert row["contenders"]["numpy"]["square"] == "inf"
            assert row["contenders"]["fused_penalties"]["square"] < 9e-7
    console = Console(width=120, file=io.StringIO())
    console.print(works.tables.of_rows(rows, "accuracy"))
    lines = console.file.getvalue().splitlines()
    assert [line for line in lines if "float16" in line and "numpy inf" in line]


def test_worst_of_errors(works: ModuleType) -> None:
    worst = works.tables.worst
    assert worst({"square": 1e-3}) == 1e-3
    assert worst({"abs": 1e-3, "square": 1e-4}) == 1e-3
    assert worst({"abs": "inf", "square": 1e-4}) == math.inf
    assert math.isnan(worst({"abs": "inf", "square": "nan"}))


def test_a_broken_guarantee_fails_the_case(
    works: ModuleType, numpy_alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = works.fp.sums

    def wrong(x: np.ndarray, threads: int) -> Any:
        sums = right(x, threads=threads)
        return SimpleNamespace(abs=sums.abs, square=sums.square * (1 + 3e-15))

    monkeypatch.setattr(works, "fp", SimpleNamespace(sums=wrong))
    rows = works.rows(numpy_alone, ["normal"])
    with pytest.raises(works.Broken, match=r"normal, float64, 1,000: square [0-9.]+e-15"):
        list(rows)
