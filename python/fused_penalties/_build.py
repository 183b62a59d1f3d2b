"""What this build is and what it runs on."""

from __future__ import annotations

from typing import Any

from . import _core


def build_info() -> dict[str, Any]:
    """Facts about this build and process.

    Returns a dict: ``version``; ``isas``, the instruction sets compiled in, the widest registers
    first; ``active_isa``, the one in use (``FUSED_PENALTIES_ISA`` forces one by name); ``why_isa``,
    what spoke for it, in words; ``threads``, how many a call takes unless it says otherwise;
    ``cuda``, the CUDA toolkit's version or False.

    Raises RuntimeError if FUSED_PENALTIES_ISA names a set that is not supported.
    """
    return {
        "version": _core.__version__,
        "isas": _core.compiled_isas(),
        "active_isa": _core.active_isa(),
        "why_isa": _core.why_isa(),
        "threads": _core.default_threads(),
        "cuda": _core.cuda_toolkit() if hasattr(_core, "cuda_toolkit") else False,
    }
