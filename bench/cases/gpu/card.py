"""A GPU as a stopwatch: device and host time of calls, and the limits of the card itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from bench.timing import Contenders
from bench.weights import STANDARD_DEVIATION

try:
    import cupy as cp
except ImportError:
    cp = None  # fp.cuda.is_available() says so

Times = dict[str, list[float]]

DEVICE = "cuda"
BIG = 4_000_000_000  # bytes
LEAST_FLUSH = 256 << 20
MOST_HELD = 20e-3  # calls that take the host longer than this overflow the device's queue anyway

# A tile is what a block of threads has in flight at once: AHEAD 16-byte loads of each thread.
KERNELS = r"""
using Size = unsigned long long;

__device__ unsigned bits(uint4 v) { return v.x ^ v.y ^ v.z ^ v.w; }

__device__ uint4 added(uint4 a, uint4 b) {
  return make_uint4(__float_as_uint(__uint_as_float(a.x) + __uint_as_float(b.x)),
                    __float_as_uint(__uint_as_float(a.y) + __uint_as_float(b.y)),
                    __float_as_uint(__uint_as_float(a.z) + __uint_as_float(b.z)),
                    __float_as_uint(__uint_as_float(a.w) + __uint_as_float(b.w)));
}

extern "C" __global__ void pure_read(const uint4* __restrict__ from, Size count, unsigned* sink) {
  const Size tile = (Size)blockDim.x * AHEAD;
  unsigned seen = 0;
  Size at = blockIdx.x * tile + threadIdx.x;
  for (; at + (AHEAD - 1) * blockDim.x < count; at += gridDim.x * tile) {
    uint4 v[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) v[k] = from[at + k * blockDim.x];
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) seen ^= bits(v[k]);
  }
  for (; at < count; at += blockDim.x) seen ^= bits(from[at]);  // the last tile
  if (seen == 0x9e3779b9u) atomicXor(sink, seen);  // hardly ever, but the compiler cannot know
}

extern "C" __global__ void pure_exchange(uint4* __restrict__ to, const uint4* __restrict__ from,
                                         Size count) {
  const Size tile = (Size)blockDim.x * AHEAD;
  Size at = blockIdx.x * tile + threadIdx.x;
  for (; at + (AHEAD - 1) * blockDim.x < count; at += gridDim.x * tile) {
    uint4 v[AHEAD], w[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      v[k] = to[at + k * blockDim.x];
      w[k] = from[at + k * blockDim.x];
    }
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) to[at + k * blockDim.x] = added(v[k], w[k]);
  }
  for (; at < count; at += blockDim.x) to[at] = added(to[at], from[at]);
}

extern "C" __global__ void hold(Size nanoseconds) {
  Size start, now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
  do asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  while (now - start < nanoseconds);
}
"""


def random(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=DEVICE).normal_(0.0, STANDARD_DEVIATION)


def host_seconds(call: Callable[[], Any]) -> float:
    """The host's time of a call whose device has nothing to do, without waiting for the result."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Card:
    """The card at hand, as CuPy and torch see it on the current stream, which they must share.

    `limits` has what its own plain kernels reach: "pure read" and "pure exchange", the fastest of
    several shapes each. `contenders` are these kernels, to be timed beside others.
    """

    def __init__(self) -> None:
        card = torch.cuda.get_device_properties(0)
        self.begin, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        modules = {n: cp.RawModule(code=KERNELS, options=(f"-DAHEAD={n}",)) for n in (2, 4, 8)}
        self.hold = modules[2].get_function("hold")
        sink = cp.zeros(1, cp.uint32)
        # What the cache is flushed with is apart: the front of what is measured would stay there.
        memory, other = (
            cp.from_dlpack(random((size // 4,)))
            for size in (BIG, max(LEAST_FLUSH, 4 * card.L2_cache_size))
        )
        weights, grads = memory[: BIG // 8], memory[BIG // 8 : BIG // 4]

        self.flush: Callable[[], Any] = lambda: None  # needs no flush: what follows is far larger
        self.limits: dict[str, dict[str, Any]] = {}
        self.contenders: dict[str, partial[None]] = {}
        for name, moved, to_and_from, more in (
            ("pure read", BIG, (memory,), (sink,)),
            ("pure exchange", 3 * BIG // 2, (grads, weights), ()),
        ):
            count = np.uint64(to_and_from[0].nbytes // 16)
            best = float("inf")
            for ahead, threads, blocks in shapes_of_grids(int(count), card.multi_processor_count):
                kernel = modules[ahead].get_function(name.replace(" ", "_"))
                call = partial(kernel, (blocks,), (threads,), (*to_and_from, count, *more))
                call()
                seconds = statistics.median(self.seconds(call) for _ in range(5))
                if seconds < best:
                    best = seconds
                    self.contenders[name] = call
                    self.limits[name] = {
                        "bytes": moved,
                        "bytes_per_second": moved / seconds,
                        "loads_ahead": ahead,
                        "threads": threads,
                        "blocks": blocks,
                    }
        read = self.contenders["pure read"]
        arguments = other, np.uint64(other.nbytes // 16), sink
        self.flush = partial(read.func, *read.args[:2], arguments)

    def seconds(self, call: Callable[[], Any], held: float = 0.0) -> float:
        """The device's time of a call whose data is not in cache.

        The device is `held` up for so long first, that the host can queue the call meanwhile.
        """
        self.flush()
        if 0.0 < held < MOST_HELD:
            self.hold((1,), (1,), (np.uint64(held * 1e9),))
        self.begin.record()
        call()
        self.end.record()
        self.end.synchronize()
        return self.begin.elapsed_time(self.end) / 1e3

    def interleaved(self, contenders: Contenders, rounds: int) -> tuple[Times, Times]:
        """Device's and host's seconds per call of every contender, one figure each a round."""
        held, repeats = {}, {}
        for name, call in contenders.items():
            for _ in range(3):  # kernels are compiled and loaded, memory pools filled
                call()
            held[name] = 1.5 * statistics.median(host_seconds(call) for _ in range(3)) + 50e-6
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            torch.cuda.synchronize()
            repeats[name] = max(1, min(5, round(20e-3 / (time.perf_counter() - start))))
        device: Times = {name: [] for name in contenders}
        host: Times = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, call in contenders.items():
                times = [self.seconds(call, held[name]) for _ in range(repeats[name])]
                device[name].append(statistics.median(times))
                host[name].append(statistics.median(host_seconds(call) for _ in times))
        return device, host


def shapes_of_grids(count: int, cores: int) -> list[tuple[int, int, int]]:
    """(loads ahead, threads, blocks) to try on so many 16-byte words: persistent ones, and not."""
    return [
        (ahead, threads, blocks)
        for ahead in (2, 4, 8)
        for threads in (256, 512)
        for blocks in (*(cores * n for n in (1, 2, 4, 8, 16)), -(-count // (ahead * threads)))
    ]
