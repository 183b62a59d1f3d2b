"""fp.sums on the CPU against the pure read of the same memory and against what people use today.

    pip install ".[bench]" && python bench/cpu.py [--json FILE] [--rounds N]

Everything runs in one process, interleaved; each ratio is taken within a round and the median over
the rounds is printed. "Of the read" is the speed as a share of reading the same memory with as many
threads and doing nothing with it: 1.00 is the memory's (or the cache's) limit. Every result is
checked against NumPy in float64 before it is timed. FUSED_PENALTIES_ISA=avx2 measures another
instruction set.
"""

from __future__ import annotations

import resource
import sys
from typing import Any

import ml_dtypes
import numpy as np
import scipy.linalg.blas as blas
import torch
from threadpoolctl import threadpool_limits

import fused_penalties as fp
from reporting import Contenders, Report

BIG = 512 << 20


def numbers(count: int, dtype: Any = np.float32) -> np.ndarray:
    rng = np.random.default_rng(0)
    out = np.empty(count, dtype)
    for start in range(0, count, 1 << 22):  # converting piece by piece keeps the peak memory low
        piece = out[start : start + (1 << 22)]
        piece[:] = (rng.standard_normal(len(piece), np.float32) * 0.02).astype(dtype)
    return out


def ours(buffers: list[np.ndarray], threads: int) -> Contenders:
    return {
        "fp.sums": lambda: fp.sums(buffers, threads=threads),
        "pure read": lambda: fp._core.read_bytes(buffers, threads),
    }


def peers(buffers: list[np.ndarray]) -> Contenders:
    tensors = [torch.from_numpy(buffer) for buffer in buffers]
    return {
        "numpy": lambda: [(np.abs(b).sum(), np.square(b).sum()) for b in buffers],
        "OpenBLAS asum + dot": lambda: [(blas.sasum(b), blas.sdot(b, b)) for b in buffers],
        "torch": lambda: [(t.abs().sum(), t.square().sum()) for t in tensors],
        "torch._foreach_norm": lambda: (
            torch._foreach_norm(tensors, 1),
            torch._foreach_norm(tensors, 2),
        ),
    }


def check(buffers: list[np.ndarray]) -> None:
    """A wrong result must not be timed: every buffer against NumPy in float64."""
    sums = fp.sums(buffers)
    bound = 1e-12 if buffers[0].dtype.itemsize >= 4 else 9e-7
    for i, buffer in enumerate(buffers):
        abs_sum = square_sum = 0.0
        for start in range(0, buffer.size, 1 << 22):
            piece = buffer[start : start + (1 << 22)].astype(np.float64)
            abs_sum += float(np.abs(piece).sum())
            square_sum += float(np.square(piece).sum())
        for got, wanted in ((sums.abs[i], abs_sum), (sums.square[i], square_sum)):
            if abs(got - wanted) > bound * wanted:
                sys.exit(f"wrong result: {got!r}, numpy says {wanted!r}")


def peak_beyond_inputs(threads: int) -> int:
    """Bytes by which the peak resident memory grows in summing a big buffer and many small ones.

    To be called before anything else raises the peak. The first call, which pays for the threads'
    stacks, is not counted.
    """
    buffers = [np.ones(64 << 20, np.float32)] + [np.ones(64, np.float32) for _ in range(1000)]
    fp.sums(buffers[:1], threads=threads)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fp.sums(buffers, threads=threads)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def main() -> None:
    report = Report(__doc__)
    peak = peak_beyond_inputs(2) // 1024
    report.console.print(f"memory beyond 1001 buffers and their results, 2 threads: {peak} KiB")

    buffer = [numbers(BIG // 4)]
    check(buffer)
    for threads, limits in ((1, (0.80, 0.90)), (2, (0.85, 0.95))):
        with threadpool_limits(threads):
            torch.set_num_threads(threads)
            contenders = ours(buffer, threads) | peers(buffer)
            targets = {"pure read": limits}
            if threads == 1:
                targets |= {
                    "OpenBLAS asum + dot": (1.7, 2.0),
                    "torch._foreach_norm": (5.0, 7.0),
                    "numpy": (10.0, 14.0),
                }
            report.run(f"float32, 512 MB, {threads} thread(s)", contenders, targets)
    del buffer, contenders

    for dtype, limits in (
        (np.float16, (0.75, 0.85)),
        (ml_dtypes.bfloat16, (0.65, 0.80)),
        (np.float64, (0.70, 0.80)),
    ):
        buffer = [numbers(BIG // np.dtype(dtype).itemsize, dtype)]
        check(buffer)
        title = f"{np.dtype(dtype).name}, 512 MB, 1 thread"
        report.run(title, ours(buffer, 1), {"pure read": limits})
        del buffer

    for dtype, limits in ((np.float32, (0.33, 0.45)), (np.float16, None), (np.float64, None)):
        buffer = [numbers((256 << 10) // np.dtype(dtype).itemsize, dtype)]
        check(buffer)
        contenders = ours(buffer, 1) | (peers(buffer) if dtype is np.float32 else {})
        title = f"{np.dtype(dtype).name}, 256 KB in cache, 1 thread"
        with threadpool_limits(1):
            torch.set_num_threads(1)
            report.run(title, contenders, {"pure read": limits} if limits else {})

    torch.set_num_threads(2)
    many = [numbers(64) for _ in range(1000)]
    check(many)
    contenders = {"fp.sums": lambda: fp.sums(many)} | peers(many)
    report.run(
        "1000 buffers of 64 float32, fp.sums(list)",
        contenders,
        {"numpy": (20.0, 40.0), "torch._foreach_norm": (30.0, 80.0)},
    )

    report.write()


if __name__ == "__main__":
    main()
