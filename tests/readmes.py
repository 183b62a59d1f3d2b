"""The READMEs of the source tree, and the code in them."""

from __future__ import annotations

import re

from source_tree import SOURCE as ROOT

PACKAGE = "python/fused_penalties"


def text(folder: str) -> str:
    return (ROOT / folder / "README.md").read_text(encoding="utf-8")


def blocks(folder: str, language: str) -> list[str]:
    """The code of this language in the folder's README, in its order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text(folder), re.DOTALL | re.MULTILINE)
