"""`python -m bench`: what it checks, times, leaves out, keeps and prints."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]

# In a process of its own: it imports every framework that is installed.
ERRORS_OF_PEERS = """
import json, sys
import ml_dtypes, numpy as np
from bench import exact, peers

def error(got, exactly):
    return abs(got / float(exactly) - 1)

rng = np.random.default_rng(0)
found = {}
for peer in peers.every(lambda what, why: print("left out", what, why)):
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        if np.dtype(dtype).name in peer.dtypes:
            buffers = [rng.standard_normal(size).astype(dtype) for size in (1, 64, 1000, 64)]
            of_peer = peer.sum_abs_and_square(buffers, threads=2)
            exactly = zip(*map(exact.sums, buffers))
            for what, sums, wanted in zip(("abs", "square"), of_peer, exactly):
                if sums is not None:
                    assert len(sums) == len(buffers)
                    name = f"{peer.name}, {np.dtype(dtype).name}, {what}"
                    found[name] = max(map(error, sums, wanted))
print(json.dumps(found), file=open(sys.argv[1], "w"))
"""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A module of the benchmarks, by name."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"bench.{name}")


def command(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_exact_sums(bench: Callable[[str], Any], dtype: type) -> None:
    tiny = float(ml_dtypes.finfo(dtype).smallest_subnormal)
    most = float(ml_dtypes.finfo(dtype).max)
    x = np.random.default_rng(0).standard_normal(3000).astype(dtype)
    x[:8] = [0.0, -0.0, tiny, -3 * tiny, most, -most, 1.0, -1.0]
    values = [Fraction(float(each)) for each in x]
    expected = sum(map(abs, values)), sum(value**2 for value in values)
    assert bench("exact").sums(x) == expected
    assert bench("exact").sums(np.tile(x, 700)) == tuple(700 * each for each in expected)


def test_what_has_no_exact_sum(bench: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match="x: got NaN or infinity; wanted finite numbers"):
        bench("exact").sums(np.array([1.0, np.inf]))


def test_peers_sum_what_they_are_given(tmp_path: Path) -> None:
    file = tmp_path / "errors.json"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ERRORS_OF_PEERS, str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert {"numpy, float32, abs", "numpy, float32, square"} <= found.keys(), done.stdout
    for name, error in found.items():
        # Nine units in the last place of bfloat16's and float16's sums, and of float32's.
        bound = 2.0**-7 if "float16" in name else 1e-12 if "float64" in name else 1e-5
        assert error < bound, name


def test_a_peer_that_is_not_installed(
    bench: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = bench("peers")
    packages = {"with_numpy": ("numpy",), "with_numkong": ("numkong",)}
    monkeypatch.setattr(peers, "PACKAGES", packages)
    monkeypatch.setitem(sys.modules, "numkong", None)
    monkeypatch.delitem(sys.modules, "bench.peers.with_numkong", raising=False)
    left_out: dict[str, str] = {}
    assert [peer.name for peer in peers.every(left_out.__setitem__)] == ["numpy"]
    assert left_out == {"numkong": "not installed: numkong"}


@pytest.fixture
def small_works(bench: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The case cpu, whose large buffers have a megabyte, beside NumPy alone."""
    monkeypatch.setattr(bench("peers"), "PACKAGES", {"with_numpy": ("numpy",)})
    settings = bench("settings").Settings("quick")
    settings.left_out = {}
    settings.leave_out = settings.left_out.__setitem__
    works = bench("cases.cpu.works").Works(settings)
    works.large = 1 << 20
    return works


def test_rows_of_the_cpu(bench: Callable[[str], Any], small_works: Any) -> None:
    parts = ("memory", "cache", "small", "largest", "streaming")
    works = [getattr(small_works, part)()[0] for part in parts]
    rows = list(bench("work").rows("cpu", works, small_works.settings))
    assert len(rows) == len(works)
    assert json.loads(json.dumps(rows)) == rows
    assert [row["bytes"] for row in rows[:3]] == [1 << 20, 256 << 10, 256_000]
    assert rows[2]["buffers"] == 1000
    for row in rows:
        assert row["case"] == "cpu"
        assert row["unit"] == "s"
        ours = row["contenders"]["fused_penalties"]
        assert 0 < ours["low"] <= ours["median"] <= ours["high"]
        assert 1 <= ours["rounds"] <= 5
    for row in rows[:3]:
        assert row["contenders"].keys() == {"fused_penalties", "read", "numpy"}
        assert row["contenders"]["read"]["variant"]
        assert 0 <= row["contenders"]["numpy"]["error"] < 1e-4
    assert len({bench("results").key(row) for row in rows}) == len(rows)


