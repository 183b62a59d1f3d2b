"""The command: its numbers, its three forms of output and its options."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import oracle
from command import NUMBERS, TINY, X, exact_sums, run, run_json, unlike_a_terminal
from fused_penalties import cli
from weight_files import entry, ints, npy_bytes, safetensors_bytes

BF16 = ml_dtypes.bfloat16


def model() -> dict[str, np.ndarray]:
    return {
        "embed.weight": ints(50, 40, dtype=BF16),
        "embed.position_ids": np.arange(50)[None],
        "layer.0.kernel": ints(300, 200, seed=1),
        "layer.0.bias": ints(200, seed=2),
        "layer.1.kernel": ints(200, 100, dtype=np.float16, seed=3),
        "layer.1.scale": np.array(-3.0, np.float64),
        "layer.1.mask": np.ones((3, 3), bool),
        "layer.2.pruned": np.zeros((0, 100), np.float32),
    }


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    unlike_a_terminal(monkeypatch)


@pytest.fixture
def tiny(tmp_path) -> str:
    save_file(TINY, tmp_path / "tiny.safetensors")
    return str(tmp_path / "tiny.safetensors")


@pytest.fixture
def whole(tmp_path) -> str:
    save_file(model(), tmp_path / "model.safetensors", metadata={"format": "np"})
    return str(tmp_path / "model.safetensors")


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
            assert [row[key] for key in ("abs", "square", "l1_penalty", "l2_penalty")] == [None] * 4
            continue
        sum_abs, sum_square = exact_sums(array)
        assert (row["abs"], row["square"]) == (sum_abs, sum_square)
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
            ("bf16", BF16, 1e-3),
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
        for key in ("abs", "square", "l1_penalty", "l2_penalty", "l1", "l2"):
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
    assert rows["ids"] == ["3", "I64", "3", "-", "-", "-", "-"]
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
        (str(index), name) for name in TINY
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
    assert [(row["name"], row["dtype"]) for row in rows] == [(word, word) for word in escaped]
    assert [row["name"] for row in run_json(capsys, path)["tensors"]] == words


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


# Options


def test_include_and_exclude(capsys, whole):
    def names(*argv: str) -> set[str]:
        return {row["name"] for row in run_json(capsys, whole, *argv)["tensors"]}

    assert names("--include", r"kernel$") == {"layer.0.kernel", "layer.1.kernel"}
    assert names("--include", "bias", "--include", "^embed") == {
        "layer.0.bias",
        "embed.weight",
        "embed.position_ids",
    }
    assert names("--exclude", "layer", "--exclude", "ids") == {"embed.weight"}
    assert names("--include", "layer.0", "--exclude", "bias") == {"layer.0.kernel"}


def test_max_member(capsys, tmp_path):
    path = tmp_path / "w.npz"
    np.savez_compressed(path, ids=np.arange(999), w=np.zeros(1000, np.float32))
    assert run_json(capsys, path, "--max-member", 4000)["totals"]["size"] == 1000
    assert cli.main(["report", str(path), "--max-member", "3999"]) == 2
    assert capsys.readouterr() == (
        "",
        f"fused-penalties: {path}: member 'w': expands to 4,000 bytes, past --max-member 3,999\n",
    )
    assert run_json(capsys, path, "--max-member", 1, "--exclude", "w")["totals"]["size"] == 0


def test_more_threads_than_there_are(capsys, tiny):
    report = run_json(capsys, tiny, "--threads", 10**30)
    assert report["threads"] == 10**30
    assert report["totals"]["abs"] == 13


# Rules


def rules_in(folder: Path, text: str) -> str:
    path = folder / "rules.json"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("scale", ["keras", "contrib"])
def test_rules(capsys, tmp_path, whole, scale):
    """Each tensor as with its own strengths for all of them; totals add the terms once."""
    given = {"bias": None, "kernel": {"l2": 0.25}, "embed": {"l1": 1, "l2": 0.5}, "mask": None}
    rules = rules_in(tmp_path, json.dumps(given))
    report = run_json(capsys, whole, "--rules", rules, "--scale", scale)
    assert (report["rules"], report["l1"], report["l2"]) == (rules, None, None)
    strengths = {
        "embed.weight": (1.0, 0.5),
        "layer.0.kernel": (0.0, 0.25),
        "layer.0.bias": (0.0, 0.0),
        "layer.1.kernel": (0.0, 0.25),
        "layer.1.scale": (0.0, 0.0),
        "layer.2.pruned": (0.0, 0.0),
        "embed.position_ids": (None, None),
        "layer.1.mask": (None, None),
    }
    totals = [0.0, 0.0]
    half = {"keras": 1, "contrib": 2}[scale]
    for row in report["tensors"]:
        l1, l2 = strengths.pop(row["name"])
        assert (row["l1"], row["l2"]) == (l1, l2)
        if l1 is None:
            assert (row["l1_penalty"], row["l2_penalty"]) == (None, None)
            continue
        sum_abs, sum_square = exact_sums(model()[row["name"]])
        wanted = l1 * sum_abs, l2 * sum_square / half  # exact: the strengths are powers of two
        assert (row["l1_penalty"], row["l2_penalty"]) == wanted
        totals = [total + one for total, one in zip(totals, wanted, strict=True)]
    assert not strengths
    assert [report["totals"][key] for key in ("l1_penalty", "l2_penalty")] == totals
    without = run_json(capsys, whole, "--l2", 0.25)
    assert (without["rules"], without["l1"], without["l2"]) == (None, 0.01, 0.25)
    assert {(row["l1"], row["l2"]) for row in without["tensors"]} == {(0.01, 0.25), (None, None)}


def test_a_table_shows_what_each_tensor_got(capsys, tmp_path):
    """That `norm` is not found in the names of a ResNet's normalizations is seen."""
    arrays = {"conv1.weight": ints(3, 3), "bn1.weight": ints(3), "fc.bias": ints(2)}
    save_file({**arrays, "steps": np.arange(2)}, tmp_path / "w.safetensors")
    text = '{"bias": null, "conv|bn": {"l1": 1e-6, "l2": 1e-4}}'
    lines = run(
        capsys, tmp_path / "w.safetensors", "--rules", rules_in(tmp_path, text)
    ).splitlines()
    assert lines[0].split() == ["tensor", "shape", "dtype", "penalty", *NUMBERS]
    rows = {line.split("  ")[0]: re.split("  +", line)[3] for line in lines[2:6]}
    assert rows == {
        "conv1.weight": "l1 = 1e-06, l2 = 0.0001",
        "bn1.weight": "l1 = 1e-06, l2 = 0.0001",
        "fc.bias": "none",
        "steps": "-",
    }
    notes = lines[lines.index("") + 1 :]
    assert notes[0] == f"keras scale: l1·Σ|w| + l2·Σw², l1 and l2 by {tmp_path / 'rules.json'}"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "Expecting value: line 1 column 1 (char 0)"),
        ("[]", "got a list; wanted an object of names' patterns"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": null, "a": {"l1": 1}}', "'a' is there twice"),
        ('{"weight": {"l1": 1, "l1": 2}}', "'l1' is there twice"),
        ('{"(": null}', "regularizer['(']: got '('; wanted a regular expression over names, "),
        ('{"kernel": null}', "regularizer['kernel']: 'kernel' is found in none of the 2 names: a."),
        ('{".": null, "b": null}', "regularizer['b']: decides nothing, because earlier rules do"),
        ('{".": {"l3": 1}}', "regularizer['.']: got {\"l3\": 1}; wanted null or strengths, {"),
        ('{".": {}}', "regularizer['.']: got {}; wanted null or strengths, "),
        ('{".": 0.1}', "regularizer['.']: got 0.1; wanted null or strengths, "),
        ('{".": {"l1": -1}}', "regularizer['.']: expected a finite number >= 0, got '-1'"),
        ('{".": {"l2": NaN}}', "regularizer['.']: expected a finite number >= 0, got 'nan'"),
        ('{".": {"l2": true}}', "regularizer['.']: expected a finite number >= 0, got 'True'"),
        ('{".": {"l2": null}}', "regularizer['.']: expected a finite number >= 0, got 'None'"),
    ],
)
def test_rules_at_fault(capsys, tmp_path, tiny, text, fault):
    rules = rules_in(tmp_path, text)
    assert cli.main(["report", tiny, "--rules", rules]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"fused-penalties: {rules}: {fault}")
    assert err.count("\n") == 1


