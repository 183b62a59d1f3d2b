"""The command: its numbers and its three forms of output."""

from __future__ import annotations

import csv
import io
import json
import math
import re

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import oracle
from command import NUMBERS, TINY, X, exact_sums, model, run, run_json
from fused_penalties import cli
from weight_files import entry, ints, npy_bytes, safetensors_bytes

# Numbers


@pytest.mark.parametrize("scale", ["keras", "contrib"])
def test_sums_and_penalties(capsys, whole, scale):
    report = run_json(capsys, whole, "--l1", "0.01", "--l2", "0.3", "--scale", scale)
    arrays = model()
    assert {row["name"] for row in report["tensors"]} == set(arrays)
    floats = {name: array for name, array in arrays.items() if array.dtype.kind not in "ib"}
    half = {"keras": 1, "contrib": 2}[scale]
    for row in report["tensors"]:
        array = arrays[row["name"]]
        assert row["file"] == whole
        assert row["shape"] == list(array.shape)
        assert (row["size"], row["bytes"]) == (array.size, array.nbytes)
        if row["name"] not in floats:
            keys = ("abs", "square", "rms", "largest", "l1_penalty", "l2_penalty")
            assert [row[key] for key in keys] == [None] * 6
            continue
        sum_abs, sum_square = exact_sums(array)
        assert (row["abs"], row["square"]) == (sum_abs, sum_square)
        assert row["rms"] == math.sqrt(sum_square / max(array.size, 1))
        assert row["largest"] == abs(array.astype(np.float64)).max(initial=0)
        dtype = np.float64 if array.dtype == np.float64 else np.float32
        l1, l2 = float(dtype(0.01)), float(dtype(0.3))
        assert row["dtype"] == array.dtype.name
        assert row["l1_penalty"] == float(dtype(l1 * sum_abs))
        assert row["l2_penalty"] == float(dtype(l2 * sum_square / half))

    totals = report["totals"]
    assert totals["size"] == sum(array.size for array in floats.values())
    assert totals["bytes"] == sum(array.nbytes for array in floats.values())
    sums = [exact_sums(array) for array in floats.values()]
    assert totals["abs"] == sum(pair[0] for pair in sums)
    assert totals["square"] == sum(pair[1] for pair in sums)
    assert totals["rms"] == math.sqrt(totals["square"] / totals["size"])
    assert totals["largest"] == 9
    # One of the tensors is float64, and so is the total.
    strengths = [np.float64 if a.dtype == np.float64 else np.float32 for a in floats.values()]
    l1_terms = [float(d(0.01)) * pair[0] for d, pair in zip(strengths, sums, strict=True)]
    l2_terms = [float(d(0.3)) * pair[1] / half for d, pair in zip(strengths, sums, strict=True)]
    assert totals["l1_penalty"] == math.fsum(l1_terms)
    assert totals["l2_penalty"] == math.fsum(l2_terms)


def test_the_numbers_that_users_of_the_original_libraries_know(capsys, tiny):
    def penalties(*argv: object) -> tuple[np.float32, np.float32]:
        row = run_json(capsys, tiny, "--include", "weight", *argv)["totals"]
        return np.float32(row["l1_penalty"]), np.float32(row["l2_penalty"])

    assert penalties() == (np.float32(0.099999994), np.float32(0.29999998))
    assert penalties("--scale", "contrib") == (np.float32(0.099999994), np.float32(0.14999999))
    assert penalties("--l1", 0.5, "--l2", 1) == (5.0, 30.0)
    assert penalties("--l1", 0.5, "--l2", 0.5, "--scale", "contrib") == (5.0, 7.5)
    assert penalties("--l1", 0, "--l2", 0) == (0.0, 0.0)


