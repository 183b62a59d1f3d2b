"""What XLA calls on the CPU: a small library, compiled apart against the headers of JAX.

CMake compiles it with the package if it is told where the headers are, and `build` does so later;
both make the same library of `csrc/jax/handler.cpp`. It calls the package's kernels by an address
that it is given here.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jaxlib

from .. import _core

TARGET = "fused_penalties_penalty"
"""Its name in the library, and for XLA."""

_FOLDER = Path(__file__).parent
_BUILD = "`python -m fused_penalties.jax build` makes it"


def build_info() -> dict[str, Any]:
    """How `penalty` gets its value on the CPU.

    Returns a dict: ``ffi``, True if by the package's kernels and False if by `jax.numpy`; ``why``,
    in words; ``library``, the file that XLA calls, or None.
    """
    return {"ffi": _library is not None, "why": _why, "library": _library and str(_library)}


def is_loaded() -> bool:
    return _library is not None


def build() -> Path:
    """Compiles the library for the JAX that is installed, and returns where it is.

    That is in the package or, if nothing can be written there, in the user's cache. A process that
    runs already does not see it. RuntimeError if it cannot be done.
    """
    source = _FOLDER / "csrc" / "jax" / "handler.cpp"
    if not source.exists():
        raise RuntimeError(f"there is no {source}; wanted fused_penalties as pip installs it")
    headers = jax.ffi.include_dir()
    to = _in_package() if os.access(_FOLDER, os.W_OK) else _in_cache()
    compiler = _compiler()
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place, and then moved: another process may have the old one in use.
        with tempfile.TemporaryDirectory(dir=to.parent, prefix=".build-") as scratch:
            made = Path(scratch) / to.name
            options = ["-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wno-psabi"]
            where = ["-I", str(source.parents[1]), "-isystem", headers]
            done = subprocess.run(
                [*compiler, *options, *where, str(source), "-o", str(made)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(
                    f"{shlex.join(done.args)} ended with {done.returncode}:\n{done.stderr[-4000:]}"
                )
            made.replace(to)
        if to == _in_package():
            _list_as_installed(to)
    except OSError as error:
        raise RuntimeError(f"{to}: {error}") from error
    return to


def _list_as_installed(library: Path) -> None:
    """Adds it to pip's list of the package's files, so that `pip uninstall` removes it too."""
    site = library.parents[2]
    record = site / f"fused_penalties-{_core.__version__}.dist-info" / "RECORD"
    name = library.relative_to(site).as_posix()
    if record.exists() and f"\n{name}," not in record.read_text(encoding="utf-8"):
        with record.open("a", encoding="utf-8") as file:
            file.write(f"{name},,\n")


def _compiler() -> list[str]:
    if named := os.environ.get("CXX"):
        return shlex.split(named)
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise RuntimeError(
        "there is no C++ compiler: none of c++, g++ and clang++ is found; the environment variable "
        "CXX may name one"
    )


def _in_package() -> Path:
    return _FOLDER / "handler.so"


def _in_cache() -> Path:
    """Which environments with other versions share."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    versions = f"{_core.__version__}-jaxlib-{jaxlib.__version__}-{sys.platform}"
    return cache / "fused-penalties" / f"handler-{versions}.so"


def _places() -> Iterator[Path]:
    yield _in_package()
    try:
        yield _in_cache()
    except RuntimeError:  # there is no home
        return


def _xla_version() -> tuple[int, int]:
    """Of the interface between XLA and what it calls, as the headers in jaxlib say it."""
    header = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    text = header.read_text(encoding="utf-8")
    found = dict(re.findall(r"#define XLA_FFI_API_(MAJOR|MINOR) (\d+)", text))
    if len(found) != 2:
        raise RuntimeError(f"{header} does not say which version it is of")
    return int(found["MAJOR"]), int(found["MINOR"])


def _load() -> tuple[Path | None, str]:
    """The library that is in use from now on, or None, and why."""
    why = f"jax.numpy: what XLA would call is not built; {_BUILD}"
    for path in _places():
        if not path.is_file():
            continue
        try:
            library = ctypes.CDLL(str(path))
            connect = library.fused_penalties_connect
            connect.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
            connect.restype = ctypes.c_char_p
            refused = connect(_core.JAX_INTERFACE, *_xla_version(), _core.PENALTY_OF_ROWS)
            if refused is not None:
                raise RuntimeError(refused.decode())
            jax.ffi.register_ffi_target(
                TARGET, jax.ffi.pycapsule(getattr(library, TARGET)), platform="cpu"
            )
        except (AttributeError, OSError, RuntimeError, ValueError) as error:
            why = f"jax.numpy: {path} cannot be used: {error}; {_BUILD} anew"
        else:
            return path, f"the package's kernels, which XLA calls through {path}"
    return None, why


_library, _why = _load()
