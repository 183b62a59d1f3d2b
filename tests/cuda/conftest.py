"""What the tests of the `cuda` marker ask for by `gpu.marks`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture
def settled() -> Iterator[None]:
    """What goes wrong on a GPU goes wrong later: within the test that began it."""
    yield
    cuda = sys.modules["cupy"].cuda
    for device in range(cuda.runtime.getDeviceCount()):
        with cuda.Device(device):
            cuda.Device().synchronize()
