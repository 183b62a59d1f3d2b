"""A report in parts: the bits of one run however it is shared out, and what is no part of it."""

from __future__ import annotations

import inspect
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from command import run, run_json
from fused_penalties import _parts, cli
from fused_penalties.files import Tensor, open_tensors, portion
from test_large_files import without_times
from weight_files import KIB8, fault, loaded, npy_with_header


def normal(*shape: int, seed: int, dtype: Any = np.float32) -> np.ndarray:
    """Values whose sums depend on the places of the blocks."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.fixture
def checkpoint(tmp_path: Path) -> list[str]:
    """A sharded model, and an archive with a member that a part begins in."""
    shards = [
        {"a": normal(70_001, seed=1), "ids": np.arange(9), "b": normal(3, seed=2)},
        {"c": normal(90_000, seed=3, dtype=ml_dtypes.bfloat16), "none": normal(0, 3, seed=4)},
    ]
    for number, arrays in enumerate(shards):
        save_file(arrays, tmp_path / f"model-{number}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    weight_map = {name: f"model-{n}.safetensors" for n, one in enumerate(shards) for name in one}
    index.write_text(json.dumps({"weight_map": weight_map}))
    npz = tmp_path / "more.npz"
    np.savez_compressed(
        npz, d=normal(50_000, seed=5, dtype=np.float16), e=normal(30_000, seed=6, dtype=np.float64)
    )
    return [str(index), str(npz)]


def in_parts(capsys, folder: Path, count: int, *argv: object) -> list[str]:
    """The files of the parts, in another order than that of their numbers."""
    numbers = [*range(1, count + 1)]
    random.Random(count).shuffle(numbers)
    paths = [str(folder / f"part{number}of{count}.npz") for number in numbers]
    for number, path in zip(numbers, paths, strict=True):
        said = run(capsys, *argv, "--part", f"{number}/{count}", "--save", path)
        assert said.startswith(f"part {number} of {count}, ")
        assert said.endswith(f" bytes, is saved in {path}\n")
    return paths


def merge(capsys, *argv: object) -> str:
    assert cli.main(["merge", *map(str, argv)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def merge_fault(capsys, *argv: object) -> str:
    assert cli.main(["merge", *map(str, argv)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.removeprefix("fused-penalties: ").removesuffix("\n")


# The bits


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 200])
@pytest.mark.parametrize("options", [[], ["--no-mmap", "--threads", 1]], ids=["mapped", "read"])
def test_merged_parts_have_the_bits_of_one_run(
    capsys, tmp_path, monkeypatch, checkpoint, count, options
):
    monkeypatch.setattr(cli, "BATCH", 3 * KIB8)
    whole = without_times(run_json(capsys, *checkpoint, *options))
    parts = in_parts(capsys, tmp_path, count, *checkpoint, *options)
    assert without_times(json.loads(merge(capsys, *parts, "--json"))) == whole


def test_parts_read_nearly_as_much_each(capsys, tmp_path, checkpoint):
    nbytes = 4 * 70_004 + 2 * 90_000 + 2 * 50_000 + 8 * 30_000
    sizes = []
    for number in range(1, 8):
        path = tmp_path / f"part{number}.npz"
        said = run(capsys, *checkpoint, "--part", f"{number}/7", "--save", path)
        size, total = re.fullmatch(r"part . of 7, ([\d,]+) of ([\d,]+) bytes, .*\n", said).groups()
        assert total == f"{nbytes:,}"
        sizes.append(int(size.replace(",", "")))
    assert sum(sizes) == nbytes
    assert max(sizes) - min(sizes) <= 2 * KIB8


def test_shares_tile_the_tensors_at_whole_blocks():
    rng = random.Random(0)
    for _ in range(300):
        sizes = [
            rng.choice([0, 4, KIB8, rng.randrange(100 * KIB8)]) for _ in range(rng.randrange(9))
        ]
        tensors = [Tensor(f"{n}", (), "float32", size, None) for n, size in enumerate(sizes)]
        parts = rng.choice([1, 2, 3, 10, 1000])
        at = {place: 0 for place, size in enumerate(sizes) if size}
        for number in range(1, parts + 1):
            read = 0
            for place, begin, end in _parts.share(tensors, number, parts):
                assert begin == at[place] < end <= sizes[place]
                assert end % KIB8 == 0 or end == sizes[place]
                at[place] = end
                read += end - begin
            assert abs(read - sum(sizes) / parts) <= KIB8 + 1
        assert at == {place: size for place, size in enumerate(sizes) if size}


def test_portions_of_a_tensor_that_is_read_by_a_function(tmp_path):
    """As a tensor is whose pieces lie in several files."""
    np.save(tmp_path / "w.npy", normal(1, seed=1))
    (tensor,) = open_tensors(str(tmp_path / "w.npy"))
    array = normal(20_000, seed=2)
    stored = tensor.stored._replace(
        read=lambda begin, end: array.view(np.uint8)[begin:end].view(np.float32)
    )
    whole = tensor._replace(nbytes=array.nbytes, stored=stored)
    shares = [*_parts.share([whole], 1, 2), *_parts.share([whole], 2, 2)]
    portions = [portion(whole, begin, end) for _, begin, end in shares]
    found = loaded([portion(whole, 0, array.nbytes), *portions])
    np.testing.assert_array_equal(found[0], array)
    np.testing.assert_array_equal(np.concatenate(found[1:]), array)


def test_merge_prints_by_the_same_options(capsys, tmp_path, checkpoint):
    rules = tmp_path / "rules.json"
    rules.write_text('{"a|d": {"l1": 0.5}, ".": {"l2": 2}}')
    parts = in_parts(capsys, tmp_path, 3, *checkpoint)
    for options in (
        ["--csv", "--sort", "abs"],
        ["--csv", "--rules", rules, "--scale", "contrib"],
        ["--csv", "--l1", 3, "--l2", 0],
    ):
        assert merge(capsys, *parts, *options) == run(capsys, *checkpoint, *options)
    merged, whole = merge(capsys, *parts).splitlines(), run(capsys, *checkpoint).splitlines()
    timed = next(number for number, line in enumerate(whole) if "GB/s" in line)
    del merged[timed], whole[timed]
    assert merged == whole


def test_filters_and_notes_go_with_the_parts(capsys, tmp_path):
    np.save(tmp_path / "odd.npy", normal(9000, seed=1))
    with (tmp_path / "odd.npy").open("ab") as file:
        file.write(b"more")
    np.savez(tmp_path / "w.npz", left=normal(3, seed=2), out=normal(9000, seed=3))
    argv = [tmp_path / "odd.npy", tmp_path / "w.npz", "--exclude", "out"]
    whole = without_times(run_json(capsys, *argv))
    assert len(whole["tensors"]) == 2
    assert len(whole["notes"]) == 1
    parts = in_parts(capsys, tmp_path, 2, *argv)
    assert without_times(json.loads(merge(capsys, *parts, "--json"))) == whole


def test_parts_of_a_checkpoint_that_lies_elsewhere(capsys, tmp_path, monkeypatch):
    """Another machine may have it in another folder; the report is on the first part's."""
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "w.npy", normal(9000, seed=1))
        number = 1 + (folder == "there")
        part = tmp_path / f"{number}.npz"
        run(capsys, tmp_path / folder / "w.npy", "--part", f"{number}/2", "--save", part)
    whole = without_times(run_json(capsys, tmp_path / "here" / "w.npy"))
    merged = merge(capsys, tmp_path / "1.npz", tmp_path / "2.npz", "--json")
    assert without_times(json.loads(merged)) == whole


