"""What the room's files share that pytest has to know."""

from __future__ import annotations

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
