"""The READMEs: their Python on NumPy's arrays, pasted as it stands, the report, and the links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import readmes
from fused_penalties import cli

FOLDERS = ".github", "bench", "csrc", "python", "tests"
DOCUMENTS = [
    str(path.relative_to(readmes.ROOT))
    for pattern in ("*.md", *(f"{folder}/**/*.md" for folder in FOLDERS))
    for path in sorted(readmes.ROOT.glob(pattern))
]


def run(blocks: list[str]) -> dict[str, Any]:
    """The names after the blocks, one after the other, as a reader would have them."""
    names: dict[str, Any] = {}
    exec("\n".join(blocks), names)
    return names


def test_the_example_on_arrays() -> None:
    names = run([block for block in readmes.blocks("", "python") if "numpy" in block])
    assert names["sums"]["kernel"].abs == names["sums"].total_square == 784 * 200
    assert names["penalty"] == pytest.approx(1e-4 * 784 * 200)
    np.testing.assert_array_equal(names["grads"]["kernel"], np.float32(2e-4))
    np.testing.assert_array_equal(names["grads"]["bias"], 0.0)


def test_the_package_by_example() -> None:
    blocks = readmes.blocks(readmes.PACKAGE, "python")
    assert len(blocks) == 4
    assert run(blocks)["penalty"] == pytest.approx((1e-6 + 1e-4) * 784 * 200)


def test_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    """Each line that the README shows, in its order; others may be left out."""
    (command, *_) = readmes.blocks("", "console")
    (shown,) = readmes.blocks("", "text")
    arguments = re.search(r"fused-penalties (.*)", command)[1].split()  # type: ignore[index]
    assert cli.main([*arguments[:-1], str(readmes.ROOT / arguments[-1])]) == 0
    printed = iter(capsys.readouterr().out.splitlines())
    for line in shown.splitlines():
        assert line == "…" or line in printed, line


def test_the_readme_is_short() -> None:
    lines = readmes.text("").splitlines()
    assert len(lines) <= 130
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links(name: str) -> None:
    """Each leads to a file of the source tree, and to a heading that it has."""
    document = readmes.ROOT / name
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r'\]\(([^)]+)\)|src(?:set)?="([^"]+)"', text):
        path, _, heading = "".join(target).partition("#")
        if path.startswith("https:"):
            continue
        found = (document.parent / path).resolve() if path else document
        assert found.is_relative_to(readmes.ROOT.resolve())
        assert found.exists(), path
        if heading:
            assert heading in headings(found), heading


def headings(document: Path) -> list[str]:
    """As links name them: in small letters, with hyphens between the words."""
    found = re.findall(r"^#+ (.*)", document.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in found]
