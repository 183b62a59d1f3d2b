"""The penalty inside each framework that is installed, against what people write in it today.

    pip install ".[torch,keras,jax,tensorflow,bench]"
    python bench/cases/frameworks [--only NAME ...] [--rounds N] [--json FILE]
    OMP_NUM_THREADS=1 python bench/cases/frameworks    # with one thread, on both sides

Forward and backward alone and inside a step that has gradients, on the shapes of ResNet-50, of
BERT-base and of 1000 buffers of 64. Each framework has a process of its own, Keras one for each
backend; what is not installed is named and left out. Within a process everything is interleaved;
each ratio is taken within a round, and the median over the rounds is printed. Values, and gradients
where there are some, are checked before they are timed. Rows in which we are slower are printed
like all others.

Run it with nothing else beside it. Where other work takes one of the cores, torch's threads spin
while they wait for each other, and the expression alone was seen to take twenty times as long with
two threads as with one: a ratio of then says nothing about the penalty.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
# What all benchmarks share lies two folders up.
PATH = os.pathsep.join(filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH")]))
# What runs: the module, the package it needs, and Keras' backend.
WAYS = {
    "torch": ("with_torch.py", ("torch",), {}),
    "jax": ("with_jax.py", ("jax", "optax"), {}),
    "tensorflow": ("with_tensorflow.py", ("tensorflow",), {}),
    **{
        f"keras-{backend}": ("with_keras.py", ("keras", backend), {"KERAS_BACKEND": backend})
        for backend in ("torch", "tensorflow", "jax")
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    figures, failed = {}, []
    for name in options.only:
        script, packages, more = WAYS[name]
        if missing := [one for one in packages if importlib.util.find_spec(one) is None]:
            print(f"{name}: left out, not installed: {', '.join(missing)}", flush=True)
            continue
        print(f"{name}:", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "figures.json")
            done = subprocess.run(
                [sys.executable, HERE / script, "--rounds", str(options.rounds), "--json", file],
                env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, **more, "PYTHONPATH": PATH},
                check=False,
            )
            if done.returncode == 0:
                figures[name] = json.loads(file.read_text())
            else:
                failed.append(name)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
