"""The command for who audits checkpoints: NaN and infinity, orders, lists of files, help."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from command import TINY, failing, process, run, run_json
from fused_penalties import _options, cli
from fused_penalties._picture import _FORMATS
from fused_penalties._report import ORDERS
from weight_files import ints

# NaN and infinity


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    arrays = {
        "fine": ints(3),
        "layers.10.w": np.float32([1, np.nan, np.inf]),
        "layers.2.w": np.float32([1, -np.inf]),
        "steps": np.arange(2),
        "huge": np.full(9, 1e308),  # whose sums are infinite, and it is not
    }
    save_file(arrays, tmp_path / "odd.safetensors")
    return tmp_path / "odd.safetensors"


def test_tensors_with_nan_or_infinity_are_named(capsys, odd):
    out = run(capsys, odd)
    assert "2 with NaN or infinity: layers.2.w, layers.10.w" in out.splitlines()
    assert "NaN or" not in run(capsys, odd, "--exclude", "layers")


def test_not_more_are_named_than_one_reads(capsys, tmp_path):
    save_file({f"w{n}": np.float32([np.nan]) for n in range(25)}, tmp_path / "w.safetensors")
    names = ", ".join(f"w{n}" for n in range(20))
    said = f"25 with NaN or infinity: {names}, and 5 more: --sort largest has them first"
    assert said in run(capsys, tmp_path / "w.safetensors").splitlines()


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
def test_fail_on_nonfinite(capsys, tmp_path, odd, form):
    """Status 1 and the whole report; 2 if a file is at fault as well."""
    said = "2 with NaN or infinity: layers.2.w, layers.10.w"
    out, lines = failing(capsys, 1, odd, "--fail-on", "nonfinite", *form)
    assert lines == [said]
    if form == ["--csv"]:
        assert out == run(capsys, odd, *form)
    else:
        assert "layers.10.w" in out
    run(capsys, odd, "--exclude", "layers", "--fail-on", "nonfinite", *form)
    missing = tmp_path / "missing.npy"
    _, lines = failing(capsys, 2, odd, missing, "--fail-on", "nonfinite", *form)
    assert lines == [f"{missing}: No such file or directory", said]


def test_fail_on_nonfinite_of_parts(capsys, tmp_path, odd):
    """The largest magnitudes go with the parts, and NaN is kept when they are merged."""
    parts = [str(tmp_path / f"{n}.npz") for n in (1, 2)]
    for number, part in enumerate(parts, 1):
        run(capsys, odd, "--part", f"{number}/2", "--save", part)
    assert cli.main(["merge", *parts, "--fail-on", "nonfinite", "--json"]) == 1
    out, err = capsys.readouterr()
    assert err == "fused-penalties: 2 with NaN or infinity: layers.2.w, layers.10.w\n"
    assert json.loads(out)["tensors"] == run_json(capsys, odd)["tensors"]


# Orders


def test_layer_2_comes_before_layer_10(capsys, tmp_path):
    """In what the alphabet has sorted: .safetensors, an index and a folder; elsewhere by --sort."""
    names = [f"layers.{n}.w" for n in range(12)]
    arrays = {name: ints(n + 1) for n, name in enumerate(names)}
    for number, part in enumerate((names[::2], names[1::2])):
        (tmp_path / "folder").mkdir(exist_ok=True)
        save_file(
            {name: arrays[name] for name in part}, tmp_path / "folder" / f"{number}.safetensors"
        )
    save_file(arrays, tmp_path / "w.safetensors")
    index = tmp_path / "folder" / "model.safetensors.index.json"

    def order(path: Path, *argv: str) -> list[str]:
        return [row["name"] for row in run_json(capsys, path, *argv)["tensors"]]

    assert order(tmp_path / "w.safetensors") == names
    assert order(tmp_path / "folder") == names
    weight_map = {name: f"{n % 2}.safetensors" for n, name in enumerate(names)}
    index.write_text(json.dumps({"weight_map": dict(sorted(weight_map.items()))}))
    assert order(index) == names
    np.savez(tmp_path / "w.npz", **{name: arrays[name] for name in reversed(names)})
    assert order(tmp_path / "w.npz") == names[::-1]
    assert order(tmp_path / "w.npz", "--sort", "name") == names


def test_tensors_are_read_as_they_lie_in_the_file(capsys, tmp_path, monkeypatch):
    """In whatever order they are listed: each batch is one read of many."""
    names = [f"layers.{n}.w" for n in range(300)]
    save_file({name: ints(50) for name in names}, tmp_path / "w.safetensors")
    batches = []
    sums_of = cli._sums_of
    monkeypatch.setattr(cli, "_sums_of", lambda batch: batches.append(batch) or sums_of(batch))
    report = run_json(capsys, tmp_path / "w.safetensors")
    assert [row["name"] for row in report["tensors"]] == names
    assert [batch.tensors for batch in batches] == [300]


# Folders and lists


def test_a_folder_of_weight_files(capsys, tmp_path):
    """Each for itself, in natural order; what holds no weights is passed over."""
    for number in (10, 2):
        np.save(tmp_path / f"w{number}.npy", ints(number))
    np.savez(tmp_path / "more.npz", w=ints(3))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "deeper.npy").mkdir()
    names = ["more.npz", "w2.npy", "w10.npy"]
    report = run_json(capsys, tmp_path)
    assert [row["file"] for row in report["tensors"]] == [str(tmp_path / name) for name in names]
    # A model comes first: what lies beside it, such as the state of an optimizer, is none of it.
    save_file(TINY, tmp_path / "model.safetensors")
    report = run_json(capsys, tmp_path)
    assert [row["file"] for row in report["tensors"]] == [str(tmp_path)] * 2
    note = f"{tmp_path}: not read beside its .safetensors: {', '.join(names)}"
    assert report["notes"] == [note]
    assert run(capsys, tmp_path).splitlines()[-1] == note


def test_what_an_index_leaves_unread_in_its_folder(capsys, tmp_path):
    save_file(TINY, tmp_path / "model.safetensors")
    weight_map = json.dumps({"weight_map": dict.fromkeys(TINY, "model.safetensors")})
    (tmp_path / "model.safetensors.index.json").write_text(weight_map)
    (tmp_path / "config.json").write_text("{}")
    assert run_json(capsys, tmp_path)["notes"] == []
    save_file(TINY, tmp_path / "consolidated.safetensors")
    for number in range(7):
        (tmp_path / f"state{number}.pt").write_bytes(b"")
    report = run_json(capsys, tmp_path, "--include", "bias")
    names = "consolidated.safetensors, state0.pt, state1.pt, state2.pt, state3.pt, 3 more"
    assert report["notes"] == [f"{tmp_path}: not read beside the shards of its index: {names}"]
    assert report["totals"]["abs"] == 3


def test_a_bad_file_in_a_folder_does_not_discard_those_behind_it(capsys, tmp_path):
    np.save(tmp_path / "1.npy", ints(3))
    (tmp_path / "2.npy").write_bytes(b"")
    np.save(tmp_path / "3.npy", ints(4))
    out, said = failing(capsys, 2, tmp_path, "--json")
    assert said == [f"{tmp_path / '2.npy'}: the file is empty"]
    assert [row["size"] for row in json.loads(out)["tensors"]] == [3, 4]


def test_a_folder_with_a_model_in_both_formats(capsys, tmp_path):
    save_file(TINY, tmp_path / "model.safetensors")
    weight_map = json.dumps({"weight_map": dict.fromkeys(TINY, "model.safetensors")})
    (tmp_path / "model.safetensors.index.json").write_text(weight_map)
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "none.bin"}}')
    assert run_json(capsys, tmp_path)["totals"]["abs"] == 13


def test_a_folder_without_weights(capsys, tmp_path):
    out, said = failing(capsys, 2, tmp_path)
    assert (out, said) == ("", [f"{tmp_path}: a folder without weight files in it"])


def listing(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))


def test_a_list_of_files_on_standard_input(capsys, tmp_path, monkeypatch, tiny):
    last = tmp_path / os.fsdecode(b"a b\xff.npy")  # a name that is no UTF-8
    np.save(last, ints(3))
    np.save(tmp_path / "c.npy", ints(4))
    listing(monkeypatch, b"\n\n".join([tiny.encode(), os.fsencode(last)]) + b"\r\n")
    report = run_json(capsys, tmp_path / "c.npy", "-")
    files = [tmp_path / "c.npy", tiny, tiny, last]
    assert [row["file"] for row in report["tensors"]] == [str(file) for file in files]
    listing(monkeypatch, b"\n")
    out, said = failing(capsys, 2, "-")
    assert (out, said) == ("", ["-: no file is listed on standard input"])


def test_a_list_of_parts(capsys, tmp_path, monkeypatch, tiny):
    parts = [str(tmp_path / f"{n}.npz") for n in (1, 2)]
    for number, part in enumerate(parts, 1):
        run(capsys, tiny, "--part", f"{number}/2", "--save", part)
    listing(monkeypatch, "\n".join(parts).encode())
    assert cli.main(["merge", "-", "--csv"]) == 0
    merged = capsys.readouterr().out
    assert merged == run(capsys, tiny, "--csv")


def test_a_pipe_of_names(tmp_path, tiny):
    done = process("-", "--json", input=f"{tiny}\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["totals"]["abs"] == 13


# Help and completion


@pytest.mark.parametrize("command", ["report", "merge", "completion"])
def test_help_begins_with_examples_and_breaks_no_word(capsys, monkeypatch, command):
    words = []
    for columns in (60, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= columns
        words.append(out.split())
    assert words[0] == words[1]
    lines = out.splitlines()
    assert lines[2] == "examples:"
    assert f"fused-penalties {command} " in lines[3]


def test_help_of_the_whole_command_has_an_example(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "    fused-penalties report model.safetensors\n" in capsys.readouterr().out


def test_examples_of_the_help_are_right():
    """Their options, at least: each is parsed."""
    lines = [*_options.DESCRIPTION.splitlines(), *_options.MERGE.splitlines()]
    examples = [line.split("fused-penalties ")[1] for line in lines if line.startswith("    ")]
    assert len(examples) == 8
    for example in examples:
        options = cli.command_parser(*[cli._report] * 3).parse_args(example.split())
        assert cli.misfit(options) is None


@functools.cache
def script(shell: str) -> str:
    command = [sys.executable, "-m", "fused_penalties", "completion", shell]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def offered(*words: str) -> list[str]:
    """What bash offers for the last word."""
    quoted = " ".join(f"'{word}'" for word in words)
    ask = f"""
