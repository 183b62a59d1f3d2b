"""One answer with any number of threads, from many Python threads at once, and after a fork."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest

import fresh
import fused_penalties as fp
import oracle
import values
from oracle import hexes


def huge() -> list[np.ndarray]:
    return [values.make("normal", "float32", 5_000_011)]


def tiny() -> list[np.ndarray]:
    dtypes = list(oracle.DTYPES)
    return [values.make("lognormal", dtypes[n % 4], n % 97, n) for n in range(3000)]


def mixed() -> list[np.ndarray]:
    arrays = [values.make("cauchy", dtype, 300_007) for dtype in oracle.DTYPES]
    arrays += tiny()[:500]
    arrays += [x[::-3] for x in arrays[:4]]
    arrays += [np.broadcast_to(arrays[2][:1000], (77, 1000))]
    arrays += [values.make("nan and inf", "float64", 9999), values.make("inf", "float16", 55_555)]
    return arrays


WORKLOADS = {"huge": huge, "tiny": tiny, "mixed": mixed}


@cache
def workload(name: str) -> tuple[list[np.ndarray], list[str]]:
    """Arrays, and the bits of everything that the sums answer for them."""
    arrays = WORKLOADS[name]()
    expected = [oracle.sums(x) for x in arrays]
    pairs = [value for pair in expected for value in pair]
    return arrays, hexes([*pairs, *oracle.totals(arrays)])


def answer(sums: fp.Sums) -> list[str]:
    pairs = np.stack([sums.abs, sums.square], axis=1).ravel()
    return hexes([*pairs, sums.total_abs, sums.total_square])


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.usefixtures("isa")
def test_any_number_of_threads(name: str) -> None:
    arrays, expected = workload(name)
    for threads in range(1, 9):
        assert answer(fp.sums(arrays, threads=threads)) == expected
    assert answer(fp.sums(arrays)) == expected


def test_partial_sums_of_any_number_of_threads() -> None:
    arrays, expected = workload("mixed")
    for threads in (1, 2, 5):
        assert answer(fp.partial_sums(arrays, threads=threads).sums()) == expected


def test_workers_that_finish_together() -> None:
    """Short work of many digits, again and again: whatever two threads write must not get lost."""
    x = values.make("extreme", "float64", 1 << 18)
    x[np.abs(x) > 2.0**500] = 1.0
    expected = hexes([*oracle.sums(x), *oracle.totals([x])])
    found = set()
    for _ in range(10_000):
        sums = fp.sums(x, threads=8)
        found.add((sums.abs[0], sums.square[0], sums.total_abs, sums.total_square))
    assert [hexes(numbers) for numbers in found] == [expected]


def test_more_threads_than_blocks() -> None:
    x = values.make("normal", "float64", 3)
    assert hexes(fp.sums(x, threads=64).abs) == hexes([oracle.sums(x)[0]])
    assert fp.sums([], threads=64).total_abs == 0.0


@pytest.mark.parametrize("function", [fp.sums, fp.partial_sums])
@pytest.mark.parametrize("threads", [0, -1])
def test_too_few_threads(function: object, threads: int) -> None:
    with pytest.raises(ValueError, match=rf"threads.*{threads}"):
        function(np.ones(3), threads=threads)  # type: ignore[operator]


@pytest.mark.parametrize("function", [fp.sums, fp.partial_sums])
@pytest.mark.parametrize("threads", [1.5, "2", [1]])
def test_threads_that_are_no_number(function: object, threads: object) -> None:
    with pytest.raises(TypeError, match="threads"):
        function(np.ones(3), threads=threads)  # type: ignore[operator]


def test_many_python_threads_at_once() -> None:
    names = list(WORKLOADS)
    for name in names:
        workload(name)

    def work(turn: int) -> bool:
        arrays, expected = workload(names[turn % len(names)])
        return answer(fp.sums(arrays, threads=1 + turn % 3)) == expected

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(48)))


def test_other_python_threads_run_meanwhile() -> None:
    """Many small sleeps of this thread pass while another one is inside a single call."""
    weights = [np.ones(1 << 20, np.float32)] * 1000
    thread = threading.Thread(target=fp.sums, args=[weights], kwargs={"threads": 1})
    thread.start()
    sleeps = 0
    while thread.is_alive():
        thread.join(0.001)
        sleeps += 1
    assert sleeps > 20


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

FORK = """
    import os, sys
    import numpy as np
    import fused_penalties as fp
    weights = [np.arange(n, dtype=np.float32) / 7 for n in (1_000_003, 17, 0, 4096)] * 3
    def answer(threads):
        s = fp.sums(weights, threads=threads)
        return [v.hex() for v in [*s.abs.tolist(), *s.square.tolist(), s.total_abs]]
    def child(expected):
        ok = all(answer(threads) == expected for threads in (None, 1, 2, 4))
        sys.stdout.flush()
        os._exit(0 if ok else 1)
    def fork(expected):
        pid = os.fork()
        if pid == 0:
            child(expected)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


