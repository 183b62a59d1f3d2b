"""The command as a process: every way to fail, the streams, and the terminal."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import sysconfig
import termios
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import numpy as np
import pytest
from safetensors.numpy import save_file

from command import NUMBERS, X, exact_sums, failing, process, run, run_json
from fused_penalties import cli
from weight_files import entry, ints, npy_with_header, safetensors_bytes

# Faults


def assert_fault(result: subprocess.CompletedProcess[str], message: str) -> None:
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == f"fused-penalties: {message}\n"


def test_faults_are_one_line_and_status_2(capsys, tmp_path):
    """One of each kind through the whole command; test_files.py has them all."""
    for name in ("missing.npz", "line\nbreak.npy"):
        path = tmp_path / name
        shown = str(path).replace("\n", r"\n")
        assert_fault(process(path), f"{shown}: No such file or directory")
    np.save(tmp_path / "short.npy", ints(9))
    os.truncate(tmp_path / "short.npy", 150)
    for form in ([], ["--json"], ["--csv"]):
        out, (said,) = failing(capsys, 2, tmp_path / "short.npy", *form)
        assert out == ""
        assert said.startswith(f"{tmp_path / 'short.npy'}: truncated or corrupt: ")


def broken_inside(path: Path) -> Path:
    """An archive whose fault shows when its second member is read."""
    np.savez(path, first=ints(10), second=ints(1000))
    path.write_bytes(path.read_bytes().replace(ints(1000).tobytes(), bytes(4000)))
    return path


@pytest.mark.parametrize("batch", [8192, cli.BATCH])
def test_a_bad_file_does_not_discard_the_others(capsys, tmp_path, tiny, monkeypatch, batch):
    """Whether it is found at the start or in the midst of the pass."""
    monkeypatch.setattr(cli, "BATCH", batch)
    missing, broken = tmp_path / "missing.npy", broken_inside(tmp_path / "broken.npz")
    np.savez(tmp_path / "last.npz", w=ints(30_000), ids=np.arange(3))
    whole = run_json(capsys, tiny, tmp_path / "last.npz")
    argv = [missing, tiny, broken, tmp_path / "last.npz"]
    out, (first, second) = failing(capsys, 2, *argv, "--json")
    assert first == f"{missing}: No such file or directory"
    assert second.startswith(f"{broken}: member 'second': truncated or corrupt: ")
    report = json.loads(out)
    assert report["tensors"] == whole["tensors"]
    assert report["totals"] == whole["totals"]
    left_out = [f"{path}: not read, and in no total" for path in (broken, missing)]
    assert report["notes"] == left_out
    out, _ = failing(capsys, 2, *argv, "--csv")
    assert out == run(capsys, tiny, tmp_path / "last.npz", "--csv")
    out, said = failing(capsys, 2, missing, broken)
    assert (out, len(said)) == ("", 2)


def test_a_part_has_all_files_or_is_none(capsys, tmp_path, tiny):
    part = tmp_path / "part.npz"
    for path in (tmp_path / "missing.npy", broken_inside(tmp_path / "broken.npz")):
        out, (said,) = failing(capsys, 2, tiny, path, "--part", "1/1", "--save", part)
        assert out == ""
        assert said.startswith(f"{path}: ")
        assert not part.exists()


def test_no_tensor_left(capsys, tmp_path, tiny):
    np.save(tmp_path / "w.npy", ints(3))
    save_file({}, tmp_path / "none.safetensors")
    for argv, files in [
        ([tiny, "--include", "nothing"], tiny),
        ([tiny, "--exclude", ""], tiny),
        ([str(tmp_path / "none.safetensors")], str(tmp_path / "none.safetensors")),
        ([tiny, str(tmp_path / "w.npy"), "--exclude", "."], f"{tiny}, {tmp_path / 'w.npy'}"),
    ]:
        assert cli.main(["report", *argv]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err == (
            f"fused-penalties: {files}: no tensor in it, or none that the filters leave\n"
        )


def test_nothing_to_sum_is_a_report(capsys, tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(5))
    report = run_json(capsys, tmp_path / "ids.npy")
    assert report["totals"] == {
        "size": 0,
        "bytes": 0,
        "abs": 0.0,
        "square": 0.0,
        "rms": 0.0,
        "largest": 0.0,
        "l1_penalty": 0.0,
        "l2_penalty": 0.0,
    }
    assert "0 bytes in" in run(capsys, tmp_path / "ids.npy")


def test_unknown_isa(tiny):
    result = process(tiny, env={**os.environ, "FUSED_PENALTIES_ISA": "sse9"})
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("fused-penalties: ")
    assert "sse9" in result.stderr
    assert "not supported" in result.stderr
    assert result.stderr.count("\n") == 1


def test_forced_isa(tiny):
    result = process(tiny, env={**os.environ, "FUSED_PENALTIES_ISA": "scalar"})
    assert result.returncode == 0
    assert "(scalar, " in result.stdout


NEEDS_PROC = pytest.mark.skipif(
    not Path("/proc/self/fdinfo").exists(), reason="needs /proc, which Linux has"
)


def large(path: Path, nbytes: int) -> Path:
    """A file that takes no room on the disk, and a minute for each 500 GB."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({nbytes // 4},), }}"
    path.write_bytes(npy_with_header(header))
    os.truncate(path, path.stat().st_size + nbytes)
    return path