def test_wrong_results_are_not_timed(
    bench: Callable[[str], Any], small_works: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (peer,) = small_works.peers

    def wrong(buffers: Any, threads: int) -> Callable[[], Any]:
        return lambda: [(np.abs(b).sum(), 2.5 * np.square(b).sum()) for b in buffers]

    small_works.peers = [type(peer)("wrong", peer.dtypes, wrong, peer.numbers)]
    work = small_works.cache()[0]
    assert work.prepare({}).keys() & {"fused_penalties", "wrong"} == {"fused_penalties"}
    assert small_works.settings.left_out["wrong, float32"].startswith("wrong sum of square")

    sums = bench("cases.cpu.works").fp.sums
    off = np.float64(1 + 1e-14)
    stub = type("Sums", (), {})()

    def a_bit_off(*args: Any, **more: Any) -> Any:
        found = sums(*args, **more)
        stub.abs, stub.square = found.abs * off, found.square
        return stub

    monkeypatch.setattr(bench("cases.cpu.works").fp, "sums", a_bit_off)
    with pytest.raises(bench("cases.cpu.works").WrongResult, match="wrong sum of abs"):
        work.prepare({})


def test_what_there_is_no_time_for(bench: Callable[[str], Any], small_works: Any) -> None:
    small_works.settings.deadline = time.time() - 1
    works = small_works.cache()[:1]
    assert list(bench("work").rows("cpu", works, small_works.settings)) == []
    assert list(small_works.settings.left_out.values()) == ["there was no time left for it"]


class Clock:
    """In place of the module time: it passes when somebody says so."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_rounds(bench: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(bench("timing"), "time", clock)
    calls: list[str] = []

    def contender(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            calls.append(name)
            clock.sleep(seconds)

        return call

    took = {"a": 3e-3, "b": 8e-3, "c": 0.06}
    contenders = {name: contender(name, seconds) for name, seconds in took.items()}
    times = bench("timing").interleaved(contenders, rounds=6, most_seconds=0.05)
    # 50 ms are enough for six rounds of a and of b; c is longer: a second call is all.
    assert {name: len(found) for name, found in times.items()} == {"a": 6, "b": 6, "c": 1}
    assert calls[-12:] == ["a", "b"] * 6
    assert calls.count("c") == 2
    for name, found in times.items():
        assert found == pytest.approx([took[name]] * len(found))
    first = [0.06]
    compiles = {"d": lambda: clock.sleep(first.pop() if first else 3e-3)}
    assert len(bench("timing").interleaved(compiles, rounds=6, most_seconds=0.05)["d"]) == 6
    few = bench("timing").interleaved({"b": contenders["b"]}, rounds=9, most_seconds=0.03)
    assert len(few["b"]) == 3
    summary = bench("timing").summary([1.0, 2.0, 3.0, 4.0, 9.0])
    assert summary == {"median": 3.0, "low": 2.0, "high": 4.0, "rounds": 5}


CHILD = """
import os, sys

def rows(settings, what):
    settings.expect(2)
    settings.leave_out("somebody", "because")
    print("noise")
    yield {"what": what, "pace": settings.pace, "cores": len(os.sched_getaffinity(0))}
    if what == "fails":
        sys.exit("the reason")
    yield {"what": "last"}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are bound to cores on Linux alone")
def test_a_process_of_its_own(
    bench: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one_case.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    settings = bench("settings").Settings("quick")
    left_out: dict[str, str] = {}
    expected: list[int] = []
    settings.leave_out, settings.expect = left_out.__setitem__, expected.append
    child = bench("child")
    found = list(child.rows("one_case", settings, threads=1, what="passes"))
    assert found == [{"what": "passes", "pace": "quick", "cores": 1}, {"what": "last"}]
    assert left_out == {"somebody": "because"}
    assert expected == [2]
    rows = child.rows("one_case", settings, what="fails")
    assert next(rows)["what"] == "fails"
    with pytest.raises(child.Failed, match="the reason"):
        next(rows)


def figures(median: float, low: float, high: float, **row: Any) -> dict[str, Any]:
    found = {"median": median, "low": low, "high": high, "rounds": 9}
    keys = {"case": "cpu", "what": "sums", "dtype": "float32", "bytes": 1 << 29, "buffers": 1}
    keys |= {"threads": 1, "offset": 0, "where": "memory", "unit": "s", **row}
    contenders = {"fused_penalties": found, "read": {**found, "median": 0.02}}
    return {
        "format": 1,
        "date": "2026-01-01",
        "command": "python -m bench run cpu",
        "machine": {"name": "a machine", "processor": "A (B) 9"},
        "package": {"version": "0.1.0", "isa": "avx2"},
        "versions": {},
        "left_out": {},
        "rows": [{**keys, "contenders": contenders}],
    }


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        ((0.010, 0.009, 0.011), "2.00x as fast"),
        ((0.040, 0.039, 0.041), "0.50x as fast"),
        ((0.021, 0.020, 0.022), "0.95x, within noise"),
    ],
)
def test_compare(tmp_path: Path, other: tuple[float, float, float], verdict: str) -> None:
    for name, found in (("a", (0.020, 0.019, 0.021)), ("b", other)):
        (tmp_path / name).write_text(json.dumps(figures(*found)))
    done = command("compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert done.returncode == 0, done.stderr
    text = re.sub(r"[\s│]+", " ", done.stdout)
    assert verdict.split(", ")[0].split(" ")[0] in text
    assert ("within" in text.partition("1.00x")[0]) == ("within" in verdict)


def test_compare_knows_rows_by_what_they_measure(bench: Callable[[str], Any]) -> None:
    tables = bench("tables")
    first = figures(0.02, 0.02, 0.02)
    assert tables.of_comparison(first, figures(0.01, 0.01, 0.01)).row_count == 1
    assert tables.of_comparison(first, figures(0.01, 0.01, 0.01, offset=16)).row_count == 0


def test_files_of_figures(bench: Callable[[str], Any], tmp_path: Path) -> None:
    results = bench("results")
    file = tmp_path / "new" / "figures.json"
    first = figures(0.02, 0.02, 0.02)
    results.write(file, first, None)
    assert results.read(file) == first
    second = figures(0.01, 0.01, 0.01)
    second["rows"] += figures(0.03, 0.03, 0.03, threads=2)["rows"]
    second["command"] = "python -m bench run cpu/threads"
    results.write(file, second, first)
    both = results.read(file)
    assert [row["contenders"]["fused_penalties"]["median"] for row in both["rows"]] == [0.01, 0.03]
    assert both["command"] == "python -m bench run cpu && python -m bench run cpu/threads"
    second["machine"] = {"name": "another"}
    with pytest.raises(results.Unusable, match="figures of another machine; wanted another file"):
        results.write(file, second, first)
    assert results.usual_file(first) == Path("bench-results/2026-01-01-a-b-9-avx2.json")


def test_rows_where_we_are_slower_are_red(bench: Callable[[str], Any]) -> None:
    row = figures(0.02, 0.02, 0.02)["rows"][0]
    for name, median in (("faster", 0.01), ("slower", 0.1)):
        row["contenders"][name] = {"median": median, "low": median, "high": median, "rounds": 9}
    row["contenders"]["slower"]["error"] = 0.0625
    tables = bench("tables")
    text = tables.others_cell(row, row["contenders"]["fused_penalties"])
    assert text.plain.splitlines() == [
        "1.00 of the read",
        "0.50x faster",
        "5.00x slower, 6 % off",
    ]
    red = [text.plain[span.start : span.end] for span in text.spans if span.style == "red"]
    assert red == ["0.50x faster"]


def test_list() -> None:
    done = command("list")
    assert done.returncode == 0, done.stderr
    for name in ("cpu/memory", "plan/small", "frameworks/keras-jax", "scale/ranks", "gpu/plan"):
        assert f"  {name}: " in done.stdout
    assert re.search(r"^  numpy: numpy \d", done.stdout, re.MULTILINE)
    assert "C++" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["run", "nothing"], "CASE: got 'nothing'; wanted one of cpu, plan, frameworks"),
        (["run", "cpu/nothing"], "CASE: got 'cpu/nothing'; cpu has the parts memory, cache"),
        (["run", "--quick", "--full"], "not allowed with argument --quick"),
        (["run", "--save", "no/such/folder/x.json"], "no/such/folder is not a directory"),
        (["compare", "README.md", "README.md"], "README.md: not a JSON file"),
        (["compare", "no/such/file", "README.md"], "no/such/file: No such file or directory"),
        (["draw", "pyproject.toml"], "pyproject.toml: not a JSON file"),
    ],
)
def test_wrong_arguments(words: list[str], message: str) -> None:
    done = command(*words)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("fused_penalties", ["list"]),
        ("rich", ["list"]),
        ("matplotlib", ["draw", "bench/results/zen4.json"]),
    ],
)
def test_a_package_is_missing(package: str, words: list[str]) -> None:
    done = without(package, *words)
    assert done.returncode == 1
    assert done.stderr == (
        f"python -m bench: {package} is not installed; wanted: pip install '.[bench]'\n"
    )


def test_a_list_needs_no_extra() -> None:
    done = without("safetensors", "list")
    assert done.returncode == 0, done.stderr
    assert "  gpu/plan: " in done.stdout


def without(package: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`python -m bench` where a package is not installed."""
    code = f"""
import runpy, sys
sys.modules[{package!r}] = None
sys.argv[1:] = {words!r}
runpy.run_module("bench", run_name="__main__")
"""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
