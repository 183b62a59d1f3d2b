"""C++ of the benchmarks, compiled at first use by $CXX, c++ or g++."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

FOLDER = "FUSED_PENALTIES_BENCH_FOLDER"  # in the environment: where processes find what is compiled


def library(source: Path, *flags: str) -> ctypes.CDLL:
    """ImportError, with the reason, where it cannot be compiled."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        raise ImportError(f"no C++ compiler for {source.name}: neither $CXX nor c++ nor g++")
    command = [*compiler.split(), "-std=c++17", "-O3", "-shared", "-fPIC", *flags]
    with tempfile.TemporaryDirectory() as folder:  # once loaded, the file need not be there
        name = "".join(filter(str.isalnum, "".join(flags)))
        path = Path(os.environ.get(FOLDER, folder), f"{source.stem}{name}.so")
        if path.exists():
            return ctypes.CDLL(str(path))
        done = subprocess.run(
            [*command, source, "-o", path], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ImportError(f"{source.name} does not compile:\n{done.stderr}")
        return ctypes.CDLL(str(path))