compopt() {{ echo compopt "$@"; }}
COMP_WORDS=(fused-penalties {quoted}); COMP_CWORD={len(words)}
_fused_penalties; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "-c", script("bash") + ask], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_completion_in_bash():
    assert offered("") == ["report", "merge", "completion", "--help", "--version"]
    assert offered("re") == ["report"]
    assert offered("report", "--fail") == ["--fail-on"]
    no_files = ["compopt", "+o", "default"]
    assert offered("report", "w.npy", "--scale", "c") == [*no_files, "contrib"]
    assert offered("report", "--sort", "") == [*no_files, *ORDERS]
    assert offered("merge", "--no-m") == []  # which only report has
    assert offered("completion", "f") == ["fish"]
    # Where no word fits, bash completes names of files.
    assert "complete -o default -F _fused_penalties fused-penalties" in script("bash")
    for argv in (["report", ""], ["report", "--rules", ""], ["merge", "par"]):
        assert offered(*argv) == []
    for option in ("--l1", "--l2", "--threads", "--part", "--max-member", "--include"):
        assert offered("report", option, "") == no_files
        assert re.search(rf" -l {option[2:]} -x", script("fish"))
    assert offered("merge", "--columns", "l") == [*no_files, "largest", "l1_penalty", "l2_penalty"]
    assert " -l columns -x -a 'shape dtype " in script("fish")
    assert " -l rules -r" in script("fish")


def test_help_has_all_formats_of_a_picture(capsys):
    with pytest.raises(SystemExit):
        cli.main(["report", "--help"])
    (line,) = re.findall(r"--plot FILE\.png +(.*\n.*)", capsys.readouterr().out)
    assert all(kind in line for kind in _FORMATS)


def test_completion_knows_all_options(capsys):
    with pytest.raises(SystemExit):
        cli.main(["report", "--help"])
    options = {*re.findall(r"^  (?:-h, )?(--[\w-]+)", capsys.readouterr().out, re.MULTILINE)}
    assert len(options) > 15
    assert {*offered("report", "-")} == options | {"-h"}
    fish = script("fish")
    for option in options:
        assert f"-n '__fish_seen_subcommand_from report' -l {option[2:]} " in fish.replace(
            "-s h ", ""
        )
    assert script("zsh").endswith(script("bash"))
