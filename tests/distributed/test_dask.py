"""The recipe in the README of `fused_penalties.distributed`, as it stands there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fused_penalties as fp

README = Path(__file__).parents[2] / "python" / "fused_penalties" / "distributed" / "README.md"


@pytest.mark.skipif(importlib.util.find_spec("dask") is None, reason="not installed: dask")
@pytest.mark.filterwarnings("default:::dask")
def test_dask(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal(5_000_000, np.float32)
    file = tmp_path / "weights.npy"
    np.save(file, weights)
    (recipe,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"file": file, "size": weights.size}
    exec(recipe, names)
    wanted = fp.sums(weights)
    assert len(names["parts"]) == 3
    assert names["sums"].total_abs == wanted.total_abs
    assert names["sums"].total_square == wanted.total_square