@needs_fork
def test_child_of_a_fork() -> None:
    """The child has none of the threads that its parent started; it and the parent still work."""
    code = """
    expected = answer(2)
    assert fork(expected) == 0
    assert answer(2) == expected
    assert fork(expected) == 0
    """
    fresh.output(FORK + code)


@needs_fork
def test_child_of_a_fork_before_any_call() -> None:
    code = """
    pid = os.fork()
    if pid == 0:
        child(answer(1))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    answer(2)
    """
    fresh.output(FORK + code)


@needs_fork
def test_grandchild_of_a_fork() -> None:
    code = """
    expected = answer(2)
    pid = os.fork()
    if pid == 0:
        assert answer(2) == expected
        os._exit(fork(expected))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    """
    fresh.output(FORK + code)


@needs_fork
def test_fork_while_other_threads_are_in_the_middle_of_a_call() -> None:
    """Whatever they held at that moment, the child must not wait for it.

    A moment in which they hold something comes once in some fifty forks: hence so many.
    """
    code = """
    import os, signal, threading
    import numpy as np
    import fused_penalties as fp
    x = np.ones(1, np.float32)
    stop = threading.Event()
    def work():
        while not stop.is_set():
            fp.sums(x)
    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for turn in range(500):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            os._exit(fp.sums(x).total_abs != 1.0)
        status = os.waitpid(pid, 0)[1]
        if status:
            break
    stop.set()
    for worker in workers:
        worker.join()
    assert status == 0, f"child {turn} ended with status {status}"
    """
    fresh.output(code)


needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to processors"
)
USUAL = "import fused_penalties as fp; print(fp.build_info()['threads'])"


@pytest.mark.parametrize(("setting", "threads"), [("1", 1), ("3", 3), (" 5 ", 5), ("4,2", 4)])
def test_omp_num_threads(setting: str, threads: int) -> None:
    assert fresh.output(USUAL, OMP_NUM_THREADS=setting) == str(threads)


@needs_affinity
@pytest.mark.parametrize("setting", ["", "many", "0", "-2"])
def test_omp_num_threads_that_is_no_number_of_threads(setting: str) -> None:
    assert fresh.output(USUAL, OMP_NUM_THREADS=setting) == str(len(os.sched_getaffinity(0)))


@needs_affinity
def test_as_many_threads_as_processors_that_may_be_used() -> None:
    """Also when that has changed."""
    code = """
    import os
    import numpy as np
    import fused_penalties as fp
    def usual():
        return fp.build_info()["threads"]
    allowed = os.sched_getaffinity(0)
    assert usual() == len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    assert usual() == 1
    fp.sums(np.ones(1 << 22))
    os.sched_setaffinity(0, allowed)
    assert usual() == len(allowed)
    """
    fresh.output(code, OMP_NUM_THREADS="")


@needs_fork
def test_the_child_of_a_fork_takes_one_thread_unless_it_says_more() -> None:
    code = """
    assert fp.build_info()["threads"] == 3
    pid = os.fork()
    if pid == 0:
        count = lambda: len(os.listdir("/proc/self/task")) if sys.platform == "linux" else None
        ok = fp.build_info()["threads"] == 1
        before = count()
        answer(None)
        ok = ok and count() == before
        answer(2)
        ok = ok and (before is None or count() == before + 1)
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    """
    fresh.output(FORK + code, OMP_NUM_THREADS="3")