# Parts that do not fit


def test_missing_and_doubled_parts(capsys, tmp_path, checkpoint):
    parts = in_parts(capsys, tmp_path, 30, *checkpoint)
    by_number = {int(re.search(r"part(\d+)of", path)[1]): path for path in parts}
    assert merge_fault(capsys, *[by_number[n] for n in by_number if n != 7]) == (
        "part 7 of 30: missing"
    )
    assert merge_fault(capsys, by_number[3], by_number[5]) == (
        "parts 1, 2, 4, 6, 7, 8, 9, 10, 11, 12, … of 30: missing"
    )
    again = tmp_path / "again.npz"
    again.write_bytes(Path(by_number[4]).read_bytes())
    twice = f"part 4 of 30 was given twice: {by_number[4]} and {again}"
    assert merge_fault(capsys, *parts, again) == twice
    assert merge_fault(capsys, *parts, parts[0]).endswith(f"of 30 was given twice: {parts[0]}")


def test_parts_of_something_else(capsys, tmp_path, checkpoint):
    one = in_parts(capsys, tmp_path, 2, *checkpoint)
    three = in_parts(capsys, tmp_path, 3, *checkpoint)
    less = tmp_path / "less.npz"
    run(capsys, *checkpoint, "--exclude", "c", "--part", "1/2", "--save", less)
    # Another step of the same training: the headers are the same.
    save_file(
        {"c": normal(90_000, seed=9, dtype=ml_dtypes.bfloat16), "none": normal(0, 3, seed=4)},
        tmp_path / "model-1.safetensors",
    )
    other = tmp_path / "other.npz"
    run(capsys, *checkpoint, "--part", "1/2", "--save", other)
    for path, differs in [
        (three[0], "it is one of 3 parts, not of 2"),
        (less, "it has no tensor 'c'"),
        (other, "tensors of the same names and sizes, but other files"),
    ]:
        message = f"{path}: no part of what {one[0]} is a part of: {differs}"
        assert merge_fault(capsys, one[0], path) == message
    assert merge_fault(capsys, less, one[0]).endswith(": it has a tensor 'c' too")


