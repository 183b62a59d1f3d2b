"""Files larger than memory: what stays in it, maps, and what happens when they are taken away."""

from __future__ import annotations

import errno
import json
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from command import run_json
from fused_penalties import _core
from fused_penalties.files import FileFault, batches, open_tensors
from test_command import BOTH_WAYS, NEEDS_PROC, large
from weight_files import ints, npy_bytes, npy_with_header

MIB = 1 << 20

PEAK = """
import re, sys
from pathlib import Path
from fused_penalties import cli
assert cli.main(["report", *sys.argv[1:]]) == 0
# Not ru_maxrss: that counts what the process was before it ran this program.
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1], file=sys.stderr)
"""


def peak(*argv: object) -> int:
    """The most bytes that the command had in memory, the pages of files included."""
    command = [sys.executable, "-c", PEAK, *map(str, argv), "--threads", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stderr) << 10


@NEEDS_PROC
@BOTH_WAYS
def test_memory_does_not_grow_with_the_file(tmp_path, options):
    small, whole = (
        peak(large(tmp_path / f"w{size}.npy", size * MIB), *options) for size in (1, 400)
    )
    assert whole - small < 64 * MIB


def without_times(report: dict) -> dict:
    return {key: value for key, value in report.items() if key not in ("seconds", "gb_per_s")}


@pytest.fixture
def normal(tmp_path: Path) -> Path:
    """Values whose sums depend on the places of the blocks, in more than a batch."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "w.npy", rng.standard_normal(5_000_001, np.float32))
    return tmp_path / "w.npy"


def test_each_way_to_read_has_the_same_bits(capsys, monkeypatch, normal):
    def refused(*args: object) -> None:
        nonlocal count
        count += 1
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    count = 0
    mapped = without_times(run_json(capsys, normal))
    with monkeypatch.context() as patch:
        patch.setattr(_core, "FileMap", refused)
        assert without_times(run_json(capsys, normal)) == mapped
        assert count == 3
        assert without_times(run_json(capsys, normal, "--no-mmap")) == mapped
        assert count == 3
        patch.delattr(os, "RWF_NOWAIT")  # as on macOS, which is not told what to read ahead
        assert without_times(run_json(capsys, normal)) == mapped


def test_what_is_not_in_memory_is_read_ahead(monkeypatch, normal):
    """Each batch is asked for when it is handed out, unless it is there."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, *stretch: asked.append(stretch[:2]))
    tensors = open_tensors(str(normal))
    there, most = True, 8 * MIB

    def preadv(file: int, buffers: list[bytearray], offset: int, flags: int) -> int:
        assert flags == os.RWF_NOWAIT
        if not there:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return 1

    monkeypatch.setattr(os, "preadv", preadv)
    assert len([*batches(tensors, most)]) == 3
    assert asked == []
    there = False
    at = 128
    for batch in batches(tensors, most):
        # In pieces, since Linux heeds no more of one than it would read ahead by itself.
        assert {nbytes for _, nbytes in asked[:-1]} <= {128 << 10}
        assert sum(nbytes for _, nbytes in asked) == batch.nbytes
        for begin, nbytes in asked:
            assert begin == at
            at += nbytes
        asked.clear()


# Files that change


