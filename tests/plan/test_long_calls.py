"""Signals in the middle of a call, no more threads to be had, and the end of the interpreter."""

from __future__ import annotations

import sys

import pytest

import fresh

if sys.platform != "linux":
    pytest.skip("sends signals and counts threads as on Linux", allow_module_level=True)

both = pytest.mark.parametrize("threads", [1, 2])

# A call over `endless` takes most of an hour.
BEGIN = """
    import os, signal, sys, threading, time
    import numpy as np
    import fused_penalties as fp
    from fused_penalties import regularizers
    endless = np.broadcast_to(np.float32(1), (1 << 43,))
    sent = []
    def send_soon(number, begun):
        def send():
            while not begun():
                time.sleep(0.001)
            time.sleep(0.1)
            sent.append(time.monotonic())
            os.kill(os.getpid(), number)
        threading.Thread(target=send, daemon=True).start()
    def interrupt(call, begun=lambda: True):
        '''What ends a call that gets a Ctrl-C, within a second.'''
        send_soon(signal.SIGINT, begun)
        try:
            call()
        except KeyboardInterrupt as error:
            assert time.monotonic() - sent[-1] < 1.0
            return error
        raise AssertionError("the call came to its end")
"""

READS = {
    "sums": "lambda: fp.sums(endless, threads=N)",
    "partial_sums": "lambda: fp.partial_sums(endless, threads=N)",
    "Plan.sums": "fp.Plan(endless, regularizers.L2(1.0), threads=N).sums",
    "Plan.value": "fp.Plan(endless, regularizers.L2(1.0), threads=N).value",
    "Plan.values": "fp.Plan(endless, regularizers.L2(1.0), threads=N).values",
}


@both
@pytest.mark.parametrize("name", READS)
def test_ctrl_c_ends_a_read(name: str, threads: int) -> None:
    code = """
    assert interrupt(CALL).args == ()
    assert fp.sums(np.ones(1 << 20), threads=2).total_abs == 1 << 20
    """
    fresh.output(BEGIN + code.replace("CALL", READS[name]).replace("N)", f"{threads})"))


def test_ctrl_c_leaves_a_plan_as_it_was() -> None:
    code = """
    plan = fp.Plan([endless, np.arange(1 << 20, dtype=np.float32)], [None, regularizers.L1(1.0)])
    expected = plan.value()
    for _ in range(2):
        plan.set_regularizer(regularizers.L2(1.0))
        interrupt(plan.value)
        plan.set_regularizer([None, regularizers.L1(1.0)])
        assert plan.value() == expected
    """
    fresh.output(BEGIN + code)


def test_ctrl_c_while_the_norm_is_summed_leaves_the_gradients_as_they_were() -> None:
    code = """
    g = np.ones(1 << 20, np.float32)
    plan = fp.Plan([g.copy()] * 40_000, None)
    assert interrupt(lambda: plan.clip_grad_norm([g] * 40_000, 1e-6)).args == ()
    assert (g == 1.0).all()
    """
    fresh.output(BEGIN + code)


