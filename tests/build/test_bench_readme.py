"""The README's table and picture of the benchmarks are those of the committed figures."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REFRESH = "run `python -m bench.draw.readme`"


@pytest.fixture(scope="module")
def readme() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2]))
        yield importlib.import_module("bench.draw.readme")


def test_table_is_that_of_the_figures(readme: ModuleType) -> None:
    (result,) = readme.load([readme.FILE])
    text = readme.README.read_text(encoding="utf-8")
    assert readme.BLOCK.findall(text) == [readme.table(result)], REFRESH
    assert re.search(r"\*\*0\.\d\d\*\*", readme.table(result)), "no row in which we lose"


def test_picture_was_drawn_from_the_figures(readme: ModuleType) -> None:
    digest = hashlib.sha256(readme.FILE.read_bytes()).hexdigest()
    text = readme.README.read_text(encoding="utf-8")
    for file in readme.FILES.values():
        assert f"{readme.FILE.name} (SHA-256 {digest})" in file.read_text("utf-8"), REFRESH
        assert text.count(f'"bench/results/{file.name}"') == 1


def timed(keys: dict[str, Any], **seconds: float) -> dict[str, Any]:
    contenders = {name: {"median": one} for name, one in seconds.items()}
    return {**keys, "unit": "s", "contenders": contenders}


def test_a_line_of_the_table(readme: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"case": "cpu", "what": "sums", "threads": 1}
    rows = [
        timed(keys | {"offset": 0}, fused_penalties=1.0, numpy=9.0),
        timed(keys | {"offset": 16}, fused_penalties=0.0125, numpy=0.3, torch=0.01),
    ]
    result = readme.Result("a machine", "a.json", "", {"rows": rows})
    row = {"case": "cpu", "offset": 16}
    lines = [readme.Line("sums", row, name, name.lower()) for name in ("NumPy", "Torch", "JAX")]
    monkeypatch.setattr(readme, "LINES", lines[:2])
    assert readme.table(result).splitlines()[2:] == [
        "| sums | NumPy | 24 |",
        "| sums | Torch | **0.80** |",
    ]
    monkeypatch.setattr(readme, "LINES", lines)
    with pytest.raises(ValueError, match=r"a\.json: has no row of .*offset.* with jax"):
        readme.table(result)
