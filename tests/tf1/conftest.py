"""An empty store for each test that asks for one."""

from __future__ import annotations

import pytest

import fused_penalties as fp


@pytest.fixture
def store() -> fp.VariableStore:
    return fp.VariableStore()
