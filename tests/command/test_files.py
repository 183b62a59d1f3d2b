"""NumPy's files, and what all formats share: what is listed and read, what broken files say."""

from __future__ import annotations

import os
import resource
import zipfile
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from fused_penalties.files import Batch, FileFault, Tensor, batches, open_tensors
from weight_files import (
    assert_holds,
    fault,
    ints,
    listed,
    load_all,
    loaded,
    notes,
    npy_bytes,
    npy_with_header,
)


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path, dtype, order):
    path = tmp_path / "dense.kernel.npy"
    array = np.asarray(ints(5, 7, dtype=dtype), order=order)
    np.save(path, array)
    (tensor,) = open_tensors(str(path))
    assert tensor.name == "dense.kernel"
    assert_holds(tensor, array)


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
        (np.zeros(3, [("w", "f4")]), "structured"),
        (np.zeros(3, [("Σ ]", "f4"), ("'shape': (9,)", "M8[ns]")]), "structured"),
    ],
)
def test_npy_of_other_dtypes_is_listed(tmp_path, array, name):
    path = tmp_path / "w.npy"
    with path.open("wb") as file:
        version = (3, 0) if array.dtype.names and "Σ ]" in array.dtype.names else None
        np.lib.format.write_array(file, array, version)
    (tensor,) = open_tensors(str(path))
    assert tensor == Tensor("w", array.shape, name, array.nbytes, None)


WHOLE_NPY = npy_bytes(ints(20))
HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (20,), }"


