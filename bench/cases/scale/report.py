"""The command over a sharded checkpoint in the page cache, against `cat FILES > /dev/null`.

    TMPDIR=/a/disk/with/room python bench/cases/scale/report.py [--gigabytes N] [--rounds N]

Makes the checkpoint, of 6 GB in three shards, in a temporary folder: the first tensors of Llama 2
7B in float32, one piece of random values over and over, whose pages are all different ones to the
system. Each round runs `cat` and then the command both ways, with its start-up, as one uses them;
each ratio is taken within a round, and the median over the rounds is printed. So is the most that
the command had in memory, the mapped pages included. Both ways and one run in parts have to print
the same sums.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
import weights

SHARDS = 3
# What each has to reach: the share of cat's speed, and bytes in memory.
TARGETS = {"mapped": 0.7, "--no-mmap": 0.55}
MOST_MEMORY = 150e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        index, nbytes = make(Path(folder), int(options.gigabytes * 1e9))
        figures = {"bytes": nbytes, "cores": os.cpu_count(), **measure(index, options.rounds)}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def make(folder: Path, nbytes: int) -> tuple[Path, int]:
    """The index of a checkpoint of about so many bytes, and how many they are."""
    # Small, because what this process has in memory counts as the least that its children have.
    piece = np.random.default_rng(0).standard_normal(1 << 20, np.float32) * np.float32(0.02)
    weight_map: dict[str, str] = {}
    left = iter(weights.shapes("llama-2-7b").items())
    total = 0
    for shard in range(1, SHARDS + 1):
        name = f"model-{shard:05}-of-{SHARDS:05}.safetensors"
        header: dict[str, Any] = {}
        end = 0
        while end < nbytes / SHARDS and (entry := next(left, None)):
            begin, end = end, end + 4 * math.prod(entry[1])
            header[entry[0]] = {"dtype": "F32", "shape": entry[1], "data_offsets": [begin, end]}
            weight_map[entry[0]] = name
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for begin in range(0, end, piece.nbytes):
                file.write(piece.data.cast("B")[: end - begin])
        total += end
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    os.sync()
    return index, total


def measure(index: Path, rounds: int) -> dict[str, Any]:
    shards = sorted(map(str, index.parent.glob("*.safetensors")))
    report = [sys.executable, "-m", "fused_penalties", "report", "--json", str(index)]
    contenders = {"cat": ["cat", *shards], "mapped": report, "--no-mmap": [*report, "--no-mmap"]}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    memory = dict.fromkeys(contenders, 0)
    for command in contenders.values():
        run(command)
    for _ in range(rounds):
        for name, command in contenders.items():
            took, most = run(command)
            seconds[name].append(took)
            memory[name] = max(memory[name], most)
    check_sums(index, contenders)

    figures: dict[str, Any] = {}
    for name in contenders:
        middle = statistics.median(seconds[name])
        line = f"{name:10} {middle:7.3f} s"
        figures[name] = {"seconds": middle}
        if name in TARGETS:
            ratio = statistics.median(
                a / b for a, b in zip(seconds["cat"], seconds[name], strict=True)
            )
            figures[name] |= {"of_cat": ratio, "memory": memory[name]}
            line += f"  {ratio:.2f} of cat (at least {TARGETS[name]})"
            line += f"  {memory[name] / 1e6:.0f} MB (at most {MOST_MEMORY / 1e6:.0f})"
        print(line)
    return figures


def run(command: Sequence[str]) -> tuple[float, int]:
    """Seconds, and the most bytes in memory."""
    begun = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    took = time.perf_counter() - begun
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"failed: {' '.join(command)}")
    return took, usage.ru_maxrss << 10


def check_sums(index: Path, contenders: dict[str, list[str]]) -> None:
    command = contenders["mapped"]
    parts = [str(index.with_name(f"part{number}.npz")) for number in (1, 2, 3)]
    for number, part in enumerate(parts, start=1):
        one = [word for word in command if word != "--json"]
        run([*one, "--part", f"{number}/{len(parts)}", "--save", part])
    merge = [*command[:3], "merge", "--json", *parts]
    found = []
    for each in (command, contenders["--no-mmap"], merge):
        report = json.loads(subprocess.run(each, capture_output=True, check=True).stdout)
        found.append((report["tensors"], report["totals"]))
    if found[0] != found[1] or found[0] != found[2]:
        sys.exit("failed: the sums differ")


if __name__ == "__main__":
    main()
