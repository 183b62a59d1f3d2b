"""The command's options: what is taken, how it is shown, and rules."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from command import NUMBERS, exact_sums, failing, model, run, run_json
from fused_penalties import cli
from weight_files import ints

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
        ("", "not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("[]", "got list; wanted an object of names' patterns"),
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
        ('{".": {"l2": NaN}}', "regularizer['.']: expected a finite number >= 0, got 'NaN'"),
        ('{".": {"l2": true}}', "regularizer['.']: expected a finite number >= 0, got 'true'"),
        ('{".": {"l2": null}}', "regularizer['.']: expected a finite number >= 0, got 'null'"),
        ('{".": {"l2": "1"}}', "regularizer['.']: expected a finite number >= 0, got '\"1\"'"),
    ],
)
def test_rules_at_fault(capsys, tmp_path, tiny, text, fault):
    rules = rules_in(tmp_path, text)
    assert cli.main(["report", tiny, "--rules", rules]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"fused-penalties: {rules}: {fault}")
    assert err.count("\n") == 1


def test_rules_for_files_of_which_none_can_be_read(capsys, tmp_path):
    """The files are at fault, not that the rules find no name."""
    rules = rules_in(tmp_path, '{"w": null}')
    path = tmp_path / "none.npy"
    out, said = failing(capsys, 2, path, "--rules", rules)
    assert (out, said) == ("", [f"{path}: No such file or directory"])


def test_rules_that_cannot_be_read(capsys, tmp_path, tiny):
    for path, fault in [
        (tmp_path / "none.json", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (Path(tiny), "not JSON: 'utf-8' codec can't decode byte"),
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
    assert order("--sort", "rms") == ["nan", "c", "b", "a", "ids"]
    assert order("--sort", "largest") == ["nan", "b", "a", "c", "ids"]


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
