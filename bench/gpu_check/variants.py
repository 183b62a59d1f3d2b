"""Builds of the package side by side on a GPU: what an option of the compiler does to the time.

    python -m bench.gpu_check.variants [--json FILE] [--seconds S] default=FOLDER NAME=FOLDER...

Each build is in a FOLDER of its own (pip install --target FOLDER) and runs in a process of its own.
They take turns: in a round each times a few calls of a work, and the ratio to the first build is
taken within the round. The median over the rounds is printed. All builds must give the same bits.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROUNDS = 9
CALLS = 10  # in one measurement: more than enough for the host to be ahead of the device
BYTES = 1 << 30  # of weights, several times what a cache has
GPT2 = "GPT-2 small float32"

# Work: dtype, how many elements past an allocation's start, and whether the gradient is wanted.
WORKS = {
    "float32": ("float32", 0, False),
    "float32, 4 bytes off": ("float32", 1, False),
    "float64": ("float64", 0, False),
    "float16": ("float16", 0, False),
    "bfloat16": ("bfloat16", 0, False),
    "bfloat16, 2 bytes off": ("bfloat16", 1, False),
    GPT2: ("float32", 0, False),
    "float32, value and gradient": ("float32", 0, True),
    "bfloat16, value and gradient": ("bfloat16", 0, True),
    f"{GPT2}, value and gradient": ("float32", 0, True),
}


class Build:
    """One build, whose process waits for its turn."""

    def __init__(self, name: str, folder: str) -> None:
        self.name = name
        paths = [folder, os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.gpu_check.variants", "--measure", folder],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, work: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(work, file=self.process.stdin, flush=True)
        if not (line := self.process.stdout.readline()):
            sys.exit(f"the build {self.name} has ended, with status {self.process.wait()}")
        return json.loads(line)


def measure(folder: str) -> None:
    """The process of one build: a work's name comes in, seconds and bits go out."""
    import torch

    import fused_penalties as fp

    assert Path(fp.__file__).is_relative_to(folder), f"{fp.__file__} is imported"
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    known, call, bits = "", None, ""
    for work in map(str.strip, sys.stdin):
        if work != known:
            call = None  # its memory is free, before more is asked for
            torch.cuda.empty_cache()
            call, bits = prepare(*WORKS[work], "gpt2" if work.startswith(GPT2) else "")
            known = work
        assert call is not None
        call()
        torch.cuda.synchronize()
        begin.record()
        for _ in range(CALLS):
            call()
        end.record()
        end.synchronize()
        seconds = begin.elapsed_time(end) / 1e3 / CALLS
        print(json.dumps({"seconds": seconds, "bits": bits}), flush=True)


def prepare(dtype: str, offset: int, gradient: bool, model: str) -> tuple[Callable[[], Any], str]:
    """What is to be timed, and the bits of all that it gives."""
    import torch

    import fused_penalties as fp
    from bench.cases.gpu.card import random
    from bench.weights import shapes
    from fused_penalties.regularizers import L1L2

    torch.manual_seed(0)
    element = getattr(torch, dtype)
    one = {"": (BYTES // element.itemsize + offset,)}
    weights = [random(shape, element) for shape in (shapes(model) if model else one).values()]
    if offset:
        weights = [w[offset:] for w in weights]
    plan = fp.Plan(weights, L1L2(1e-3, 1e-2))
    if not gradient:
        return plan.value, plan.value().get().tobytes().hex()
    grads = [torch.zeros_like(w) for w in weights]
    value = plan.value_and_grad(grads).get().tobytes().hex()
    return lambda: plan.value_and_grad(grads), " ".join([value, *map(checksum, grads)])


def checksum(x: Any) -> str:
    """Of a gradient's bits, taken on the GPU."""
    import torch

    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return f"{int(x.view(integers).sum(dtype=torch.int64)):x}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument(
        "--seconds", type=float, default=90.0, help="no work is begun later than this"
    )
    parser.add_argument("builds", nargs="+", metavar="NAME=FOLDER")
    options = parser.parse_args()
    started = time.monotonic()
    builds = [Build(*build.split("=", 1)) for build in options.builds]
    first = builds[0].name
    results = []
    print(f"{'work':36}", *(f"{b.name:>20}" for b in builds), f"(ms, times as fast as {first})")
    for work in WORKS:
        if time.monotonic() - started > options.seconds:
            print(f"{work}: left out, {options.seconds:g} s have passed")
            continue
        answers = [[build.ask(work) for build in builds] for _ in range(ROUNDS)]
        if len({answer["bits"] for answer in answers[0]}) > 1:
            sys.exit(f"wrong result: {work}: the builds' bits differ: {answers[0]}")
        cells = []
        for at, build in enumerate(builds):
            seconds = statistics.median(answer[at]["seconds"] for answer in answers)
            ratio = statistics.median(a[0]["seconds"] / a[at]["seconds"] for a in answers)
            results.append({"work": work, "build": build.name, "seconds": seconds, "ratio": ratio})
            cells.append(f"{seconds * 1e3:12.3f}  {ratio:6.3f}")
        print(f"{work:36}", *cells, flush=True)
        if options.json:
            options.json.write_text(json.dumps({"rounds": ROUNDS, "results": results}, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2])
    else:
        main()
