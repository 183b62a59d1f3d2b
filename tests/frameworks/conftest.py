"""What the room's files share that pytest has to know."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(params=["the package's kernels", "jax.numpy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which JAX gets a value on the CPU."""
    from fused_penalties.jax import _handler, build_info

    if request.param == "jax.numpy":
        monkeypatch.setattr(_handler, "_library", None)
    elif not build_info()["ffi"]:
        pytest.skip("not built: what `python -m fused_penalties.jax build` makes")
    return str(request.param)


@pytest.fixture
def x64() -> Any:
    """JAX's float64 arrays, for one test."""
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)
