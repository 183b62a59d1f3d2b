"""Weight files: what is listed, what is mapped, and what every kind of broken file says."""

from __future__ import annotations

import io
import json
import mmap
import os
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save, save_file

from fused_penalties.files import FileFault, Tensor, open_tensors

BF16 = ml_dtypes.bfloat16
SUMMED = ["float16", "bfloat16", "float32", "float64"]


def ints(*shape: int, dtype: object = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-9, 10, shape).astype(dtype)


def listed(path: Path) -> dict[str, Tensor]:
    tensors = open_tensors(str(path))
    assert len({tensor.name for tensor in tensors}) == len(tensors)
    return {tensor.name: tensor for tensor in tensors}


def assert_holds(tensor: Tensor, expected: np.ndarray) -> np.ndarray:
    assert tensor.load is not None
    got = tensor.load()
    assert (tensor.shape, tensor.dtype) == (expected.shape, expected.dtype.name)
    assert (tensor.size, tensor.nbytes) == (expected.size, expected.nbytes)
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(got, expected)
    return got


def assert_mapped(array: np.ndarray) -> None:
    assert not array.flags.writeable
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, mmap.mmap)


def load_all(path: Path) -> None:
    for tensor in open_tensors(str(path)):
        if tensor.load:
            tensor.load()


def fault(path: Path, *, found_by: Callable[[Path], object] = listed) -> str:
    """The message of the fault, without the file's name, which it must begin with."""
    with pytest.raises(FileFault) as caught:
        found_by(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


# .safetensors


def test_safetensors_is_mapped_and_in_file_order(tmp_path):
    arrays = {
        name: ints(7, 3, dtype=np.dtype(name) if name != "bfloat16" else BF16) for name in SUMMED
    }
    arrays |= {"scalar": np.array(-3.0, np.float32), "empty": np.zeros((0, 4), np.float16)}
    path = tmp_path / "model.safetensors"
    save_file(arrays, path, metadata={"format": "pt", "empty": "a tensor's name"})
    found = listed(path)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        loaded = assert_holds(found[name], array)
        assert_mapped(loaded)

    raw = path.read_bytes()
    positions = [raw.find(arrays[name].tobytes()) for name in found if arrays[name].size > 1]
    assert positions == sorted(positions)


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
    write_safetensors(
        path,
        {"a": ("U8", [1], b"\7"), "b": ("F64", [5], array.tobytes())},
    )
    assert_holds(listed(path)["b"], array)


def test_safetensors_without_tensors(tmp_path):
    path = tmp_path / "none.safetensors"
    save_file({}, path)
    assert open_tensors(str(path)) == []


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


WHOLE = save({"a": ints(4), "b": ints(3)})


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
        WHOLE.replace(b"F32", b"Q32"),
        WHOLE.replace(b'"shape":[4]', b'"shape":[5]'),
    ],
    ids=[
        "within the length",
        "within the header",
        "one byte short",
        "one byte long",
        "huge header",
        "pickle",
        "not an object",
        "unknown dtype",
        "shape and size differ",
    ],
)
def test_safetensors_broken(tmp_path, content):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    assert fault(path).startswith("truncated or corrupt: ")


# .npy


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path, dtype, order):
    path = tmp_path / "dense.kernel.npy"
    array = np.asarray(ints(5, 7, dtype=dtype), order=order)
    np.save(path, array)
    (tensor,) = open_tensors(str(path))
    assert tensor.name == "dense.kernel"
    assert_mapped(assert_holds(tensor, array))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_npy_without_a_size_or_dimensions(tmp_path, shape):
    np.save(tmp_path / "w.npy", ints(*shape))
    assert_holds(listed(tmp_path / "w.npy")["w"], ints(*shape))


@pytest.mark.parametrize(
    ("array", "name"),
    [
        (np.arange(3), "int64"),
        (np.ones(3, bool), "bool"),
        (np.ones(3, complex), "complex128"),
        (np.ones(3, np.longdouble), np.dtype(np.longdouble).name),
        (np.array(["a", "bc"]), "str64"),
        (np.zeros(3, [("w", "f4")]), "void32"),
        (np.zeros(3, [("Σ", "f4")]), "void32"),
    ],
)
def test_npy_of_other_dtypes_is_listed(tmp_path, array, name):
    path = tmp_path / "w.npy"
    with path.open("wb") as file:
        version = (3, 0) if array.dtype.names == ("Σ",) else None
        np.lib.format.write_array(file, array, version)
    (tensor,) = open_tensors(str(path))
    assert tensor == Tensor("w", array.shape, name, array.nbytes, None)


def npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


WHOLE_NPY = npy_bytes(ints(20))


@pytest.mark.parametrize(
    "content",
    [
        WHOLE_NPY[:4],
        WHOLE_NPY[:60],
        WHOLE_NPY[:-1],
        b"\x93NUMPX" + WHOLE_NPY[6:],
        WHOLE_NPY[:6] + b"\x09" + WHOLE_NPY[7:],
        WHOLE_NPY.replace(b"(20,)", b"[20]["),
        WHOLE_NPY.replace(b"(20,)", b"(-5,)"),
        b"PK\x03\x04" + WHOLE_NPY,
    ],
    ids=[
        "within the magic",
        "within the header",
        "one byte short",
        "wrong magic",
        "version 9",
        "header no literal",
        "negative shape",
        "zip",
    ],
)
def test_npy_broken(tmp_path, content):
    path = tmp_path / "broken.npy"
    path.write_bytes(content)
    assert fault(path).startswith("truncated or corrupt: ")


