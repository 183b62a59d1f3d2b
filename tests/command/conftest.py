"""What the tests of the command share: a plain environment, and two files of weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import save_file

from command import TINY, model


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what makes rich or argparse take a pipe for a terminal, or one of another width."""
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    save_file(TINY, tmp_path / "tiny.safetensors")
    return str(tmp_path / "tiny.safetensors")


@pytest.fixture
def whole(tmp_path: Path) -> str:
    save_file(model(), tmp_path / "model.safetensors", metadata={"format": "np"})
    return str(tmp_path / "model.safetensors")
