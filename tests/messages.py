"""Error messages to the letter."""

from __future__ import annotations

import re


def exactly(text: str) -> str:
    """What `pytest.raises(match=...)` needs for the whole message and nothing else."""
    return rf"\A{re.escape(text)}\Z"