def test_rules_that_cannot_be_read(capsys, tmp_path, tiny):
    for path, fault in [
        (tmp_path / "none.json", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (Path(tiny), "'utf-8' codec can't decode byte"),
    ]:
        assert cli.main(["report", tiny, "--rules", str(path)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"fused-penalties: {path}: {fault}")
        assert err.count("\n") == 1


def test_sort(capsys, tmp_path):
    arrays = {
        "b": np.array([5, 0, 0], np.float32),
        "c": np.array([3, 3], np.float32),
        "ids": np.arange(4),
        "a": np.array([4, 1.5, 0, 0, 0], np.float32),
        "nan": np.array([np.nan], np.float32),
    }
    np.savez(tmp_path / "w.npz", **arrays)

    def order(*argv: str) -> list[str]:
        lines = csv.DictReader(io.StringIO(run(capsys, tmp_path / "w.npz", "--csv", *argv)))
        return [line["name"] for line in lines]

    assert order() == order("--sort", "file") == list(arrays)
    assert order("--sort", "name") == sorted(arrays)
    assert order("--sort", "size") == ["a", "ids", "b", "c", "nan"]
    assert order("--sort", "abs") == ["nan", "c", "a", "b", "ids"]
    assert order("--sort", "square") == ["nan", "b", "a", "c", "ids"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--l1", "-1"], "argument --l1: expected a finite number >= 0, got '-1'"),
        (["--l2", "nan"], "argument --l2: expected a finite number >= 0, got 'nan'"),
        (["--l2", "inf"], "argument --l2: expected a finite number >= 0, got 'inf'"),
        (["--l1", "x"], "argument --l1: expected a finite number >= 0, got 'x'"),
        (["--include", "("], "argument --include: '(' is no regular expression: missing )"),
        (["--exclude", "*"], "argument --exclude: '*' is no regular expression: nothing to"),
        (["--threads", "0"], "argument --threads: expected a whole number >= 1, got '0'"),
        (["--threads", "2.5"], "argument --threads: expected a whole number >= 1, got '2.5'"),
        (["--threads", "9" * 5000], "argument --threads: expected a whole number >= 1, got '999"),
        (["--max-member", "1k"], "argument --max-member: expected a whole number >= 1, got '1k'"),
        (["--include", "x{99999999999}"], "argument --include: 'x{99999999999}' is no regular"),
        (["--include", "(" * 9999 + ")" * 9999], "is no regular expression: "),
        (["--x\n\x1b[2J"], r"unrecognized arguments: --x\n\x1b[2J"),
        (["--scale", "torch"], "argument --scale: invalid choice: 'torch'"),
        (["--sort", "shape"], "argument --sort: invalid choice: 'shape'"),
        (["--rules", "r.json", "--l1", "0"], "argument --rules: not allowed with argument --l1 or"),
        (["--rules", "r.json", "--l2", "1"], "argument --rules: not allowed with argument --l1 or"),
        (["--json", "--csv"], "argument --csv: not allowed with argument --json"),
        (["--pickle"], "unrecognized arguments: --pickle"),
    ],
)
def test_bad_options(capsys, tiny, argv, message):
    with pytest.raises(SystemExit) as caught:
        cli.main(["report", tiny, *argv])
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert re.match(r"fused-penalties( report)?: ", err)
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("argv", [[], ["report"], ["inspect", "w.npy"]])
def test_incomplete_commands(capsys, argv):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    out, err = capsys.readouterr()
    assert (caught.value.code, out, err.count("\n")) == (2, "", 1)


def test_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        cli.main(["report", "--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert "L2 = l2·Σw²/2" in out
    assert max(map(len, out.splitlines())) <= 80
