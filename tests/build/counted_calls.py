"""Calls from Python, in one thread, whose instructions callgrind counts.

tests/instructions.py runs this; the only argument is the library of native/counting.cpp.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable

import numpy as np

import fused_penalties as fp
from fused_penalties import regularizers

valgrind = ctypes.CDLL(sys.argv[1])


def count(name: str, call: Callable[[], object]) -> None:
    for _ in range(10):  # Python specializes what runs often
        call()
    valgrind.zero()
    call()
    valgrind.dump(name.encode())


def count_calls(n: int) -> None:
    weights = [np.full(30, 0.5, np.float32) for _ in range(n)]
    grads = [np.zeros_like(w) for w in weights]
    plan = fp.Plan(weights, regularizers.L2(1e-4))
    count(f"fp.sums of {n} arrays", lambda: fp.sums(weights, threads=1))
    count(f"plan.value() of {n} arrays", plan.value)
    count(f"plan.value_and_grad() of {n} arrays", lambda: plan.value_and_grad(grads))


gc.disable()  # it would run in the middle of some call
valgrind.start()
count_calls(3)
count_calls(1000)
