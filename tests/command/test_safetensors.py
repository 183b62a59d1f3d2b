"""Safetensors files and sharded models: what is listed and read, and what broken ones say."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save, save_file

from fused_penalties.files import Tensor, open_tensors
from weight_files import (
    assert_holds,
    entry,
    fault,
    ints,
    listed,
    loaded,
    notes,
    safetensors_bytes,
)

BF16 = ml_dtypes.bfloat16
SUMMED = ["float16", "bfloat16", "float32", "float64"]


# .safetensors


def test_safetensors_in_the_natural_order_of_their_names(tmp_path):
    arrays = {
        name: ints(7, 3, dtype=np.dtype(name) if name != "bfloat16" else BF16) for name in SUMMED
    }
    arrays |= {"scalar": np.array(-3.0, np.float32), "empty": np.zeros((0, 4), np.float16)}
    path = tmp_path / "model.safetensors"
    save_file(arrays, path, metadata={"format": "pt", "empty": "a tensor's name"})
    found = listed(path)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert_holds(found[name], array)

    assert list(found) == sorted(arrays)

    names = ["b.1", "b.2", "b.02.c", "b.10", "b.10a", "b.11", "c", "c.9" + 5000 * "0"]
    save_file({name: ints(3) for name in names}, path)
    assert list(listed(path)) == names


def test_safetensors_of_other_dtypes_is_listed_in_its_own_words(tmp_path):
    path = tmp_path / "model.safetensors"
    others = {
        "ids": np.arange(6).reshape(2, 3),
        "mask": np.ones(5, bool),
        "f8": np.ones((4, 2), ml_dtypes.float8_e4m3fn),
        "w": ints(2),
    }
    save_file(others, path)
    found = listed(path)
    assert found["ids"] == Tensor("ids", (2, 3), "I64", 48, None)
    assert found["mask"] == Tensor("mask", (5,), "BOOL", 5, None)
    assert found["f8"] == Tensor("f8", (4, 2), "F8_E4M3", 8, None)
    assert_holds(found["w"], others["w"])


def test_safetensors_at_an_odd_offset(tmp_path):
    """The format allows it: one byte of another tensor moves all that follow it."""
    path = tmp_path / "odd.safetensors"
    array = ints(5, dtype=np.float64)
    header = {"a": entry("U8", [1], 0, 1), "b": entry("F64", [5], 1, 41)}
    path.write_bytes(safetensors_bytes(header, b"\7" + array.tobytes()))
    assert_holds(listed(path)["b"], array)


def test_safetensors_without_tensors(tmp_path):
    path = tmp_path / "none.safetensors"
    save_file({}, path)
    assert open_tensors(str(path)) == []


WHOLE = save({"a": ints(4), "b": ints(3)})
MALFORMED = [
    None,
    [],
    {},
    {"dtype": "F32", "shape": [2]},
    entry("F32", [2.0], 0, 8),
    entry("F32", [True, 2], 0, 8),
    entry("F32", [-1, -2], 0, 8),
    entry("F32", [0, 2**64], 0, 0),
    entry("F32", [2], 8, 0),
    {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]},
    {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]},
    {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]},
    {"dtype": "F32", "shape": [2], "data_offsets": ["0", "8"]},
]


@pytest.mark.parametrize(
    "content",
    [
        WHOLE[:5],
        WHOLE[:40],
        WHOLE[:-1],
        WHOLE + b"x",
        struct.pack("<Q", 2**63) + WHOLE[8:],
        b"\x80\x04" + WHOLE,
        struct.pack("<Q", 4) + b"[1,2",
        WHOLE.replace(b'"shape":[4]', b'"shape":[5]'),
        WHOLE.replace(b'"shape":[4]', b'"shape":[3]'),
        *(safetensors_bytes({"w": content}, bytes(8)) for content in MALFORMED),
        safetensors_bytes({"w": entry("F32", [2], 0, 8)}, bytes(12)),
        safetensors_bytes({"w": entry("F32", [2], 4, 12)}, bytes(12)),
        safetensors_bytes({"w": entry("F32", [2], 0, 8), "v": entry("F32", [2], 4, 12)}, bytes(12)),
        safetensors_bytes({"w": entry("F4", [17], 0, 8)}, bytes(8)),
        safetensors_bytes({"w": entry("new", [2**60, 2**60], 0, 8)}, bytes(8)),
        safetensors_bytes(b"[" * 100_000),
        safetensors_bytes('{"w": 1}'.encode("utf-16")),
        safetensors_bytes(b'{"\xff": 1}'),
    ],
    ids=[
        "within the length",
        "within the header",
        "one byte short",
        "one byte long",
        "huge header",
        "pickle",
        "not an object",
        "shape too large",
        "shape too small",
        *(f"malformed {number}" for number in range(len(MALFORMED))),
        "more data",
        "gap",
        "overlap",
        "half a byte more",
        "huge in a new dtype",
        "deep",
        "UTF-16",
        "no UTF-8",
    ],
)
def test_safetensors_broken(tmp_path, content):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    assert fault(path).startswith("truncated or corrupt: ")


@pytest.mark.parametrize("shape", [[1] * 100 + [4], [0, 2**63, 2**63], [2**63, 0], [], [0]])
def test_safetensors_of_shapes_that_numpy_does_not_have(tmp_path, shape):
    size = 0 if 0 in shape else 4 if shape else 1
    path = tmp_path / "w.safetensors"
    header = {"w": entry("F32", shape, 0, 4 * size), "v": entry("F32", [2], 4 * size, 4 * size + 8)}
    path.write_bytes(safetensors_bytes(header, ints(size).tobytes() + ints(2, seed=1).tobytes()))
    tensors = open_tensors(str(path))
    assert {t.name: (t.shape, t.size) for t in tensors} == {
        "w": (tuple(shape), size),
        "v": ((2,), 2),
    }
    for tensor, got in zip(tensors, loaded(tensors), strict=True):
        expected = ints(size) if tensor.name == "w" else ints(2, seed=1)
        np.testing.assert_array_equal(got, expected)


def test_safetensors_of_a_dtype_that_is_not_known(tmp_path):
    path = tmp_path / "w.safetensors"
    header = {"new": entry("F12_E7", [4], 0, 6), "w": entry("F32", [2], 6, 14)}
    path.write_bytes(safetensors_bytes(header, bytes(6) + ints(2).tobytes()))
    found = listed(path)
    assert found["new"] == Tensor("new", (4,), "F12_E7", 6, None)
    assert_holds(found["w"], ints(2))


def test_safetensors_faults_that_are_no_damage(tmp_path):
    path = tmp_path / "w.safetensors"
    twice = b'{"w": %s, "w": %s}' % ((json.dumps(entry("F32", [2], 0, 8)).encode(),) * 2)
    path.write_bytes(safetensors_bytes(twice, bytes(8)))
    assert fault(path) == "the key 'w' occurs twice"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(1 << 30)
    assert fault(path) == "a header of 100,000,001 bytes; at most 100,000,000 are read"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    assert fault(path) == "a pointer of Git LFS; the file itself was not fetched"


# .safetensors.index.json


@pytest.fixture
def sharded(tmp_path) -> tuple[Path, dict[str, np.ndarray]]:
    arrays = {"h.0.w": ints(4, 2), "h.1.w": ints(3, 5, dtype=BF16), "h.1.b": ints(5)}
    shards = {"model-1.safetensors": ["h.0.w"], "model-2.safetensors": ["h.1.w", "h.1.b"]}
    for shard, names in shards.items():
        save_file({name: arrays[name] for name in names}, tmp_path / shard)
    path = tmp_path / "model.safetensors.index.json"
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    path.write_text(json.dumps({"metadata": {"total_size": 82}, "weight_map": weight_map}))
    return path, arrays


def remap(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_index(sharded):
    path, arrays = sharded
    found = listed(path)
    assert set(found) == set(arrays)
    assert next(iter(found)) == "h.0.w"
    for name, array in arrays.items():
        assert_holds(found[name], array)


def test_index_decides_what_a_shard_holds(sharded):
    path, _ = sharded
    remap(path, lambda weight_map: weight_map.pop("h.1.b"))
    assert set(listed(path)) == {"h.0.w", "h.1.w"}


def test_index_leaves_unwanted_shards_alone(sharded):
    path, arrays = sharded
    path.with_name("model-1.safetensors").unlink()
    (tensor,) = open_tensors(str(path), lambda name: name == "h.1.b")
    assert_holds(tensor, arrays["h.1.b"])


def test_index_broken(sharded):
    path, _ = sharded
    whole = path.read_text()
    assert "shard 'model-9.safetensors': No such file" in broken_index(path, "model-9.safetensors")
    for outside in ("../model-1.safetensors", "/etc/passwd", "..", "", path.name, "w.bin", 3, None):
        assert broken_index(path, outside) == (
            f"weight_map['h.0.w']: {outside!r} is no .safetensors beside it"
        )

    path.write_text(whole)
    remap(path, lambda weight_map: weight_map.update(absent="model-1.safetensors"))
    assert fault(path) == "shard 'model-1.safetensors' has no tensor 'absent'"

    path.write_text(whole)
    shard = path.with_name("model-2.safetensors")
    shard.write_bytes(shard.read_bytes()[:-3])
    assert fault(path).startswith("shard 'model-2.safetensors': truncated or corrupt: ")

    for text in ("[]", "{}", '{"weight_map": []}', "3"):
        path.write_text(text)
        assert fault(path) == "it has no weight_map"
    for text in (whole[:-5], "{", "\x00", "[" * 100_000):
        path.write_text(text)
        assert fault(path).startswith("truncated or corrupt: ")


def broken_index(path: Path, shard: object) -> str:
    remap(path, lambda weight_map: weight_map.update({"h.0.w": shard}))
    return fault(path)


@pytest.mark.parametrize("variant", ["fp16.", "non_ema.", "fp16.v2.", ""])
def test_index_of_a_variant(sharded, variant):
    path, arrays = sharded
    other = path.rename(path.with_name(f"model.safetensors.index.{variant}json"))
    assert set(listed(other)) == set(arrays)


def test_index_notes(sharded):
    path, _ = sharded
    assert notes(path) == []
    remap(path, lambda weight_map: weight_map.pop("h.1.b"))
    unlisted = (
        "shard 'model-2.safetensors': 1 left out that weight_map does not list, 'h.1.b' first"
    )
    assert notes(path) == [unlisted, "total_size is 82, but the tensors have 62 bytes"]
    # Without a look at all shards the total is not known.
    said: list[str] = []
    open_tensors(str(path), lambda name: name == "h.0.w", said.append)
    assert said == []
    open_tensors(str(path), lambda name: name == "h.1.w", said.append)
    assert said == [unlisted]


@pytest.mark.parametrize("metadata", [None, {}, 7, {"total_size": None}, {"total_size": 82.0}])
def test_index_without_a_total_size(sharded, metadata):
    path, _ = sharded
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metadata": metadata}))
    assert notes(path) == []


def test_index_with_a_key_twice(sharded):
    path, _ = sharded
    text = path.read_text()
    path.write_text(text.replace('"h.0.w": ', '"h.1.w": "model-1.safetensors", "h.0.w": '))
    assert fault(path) == "the key 'h.1.w' occurs twice"
    path.write_text(text.replace('"metadata"', '"metadata": {}, "metadata"'))
    assert fault(path) == "the key 'metadata' occurs twice"


@pytest.mark.parametrize("shard", ["a\0.safetensors", "\ud800.safetensors", "\n.safetensors"])
def test_index_with_what_is_no_file_name(sharded, shard):
    assert broken_index(sharded[0], shard).endswith("is no .safetensors beside it")


def test_index_of_pipes(sharded):
    path, _ = sharded
    shard = path.with_name("model-2.safetensors")
    shard.unlink()
    os.mkfifo(shard)
    assert fault(path) == "shard 'model-2.safetensors': not a regular file"