@pytest.mark.parametrize(
    "content",
    [
        WHOLE_NPY[:4],
        WHOLE_NPY[:60],
        WHOLE_NPY[:-1],
        WHOLE_NPY.replace(b"(20,)", b"[20]["),
        WHOLE_NPY.replace(b"(20,)", b"(-5,)"),
        WHOLE_NPY.replace(b"descr", b"desrc"),
        npy_bytes(np.arange(20))[:-1],
        npy_with_header(HEADER.replace("20,", f"{2**63},")),
        npy_with_header(HEADER.replace("20,", "9" * 30).replace("<f4", "|S0")),
        npy_with_header(HEADER.replace("20,", "9," * 99).replace("<f4", "<f1")),
        npy_with_header("(" * 60_000),
        npy_with_header(HEADER.replace("(20,", " " * 60_000)),
    ],
    ids=[
        "within the magic",
        "within the header",
        "one byte short",
        "header no literal",
        "negative shape",
        "misspelled key",
        "one byte of integers short",
        "huge",
        "huge and empty",
        "huge in a dtype that is not known",
        "parentheses",
        "spaces",
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
    np.savez(tmp_path / "trap.npz", trap=trap, w=ints(2))
    assert "pickled array of Python objects, never loaded" in fault(tmp_path / "trap.npy")
    pickled, tensor = open_tensors(str(tmp_path / "trap.npz"))
    assert (pickled.name, pickled.shape, pickled.dtype) == ("trap", (1,), "object")
    assert pickled.stored is None
    assert_holds(tensor, ints(2))
    assert not (tmp_path / "sprung").exists()


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
    with pytest.raises(FileFault, match=r"member 'damaged': truncated or corrupt: Bad CRC-32"):
        loaded([other])


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
    assert fault(path) == "not a .npz file: it is no zip archive"


def test_npz_with_members_that_cannot_be_read(tmp_path):
    path = tmp_path / "checkpoint.npz"
    float8 = np.zeros((3, 2), ml_dtypes.float8_e5m2)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a folder/", "")
        archive.writestr("config.json", "{}")
        archive.writestr("scale.npy", npy_bytes(float8))
        archive.writestr("secret.npy", npy_bytes(ints(4)))
        archive.writestr("alien.npy", npy_bytes(ints(5)))
        archive.writestr("w", npy_bytes(ints(2)))  # an array without the suffix
    raw = bytearray(path.read_bytes())
    secret, alien = raw.rindex(b"secret.npy"), raw.rindex(b"alien.npy")
    raw[secret - 46 + 8] |= 1  # in the archive's directory: the flag of encryption
    raw[alien - 46 + 10] = 98  # and PPMd, a method that zipfile does not have
    path.write_bytes(raw)
    *others, w = open_tensors(str(path))
    assert others == [
        Tensor("a folder/", (0,), "no array", 0, None),
        Tensor("config.json", (2,), "no array", 2, None),
        Tensor("scale", (3, 2), "<f1", 6, None),
        Tensor("secret", (144,), "unreadable", 144, None),
        Tensor("alien", (148,), "unreadable", 148, None),
    ]
    assert_holds(w, ints(2))


def zipped(path: Path, content: bytes, *, claimed: int | None = None) -> Path:
    """An archive with one member w.npy, whose size is said to be `claimed` where that is given."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", content)
    if claimed is not None:
        raw = bytearray(path.read_bytes())
        at = raw.rindex(b"w.npy") - 46 + 24
        raw[at : at + 4] = claimed.to_bytes(4, "little")
        path.write_bytes(raw)
    return path


def test_npz_with_a_member_that_expands_past_its_header(tmp_path):
    whole = npy_bytes(ints(1000))
    expands = "member 'w': truncated or corrupt: it expands past what its header says"
    assert fault(zipped(tmp_path / "w.npz", whole + bytes(1 << 20))) == expands
    # The archive's directory agrees with the header, but what is packed goes on.
    longer = zipped(tmp_path / "w.npz", whole + bytes(1 << 20), claimed=len(whole))
    assert fault(longer, found_by=load_all) == expands
    less = "member 'w': truncated or corrupt: it ends too early"
    shorter = zipped(tmp_path / "w.npz", whole[:-4], claimed=len(whole))
    assert fault(shorter, found_by=load_all) == less
    shorter = zipped(tmp_path / "w.npz", whole[:-4])
    assert fault(shorter).endswith("3,996 bytes of data are less than its header says")


def test_npz_that_claims_more_than_memory_is_read_in_pieces(tmp_path):
    claimed = 2**32 - 16
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({(claimed - 92) // 4},), }}"
    path = zipped(tmp_path / "w.npz", npy_with_header(header.ljust(82)), claimed=claimed)
    message = "member 'w': truncated or corrupt: it ends too early"
    assert fault(path, found_by=load_all) == message


# Headers that NumPy refuses, or warns of


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 10L), }",  # Python 2
        "{'shape':(2,10),'fortran_order':False,'descr':'<f4'}",
        '{"descr": "<f4", "fortran_order": False, "shape": (2, 10)}\n',
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 10), }" + " " * 50_000 + "\n",
    ],
    ids=["Python 2", "other order", "other quotes", "long"],
)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_npy_headers_of_other_writers(tmp_path, header, version):
    array = ints(2, 10)
    path = tmp_path / "w.npy"
    path.write_bytes(npy_with_header(header, array.tobytes(), version))
    assert_holds(listed(path)["w"], array)


def test_npy_of_more_dimensions_than_numpy_has(tmp_path):
    shape = (1,) * 100 + (3,)
    path = tmp_path / "w.npy"
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    path.write_bytes(npy_with_header(header, ints(3).tobytes()))
    tensor = listed(path)["w"]
    assert (tensor.shape, tensor.size) == (shape, 3)
    np.testing.assert_array_equal(loaded([tensor])[0], ints(3))


@pytest.mark.parametrize("descr", ["<f1", "|a5", "<f4,<f4", "f99999999", "(3,)f4", "\x1b[2J", ""])
def test_npy_of_a_dtype_that_is_not_known(tmp_path, descr):
    path = tmp_path / "w.npy"
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': (5,), }}"
    path.write_bytes(npy_with_header(header, bytes(40)))
    assert listed(path)["w"] == Tensor("w", (5,), descr, 40, None)


def test_npy_with_more_behind_the_array(tmp_path):
    path = tmp_path / "w.npy"
    path.write_bytes(npy_bytes(ints(3)) + npy_bytes(ints(2)))
    assert_holds(listed(path)["w"], ints(3))
    assert notes(path) == ["136 bytes behind the array are not read"]


def test_what_is_no_npy_is_not_called_corrupt(tmp_path):
    path = tmp_path / "w.npy"
    for content, message in [
        (b"PK\x03\x04" + WHOLE_NPY, r"not a .npy file: it does not begin with \x93NUMPY"),
        (WHOLE_NPY[:6] + b"\x09" + WHOLE_NPY[7:], "version 9.0 of the .npy format is not known"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS; the file itself"),
        (b"\x93NUMPY\x02\x00" + b"\xff" * 4, "a header of 4,294,967,295 bytes; at most"),
    ]:
        path.write_bytes(content)
        assert fault(path).startswith(message)


# What all formats share

SUFFIXES = [
    *(".npy", ".npz", ".safetensors", ".safetensors.index.json"),
    *(".pt", ".bin", ".bin.index.json", ".gguf"),
]


def test_a_fault_is_one_line():
    assert str(FileFault("w.npy", "one\n  two\n")) == "w.npy: one two"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_cannot_be_opened(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    assert fault(path) == "No such file or directory"
    path.touch()
    assert fault(path) == "the file is empty"
    path.unlink()
    path.mkdir()
    assert fault(path) == "Is a directory"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_only_regular_files_are_opened(tmp_path, suffix):
    pipe = tmp_path / f"pipe{suffix}"
    os.mkfifo(pipe)
    device = tmp_path / f"device{suffix}"
    device.symlink_to("/dev/zero")
    assert fault(pipe) == fault(device) == "not a regular file"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_permission_denied(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(WHOLE_NPY)
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # root may read everything
        os.seteuid(65534)
    try:
        assert fault(path) == "Permission denied"
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("name", ["w.pkl", "w", "w.h5", "w.json", "model.pt.old", "pt"])
def test_other_formats(tmp_path, name):
    path = tmp_path / name
    assert fault(path) == "No such file or directory"
    np.save(path, ints(3))
    (tmp_path / f"{name}.npy").rename(path)
    message = fault(path)
    assert message.startswith("not a supported format (.npy, .npz, .safetensors, ")
    assert message.endswith("); pickles (.pkl) are never loaded")


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


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_many_files_do_not_use_up_the_descriptors(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    {".npy": np.save, ".npz": lambda path, w: np.savez(path, w=w)}.get(
        suffix, lambda path, w: save_file({"w": w}, path)
    )(path, ints(3))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    tensors: list[Tensor] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        for _ in range(200):
            tensors += open_tensors(str(path))
        for array in loaded(tensors):
            np.testing.assert_array_equal(array, ints(3))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(tensors) == 200


# Reading


def save_all(folder: Path, arrays: dict[str, np.ndarray]) -> list[Path]:
    """The arrays in each format that holds many, and one of them in a file of its own."""
    paths = [folder / f"w{suffix}" for suffix in (".npz", ".safetensors", ".npy")]
    np.savez(paths[0], **arrays)
    save_file(arrays, paths[1])
    np.save(paths[2], next(iter(arrays.values())))
    return paths


@pytest.mark.parametrize("most", [8192, 24_576, 1 << 20])
def test_pieces_make_up_the_whole(tmp_path, most):
    arrays = {
        "large": ints(30_000),
        "ids": np.arange(7),
        "none": ints(0),
        "half": ints(9, dtype="f2"),
    }
    arrays |= {f"small{n}": ints(n, 3, dtype=np.float64, seed=n) for n in range(50)}
    for path in save_all(tmp_path, arrays):
        tensors = [tensor for tensor in open_tensors(str(path)) if tensor.stored]
        assert len(tensors) in (1, len(arrays) - 1)
        for _ in range(2):  # one file twice in a row as well
            for tensor, got in zip(tensors, loaded(tensors, most), strict=True):
                name = "large" if path.suffix == ".npy" else tensor.name
                np.testing.assert_array_equal(got, arrays[name].ravel())
            tensors = tensors[::-1] + tensors


def read_all(reading: Iterator[Batch]) -> None:
    for batch in reading:
        batch.read()


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("change", ["cut", "written to", "replaced"])
def test_a_file_that_changes_while_it_is_read(tmp_path, place, change):
    path = save_all(tmp_path, {"w": ints(100_000), "v": ints(3)})[place]
    reading = batches(open_tensors(str(path)), 8192)
    next(reading).read()
    if change == "cut":
        os.truncate(path, 1000)
    elif change == "written to":
        with path.open("r+b") as file:
            file.seek(200_000)
            file.write(b"\0" * 80_000)
        os.utime(path, ns=(0, 0))
    else:
        other = tmp_path / "other"
        other.write_bytes(path.read_bytes())
        other.rename(path)
    if change == "replaced" and path.suffix == ".npz":
        read_all(reading)  # it is still open, and whole
        return
    with pytest.raises(
        FileFault, match=r"changed while it was read|truncated or corrupt"
    ) as caught:
        read_all(reading)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_that_changes_before_it_is_read(tmp_path):
    for path in save_all(tmp_path, {"w": ints(10)}):
        tensors = open_tensors(str(path))
        os.utime(path, ns=(0, 0))
        with pytest.raises(FileFault, match=r": it was changed while it was read$"):
            loaded(tensors)