@pytest.mark.parametrize("batch", [8192, 16384, 1 << 20, cli.BATCH])
def test_cutting_tensors_changes_no_bit(capsys, tmp_path, monkeypatch, isa, batch):
    monkeypatch.setattr(cli, "BATCH", batch)
    rng = np.random.default_rng(7)
    arrays = {
        f"{name}.{size}": (rng.standard_cauchy(size) * scale).astype(dtype)
        for name, dtype, scale in [
            ("f16", np.float16, 1e-3),
            ("bf16", ml_dtypes.bfloat16, 1e-3),
            ("f32", np.float32, 1e9),
            ("f64", np.float64, 1e100),
        ]
        for size in (0, 1, 1000, 4096, 70_000)
    }
    save_file(arrays, tmp_path / "model.safetensors")
    report = run_json(capsys, tmp_path / "model.safetensors", "--threads", 2)
    for row in report["tensors"]:
        sums = oracle.sums(arrays[row["name"]])
        assert oracle.hexes((row["abs"], row["square"])) == oracle.hexes(sums)
    totals = report["totals"]["abs"], report["totals"]["square"]
    assert oracle.hexes(totals) == oracle.hexes(oracle.totals(arrays.values()))


def test_fortran_order_is_cut_in_the_order_of_the_file(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "BATCH", 8192)
    array = np.asfortranarray(np.random.default_rng(1).standard_normal((61, 83, 3)), np.float16)
    expected = oracle.hexes(oracle.sums(array))
    assert expected != oracle.hexes(oracle.sums(np.ascontiguousarray(array)))
    np.save(tmp_path / "w.npy", array)
    np.save(tmp_path / "swapped.npy", array.astype(">f2"))
    for name in ("w.npy", "swapped.npy"):
        (row,) = run_json(capsys, tmp_path / name)["tensors"]
        assert oracle.hexes((row["abs"], row["square"])) == expected


def test_the_total_penalty_is_rounded_once(capsys, tmp_path):
    # Added one by one, the small terms would be lost.
    weights = {"large": 2.0**53, "small": 1.0, "smaller": 0.5, "smallest": 0.5}
    np.savez(tmp_path / "w.npz", **{name: np.array([w]) for name, w in weights.items()})
    totals = run_json(capsys, tmp_path / "w.npz", "--l1", 1)["totals"]
    assert totals["l1_penalty"] == totals["abs"] == 2.0**53 + 2

    # Each float32 penalty is rounded, but the total is not the sum of those.
    save_file({f"w{n}": np.ones(9, np.float32) for n in range(30)}, tmp_path / "w.safetensors")
    report = run_json(capsys, tmp_path / "w.safetensors", "--l1", 0.1)
    exact = float(np.float32(0.1)) * 270
    total = report["totals"]["l1_penalty"]
    assert total == float(np.float32(exact))
    assert total != np.float32(sum(row["l1_penalty"] for row in report["tensors"]))


def test_nan_and_infinity(capsys, tmp_path):
    arrays = {
        "nan": np.array([1, np.nan], np.float32),
        "inf": np.array([1, -np.inf], np.float32),
        "large": np.full(3, 3e38, np.float32),
        "one": np.ones(1, np.float32),
    }
    save_file(arrays, tmp_path / "w.safetensors")
    report = run_json(capsys, tmp_path / "w.safetensors", "--l1", 10, "--l2", 0)
    rows = {row["name"]: row for row in report["tensors"]}
    assert (rows["nan"]["abs"], rows["nan"]["square"], rows["nan"]["l1_penalty"]) == ("NaN",) * 3
    assert (rows["inf"]["abs"], rows["inf"]["square"]) == ("Infinity",) * 2
    for key in ("rms", "largest"):
        assert (rows["nan"][key], rows["inf"][key]) == ("NaN", "Infinity")
    assert rows["large"]["largest"] == float(np.float32(3e38))
    assert (report["totals"]["rms"], report["totals"]["largest"]) == ("NaN", "NaN")
    assert rows["large"]["abs"] == 3 * float(np.float32(3e38))
    assert rows["large"]["l1_penalty"] == "Infinity"
    assert rows["large"]["l2_penalty"] == 0.0
    assert report["totals"]["abs"] == "NaN"
    assert run_json(capsys, tmp_path / "w.safetensors", "--exclude", "nan")["totals"]["abs"] == (
        "Infinity"
    )
    assert float("NaN") != float("NaN")
    assert float("Infinity") == math.inf

    lines = list(csv.DictReader(io.StringIO(run(capsys, tmp_path / "w.safetensors", "--csv"))))
    assert [line["abs"] for line in lines if line["name"] in ("nan", "inf")] == ["inf", "nan"]
    table = run(capsys, tmp_path / "w.safetensors")
    assert "nan" in table
    assert "inf" in table


