"""The readers of weight files over thousands of damaged ones: a report or a fault, nothing else.

Each whole file is damaged in a few places at once: bytes changed, cut out, doubled or replaced by
what headers are made of. Whatever comes of it, the reader may say no more than what it read.
"""

from __future__ import annotations

import json
import random
import warnings
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from fused_penalties.files import FileFault, Tensor, batches, open_tensors
from weight_files import ints, npy_bytes

MUTANTS = 20_000
WORDS = [
    *(b"0", b"-1", b"9", b"4294967295", b"18446744073709551616", b"1e9", b"10L", b"null", b"NaN"),
    *(b"{", b"}", b"[", b"]", b"(", b")", b'"', b"'", b",", b":", b"\\", b"\\u0000", b"[" * 2000),
    *(b"<f4", b">f8", b"|O", b"<f1", b"F32", b"F4", b"BF16", b"shape", b"descr", b"data_offsets"),
    *(b"\0", b"\xff", b"\xff" * 8, b"\n", b"\x1b[2J", b"PK\1\2", b"PK\5\6", b"\x93NUMPY\1\0"),
]


def whole_files(folder: Path) -> list[Path]:
    paths = [folder / f"w{n}.npy" for n in range(3)]
    np.save(paths[0], ints(3, 5))
    np.save(paths[1], np.zeros(2, [("a", "f4"), ("b", "U3")]))
    paths[2].write_bytes(npy_bytes(ints(9, dtype=">f8")) + b"more")
    for name, save in ("stored.npz", np.savez), ("packed.npz", np.savez_compressed):
        save(folder / name, w=ints(40), ids=np.arange(3), f8=np.ones(3, ml_dtypes.float8_e5m2))
        paths.append(folder / name)
    for compression in zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA:
        paths.append(folder / f"{compression}.npz")
        with zipfile.ZipFile(paths[-1], "w", compression) as archive:
            archive.writestr("w.npy", npy_bytes(ints(300)))
            archive.writestr("config.json", "{}")
    arrays = {"w": ints(3, 5), "half": ints(7, dtype=np.float16), "ids": np.arange(2)}
    paths.append(folder / "shard.safetensors")
    save_file(arrays | {"none": ints(0, 4)}, paths[-1], metadata={"format": "np"})
    paths.append(folder / "shard-00001-model-00001-of-00001.safetensors")
    offsets = {"w": {"saved_offsets": [3, 0]}, "ids": {"saved_offsets": [0]}}
    held = {name: arrays[name] for name in offsets}
    save_file(held, paths[-1], metadata={"DCP_SHARDING_INFO": json.dumps(offsets)})
    paths.append(folder / "model.safetensors.index.json")
    weight_map = dict.fromkeys([*arrays, "none"], "shard.safetensors")
    metadata = {"total_size": sum(array.nbytes for array in arrays.values())}
    paths[-1].write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
    return paths


