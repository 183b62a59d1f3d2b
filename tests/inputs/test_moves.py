"""Arrays whose own code moves the memory of others while these are looked up.

A read of freed memory may end the process, hence fresh ones.
"""

from __future__ import annotations

import pytest

import fresh

CODE = """
import numpy as np
import fused_penalties as fp
from fused_penalties import regularizers

N = 40_000_000  # so large that the allocator gives it back to the system at once

class Moves:
    # The victim, when it is asked for its own memory.
    def __init__(self, like, how):
        self.array, self.how, self.victim = np.zeros_like(like), how, None
        self.dtype, self.shape = like.dtype, like.shape

    def moved(self):
        if self.victim is not None:
            self.victim.resize(1, refcheck=False)
        return self.array

class ByArray(Moves):
    def __array__(self, dtype=None, copy=None):
        return self.moved()

class ByDLPack(Moves):
    def __dlpack_device__(self):
        return (1, 0)
    def __dlpack__(self, **options):
        return self.moved().__dlpack__()

def large():
    return np.ones(N, np.float32)

kind = {"array": ByArray, "dlpack": ByDLPack}[KIND]
w, x = large(), np.ones(3, np.float32)
evil = kind(x, None)
l2 = regularizers.L2(1.0)

def call():
    if CALL == "sums":
        evil.victim = w
        return fp.sums([w, evil]).abs[0]
    if CALL == "partial_sums":
        evil.victim = w
        return fp.partial_sums([w, evil]).sums().abs[0]
    if CALL == "penalty":
        evil.victim = w
        return fp.penalty([w, evil], l2)
    if CALL in ("value", "prox"):
        plan = fp.Plan([w, evil], l2)
        evil.victim = w
        return plan.value() if CALL == "value" else plan.prox(0.5)
    plan = fp.Plan([w, x], l2)
    name, _, which = CALL.partition(" of an earlier ")
    grad = large()
    evil.victim = grad if which else w
    arguments = () if name != "clip_grad_norm" else (1.0,)
    return getattr(plan, name)([grad, evil], *arguments)

try:
    print("gave", call())
except (RuntimeError, ValueError, TypeError) as error:
    print("refused", error)
"""
CALLS = [
    "sums", "partial_sums", "penalty", "value", "prox",
    "add_grad", "value_and_grad", "clip_grad_norm",
    "add_grad of an earlier grad", "clip_grad_norm of an earlier grad",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["array", "dlpack"])
@pytest.mark.parametrize("call", CALLS)
def test_memory_that_moves_meanwhile(call: str, kind: str) -> None:
    """It is read where it is then, or the call is refused."""
    said = fresh.output(f"KIND, CALL = {kind!r}, {call!r}\n{CODE}")
    if call in ("sums", "partial_sums", "penalty"):
        assert said == "gave 1.0"
    else:
        assert said.startswith("refused ")