def reading(path: Path, *options: str) -> subprocess.Popen[bytes]:
    """The command, once it is in the midst of the weights."""
    command = [sys.executable, "-m", "fused_penalties", "report", str(path), *options]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    proc = Path(f"/proc/{child.pid}")
    while child.poll() is None:
        with contextlib.suppress(OSError):  # a file that was closed meanwhile
            for line in (proc / "maps").read_text().splitlines():
                if line.endswith(str(path)) and int(line.split()[2], 16) > 1 << 27:
                    return child
            # What it has read; Python itself reads some 20 MB before that.
            if int(re.search(r"rchar: (\d+)", (proc / "io").read_text())[1]) > 1 << 28:
                return child
    return child


BOTH_WAYS = pytest.mark.parametrize("options", [[], ["--no-mmap"]], ids=["mapped", "not mapped"])


@NEEDS_PROC
@BOTH_WAYS
def test_interrupt(tmp_path, options):
    path = large(tmp_path / "w.npy", 1 << 40)
    child = reading(path, *options)
    begun = time.monotonic()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate()
    assert (child.returncode, out) == (130, b"")
    said = re.fullmatch(
        r"fused-penalties: interrupted: ([\d,]+) of 1,099,511,627,776 bytes had been read, "
        rf"the last ones of 'w' in {re.escape(str(path))}\n",
        err.decode(),
    )
    assert 1 << 23 <= int(said[1].replace(",", "")) < 1 << 37
    assert time.monotonic() - begun < 5


@NEEDS_PROC
@BOTH_WAYS
def test_file_cut_short_while_it_is_read(tmp_path, options):
    path = large(tmp_path / "w.npy", 1 << 40)
    child = reading(path, *options)
    os.truncate(path, 1000)
    fault = f"fused-penalties: {path}: it was changed while it was read\n"
    assert child.communicate() == (b"", fault.encode())
    assert child.returncode == 2


def test_interrupt_in_the_pass(capsys, tiny, monkeypatch):
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.fp, "partial_sums", interrupted)
    assert cli.main(["report", tiny]) == 130
    said = "fused-penalties: interrupted: 0 of 28 bytes had been read\n"
    assert capsys.readouterr() == ("", said)


def test_interrupt_before_the_pass(capsys, tiny, monkeypatch):
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "open_tensors", interrupted)
    assert cli.main(["report", tiny]) == 130
    assert capsys.readouterr() == ("", "fused-penalties: interrupted\n")


def test_no_thread_can_be_started(capsys, tiny, monkeypatch):
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert run_json(capsys, tiny)["totals"]["abs"] == 13


def process_writing_to(stdout: BinaryIO, *argv: str) -> subprocess.CompletedProcess[str]:
    # Buffered, as usual: then the interpreter itself writes once more when it ends.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "fused_penalties", "report", *argv]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=env)


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
def test_closed_pipe(tiny, form):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        child = process_writing_to(closed, tiny, *form)
    assert (child.returncode, child.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
@pytest.mark.parametrize("buffer", [[], ["-u"]])
@pytest.mark.parametrize("argv", [["--help"], ["report", "--help"], ["--version"]])
def test_help_into_a_closed_pipe(argv, buffer):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, *buffer, "-m", "fused_penalties", *argv]
    with os.fdopen(write, "wb") as closed:
        child = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE)
    assert child.stderr == b""


def test_what_is_warned_of_is_not_on_stderr(tmp_path):
    """Python's own warnings come with source lines, and stderr is for one line of ours."""
    np.savez(tmp_path / "w.npz", ids=np.arange(3))
    command = [sys.executable, "-W", "always", "-m", "fused_penalties", "report"]
    arguments = [tmp_path / "w.npz", "--include", "[[a-z]|i"]  # re warns of a nested set
    child = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert (child.returncode, child.stderr) == (0, "")