# The three forms


def test_csv(capsys, whole):
    lines = list(csv.reader(io.StringIO(run(capsys, whole, "--csv", "--l2", "0.3"))))
    report = run_json(capsys, whole, "--l2", "0.3")
    assert lines[0] == list(report["tensors"][0])
    for line, row in zip(lines[1:], report["tensors"], strict=True):
        found = dict(zip(lines[0], line, strict=True))
        assert found.pop("shape") == "x".join(map(str, row.pop("shape")))
        for key in ("abs", "square", "rms", "largest", "l1_penalty", "l2_penalty", "l1", "l2"):
            text = found.pop(key)
            assert (float(text) if text else None) == row.pop(key)
        assert found == {key: str(value) for key, value in row.items()}


def test_json_says_how_it_was_made(capsys, whole):
    report = run_json(capsys, whole, "--threads", 2, "--scale", "contrib", "--l1", 0.5)
    assert (report["scale"], report["l1"], report["l2"]) == ("contrib", 0.5, 0.01)
    assert report["threads"] == 2
    assert report["isa"] == cli.fp.build_info()["active_isa"]
    assert report["seconds"] > 0
    assert report["gb_per_s"] == report["totals"]["bytes"] / report["seconds"] / 1e9


def test_table_when_piped_is_one_line_a_tensor_and_never_cut(capsys, tmp_path):
    name = "model.decoder." + "layers.11." * 30 + "weight"
    arrays = {name: ints(1000, 100), "ids": np.arange(3)}
    save_file(arrays, tmp_path / "w.safetensors")
    lines = run(capsys, tmp_path / "w.safetensors").splitlines()
    assert lines[0].split() == ["tensor", "shape", "dtype", *NUMBERS]
    rows = {line.split()[0]: line.split()[1:] for line in lines if line}
    sum_abs, sum_square = exact_sums(arrays[name])
    numbers = ["100,000", f"{sum_abs}", f"{sum_square:.6g}"]
    assert rows[name][:5] == [f"1000{X}100", "float32", *numbers]
    assert rows["ids"] == ["3", "I64", "3", *"------"]
    assert rows["total"][:3] == numbers
    notes = lines[lines.index("") + 1 :]
    assert notes[0] == "keras scale: l1·Σ|w| + l2·Σw², l1 = 0.01, l2 = 0.01"
    assert re.fullmatch(r"400,000 bytes in \S+ s: \S+ GB/s \(\w+, at most \d+ threads?\)", notes[1])
    assert notes[2:] == ["not summed, and in no total: 1 I64"]


def test_table_says_the_scale_and_the_threads(capsys, tiny):
    out = run(capsys, tiny, "--scale", "contrib", "--l1", 0, "--l2", 1e-4, "--threads", 1)
    assert "contrib scale: l1·Σ|w| + l2·Σw²/2, l1 = 0, l2 = 0.0001" in out
    isa = cli.fp.build_info()["active_isa"]
    assert f"({isa}, at most 1 thread)" in out
    assert "not summed" not in out


def test_a_table_without_penalties_says_no_scale(capsys, tmp_path, tiny):
    assert "scale" not in run(capsys, tiny, "--columns", "shape,rms")
    for shown in ("l1_penalty", "rms,l2_penalty", "penalty"):
        assert "keras scale: " in run(capsys, tiny, "--columns", shown)


def test_a_file_that_is_given_twice(capsys, tmp_path, tiny):
    """By the same name or by another; it is no fault, but seen."""
    np.save(tmp_path / "w.npy", ints(3))
    link = tmp_path / "link.npy"
    link.symlink_to("w.npy")
    assert run_json(capsys, tiny, link)["notes"] == []
    report = run_json(capsys, tiny, link, tiny, tmp_path / "w.npy", tiny)
    assert report["notes"] == [
        f"{tiny}: given 3 times, counts 3 times",
        f"{link}: given twice, counts twice",
    ]
    assert report["totals"]["abs"] == 3 * 13 + 2 * exact_sums(ints(3))[0]
    out = run(capsys, link, tmp_path / "w.npy")
    assert out.splitlines()[-1] == f"{link}: given twice, counts twice"