@pytest.mark.parametrize("name", ["w.npz", "w.npy", "text", "empty", "missing", "folder"])
def test_what_is_no_part(capsys, tmp_path, name):
    path = tmp_path / name
    if name == "w.npz":
        np.savez(path, w=normal(3, seed=1))
    elif name == "w.npy":
        np.save(path, normal(3, seed=1))
    elif name == "folder":
        path.mkdir()
    elif name != "missing":
        path.write_text({"text": "PK\3\4text", "empty": ""}[name])
    wanted = {
        "w.npz": "not a part that report --save wrote",
        "w.npy": "not a part that report --save wrote",
        "empty": "not a part that report --save wrote",
        "text": "truncated or corrupt: File is not a zip file",
        "missing": "No such file or directory",
        "folder": "Is a directory",
    }
    assert merge_fault(capsys, path) == f"{path}: {wanted[name]}"


Change = Callable[[dict[str, Any], np.ndarray], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about, limbs: about.update(canon=1), "not a part that report --save wrote, or by"),
        (lambda about, limbs: about.update(part=[0, 2]), "truncated or corrupt: "),
        (lambda about, limbs: about.update(part=[3, 2]), "truncated or corrupt: "),
        (lambda about, limbs: about.update(part=[2, 2]), "truncated or corrupt: "),
        (lambda about, limbs: about.update(part=[1.0, 2]), "truncated or corrupt: "),
        (lambda about, limbs: about.update(part="1/2"), "truncated or corrupt: "),
        (lambda about, limbs: about.update(seconds=0), "truncated or corrupt: "),
        (lambda about, limbs: about.update(seconds="0"), "truncated or corrupt: "),
        (lambda about, limbs: about.pop("notes"), "truncated or corrupt: "),
        (lambda about, limbs: about["files"].pop(), "truncated or corrupt: "),
        (lambda about, limbs: about["checkpoint"]["tensors"].pop(), "truncated or corrupt: "),
        (lambda about, limbs: tensor(about).__setitem__(0, 1), "truncated or corrupt: "),
        (lambda about, limbs: tensor(about).__setitem__(1, [-1]), "truncated or corrupt: "),
        (lambda about, limbs: tensor(about).__setitem__(2, "int8"), "truncated or corrupt: "),
        (lambda about, limbs: tensor(about).__setitem__(3, True), "truncated or corrupt: "),
        (lambda about, limbs: limbs.__setitem__((0, 0, 67), -1), "truncated or corrupt: limbs: "),
        (lambda about, largest: largest.__setitem__(0, -1), "truncated or corrupt: largest: "),
    ],
)
def test_parts_that_were_tampered_with(capsys, tmp_path, change: Change, message):
    np.savez(tmp_path / "w.npz", a=normal(5, seed=1), b=normal(9000, seed=2))
    path = tmp_path / "part.npz"
    run(capsys, tmp_path / "w.npz", "--part", "1/2", "--save", path)
    with np.load(path) as archive:
        about, arrays = json.loads(archive["about"].tobytes()), {**archive}
    _, array = inspect.signature(change).parameters
    change(about, arrays[array])
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(path, **arrays)
    assert fault(path, found_by=lambda path: _parts.load(str(path))).startswith(message)