@pytest.mark.parametrize("left", [0, 1000, 3 * MIB, 5 * MIB + 17])
def test_a_map_of_a_file_that_is_cut_short(tmp_path, left):
    """What is gone reads as zeros, where it would have ended the process, and `check` says so."""
    path = tmp_path / "w.npy"
    path.write_bytes(npy_bytes(ints(2 * MIB)))
    (batch,) = batches(open_tensors(str(path)), 8 * MIB, mapped=True)
    (array,) = batch.read()
    os.truncate(path, left)
    held = max(0, -(-left // mmap.PAGESIZE) * mmap.PAGESIZE - 128)
    assert not array.view(np.uint8)[held:].any()
    count = max(0, left - 128) // 4
    np.testing.assert_array_equal(array[:count], ints(2 * MIB)[:count])
    with pytest.raises(FileFault, match=r"w\.npy: it was changed while it was read"):
        batch.check()


@pytest.mark.parametrize("mapped", [True, False])
def test_a_file_that_is_written_to(tmp_path, mapped):
    path = tmp_path / "w.npy"
    np.save(path, ints(5000))
    changes = {
        "before it is read": (lambda batch: None, lambda batch: batch.read()),
        "before it is checked": (lambda batch: batch.read(), lambda batch: batch.check()),
    }
    for when, (before, after) in changes.items():
        if when == "before it is checked" and not mapped:
            continue  # a copy stays what it was
        (batch,) = batches(open_tensors(str(path)), 8 * MIB, mapped=mapped)
        before(batch)
        with path.open("r+b") as file:
            file.seek(1000)
            file.write(b"\x7f")
        os.utime(path, ns=(0, os.stat(path).st_mtime_ns + 1))
        with pytest.raises(FileFault, match="it was changed while it was read"):
            after(batch)


def test_a_file_that_does_not_change_is_no_fault(normal):
    for batch in batches(open_tensors(str(normal)), MIB, mapped=True):
        held = batch.read()
        batch.check()
        assert not held[0].flags.writeable


def test_a_disk_that_fails(tmp_path, monkeypatch):
    """The system tells of it as it does of a file that is too short, but the file is as it was."""
    np.save(tmp_path / "w.npy", ints(5000))

    class Torn(bytearray):
        torn = True

    monkeypatch.setattr(_core, "FileMap", lambda file, begin, nbytes: Torn(nbytes))
    (batch,) = batches(open_tensors(str(tmp_path / "w.npy")), MIB, mapped=True)
    batch.read()
    with pytest.raises(FileFault, match=f"w.npy: {os.strerror(errno.EIO)}$"):
        batch.check()


def test_what_cannot_be_mapped_says_why():
    read, write = os.pipe()
    try:
        with pytest.raises(OSError, match=os.strerror(errno.ENODEV)) as caught:
            _core.FileMap(read, 0, 100)
        assert caught.value.errno == errno.ENODEV
    finally:
        os.close(read)
        os.close(write)


def test_there_may_be_so_many_maps_and_no_more(tmp_path):
    path = tmp_path / "w"
    path.write_bytes(bytes(range(200)))
    maps: list[_core.FileMap] = []

    def fill() -> None:
        while len(maps) < 2000:
            maps.append(_core.FileMap(file.fileno(), len(maps) % 100, 100))

    with path.open("rb") as file:
        with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
            fill()
        assert 900 < len(maps) <= 1024  # some may be held by what other tests have left
        for begin, one in enumerate(maps):
            assert bytes(memoryview(one)) == bytes(range(begin % 100, begin % 100 + 100))
        del maps[500]
        _core.FileMap(file.fileno(), 0, 100)


# Another's SIGBUS is none of ours: it ends the process, or goes to the handler that was there.
BUS = """
import faulthandler, mmap, os, sys
from fused_penalties import _core
path, way = sys.argv[1:]
if way == "faulthandler before":
    faulthandler.enable()
file = open(path, "r+b")
ours = _core.FileMap(file.fileno(), 0, 1 << 20)
theirs = mmap.mmap(file.fileno(), 1 << 20, access=mmap.ACCESS_READ)
if way == "faulthandler after":
    faulthandler.enable()
    ours = _core.FileMap(file.fileno(), 0, 1 << 20)
file.truncate(1000)
assert memoryview(ours)[1 << 19] == 0 and ours.torn
print("ours", flush=True)
if way == "sent":
    os.kill(os.getpid(), 7)
print(theirs[1 << 19])
"""


@pytest.mark.skipif(signal.SIGBUS != 7, reason="its number is another one here")
@pytest.mark.parametrize("way", ["alone", "sent", "faulthandler before", "faulthandler after"])
def test_other_bus_errors_go_where_they_went(tmp_path, way):
    path = tmp_path / "w"
    path.write_bytes(bytes(1 << 20))
    done = subprocess.run([sys.executable, "-c", BUS, path, way], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "ours\n")
    assert ("Fatal Python error: Bus error" in done.stderr) == way.startswith("faulthandler")


@NEEDS_PROC
@pytest.mark.slow
def test_all_batches_of_a_file_of_gigabytes(tmp_path):
    """Places past what 32 bits can count."""
    count = (9 << 30) // 4
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count},), }}"
    path = tmp_path / "w.npy"
    path.write_bytes(npy_with_header(header))
    begin = path.stat().st_size
    os.truncate(path, begin + 4 * count)
    marks = {0: 1.0, count // 2: 2.0, count - 1: 4.0}
    with path.open("r+b") as file:
        for place, value in marks.items():
            file.seek(begin + 4 * place)
            file.write(np.float32(value).tobytes())
    command = [sys.executable, "-m", "fused_penalties", "report", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    totals = json.loads(done.stdout)["totals"]
    assert (totals["abs"], totals["square"]) == (7.0, 21.0)
