"""One plan for many Python threads at once, for any number of its own, and after a fork."""

from __future__ import annotations

import os
import sysconfig
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import fresh
import fused_penalties as fp
import oracle
import values
from fused_penalties import contrib, regularizers
from oracle import hexes

READS: dict[str, Callable[[fp.Plan], list[str]]] = {
    "value": lambda plan: hexes([float(plan.value())]),
    "values": lambda plan: hexes(plan.values().astype(float)),
    "named": lambda plan: hexes(map(float, plan.named().values())),
    "sums": lambda plan: hexes([*plan.sums().abs, *plan.sums().square, plan.sums().total_abs]),
    "l1_norm": lambda plan: hexes([plan.l1_norm()]),
    "l2_norm": lambda plan: hexes([plan.l2_norm()]),
}


def make(threads: int | None = None) -> fp.Plan:
    dtypes = list(oracle.DTYPES)
    arrays = [values.make("lognormal", dtypes[n % 4], n % 97, n) for n in range(400)]
    arrays += [values.make("cauchy", dtype, 300_007) for dtype in dtypes]
    arrays += [x[::-3] for x in arrays[-4:]]
    mixture = [regularizers.L1(0.1), contrib.l2_regularizer(0.2), regularizers.L1L2(0.3, 0.4), None]
    named = {f"w{n}": x for n, x in enumerate(arrays)}
    return fp.Plan(named, (mixture * len(arrays))[: len(arrays)], threads=threads)


def answers(plan: fp.Plan) -> dict[str, list[str]]:
    return {name: read(plan) for name, read in READS.items()}


@pytest.mark.usefixtures("isa")
def test_any_number_of_threads() -> None:
    expected = answers(make())
    for threads in range(1, 9):
        assert answers(make(threads)) == expected


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_many_python_threads_share_a_plan(threads: int | None) -> None:
    plan = make(threads)
    expected = answers(plan)
    start = threading.Barrier(8)

    def work(turn: int) -> bool:
        start.wait()
        names = list(READS)
        return all(
            READS[name](plan) == expected[name]
            for name in [names[(turn + k) % len(names)] for k in range(3 * len(names))]
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_threads_with_plans_of_their_own_over_the_same_weights() -> None:
    w = [values.make("normal", "float32", 100_003, seed) for seed in range(4)]
    alone = [np.zeros_like(x) for x in w]
    expected = fp.Plan(w, regularizers.L1L2(0.1, 0.2)).value_and_grad(alone)

    def work(_: int) -> bool:
        grads = [np.zeros_like(x) for x in w]
        value = fp.Plan(w, regularizers.L1L2(0.1, 0.2)).value_and_grad(grads)
        return value == expected and all(map(np.array_equal, grads, alone))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(24)))


def test_other_python_threads_run_meanwhile() -> None:
    """Many small sleeps of this thread pass while another one is inside a single call."""
    w = np.ones((1 << 20) + 500, np.float32)
    weights = [w[k : k + (1 << 20)] for k in range(500)]  # the same again would be read once
    grads = [np.zeros_like(weights[0])] * 500
    plan = fp.Plan(weights, regularizers.L2(1e-4), threads=1)
    calls: list[Callable[[], Any]] = [plan.value, plan.values, plan.sums]
    calls += [lambda: plan.value_and_grad(grads), lambda: plan.clip_grad_norm(grads, 1.0)]
    for call in calls:
        thread = threading.Thread(target=call)
        thread.start()
        sleeps = 0
        while thread.is_alive():
            thread.join(0.001)
            sleeps += 1
        assert sleeps > 5


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has a global lock"
)
def test_importing_does_not_bring_the_lock_back() -> None:
    code = "import sys; import fused_penalties; print(sys._is_gil_enabled())"
    assert fresh.output(code) == "False"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_plan_in_the_child_of_a_fork() -> None:
    code = """
    import os
    import numpy as np
    import fused_penalties as fp
    from fused_penalties import regularizers
    weights = [np.arange(n, dtype=np.float32) / 7 for n in (1_000_003, 17, 0, 4096)] * 3
    plans = [fp.Plan(weights, regularizers.L1L2(1e-3, 1e-4), threads=n) for n in (None, 1, 2, 4)]
    def answer(plan):
        grads = [np.zeros_like(w) for w in weights]
        value = plan.value_and_grad(grads)
        return [value.tobytes(), plan.value().tobytes(), plan.values().tobytes(),
                plan.l2_norm(), *(g.tobytes() for g in grads)]
    expected = answer(plans[2])
    for turn in range(2):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if all(answer(plan) == expected for plan in plans) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert answer(plans[2]) == expected
    # What the child does to the weights is its own.
    pid = os.fork()
    if pid == 0:
        plans[1].prox(1.0)
        os._exit(0 if answer(plans[1]) != expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert answer(plans[2]) == expected
    """
    fresh.output(code)