def tensor(about: dict[str, Any]) -> list[Any]:
    return about["checkpoint"]["tensors"][0]


def test_damaged_parts(capsys, tmp_path):
    np.save(tmp_path / "w.npy", normal(9000, seed=1))
    path = tmp_path / "part.npz"
    run(capsys, tmp_path / "w.npy", "--part", "1/1", "--save", path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert fault(path, found_by=lambda path: _parts.load(str(path)))


# Saving


def refused(capsys, path: Path, *argv: object) -> str:
    """What is said of a file that is there and stays as it is."""
    before = path.read_bytes()
    assert cli.main(["report", *map(str, argv), "--save", str(path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert path.read_bytes() == before
    return err.removeprefix(f"fused-penalties: {path}: not overwritten: ").removesuffix("\n")


def test_only_the_same_part_is_overwritten(capsys, tmp_path):
    weights, others = tmp_path / "w.npy", tmp_path / "others.npz"
    np.save(weights, normal(9000, seed=1))
    np.savez(others, normal(9000, seed=1))
    for path in (weights, others):
        said = refused(capsys, path, weights, "--part", "1/1")
        assert said == "not a part that report --save wrote"
    part = tmp_path / "part.npz"
    for _ in range(2):  # as a scheduler does after a failure
        run(capsys, weights, "--part", "1/2", "--save", part)
    for number in ("2/2", "1/3"):
        said = refused(capsys, part, weights, "--part", number)
        assert said == "part 1 of 2 is there"
    another = "a part of another report is there: "
    said = refused(capsys, part, others, "--part", "1/2")
    assert said == f"{another}it has no tensor 'arr_0'"
    for array, differs in (
        (normal(90, 100, seed=1), "shape (9000,), not (90, 100)"),
        (normal(9000, seed=1, dtype=np.float64), "dtype float32, not float64"),
    ):
        np.save(weights, array)
        said = refused(capsys, part, weights, "--part", "1/2")
        assert said == f"{another}tensor 'w' has the {differs}"
    np.save(weights, normal(9000, seed=2))
    said = refused(capsys, part, weights, "--part", "1/2")
    assert said == f"{another}tensors of the same names and sizes, but other files"
    assert {path.name for path in tmp_path.iterdir()} == {"w.npy", "others.npz", "part.npz"}


def test_two_runs_with_one_file_to_save_in(capsys, tmp_path, monkeypatch):
    """Neither takes the place of the other, also if that ends while this one reads."""
    np.save(tmp_path / "w.npy", normal(9000, seed=1))
    part, other = tmp_path / "part.npz", tmp_path / "other.npz"
    run(capsys, tmp_path / "w.npy", "--part", "2/2", "--save", other)
    sums = cli.fp.partial_sums

    def quicker(*args: object, **options: object) -> object:
        part.write_bytes(other.read_bytes())
        return sums(*args, **options)

    monkeypatch.setattr(cli.fp, "partial_sums", quicker)
    argv = ["report", str(tmp_path / "w.npy"), "--part", "1/2", "--save", str(part)]
    assert cli.main(argv) == 2
    said = f"fused-penalties: {part}: not overwritten: part 2 of 2 is there\n"
    assert capsys.readouterr() == ("", said)
    assert part.read_bytes() == other.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"w.npy", "part.npz", "other.npz"}


def test_a_report_on_a_part_points_to_merge(capsys, tmp_path):
    np.save(tmp_path / "w.npy", normal(9000, seed=1))
    part = tmp_path / "part.npz"
    run(capsys, tmp_path / "w.npy", "--part", "1/2", "--save", part)
    assert cli.main(["report", str(part)]) == 2
    said = "a part that report --save wrote; fused-penalties merge takes all parts"
    assert capsys.readouterr() == ("", f"fused-penalties: {part}: {said}\n")


def test_a_folder_that_is_not_there_is_found_before_the_reading(capsys, tmp_path, monkeypatch):
    np.save(tmp_path / "w.npy", normal(9000, seed=1))
    monkeypatch.setattr(cli, "batches", None)
    part = tmp_path / "none" / "part.npz"
    assert cli.main(["report", str(tmp_path / "w.npy"), "--part", "1/1", "--save", str(part)]) == 2
    said = f"fused-penalties: {part}: No such file or directory\n"
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_is_left_of_a_part_that_was_not_finished(capsys, tmp_path, monkeypatch, error):
    def fail(*args: object, **options: object) -> None:
        raise error

    path = tmp_path / "w.npy"
    np.save(path, normal(9000, seed=1))
    where = (
        (cli.fp, "partial_sums")
        if isinstance(error, KeyboardInterrupt)
        else (np, "savez_compressed")
    )
    monkeypatch.setattr(*where, fail)
    part = tmp_path / "part.npz"
    status = cli.main(["report", str(path), "--part", "1/2", "--save", str(part)])
    said = {
        130: "fused-penalties: interrupted: 0 of 16,384 bytes had been read\n",
        2: f"fused-penalties: {part}: No space left on device\n",
    }
    assert capsys.readouterr() == ("", said[status])
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--part", "1/2"], "arguments --part and --save: wanted both or none of them"),
        (["--save", "p.npz"], "arguments --part and --save: wanted both or none of them"),
        *(
            (
                ["--part", text, "--save", "p"],
                f"argument --part: expected K/N with 1 <= K <= N, got {text!r}",
            )
            for text in ("0/2", "3/2", "1", "1/", "1/2/3", "1/3000000000", "٣/٤", "")
        ),
        *(
            (
                [*option, "--part", "1/2", "--save", "p"],
                f"argument --save: not allowed with argument {option[0]}, which is for merge",
            )
            for option in (
                ["--json"],
                ["--csv"],
                ["--l1", "0"],
                ["--l2", "1"],
                ["--sort", "name"],
                ["--scale", "contrib"],
                ["--rules", "r"],
            )
        ),
    ],
)
def test_options_that_do_not_fit(capsys, tiny, argv, message):
    with pytest.raises(SystemExit) as caught:
        cli.main(["report", tiny, *argv])
    out, err = capsys.readouterr()
    assert (caught.value.code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for command, words in (
        ("report", ["--part K/N", "--no-mmap", "merge FILE"]),
        ("merge", ["PART"]),
    ):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        out = capsys.readouterr().out
        assert all(word in out for word in words)
        assert max(map(len, out.splitlines())) <= 80


def test_a_checkpoint_of_terabytes_in_a_million_parts(capsys, tmp_path):
    """Each reads its own stretch and nothing else."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({1 << 38},), }}"
    path = tmp_path / "w.npy"
    path.write_bytes(npy_with_header(header))
    begin = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(begin + (1 << 41))
        file.seek(begin + (1 << 41) - 8)
        file.write(np.float64(-3).tobytes())
    part = tmp_path / "part.npz"
    said = run(capsys, path, "--part", "1000000/1000000", "--save", part)
    assert re.match(r"part 1000000 of 1000000, 2,\d{3},\d{3} of 2,199,023,255,552 bytes", said)
    sums = _parts.load(str(part)).read.sums.sums()
    assert [*sums.abs, *sums.square, *sums.largest] == [3.0, 9.0, 3.0]
