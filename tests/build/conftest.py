"""What more than one file here builds."""

from __future__ import annotations

import pytest

from source_tree import build


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of the driver for this processor; other programs may be built beside it."""
    return [str(build(tmp_path_factory.mktemp("native")))]
