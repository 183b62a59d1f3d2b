"""All that a plan does on the GPU, once, on small buffers: for compute-sanitizer.

    compute-sanitizer --tool memcheck python bench/gpu_check/short.py

Sums, values, gradients, clipping, proximal step and decay must have the bits that they have on the
CPU. No memory pool is used: every array is an allocation of its own, and an access beyond its end
is seen.
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"

import cupy as cp
import ml_dtypes
import numpy as np
import torch

import fused_penalties as fp
from fused_penalties.regularizers import L1L2

BLOCK = 8192  # bytes, the unit of the sums
MIXED = (np.float32, np.float16, np.float64)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def numbers(rng: np.random.Generator, dtype: Any, count: int, special: bool) -> np.ndarray:
    x = rng.standard_normal(count).astype(dtype)
    if special and count:
        x[rng.integers(0, count, 4)] = [0.0, -0.0, np.inf, np.finfo(np.float32).smallest_subnormal]
    return x


def on_gpu(x: np.ndarray, offset: int) -> Any:
    """A copy that begins so many elements after an allocation's start: bfloat16 in torch."""
    wider = np.concatenate([np.zeros(offset, x.dtype), x])
    if x.dtype == BFLOAT16:
        return torch.from_numpy(wider.view(np.int16)).cuda().view(torch.bfloat16)[offset:]
    return cp.asarray(wider)[offset:]


def on_host(x: Any) -> np.ndarray:
    if isinstance(x, torch.Tensor) and x.dtype == torch.bfloat16:
        return x.view(torch.int16).cpu().numpy().view(BFLOAT16)
    return cp.asnumpy(x)


def compare(what: str, got: Any, wanted: Any) -> None:
    got, wanted = on_host(got), np.asarray(wanted)
    if got.dtype != wanted.dtype or got.tobytes() != wanted.tobytes():
        sys.exit(f"{what}: {got!r} on the GPU, {wanted!r} on the CPU")


def check(dtypes: tuple[Any, ...], special: bool) -> int:
    rng = np.random.default_rng(0)
    weights, grads, offsets = [], [], []
    for dtype in dtypes:
        block = BLOCK // np.dtype(dtype).itemsize
        parts = (block // 64 + 1, block // 16 + 1, block // 4 + 1)  # past a row, 4, and a strip
        for count in (0, 1, 7, *parts, block - 1, block, block + 1, 5 * block + 3):
            for offset in (0, 1):  # with the widest accesses, and where they are not possible
                weights.append(numbers(rng, dtype, count, special))
                grads.append(numbers(rng, dtype, count, False))
                offsets.append(offset)
    gpu_weights = [on_gpu(w, offset) for w, offset in zip(weights, offsets, strict=True)]
    gpu_grads = [on_gpu(g, offset) for g, offset in zip(grads, offsets, strict=True)]
    gpu, cpu = (fp.Plan(w, L1L2(1e-3, 1e-2)) for w in (gpu_weights, weights))

    def compare_sums(when: str) -> None:
        got, wanted = gpu.sums(), cpu.sums()
        for name in ("abs", "square", "total_abs", "total_square"):
            compare(f"sums().{name} {when}", getattr(got, name), getattr(wanted, name))

    def compare_all(what: str, got: list[Any], wanted: list[np.ndarray]) -> None:
        for at, (g, w) in enumerate(zip(got, wanted, strict=True)):
            compare(f"{what} {at}", g, w)

    compare_sums("at first")
    compare("value", gpu.value(), cpu.value())
    compare("values", gpu.values(), cpu.values())
    compare("value_and_grad", gpu.value_and_grad(gpu_grads), cpu.value_and_grad(grads))
    compare_all("after value_and_grad, gradient", gpu_grads, grads)
    gpu.add_grad(gpu_grads, 0.5), cpu.add_grad(grads, 0.5)
    compare_all("after add_grad, gradient", gpu_grads, grads)
    compare("norm", gpu.clip_grad_norm(gpu_grads, 0.1), cpu.clip_grad_norm(grads, 0.1))
    compare_all("after clip_grad_norm, gradient", gpu_grads, grads)
    gpu.prox(0.1), cpu.prox(0.1)
    compare_all("after prox, weight", gpu_weights, weights)
    gpu.decay(0.1), cpu.decay(0.1)
    compare_all("after decay, weight", gpu_weights, weights)
    compare_sums("at last")
    return len(weights)


def main() -> None:
    if not (available := fp.cuda.is_available()):
        print(f"short.py: {available}", file=sys.stderr)
        sys.exit(2)
    cp.cuda.set_allocator(None)
    buffers = sum(check(dtypes, special) for dtypes in (MIXED, (BFLOAT16,)) for special in (0, 1))
    print(f"{buffers} buffers: the CPU's bits")


if __name__ == "__main__":
    main()
