"""What the tests of the `cuda` marker share: the same arrays on the CPU and on the GPU.

They run on a GPU, with CuPy, or where the extension is built with its emulation and the ``cupy.py``
of ``emulated`` stands in for CuPy (`test_emulated.py` sees to that); else whoever imports this is
skipped. Only what CuPy has is used, with CuPy's meaning.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

import fused_penalties as fp
import oracle
import values

if not fp.cuda.is_available():
    pytest.skip(f"needs a GPU: {fp.cuda.is_available()}", allow_module_level=True)

import cupy

marks = [pytest.mark.cuda, pytest.mark.usefixtures("settled")]
EMULATED = fp.build_info()["cuda"] == "emulated"
# The reasons tell test_emulated.py which ones may be left out there.
hardware = pytest.mark.skipif(EMULATED, reason="needs a real GPU")
emulation = pytest.mark.skipif(not EMULATED, reason="needs the emulated GPU")
several = pytest.mark.skipif(
    cupy.cuda.runtime.getDeviceCount() < 2, reason="needs more than one GPU"
)


def seeds(count: int) -> pytest.MarkDecorator:
    """A parameter for tests of random lists: a quarter of the seeds runs without --run-slow."""
    slow = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(count // 4, count)]
    return pytest.mark.parametrize("seed", [*range(count // 4), *slow])


def streams(count: int) -> list[Any]:
    """Streams that wait for no other one."""
    return [cupy.cuda.Stream(non_blocking=True) for _ in range(count)]


def step(stream: Any, count: int) -> None:
    """Runs the next `count` things that wait on a stream; a real GPU runs as it likes."""
    if EMULATED:
        cupy._lib.emulated_step(stream._device, stream.ptr, count)


def launches(call: Callable[[], Any]) -> int:
    """How many kernels a call launches, in the emulation."""
    before = cupy._lib.emulated_launches()
    call()
    return cupy._lib.emulated_launches() - before


NEVER = -1


def fail(calls: int) -> None:
    """Lets one call of CUDA fail, after so many others or NEVER, in the emulation."""
    cupy._lib.emulated_fail(calls)


class Twins:
    """Copies of NumPy arrays on the host, and CuPy arrays with the same elements.

    Both lie in one piece of memory, each array as far past a multiple of 64 bytes as the original,
    with the same strides; what shared memory shares it again.
    """

    def __init__(self, arrays: Iterable[np.ndarray]) -> None:
        originals = list(arrays)
        roots: dict[int, tuple[np.ndarray, int]] = {}  # by their address: where they come to lie
        size = 64
        for x in originals:
            root = _root(x)
            low, high = _bounds(root)
            if root.nbytes and low not in roots:
                size += -size % 64 + low % 64
                roots[low] = root, size
                size += high - low + 64
        self.memory = values.aligned_bytes(size)
        self.memory[:] = np.resize(np.arange(251, dtype=np.uint8), size)
        for low, (root, at) in roots.items():
            count = _bounds(root)[1] - low
            self.memory[at : at + count] = np.frombuffer(_bytes_at(low, count), np.uint8)
        self.gpu_memory = cupy.empty(size, np.uint8)
        self.gpu_memory.set(self.memory)
        self.host, self.gpu = [], []
        for x in originals:
            low = _bounds(_root(x))[0]
            at = roots[low][1] + x.ctypes.data - low if x.size else 0
            self.host.append(np.ndarray(x.shape, x.dtype, self.memory, at, x.strides))
            self.gpu.append(
                cupy.ndarray(x.shape, x.dtype, self.gpu_memory.data + at, strides=x.strides)
            )

    def check(self) -> None:
        """All bytes are still the same, those between the arrays too."""
        found = self.gpu_memory.get()
        if found.tobytes() == self.memory.tobytes():
            return
        at = int(np.flatnonzero(found != self.memory)[0])
        for k, x in enumerate(self.host):
            if x.size == 0:
                continue
            there = np.ndarray(x.shape, x.dtype, found, _offset(x, self.memory), x.strides)
            differs = np.flatnonzero(_bits(there) != _bits(x))
            if differs.size:
                i = differs[0]
                raise AssertionError(
                    f"array {k} of {x.dtype}, shape {x.shape}, strides {x.strides} differs first "
                    f"at {i}: got {_bits(there)[i]:#x}, wanted {_bits(x)[i]:#x}"
                )
        raise AssertionError(f"byte {at}, which is no array's, was written")


def on_gpu(x: np.ndarray) -> Any:
    """One array on the GPU."""
    return Twins([x]).gpu[0]


def assert_same(got: Any, wanted: Any) -> None:
    """A CuPy array with the bits of a NumPy one or of a number."""
    wanted = np.asarray(wanted)
    assert type(got) is cupy.ndarray
    found = np.asarray(got.get())
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    if found.tobytes() != wanted.tobytes():
        at = np.flatnonzero(_bits(found) != _bits(wanted))[0]
        raise AssertionError(f"at {at}: got {found.flat[at]!r}, wanted {wanted.flat[at]!r}")


def assert_same_sums(got: fp.Sums, wanted: fp.Sums) -> None:
    """Those of arrays on the GPU like those on the CPU."""
    for name in ("abs", "square", "total_abs", "total_square", "largest", "total_largest"):
        if name.endswith("largest") and getattr(wanted, name) is None:
            assert getattr(got, name) is None
        else:
            assert_same(getattr(got, name), getattr(wanted, name))
    assert got.names == wanted.names


def random_arrays(rng: np.random.Generator) -> list[np.ndarray]:
    """A list of any length with arrays of any dtype, length, values, alignment and layout."""
    few = rng.random() < 0.9
    count = int(rng.integers(0, 9) if few else rng.integers(50, 300))
    return [_random_array(rng, 3 if few else 0) for _ in range(count)]


def _random_array(rng: np.random.Generator, most_blocks: int) -> np.ndarray:
    dtype = str(rng.choice(list(oracle.DTYPES)))
    itemsize = oracle.DTYPES[dtype].itemsize
    block = oracle.block_elements(oracle.DTYPES[dtype])
    unit = int(rng.choice([block, block // 4, block // 64, 16 // itemsize, 1]))
    most = most_blocks * block // unit if most_blocks else 60
    length = max(0, unit * int(rng.integers(0, min(most, 20) + 1)) + int(rng.integers(-2, 3)))
    pool = _pool(str(rng.choice(values.KINDS)) if rng.random() < 0.5 else "normal", dtype)
    start = int(rng.integers(0, len(pool) - 3 * length)) if 3 * length < len(pool) else 0
    layout = rng.choice(["plain", "plain", "backwards", "steps", "matrix", "part", "broadcast"])
    long = length if layout != "steps" else 3 * length
    offset = int(rng.choice([0, 0, 16, itemsize, int(rng.integers(0, 32)) * itemsize]))
    x = values.at_offset(pool[start : start + long], offset)
    rows = int(rng.integers(1, 9))
    if layout == "backwards":
        return x[::-1]
    if layout == "steps":
        return x[:: int(rng.choice([2, 3, -2, -3]))]
    if layout in ("matrix", "part"):
        x = x[: x.size // rows * rows].reshape(rows, -1)
        return x.T if layout == "matrix" else x[1:, 2:-1]
    return np.broadcast_to(x[:100], (rows, x[:100].size)) if layout == "broadcast" else x


_pools: dict[tuple[str, str], np.ndarray] = {}


def _pool(kind: str, dtype: str) -> np.ndarray:
    key = kind, dtype
    if key not in _pools:
        _pools[key] = values.make(kind, dtype, 50_000)
        if kind in ("nan", "inf", "nan and inf"):  # some lists have them, and some have not
            _pools[key] = np.concatenate([_pools[key], values.make("normal", dtype, 50_000)])
    return _pools[key]


def _root(x: np.ndarray) -> np.ndarray:
    while isinstance(x.base, np.ndarray):
        x = x.base
    return x


def _bounds(x: np.ndarray) -> tuple[int, int]:
    low = high = x.ctypes.data
    for length, stride in zip(x.shape, x.strides, strict=True):
        low, high = low + min(0, (length - 1) * stride), high + max(0, (length - 1) * stride)
    return (low, high + x.itemsize) if x.size else (x.ctypes.data, x.ctypes.data)


def _bytes_at(address: int, count: int) -> Any:
    return (ctypes.c_ubyte * count).from_address(address)


def _offset(x: np.ndarray, memory: np.ndarray) -> int:
    return x.ctypes.data - memory.ctypes.data


def _bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).reshape(-1).view(f"u{x.itemsize}")