def torch_and_gguf_files(folder: Path) -> list[Path]:
    torch = pytest.importorskip("torch", reason="not installed: torch")
    gguf = pytest.importorskip("gguf", reason="not installed: gguf")
    paths = [folder / name for name in ("w.pt", "before_zip.pt", "model.gguf")]
    tied = torch.from_numpy(ints(3, 5))
    value = {"model": {"w": tied, "tied": tied.t(), "half": tied.bfloat16()}, "step": 3}
    torch.save(value, paths[0])
    torch.save(value, paths[1], _use_new_zipfile_serialization=False)
    writer = gguf.GGUFWriter(paths[2], "llama")
    writer.add_token_list(["a", "bc"])
    writer.add_tensor("w", ints(3, 5))
    writer.add_tensor("half", ints(7, dtype=np.float16))
    writer.add_tensor("ids", np.arange(2, dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return paths


def mutant(whole: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(whole)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        # Headers stand at the start, but for an archive's directory, which stands at the end.
        place = rng.randrange(len(damaged) + 1)
        if rng.random() < 0.5:
            place = min(place, rng.randrange(300))
        length = rng.choice([1, 1, 1, 2, 4, 8, 50])
        kind = rng.randrange(6)
        if kind == 0 and place < len(damaged):
            damaged[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            damaged[place : place + length] = rng.randbytes(length)
        elif kind == 2:
            del damaged[place : place + length]
        elif kind == 3:
            damaged[place:place] = damaged[place : place + length]
        elif kind == 4:
            word = rng.choice(WORDS)
            damaged[place : place + rng.choice([0, len(word)])] = word
        else:
            del damaged[place:]
    return bytes(damaged)


def overwrite(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:  # without the wait for the disk that emptying it first may cost
        file.write(content)
        file.truncate()


def check(path: Path) -> str:
    """What comes of the file: a fault, or all that its tensors say they have."""
    try:
        tensors, read = read_all(path)
    except FileFault as fault:
        message, cause = str(fault), fault.__cause__
    else:
        summed = [tensor for tensor in tensors if tensor.stored]
        assert read == [(tensor.dtype, tensor.size) for tensor in summed]
        assert all(0 <= tensor.size < 2**63 and tensor.nbytes >= 0 for tensor in tensors)
        return "a report"
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    # These are faults of our own code, which nobody looked for in the file.
    assert not isinstance(cause, AssertionError | AttributeError | KeyError | NameError | TypeError)
    return "a fault"


def read_all(path: Path) -> tuple[list[Tensor], list[tuple[str, int]]]:
    """The tensors, and what was read of those that are summed."""
    tensors = open_tensors(str(path))
    summed = [tensor for tensor in tensors if tensor.stored]
    copied, mapped = (read_each(summed, mapped) for mapped in (False, True))
    assert copied == mapped
    return tensors, [copied[place] for place in sorted(copied)]


def read_each(tensors: list[Tensor], mapped: bool) -> dict[int, tuple[str, int]]:
    read: dict[int, tuple[str, int]] = {}
    for batch in batches(tensors, 8192, mapped=mapped):
        for place, array in enumerate(batch.read(), batch.first):
            _, before = read.get(place, ("", 0))
            read[place] = array.dtype.name, before + array.size
        batch.check()
    return read


def run(paths: list[Path], count: int, seed: int) -> None:
    rng = random.Random(seed)
    outcomes = {path: set() for path in paths}
    for path in paths:
        assert check(path) == "a report"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(count):
            path = paths[number % len(paths)]
            whole = path.read_bytes()
            damaged = mutant(whole, rng)
            overwrite(path, damaged)
            try:
                outcomes[path].add(check(path))
            except BaseException:
                print(f"seed {seed}, mutant {number}: {path.name}: {damaged!r}")
                raise
            overwrite(path, whole)
    assert all(found == {"a fault", "a report"} for found in outcomes.values())


def test_some_mutants(tmp_path):
    run(whole_files(tmp_path), MUTANTS // 10, seed=1)


@pytest.mark.slow
def test_all_mutants(tmp_path):
    run(whole_files(tmp_path), MUTANTS, seed=2)


def test_some_mutants_of_torch_and_gguf(tmp_path):
    run(torch_and_gguf_files(tmp_path), MUTANTS // 10, seed=3)


@pytest.mark.slow
def test_all_mutants_of_torch_and_gguf(tmp_path):
    run(torch_and_gguf_files(tmp_path), MUTANTS, seed=4)


# The formats' own libraries, where they have a say


def by_numpy(path: Path) -> dict[str, tuple[int, ...]] | None:
    try:
        array = np.load(path, allow_pickle=False)
    except Exception:
        return None
    return {path.stem: array.shape}


def by_safetensors(path: Path) -> dict[str, tuple[int, ...]] | None:
    try:
        with safe_open(path, "numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        return {} if "unknown variant" in str(error) else None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("file", "theirs", "count"),
    [("w2.npy", by_numpy, 400), ("shard.safetensors", by_safetensors, 200)],
)
def test_mutants_as_the_libraries_read_them(tmp_path, file, theirs, count):
    whole_files(tmp_path)
    path = tmp_path / file
    whole, rng = path.read_bytes(), random.Random(3)
    accepted = 0
    for _ in range(count):
        damaged = mutant(whole, rng)
        overwrite(path, damaged)
        expected = theirs(path)
        try:
            tensors = open_tensors(str(path))
            found = {tensor.name: tensor.shape for tensor in tensors}
        except FileFault:
            tensors, found = [], None
        unknown = expected == {} or (tensors and not any(tensor.stored for tensor in tensors))
        if unknown or b"#" in damaged:
            # What the library does not know is listed here as not summed; and a comment of Python's
            # is no part of the format.
            continue
        assert found == expected, damaged
        accepted += found is not None
    assert 0 < accepted < count
