"""`python -m fused_penalties.jax build`: compiles what XLA calls on the CPU."""

from __future__ import annotations

import argparse
import subprocess
import sys

from ._handler import build

_SHOW = """
import sys
from fused_penalties.jax import build_info
info = build_info()
print(info["why"])
sys.exit(not info["ffi"])
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fused_penalties.jax", description=__doc__)
    parser.add_argument(
        "what",
        choices=["build"],
        help="compile it for the installed JAX, with the C++ compiler that CXX names or is found",
    )
    parser.parse_args()
    try:
        library = build()
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(library)
    return subprocess.run([sys.executable, "-c", _SHOW], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
