"""Sets the floating-point control register of this thread to what another library may have left."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# Where glibc's fenv_t keeps the control register, its size, and the bits that make trouble.
if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
    pytest.skip("knows the layout of fenv_t only on 64-bit Linux", allow_module_level=True)
if platform.machine() == "x86_64":  # MXCSR
    FENV_BYTES, CONTROL_AT = 32, 28
    MODES = {
        "flush to zero": 1 << 15,
        "denormals are zero": 1 << 6,
        "round down": 1 << 13,
        "round up": 2 << 13,
        "round to zero": 3 << 13,
    }
    STICKY_FLAGS = 0x3F
else:  # FPCR
    FENV_BYTES, CONTROL_AT = 8, 0
    MODES = {
        "flush to zero": 1 << 24,
        "round up": 1 << 22,
        "round down": 2 << 22,
        "round to zero": 3 << 22,
    }
    STICKY_FLAGS = 0

_libm = ctypes.CDLL("libm.so.6")


def control() -> int:
    """The control register of this thread, without the flags that arithmetic sets."""
    environment = ctypes.create_string_buffer(FENV_BYTES)
    _libm.fegetenv(environment)
    field = environment.raw[CONTROL_AT : CONTROL_AT + 4]
    return int.from_bytes(field, "little") & ~STICKY_FLAGS


@contextmanager
def hostile(mode: str) -> Iterator[int]:
    """Arithmetic of this thread in one of MODES; yields what the control register then reads."""
    usual = ctypes.create_string_buffer(FENV_BYTES)
    _libm.fegetenv(usual)
    changed = bytearray(usual.raw)
    field = int.from_bytes(changed[CONTROL_AT : CONTROL_AT + 4], "little") | MODES[mode]
    changed[CONTROL_AT : CONTROL_AT + 4] = field.to_bytes(4, "little")
    _libm.fesetenv(ctypes.create_string_buffer(bytes(changed), FENV_BYTES))
    try:
        yield field & ~STICKY_FLAGS
    finally:
        _libm.fesetenv(usual)
