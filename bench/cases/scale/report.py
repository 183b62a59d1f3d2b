"""The command over a sharded checkpoint in the page cache, against `cat FILES > /dev/null`.

Makes the checkpoint, in three shards, in a temporary folder ($TMPDIR says where): the first tensors
of Llama 2 7B in float32, one piece of random values over and over, whose pages are all different
ones to the system. Each round runs `cat` and then the command both ways, with its start-up, as one
uses them. Both ways and one run in parts have to print the same sums.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine, weights
from bench.settings import Settings
from bench.timing import summary
from bench.work import Row

SHARDS = 3
BYTES = {"default": 2_000_000_000, "full": 6_000_000_000}


def rows(settings: Settings) -> Iterator[Row]:
    nbytes = BYTES.get(settings.pace)
    if nbytes is None:
        settings.leave_out("scale/report", "it writes gigabytes; not with --quick")
        return
    if shutil.disk_usage(tempfile.gettempdir()).free < 1.2 * nbytes:
        settings.leave_out("scale/report", "no room in the folder for temporary files")
        return
    settings.expect(1)
    settings.doing("the command over a sharded checkpoint")
    with tempfile.TemporaryDirectory() as folder:
        index, nbytes, tensors = make(Path(folder), nbytes)
        seconds, memory = measure(index, settings.rounds)
    yield {
        "case": "scale",
        "what": "the command over a checkpoint",
        "dtype": "float32",
        "bytes": nbytes,
        "buffers": tensors,
        "threads": machine.threads(),
        "offset": 0,
        "where": "memory",
        "unit": "s",
        "peak_bytes": memory,
        "contenders": {name: summary(times) for name, times in seconds.items()},
    }


def make(folder: Path, nbytes: int) -> tuple[Path, int, int]:
    """The index of a checkpoint of about so many bytes, how many they are, and how many tensors."""
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
    return index, total, len(weight_map)


def measure(index: Path, rounds: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """The seconds of each way, and the most bytes that it had in memory, mapped pages included."""
    shards = sorted(map(str, index.parent.glob("*.safetensors")))
    report = [sys.executable, "-m", "fused_penalties", "report", "--json", str(index)]
    commands = {
        "cat": ["cat", *shards],
        "fused_penalties": report,
        "fused_penalties --no-mmap": [*report, "--no-mmap"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    memory = dict.fromkeys(commands, 0)
    for command in commands.values():
        run(command)
    check(index, report)
    for _ in range(rounds):
        for name, command in commands.items():
            took, most = run(command)
            seconds[name].append(took)
            memory[name] = max(memory[name], most)
    return seconds, memory


def run(command: Sequence[str]) -> tuple[float, int]:
    """Seconds, and the most bytes in memory."""
    begun = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    took = time.perf_counter() - begun
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise ValueError(f"failed: {' '.join(command)}")
    return took, usage.ru_maxrss << 10


def check(index: Path, command: list[str]) -> None:
    """All ways have to print the same sums."""
    parts = [str(index.with_name(f"part{number}.npz")) for number in (1, 2, 3)]
    for number, part in enumerate(parts, start=1):
        one = [word for word in command if word != "--json"]
        run([*one, "--part", f"{number}/{len(parts)}", "--save", part])
    merge = [*command[:3], "merge", "--json", *parts]
    found = []
    for each in (command, [*command, "--no-mmap"], merge):
        report = json.loads(subprocess.run(each, capture_output=True, check=True).stdout)
        found.append((report["tensors"], report["totals"]))
    if found[0] != found[1] or found[0] != found[2]:
        raise ValueError("the command: its sums differ between mapped, read and merged")