# A buffer that is listed many times is changed as often, each element by about 1.0 at a time: so
# all of them are as far, or the first ones, whole blocks of 8 KiB, one further.
CHANGES = {
    "prox": ("w", "regularizers.L1(1.0)", "plan.prox(1.0)"),
    "decay": ("w", "regularizers.L2(0.5)", "plan.decay(2.0**-20)"),
    "add_grad": ("g", "regularizers.L1(1.0)", "plan.add_grad([g] * 20_000)"),
    "value_and_grad": ("g", "regularizers.L1(1.0)", "plan.value_and_grad([g] * 20_000)"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_ctrl_c_in_a_change_finishes_the_block_and_says_so(name: str) -> None:
    changed, regularizer, call = CHANGES[name]
    code = f"""
    w, g = np.full(1 << 20, 2.0**20, np.float32), np.zeros(1 << 20, np.float32)
    before = {changed}.copy()
    plan = fp.Plan([w] * 20_000, {regularizer})
    error = interrupt(lambda: {call}, lambda: {changed}[0] != before[0])
    assert "half done" in str(error), error
    far = np.abs({changed} - before)
    edges = np.flatnonzero(far[:-1] != far[1:]) + 1
    assert len(edges) <= 1 and not (edges % 2048).any(), edges
    assert far[-1] <= far[0] <= far[-1] + 1.0
    assert 1.0 <= far[0] < 15_000
    """
    fresh.output(BEGIN + code)


@both
def test_ctrl_c_in_a_change_on_several_threads(threads: int) -> None:
    """Each block is changed as a whole, or not at all. The scalar kernels are slow enough."""
    code = f"""
    w = np.ones(1 << 27, np.float16)
    plan = fp.Plan(w, regularizers.L1(0.5), threads={threads})
    error = interrupt(lambda: plan.prox(1.0), lambda: w[0] != 1.0)
    assert "half done" in str(error), error
    blocks = w.reshape(-1, 4096)
    assert (blocks == blocks[:, :1]).all()
    assert set(np.unique(blocks[:, 0]).tolist()) == {{0.5, 1.0}}
    """
    fresh.output(BEGIN + code, FUSED_PENALTIES_ISA="scalar")


@both
def test_ctrl_c_while_gradients_are_stored(threads: int) -> None:
    """The same, though none is read."""
    code = f"""
    w, g = np.ones(1 << 27, np.float16), np.full(1 << 27, 7.0, np.float16)
    plan = fp.Plan(w, regularizers.L1(0.5), threads={threads})
    strengths = plan._applied.evaluation.strengths
    error = interrupt(lambda: plan._plan.write_grad(strengths, [g], 1.0), lambda: g[0] != 7.0)
    assert "half done" in str(error), error
    blocks = g.reshape(-1, 4096)
    assert (blocks == blocks[:, :1]).all()
    assert set(np.unique(blocks[:, 0]).tolist()) == {{0.5, 7.0}}
    """
    fresh.output(BEGIN + code, FUSED_PENALTIES_ISA="scalar")


@both
def test_what_a_handler_raises_keeps_its_type_and_arguments(threads: int) -> None:
    code = f"""
    class Enough(Exception):
        pass
    def enough(number, frame):
        raise Enough("after", number)
    signal.signal(signal.SIGALRM, enough)
    w = np.full(1 << 20, 2.0**20, np.float32)
    plan = fp.Plan([w] * 20_000, regularizers.L1(1.0), threads={threads})
    for call, more in (lambda: fp.sums(endless, threads={threads}), 0), (lambda: plan.prox(1.0), 1):
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        try:
            call()
        except Enough as error:
            assert error.args[:2] == ("after", signal.SIGALRM) and len(error.args) == 2 + more
        else:
            raise AssertionError("the call came to its end")
    """
    fresh.output(BEGIN + code)


@both
def test_a_handler_that_raises_nothing_runs_meanwhile(threads: int) -> None:
    """It may sum, too. And whatever it does to the call, the bits are the same."""
    code = f"""
    x = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
    many = [x] * 2_000
    alone = fp.sums(x, threads=1)
    inside, handled = False, []
    def handler(number, frame):
        sums = fp.sums([x] * 8, threads={threads})
        handled.append(inside and (sums.abs == alone.abs[0]).all())
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    turns = 0
    while len(handled) < 3:
        inside = True
        sums = fp.sums(many * 4, threads={threads})
        inside = False
        assert (sums.abs == alone.abs[0]).all() and (sums.square == alone.square[0]).all()
        turns += 1
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    assert all(handled)
    print(turns)
    """
    fresh.output(BEGIN + code)


def test_a_call_of_another_thread_goes_on() -> None:
    code = """
    x = np.ones(1 << 20, np.float32)
    totals = []
    def work():
        totals.append(fp.sums([x] * 5_000, threads=2).total_abs)
    thread = threading.Thread(target=work)
    thread.start()
    assert thread.is_alive()
    def wait():
        while True:
            time.sleep(10)
    interrupt(wait)
    thread.join()
    assert totals == [5_000 * 2.0**20]
    """
    fresh.output(BEGIN + code)


@both
def test_a_handler_that_forks(threads: int) -> None:
    """The child lacks the threads that help with its call, and says so instead of waiting."""
    code = f"""
    children = []
    def handler(number, frame):
        children.append(os.fork())
    signal.signal(signal.SIGALRM, handler)
    x = np.ones(1 << 20, np.float32)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        total = fp.sums([x] * 10_000, threads={threads}).total_abs
    except RuntimeError as error:
        os._exit(7 if "forked" in str(error) and fp.sums(x, threads=2).total_abs == 2.0**20 else 8)
    assert children != [0] and total == 10_000 * 2.0**20
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 7
    """
    fresh.output(BEGIN + code)


def test_threads_that_help_take_no_signals() -> None:
    """They would not wake what waits in the main thread. A fault is still theirs."""
    code = """
    def masks():
        found = {}
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/status") as lines:
                fields = dict(line.split(":", 1) for line in lines)
            found[task] = int(fields["SigBlk"], 16)
        return found
    before = masks()
    fp.sums(np.ones(1 << 22), threads=3)
    time.sleep(0.2)  # a thread begins with everything blocked
    after = masks()
    made = after.keys() - before.keys()
    assert len(made) == 2 and all(after[task] == before[task] for task in before)
    for mask in (after[task] for task in made):
        assert mask >> (signal.SIGINT - 1) & 1 and mask >> (signal.SIGALRM - 1) & 1
        assert not mask >> (signal.SIGSEGV - 1) & 1 and not mask >> (signal.SIGBUS - 1) & 1
    """
    fresh.output(BEGIN + code)


@pytest.mark.parametrize("before", [0, 1])
def test_no_more_threads(before: int) -> None:
    """Those do it that are there: `before` were made before the limit was reached."""
    code = f"""
    import resource
    x = np.random.default_rng(0).standard_normal(1 << 22)
    grads = [np.zeros_like(x), np.zeros_like(x)]
    expected = fp.sums(x, threads=1)
    plans = [fp.Plan(x, regularizers.L1L2(0.1, 0.2), threads=n) for n in (1, 4)]
    value = plans[0].value_and_grad(grads[:1])
    fp.sums(x, threads=1 + {before})
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    try:
        threading.Thread(target=print).start()
        print("this system does not keep to the limit")
        sys.exit()
    except RuntimeError:
        pass
    for _ in range(3):
        sums = fp.sums(x, threads=4)
        assert sums.abs == expected.abs and sums.square == expected.square
    assert plans[1].value_and_grad(grads[1:]) == value and (grads[0] == grads[1]).all()
    print(len(os.listdir("/proc/self/task")))
    """
    said = fresh.output(BEGIN + code, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    if not said.isdigit():
        pytest.skip(said)
    assert int(said) == 1 + before


EXIT_CALLS = {
    "over soon": "fp.sums(np.ones(1 << 20), threads=N)",
    "a change": "plan.add_grad([np.zeros(1 << 20)])",
    "over never": "fp.sums(endless, threads=N)",
}


@both
@pytest.mark.parametrize("name", EXIT_CALLS)
def test_a_daemon_thread_in_a_call_when_the_interpreter_ends(name: str, threads: int) -> None:
    """It never gets Python's lock again. The main thread takes its time, so that it asks for it."""
    code = """
    plan = fp.Plan([np.ones(1 << 20)], regularizers.L2(1.0), threads=N)
    class Slow:
        def __del__(self, sleep=time.sleep):
            sleep(0.3)
    slow = Slow()
    slow.itself = slow
    sys.kept = slow  # until after the threads are told to end
    def work():
        while True:
            CALL
    for _ in range(3):
        threading.Thread(target=work, daemon=True).start()
    time.sleep(0.2)
    print("the end")
    """
    code = code.replace("CALL", EXIT_CALLS[name]).replace("N)", f"{threads})")
    assert fresh.output(BEGIN + code) == "the end"