def test_several_files(capsys, tmp_path, tiny):
    np.save(tmp_path / "w.npy", TINY["a.weight"])
    np.savez(tmp_path / "w.npz", **{"a.bias": TINY["a.bias"]})
    files = [tiny, str(tmp_path / "w.npy"), str(tmp_path / "w.npz")]
    rows = [line.split()[:3] for line in run(capsys, *files).splitlines()]
    assert rows[0] == ["file", "tensor", "shape"]
    assert rows[2:6] == [
        [files[0], "a.bias", "3"],
        [files[0], "a.weight", f"2{X}2"],
        [files[1], "w", f"2{X}2"],
        [files[2], "a.bias", "3"],
    ]
    report = run_json(capsys, *files)
    assert [row["file"] for row in report["tensors"]] == [files[0], *files]
    assert (report["totals"]["abs"], report["totals"]["square"]) == (26, 66)


def test_sharded_model(capsys, tmp_path):
    for number, (name, array) in enumerate(TINY.items()):
        save_file({name: array}, tmp_path / f"model-{number}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    weight_map = {name: f"model-{number}.safetensors" for number, name in enumerate(TINY)}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    report = run_json(capsys, index)
    assert [(row["file"], row["name"]) for row in report["tensors"]] == [
        (str(index), name) for name in sorted(TINY)
    ]
    assert report["totals"]["abs"] == 13


def test_notes(capsys, tmp_path):
    (tmp_path / "w.npy").write_bytes(npy_bytes(ints(2)) + b"more")
    np.save(tmp_path / "v.npy", ints(2))
    note = f"{tmp_path / 'w.npy'}: 4 bytes behind the array are not read"
    for files in ([tmp_path / "w.npy"], [tmp_path / "v.npy", tmp_path / "w.npy"]):
        assert run_json(capsys, *files)["notes"] == [note]
        assert run(capsys, *files).splitlines()[-1] == note
    assert run_json(capsys, tmp_path / "v.npy")["notes"] == []


def test_every_word_of_a_file_is_printable(capsys, tmp_path):
    """Names, dtypes and the file's own name, in the forms that a terminal or a line reader gets."""
    words = ["x\rforged,1", "\x1b[2J", "\x9b2J", "\u2028", "a\nb", "\x7f", "c,d", 'e"f']
    header = {word: entry(word, [2], 8 * n, 8 * n + 8) for n, word in enumerate(words)}
    path = tmp_path / "w\x1b[2J\r.safetensors"
    path.write_bytes(safetensors_bytes(header, bytes(8 * len(words))))
    for form in ([], ["--csv"]):
        out = run(capsys, path, path, *form)
        assert out.replace("\n", "").isprintable()
    lines = run(capsys, path, "--csv").splitlines()
    assert len(lines) == 1 + len(words)
    rows = list(csv.DictReader(lines))
    escaped = ["x\\rforged,1", "\\x1b[2J", "\\x9b2J", "\\u2028", "a\\nb", "\\x7f", "c,d", 'e"f']
    found = sorted((row["name"], row["dtype"]) for row in rows)
    assert found == sorted((word, word) for word in escaped)
    assert sorted(row["name"] for row in run_json(capsys, path)["tensors"]) == sorted(words)


def test_names_cannot_move_the_cursor_or_break_the_line(capsys, tmp_path):
    names = ["a\nb", "\x1b[2Jgone", "[red]x[/red]", ":smile:", "Σ.権重", "\u202eevil"]
    save_file({name: ints(2) for name in names}, tmp_path / "w.safetensors")
    out = run(capsys, tmp_path / "w.safetensors")
    shown = {line.split()[0] for line in out.splitlines() if "float32" in line}
    assert shown == {r"a\nb", r"\x1b[2Jgone", "[red]x[/red]", ":smile:", "Σ.権重", r"\u202eevil"}
    report = run_json(capsys, tmp_path / "w.safetensors")
    assert sorted(row["name"] for row in report["tensors"]) == sorted(names)
    lines = list(csv.DictReader(io.StringIO(run(capsys, tmp_path / "w.safetensors", "--csv"))))
    assert {line["name"] for line in lines} == shown
