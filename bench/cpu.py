"""fp.sums on the CPU against the pure read of the same memory and against what people use today.

    pip install ".[bench]" && python bench/cpu.py [--json FILE] [--rounds N]

Everything runs in one process, interleaved; each ratio is taken within a round and the median over
the rounds is printed. "Of the read" is the speed as a share of reading the same memory with as many
threads and doing nothing with it, as fast as any of limits.py's reads does: 1.00 is the memory's
(or the cache's) limit. Every work is timed with its memory on a cache line and 16 bytes past one,
where NumPy puts large arrays. Every result is checked against NumPy in float64 before it is timed.
FUSED_PENALTIES_ISA=avx2 measures another instruction set.
"""

from __future__ import annotations

import resource
import sys
from functools import partial
from typing import Any

import ml_dtypes
import numkong
import numpy as np
import scipy.linalg.blas as blas
import torch
from threadpoolctl import threadpool_limits

import fused_penalties as fp
import limits
from reporting import Contenders, Report
from weights import OFFSETS, memory

BIG, IN_CACHE = 512 << 20, 256 << 10


def numbers(count: int, dtype: Any, offset: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    out = memory(count, dtype, offset)
    for start in range(0, count, 1 << 22):  # converting piece by piece keeps the peak memory low
        piece = out[start : start + (1 << 22)]
        piece[:] = (rng.standard_normal(len(piece), np.float32) * 0.02).astype(dtype)
    return out


def ours(buffers: list[np.ndarray], threads: int) -> Contenders:
    return {
        "fp.sums": lambda: fp.sums(buffers, threads=threads),
        "pure read": limits.read(buffers, threads),
    }


def peers(buffers: list[np.ndarray]) -> Contenders:
    tensors = [torch.from_numpy(buffer) for buffer in buffers]
    return {
        "numpy": lambda: [(np.abs(b).sum(), np.square(b).sum()) for b in buffers],
        "OpenBLAS asum + dot": lambda: [(blas.sasum(b), blas.sdot(b, b)) for b in buffers],
        # Σw and Σw² in float64: no magnitudes, but one read.
        "NumKong moments": lambda: [numkong.moments(b) for b in buffers],
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

    for offset in OFFSETS:
        from_memory(report, offset)
        in_cache(report, offset)
        many_small(report, offset)
        in_chunks(report, offset)
    report.write()


def from_memory(report: Report, offset: int) -> None:
    buffer = [numbers(BIG // 4, np.float32, offset)]
    check(buffer)
    for threads, wanted in ((1, (0.92, 0.98)), (2, (0.94, 0.98))):
        with threadpool_limits(threads):
            torch.set_num_threads(threads)
            contenders = ours(buffer, threads) | peers(buffer)
            title = f"float32, 512 MB, {threads} thread(s), {offset} bytes off"
            report.run(title, contenders, {"pure read": wanted})
    del buffer, contenders

    for dtype, wanted in (
        (np.float16, (0.82, 0.92)),
        (ml_dtypes.bfloat16, (0.82, 0.92)),
        (np.float64, (0.92, 0.98)),
    ):
        buffer = [numbers(BIG // np.dtype(dtype).itemsize, dtype, offset)]
        check(buffer)
        title = f"{np.dtype(dtype).name}, 512 MB, 1 thread, {offset} bytes off"
        report.run(title, ours(buffer, 1), {"pure read": wanted})
        del buffer


def in_cache(report: Report, offset: int) -> None:
    for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16):
        name = np.dtype(dtype).name
        buffer = numbers(IN_CACHE // np.dtype(dtype).itemsize, dtype, offset)
        check([buffer])
        # The same buffer so many times that the Python call is nothing beside it.
        report.run(
            f"{name}, 256 KB in cache, 1 thread, kernel alone, {offset} bytes off",
            ours([buffer] * 100, 1),
            {"pure read": (0.37, 0.45)} if dtype is np.float32 else {},
        )
        if dtype is np.float32:
            with threadpool_limits(1):
                torch.set_num_threads(1)
                report.run(
                    f"{name}, 256 KB in cache, 1 thread, {offset} bytes off",
                    ours([buffer], 1) | peers([buffer]),
                    {"OpenBLAS asum + dot": (0.8, 1.0), "NumKong moments": (0.8, 1.0)},
                )


def in_chunks(report: Report, offset: int) -> None:
    buffer = numbers(BIG // 8 // 4, np.float32, offset)

    def streamed(chunks: list[np.ndarray]) -> fp.Sums:
        stream = fp.StreamingSums()
        for chunk in chunks:
            stream.update(chunk, threads=1)
        return stream.sums()

    wanted: dict[int, tuple[float, ...]] = {4: (), 64: (0.5,), 1024: (0.85,)}
    for kilobytes, at_least in wanted.items():
        chunks = np.split(buffer, buffer.nbytes // (kilobytes << 10))
        if streamed(chunks).abs != fp.sums(buffer).abs:
            sys.exit("wrong result: in chunks it is not that of the whole")
        report.run(
            f"float32, 64 MB in chunks of {kilobytes} kB, 1 thread, {offset} bytes off",
            {
                "StreamingSums": partial(streamed, chunks),
                "fp.sums of the whole": partial(fp.sums, buffer, threads=1),
                "fp.sums of each": partial(in_calls, chunks),
            },
            {"fp.sums of the whole": at_least, "fp.sums of each": (1.0,)},
        )
    update = fp.StreamingSums().update
    report.absolute("update of 4 kB in cache", partial(update, chunks[0][:1024]), 0.7e-6)


def in_calls(chunks: list[np.ndarray]) -> None:
    for chunk in chunks:
        fp.sums(chunk, threads=1)


def many_small(report: Report, offset: int) -> None:
    torch.set_num_threads(2)
    many = [numbers(64, np.float32, offset) for _ in range(1000)]
    check(many)
    report.run(
        f"1000 buffers of 64 float32, fp.sums(list), {offset} bytes off",
        {"fp.sums": lambda: fp.sums(many)} | peers(many),
        {"numpy": (45.0, 60.0)},
    )


if __name__ == "__main__":
    main()