@pytest.mark.parametrize("error", [TypeError("a\nb"), MemoryError(), RuntimeError("no thread")])
def test_no_traceback(capsys, tiny, monkeypatch, error):
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(cli.fp, "partial_sums", fail)
    assert cli.main(["report", tiny]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fused-penalties: ")
    assert err.count("\n") == 1


def test_full_disk(tiny):
    with Path("/dev/full").open("wb") as full:
        child = process_writing_to(full, tiny)
    assert child.returncode == 2
    assert child.stderr == f"fused-penalties: output: {os.strerror(errno.ENOSPC)}\n"


def test_output_without_unicode(tiny):
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = process(tiny, env=env)
    assert (result.returncode, result.stderr) == (0, "")
    assert "a.weight" in result.stdout
    assert r"\u03a3|w|" in result.stdout


# The process and the terminal


def test_installed_command(tiny):
    command = [Path(sysconfig.get_path("scripts")) / "fused-penalties", "report", tiny, "--csv"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == process(tiny, "--csv").stdout
    assert result.stdout.splitlines()[2].startswith(f"{tiny},a.weight,2x2,float32,4,16,10.0,30.0,")


def test_importing_the_package_imports_nothing_that_only_the_command_needs():
    code = (
        "import sys, fused_penalties; print({'rich', 'safetensors', 'argparse'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "set()\n"


def terminal(columns: int, *argv: object, kind: str = "xterm-256color") -> list[str]:
    """The lines of the report on a terminal of that width, without colours."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    child = subprocess.Popen(
        [sys.executable, "-m", "fused_penalties", "report", *map(str, argv)],
        stdin=its,
        stdout=its,
        stderr=its,
        env={**os.environ, "TERM": kind},
    )
    os.close(its)
    output = b""
    with contextlib.suppress(OSError):  # EIO is how Linux reports the end of a terminal
        while chunk := os.read(ours, 1 << 16):
            output += chunk
    os.close(ours)
    assert child.wait() == 0
    assert (b"\x1b[" in output) == (kind != "dumb")
    return re.sub(r"\x1b\[[0-9;]*m", "", output.decode()).replace("\r\n", "\n").splitlines()


def test_terminal_with_room(tmp_path, tiny):
    lines = terminal(80, tiny)
    assert lines[0].split() == ["tensor", "shape", "dtype", *NUMBERS]
    numbers = ["4", "10", "30", "2.73861", "4", "0.1", "0.3"]
    assert lines[3].split() == ["a.weight", f"2{X}2", "float32", *numbers]
    assert max(map(len, lines)) <= 80
    assert len({len(line) for line in lines[:5]}) == 1


LONG = "transformer.encoder.layers.11.attention.output.weight"


@pytest.fixture
def long_names(tmp_path: Path) -> tuple[Path, list[str]]:
    """A file, and the numbers of the tensor with the long name."""
    arrays = {LONG: ints(3, 3, 128, 256), "ids": np.arange(3), "b": np.float32([1e-5, 1e30])}
    save_file(arrays, tmp_path / "w.safetensors")
    size, (sum_abs, sum_square) = arrays[LONG].size, exact_sums(arrays[LONG])
    numbers = [sum_abs, sum_square, (sum_square / size) ** 0.5, 9]
    numbers += [float(np.float32(0.01)) * value for value in (sum_abs, sum_square)]
    return tmp_path / "w.safetensors", [f"{size:,}", *(f"{number:.6g}" for number in numbers)]


def test_narrow_terminal_puts_the_numbers_below_whole_names(long_names):
    path, numbers = long_names
    lines = terminal(80, path, "--sort", "size")
    assert lines.pop(0).split() == ["tensor", "shape", "dtype"]
    assert lines[0].split() == NUMBERS
    assert lines[2] == f"{LONG}  3{X}3{X}128{X}256  float32"
    assert lines[3].split() == numbers
    assert lines[4] == "ids  3  I64"
    assert lines[5].split() == ["3", *"------"]
    assert lines[8] == "total"
    assert max(map(len, lines)) <= 80
    assert len({len(line) for line in (lines[0], lines[1], *lines[3:11:2])}) == 1
    wide = terminal(200, path, "--sort", "size")
    assert wide[2].split() == [LONG, f"3{X}3{X}128{X}256", "float32", *numbers]


@pytest.mark.parametrize(
    ("columns", "argv", "shown"),
    [
        (150, [], ["shape", "dtype", *NUMBERS]),
        (140, [], ["shape", *NUMBERS]),
        (135, [], ["shape", *NUMBERS[1:]]),
        (120, [], NUMBERS[1:]),
        (100, [], ["Σ|w|", "Σw²", "rms", "max|w|"]),
        (100, ["--l1", "0.5"], ["Σ|w|", "Σw²", "L1", "L2"]),  # which were asked for
        (90, ["--columns", "largest,rms"], ["max|w|", "rms"]),
        (200, ["--columns", " bytes, dtype"], ["dtype", "bytes"]),  # words stand before numbers
    ],
)
def test_a_terminal_gets_the_columns_that_fit(long_names, columns, argv, shown):
    path, _ = long_names
    lines = terminal(columns, path, *argv)
    assert lines[0].split() == ["tensor", *shown]
    assert len({len(line) for line in lines[:6]}) == 1
    assert max(map(len, lines)) <= columns
    lacking = [word for word in ["shape", "dtype", *NUMBERS] if word not in shown]
    note = f"no room for {', '.join(lacking)}"
    assert (note in lines) == (bool(lacking) and "--columns" not in argv)


def test_narrow_columns_take_the_room_that_wide_ones_leave(tmp_path):
    """L1 and L2 do not fit, but without them the shape and the size do, and not the dtype."""
    name = "model.layers.11.attention.outputs.weight"
    save_file({name: np.full((3, 3), 1.1, np.float32)}, tmp_path / "w.safetensors")
    lines = terminal(80, tmp_path / "w.safetensors")
    assert lines[0].split() == ["tensor", "shape", *NUMBERS[:5]]
    assert "no room for dtype, L1, L2" in lines
    assert max(map(len, lines)) <= 80
    dtype = 2 + len("float32")
    assert len(lines[0]) + dtype > 80


@pytest.mark.parametrize("columns", [60, 40])
def test_no_word_is_broken(tmp_path, long_names, columns):
    """The words are those of a wide terminal, in lines that fit, unless a word alone does not."""
    path, _ = long_names
    bad = tmp_path / "bad.npy"
    np.save(bad, np.float32([np.nan]))
    every = "shape,dtype,size,bytes,abs,square,rms,largest,l1_penalty,l2_penalty"
    lines = terminal(columns, path, bad, "--columns", every)
    assert all(len(line) <= columns or " " not in line.strip() for line in lines)
    wide = terminal(1000, path, bad, "--columns", every)

    def words(lines: list[str]) -> list[str]:
        timed = next(at for at, line in enumerate(lines) if "bytes in" in line)
        joined = " ".join(lines[:timed]).split()
        return sorted(word for word in joined if "─" not in word)

    assert words(lines) == words(wide)


def test_progress_bar_comes_after_a_second_on_a_terminal_only(capsys, tmp_path, tiny, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def stderr_after(seconds: float, stream: io.StringIO) -> str:
        ticks = iter(range(100))
        clock = SimpleNamespace(
            monotonic=lambda: next(ticks) * seconds, perf_counter=cli.time.perf_counter
        )
        with monkeypatch.context() as patch:
            patch.setattr(cli, "time", clock)
            patch.setattr(cli, "BATCH", 8192)
            patch.setattr(sys, "stderr", stream)
            patch.setenv("TERM", "xterm-256color")
            assert cli.main(["report", str(tmp_path / "w.npy")]) == 0
        return stream.getvalue()

    np.save(tmp_path / "w.npy", ints(8, 1024))
    shown = stderr_after(0.4, Terminal())
    assert "32.8/32.8 kB" in re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert stderr_after(0.1, Terminal()) == ""
    assert stderr_after(0.4, io.StringIO()) == ""


def test_dumb_terminal_is_as_wide_as_it_says(tiny):
    lines = terminal(200, tiny, kind="dumb")
    assert lines[0].split() == ["tensor", "shape", "dtype", *NUMBERS]
    assert not any("…" in line for line in lines)


def test_closed_or_ascii_output(tiny):
    command = [sys.executable, "-m", "fused_penalties", "report", str(tiny)]
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command], capture_output=True, text=True, check=False
    )
    assert (closed.returncode, closed.stderr) == (2, "fused-penalties: output: it is closed\n")
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for arguments in ([], ["--help"]):
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, env=ascii_only, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "\\u03a3" in done.stdout  # the sum sign


def test_more_files_than_a_process_may_open(tmp_path):
    for number in range(300):
        np.save(tmp_path / f"a{number:03}.npy", np.ones(2, np.float32))
    command = f"ulimit -n 200; exec {sys.executable} -m fused_penalties report --json *.npy"
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["totals"]["abs"] == 600.0


@pytest.mark.slow
def test_many_tensors_take_seconds(tmp_path):
    """Each of 200,000 lines of a table, and each file that is opened, must cost next to nothing."""
    count = 200_000
    header = {f"layer.{n}": entry("F32", [4], 16 * n, 16 * n + 16) for n in range(count)}
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors_bytes(header, ints(4 * count).tobytes()))
    done = process(path, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert sum(line.startswith("layer.") for line in done.stdout.splitlines()) == count
