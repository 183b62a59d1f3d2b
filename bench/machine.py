"""What figures were measured on, and with."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import fused_penalties as fp
from bench import peers

FRAMEWORKS = ("keras", "optax", "ml_dtypes", "mpi4py")  # what matters beside the peers
USUAL_CACHE = 32 << 20  # bytes; where the system does not tell


def machine() -> dict[str, Any]:
    cpu = processor()
    return {
        "name": f"{cpu}, {cores()} cores",
        "processor": cpu,
        "cores": cores(),
        "threads": threads(),
        "caches": caches(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
    }


def package() -> dict[str, Any]:
    info = fp.build_info()
    isa = info.pop("active_isa")
    return {"version": info.pop("version"), "isa": isa, **info}


def versions() -> dict[str, str]:
    """Of what is installed, imported or not."""
    found = {"python": platform.python_version()}
    for name in (*(name for names in peers.PACKAGES.values() for name in names), *FRAMEWORKS):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def threads() -> int:
    """How many this process may have run at the same time."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def last_cache() -> int:
    """Bytes of the last level: what is larger comes from memory."""
    return max(caches().values(), default=USUAL_CACHE)


def where(nbytes: int) -> str:
    """Where memory that is used again and again is found."""
    return "cache" if nbytes <= last_cache() else "memory"


def processor() -> str:
    text = _text(Path("/proc/cpuinfo"))
    if found := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
        return found[1].strip()
    return _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


def cores() -> int:
    """Those of the processor, not its threads, where the system tells."""
    text = _text(Path("/proc/cpuinfo"))
    sockets = re.findall(r"^physical id\s*:\s*(\d+)", text, re.MULTILINE)
    numbers = re.findall(r"^core id\s*:\s*(\d+)", text, re.MULTILINE)
    distinct = len(set(zip(sockets, numbers, strict=False)))
    return distinct or int(_sysctl("hw.physicalcpu") or 0) or os.cpu_count() or 1


def caches() -> dict[str, int]:
    """Bytes of those that the first processor uses: L1d, L2, L3."""
    found = {}
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        level, kind, size = (_text(folder / name).strip() for name in ("level", "type", "size"))
        if kind != "Instruction" and (number := re.fullmatch(r"(\d+)([KM])", size)):
            name = f"L{level}d" if kind == "Data" else f"L{level}"
            found[name] = int(number[1]) << {"K": 10, "M": 20}[number[2]]
    for name, key in (("L1d", "hw.l1dcachesize"), ("L2", "hw.l2cachesize")):
        if not found.get(name) and (size := _sysctl(key)):
            found[name] = int(size)
    return dict(sorted(found.items()))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _sysctl(name: str) -> str:
    """What macOS tells under a name; nothing elsewhere."""
    if platform.system() != "Darwin":
        return ""
    done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
    return done.stdout.strip()
