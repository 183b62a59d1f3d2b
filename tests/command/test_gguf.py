"""GGUF files, written by the package gguf: what is listed and read, and what broken ones say."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from command import process
from fused_penalties.files import Tensor, open_tensors
from weight_files import assert_holds, fault, ints, listed

gguf = pytest.importorskip("gguf", reason="not installed: gguf")
KINDS = gguf.GGMLQuantizationType


def write(path: Path, big: bool = False) -> dict[str, np.ndarray]:
    """A file with a vocabulary and weights of each kind; the arrays that are to be summed."""
    arrays = {
        "token_embd.weight": ints(30, 64, dtype=np.float16),
        "blk.0.attn_norm.weight": ints(64, seed=1),
        "blk.0.attn_q.weight": ints(64, 32, dtype=ml_dtypes.bfloat16, seed=2),
        "double": ints(2, 3, 4, dtype=np.float64, seed=3),
    }
    order = gguf.GGUFEndian.BIG if big else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(path, "llama", endianess=order)
    writer.add_block_count(1)
    writer.add_token_list(["a", "bc", "Σ"])
    writer.add_token_scores([0.0, 1.0, 2.0])
    for name, array in arrays.items():
        if array.dtype == ml_dtypes.bfloat16:
            # The axis of the bytes goes by the name of the elements' here.
            writer.add_tensor(name, array.view(np.uint8), raw_dtype=KINDS.BF16)
        else:
            writer.add_tensor(name, array)
    for name, kind in {"q8": KINDS.Q8_0, "q4": KINDS.Q4_0}.items():
        packed = gguf.quants.quantize(ints(5, 64).astype(np.float32), kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
    writer.add_tensor("ids", np.arange(7, dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return arrays


def test_gguf(tmp_path):
    path = tmp_path / "model.gguf"
    arrays = write(path)
    found = listed(path)
    for name, array in arrays.items():
        assert_holds(found.pop(name), array)
    assert found == {
        # A block of 32 takes a float16, and a byte or half a byte for each.
        "q8": Tensor("q8", (5, 64), "Q8_0", 5 * 2 * 34, None),
        "q4": Tensor("q4", (5, 64), "Q4_0", 5 * 2 * 18, None),
        "ids": Tensor("ids", (7,), "I32", 28, None),
    }
    (tensor,) = open_tensors(str(path), lambda name: name == "double")
    assert_holds(tensor, arrays["double"])


def test_gguf_broken(tmp_path):
    path = tmp_path / "model.gguf"
    write(path)
    whole = path.read_bytes()
    for length in (5, 20, 100, 101, 102, 103, 400, len(whole) // 2, len(whole) - 33):
        path.write_bytes(whole[:length])
        assert fault(path) == "truncated or corrupt: it ends too early"
    done = process(path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    path.write_bytes(b"GGML" + whole[4:])
    assert fault(path) == "not a GGUF file: it does not begin with GGUF"
    write(path, big=True)
    assert fault(path) == "its numbers are big-endian, which is not read"


@pytest.mark.parametrize("count", [2**40, 2**63])
def test_gguf_that_claims_more_than_it_has(tmp_path, count):
    """The package gguf would make so many empty arrays."""
    path = tmp_path / "model.gguf"
    key = struct.pack("<Q", 1) + b"k"
    array = struct.pack("<IIQ", 9, 0, count)  # of bytes
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + array + bytes(100))
    assert fault(path).startswith("truncated or corrupt: ")
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, count, 0) + bytes(100))
    assert fault(path).startswith("truncated or corrupt: ")


def test_without_gguf(tmp_path):
    path = tmp_path / "model.gguf"
    write(path)
    code = "import sys; sys.modules['gguf'] = None; from fused_penalties.cli import main; main()"
    command = [sys.executable, "-c", code, "report", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.startswith(f"fused-penalties: {path}: the package gguf, which reads it, ")
    assert done.stderr.endswith("; pip install 'fused-penalties[gguf]'\n")