class Trap:
    """An object whose pickle leaves a trace when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.trace,))


def test_pickles_are_never_loaded(tmp_path):
    trap = np.array([Trap(tmp_path / "sprung")], object)
    np.save(tmp_path / "trap.npy", trap)
    np.savez(tmp_path / "trap.npz", w=ints(2), trap=trap)
    assert "pickled array of Python objects, never loaded" in fault(tmp_path / "trap.npy")
    message = fault(tmp_path / "trap.npz")
    assert "'trap' is a pickled array of Python objects, never loaded" in message
    assert not (tmp_path / "sprung").exists()
    # The other members can still be had.
    (tensor,) = open_tensors(str(tmp_path / "trap.npz"), lambda name: name != "trap")
    assert_holds(tensor, ints(2))


# .npz


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_npz(tmp_path, write):
    path = tmp_path / "checkpoint.npz"
    arrays = {
        "dense/kernel": np.asfortranarray(ints(30, 20)),
        "dense/bias": ints(20, dtype=np.float16),
        "scalar": ints(dtype=">f8"),
        "empty": ints(0, 2),
        "Σ.npy": ints(3),
    }
    write(path, step=np.array(7), **arrays)
    found = listed(path)
    assert list(found) == ["step", *arrays]
    assert found["step"] == Tensor("step", (), "int64", 8, None)
    for name, array in arrays.items():
        assert_holds(found[name], array)


def test_npz_members_are_read_in_their_turn(tmp_path):
    """A member that is damaged behind its header is found when it is read, and it is named."""
    path = tmp_path / "checkpoint.npz"
    damaged = ints(1000)
    np.savez(path, whole=ints(10), damaged=damaged)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(damaged.tobytes(), np.flip(damaged).tobytes()))
    whole, other = open_tensors(str(path))
    assert_holds(whole, ints(10))
    assert other.load is not None
    with pytest.raises(FileFault, match=r"member 'damaged': truncated or corrupt: Bad CRC-32"):
        other.load()


def test_npz_broken(tmp_path):
    path = tmp_path / "broken.npz"
    np.savez_compressed(path, w=ints(5000), v=ints(300))
    raw = path.read_bytes()
    for cut in (1, 40, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:cut])
        assert fault(path).startswith("truncated or corrupt: ")
    inside = raw.index(b"w.npy") + 300
    path.write_bytes(raw[:inside] + bytes(100) + raw[inside + 100 :])
    message = fault(path, found_by=load_all)
    assert message.startswith("member 'w': truncated or corrupt: ")
    path.write_bytes(npy_bytes(ints(3)))
    assert fault(path) == "truncated or corrupt: File is not a zip file"


def test_npz_with_a_member_that_is_no_array(tmp_path):
    path = tmp_path / "checkpoint.npz"
    np.savez(path, w=ints(2))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.txt", "hello, world")
    assert fault(path).startswith("member 'notes.txt': truncated or corrupt: the magic string")


def test_npz_that_claims_more_than_memory(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez(path, w=ints(2))
    with zipfile.ZipFile(path) as archive:
        member = archive.read("w.npy").replace(b"(2,), }" + b" " * 15, b"(1152921504606846,), }")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", member)
    assert fault(path, found_by=load_all) == "member 'w': does not fit in memory"


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
        assert_mapped(assert_holds(found[name], array))


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


# What all formats share


def test_a_fault_is_one_line():
    assert str(FileFault("w.npy", "one\n  two\n")) == "w.npy: one two"


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".safetensors.index.json"])
def test_what_cannot_be_opened(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    assert fault(path) == "No such file or directory"
    path.touch()
    assert fault(path) == "the file is empty"
    path.unlink()
    path.mkdir()
    assert fault(path) == "Is a directory"


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".safetensors.index.json"])
def test_permission_denied(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(WHOLE)
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # root may read everything
        os.seteuid(65534)
    try:
        assert fault(path) == "Permission denied"
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin", "w.pkl", "w", "w.h5", "w.json"])
def test_other_formats(tmp_path, name):
    path = tmp_path / name
    assert fault(path) == "No such file or directory"
    np.save(path, ints(3))
    (tmp_path / f"{name}.npy").rename(path)
    message = fault(path)
    assert "not a supported format (.npy, .npz, .safetensors, .safetensors.index.json)" in message
    assert "pickled files (.pt, .pth, .bin, .pkl) are never loaded" in message


def test_suffixes_in_capitals(tmp_path):
    np.save(tmp_path / "w.npy", ints(3))
    (tmp_path / "w.npy").rename(tmp_path / "W.NPY")
    assert_holds(listed(tmp_path / "W.NPY")["W"], ints(3))


def test_only_wanted_tensors_are_looked_at(tmp_path):
    np.savez(tmp_path / "w.npz", a=ints(2), b=ints(3))
    save_file({"a": ints(2), "b": ints(3)}, tmp_path / "w.safetensors")
    for suffix in (".npz", ".safetensors"):
        (tensor,) = open_tensors(str(tmp_path / f"w{suffix}"), lambda name: name == "b")
        assert_holds(tensor, ints(3))
    np.save(tmp_path / "w.npy", ints(3))
    assert open_tensors(str(tmp_path / "w.npy"), lambda name: False) == []


def test_many_files_do_not_use_up_the_descriptors(tmp_path):
    np.save(tmp_path / "w.npy", ints(3))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    tensors = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        for _ in range(200):
            tensors += open_tensors(str(tmp_path / "w.npy"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(tensors) == 200
