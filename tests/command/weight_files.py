"""Weight files for tests: how they are made, and what is read from them."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fused_penalties.files import FileFault, Tensor, batches, open_tensors

KIB8 = 8 << 10


def ints(*shape: int, dtype: object = np.float32, seed: int = 0) -> np.ndarray:
    """Whole numbers, of which every sum in these tests is exact."""
    return np.random.default_rng(seed).integers(-9, 10, shape).astype(dtype)


def listed(path: Path) -> dict[str, Tensor]:
    tensors = open_tensors(str(path))
    assert len({tensor.name for tensor in tensors}) == len(tensors)
    return {tensor.name: tensor for tensor in tensors}


def loaded(tensors: list[Tensor], most: int = KIB8) -> list[np.ndarray]:
    """The elements of each tensor, put together from the batches that were read."""
    parts: list[list[np.ndarray]] = [[] for _ in tensors]
    for batch in batches(tensors, most):
        arrays = batch.read()
        assert len(arrays) == batch.tensors > 0
        assert sum(array.nbytes for array in arrays) == batch.nbytes <= most
        for place, array in enumerate(arrays, batch.first):
            parts[place].append(array)
    for part in parts:
        assert all(array.nbytes % KIB8 == 0 for array in part[:-1])
    return [np.concatenate(part).astype(part[0].dtype) for part in parts]


def assert_holds(tensor: Tensor, expected: np.ndarray) -> None:
    (got,) = loaded([tensor])
    assert (tensor.shape, tensor.dtype) == (expected.shape, expected.dtype.name)
    assert (tensor.size, tensor.nbytes) == (expected.size, expected.nbytes)
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected.ravel(order="K"))


def load_all(path: Path) -> None:
    loaded([tensor for tensor in open_tensors(str(path)) if tensor.stored])


def notes(path: Path) -> list[str]:
    said: list[str] = []
    open_tensors(str(path), note=said.append)
    return said


def fault(path: Path, *, found_by: Callable[[Path], object] = listed) -> str:
    """The message of the fault, without the file's name, which it must begin with."""
    with pytest.raises(FileFault) as caught:
        found_by(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_with_header(header: str, data: bytes = b"", version: int = 1) -> bytes:
    length = len(header.encode()).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + data


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
