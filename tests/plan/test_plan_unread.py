"""What a plan does not read: weights without a penalty, and what lies beside weights."""

from __future__ import annotations

import os
import sys

import pytest

import fresh
import fused_penalties as fp

# Where the code below finds the tests' modules.
PATH = os.pathsep.join(sys.path)

GUARDED = """
    import ctypes, mmap
    import numpy as np
    import fused_penalties as fp
    from fused_penalties import contrib
    from fused_penalties.regularizers import L1, L2, L1L2
    from plan_cases import write_grad

    memory = mmap.mmap(-1, 8 * mmap.PAGESIZE)
    hidden = np.frombuffer(memory, np.float32)
    def protect(how):
        at = ctypes.c_void_p(hidden.ctypes.data)
        assert ctypes.CDLL(None).mprotect(at, ctypes.c_size_t(hidden.nbytes), how) == 0
    w = np.full(3, 2.0, np.float32)
    g = np.zeros(3, np.float32)
    # Too small for a float32, and the sum of nothing, are no penalty either.
    off = [None, L1(0.0), L1L2(1e-46, 1e-300), contrib.l2_regularizer(0.0)]
    weights = [hidden[k : k + 2000] for k in range(len(off))] + [w]
    grads = [hidden[k : k + 2000] for k in range(4000, 4000 + len(off))] + [g]
    plan = fp.Plan(weights, [*off, L1L2(0.5, 0.25)])
    protect(0)
"""

USES = {
    "making": "fp.Plan(weights, [*off, L1(0.5)])",
    "value": "assert plan.value() == 6.0",
    "values": "assert plan.values().tolist() == [0, 0, 0, 0, 6]",
    "set_regularizer": "plan.set_regularizer([*off, L2(0.5)]); assert plan.value() == 6.0",
    "add_grad": "plan.add_grad(grads); assert g.tolist() == [1.5] * 3",
    "value_and_grad": "assert plan.value_and_grad(grads) == 6.0; assert g.tolist() == [1.5] * 3",
    "write_grad": "write_grad(plan, [None] * 4 + [g]); assert g.tolist() == [1.5] * 3",
    "write_grad of nothing": (
        "given = [np.full(2000, np.nan, np.float32) for _ in off]; "
        "write_grad(plan, [*given, g]); assert g.tolist() == [1.5] * 3; "
        "assert not np.array(given).any()"
    ),
    "write_grad of nothing, strided": (
        "given = [np.full(4000, np.nan, np.float32)[::2] for _ in off]; "
        "write_grad(plan, [*given, g], 0.0); assert g.tolist() == [0] * 3; "
        "assert not np.array(given).any()"
    ),
    "prox": "plan.prox(1.0); assert w.tolist() == [1.0] * 3",
    "decay": "plan.decay(0.5); assert w.tolist() == [1.5] * 3",
    "decay of L1": "plan.set_regularizer([L1(0.5)] * 4 + [L2(0.5)]); plan.decay(0.5)",
    "add_grad of nothing": "plan.set_regularizer(L1L2(0.5, 0.5)); plan.add_grad(grads, 0.0)",
    "add_grad of less than nothing": (
        "plan.set_regularizer(L1L2(0.5, 0.5)); plan.add_grad(grads, -1e-46)"
    ),
}
needs_mprotect = pytest.mark.skipif(
    sys.platform != "linux", reason="guards pages with mprotect as Linux has it"
)


@needs_mprotect
@pytest.mark.parametrize("use", USES)
def test_buffers_without_a_penalty_are_not_read(use: str) -> None:
    fresh.output(f"{GUARDED}    {USES[use]}\n", PYTHONPATH=PATH)


@needs_mprotect
def test_the_memory_is_guarded() -> None:
    """Could it be read, the test above would show nothing."""
    assert fresh.run(f"{GUARDED}    plan.sums()\n", PYTHONPATH=PATH).returncode < 0


EDGES = """
    import ctypes, mmap
    import numpy as np
    import fused_penalties as fp
    import oracle, plan_oracle, values
    from fused_penalties.regularizers import L1L2
    from plan_cases import write_grad

    fp._core.use_isa(isa)
    page = mmap.PAGESIZE
    room = 4 * page
    def guarded():
        memory = mmap.mmap(-1, room + 2 * page)
        inside = np.frombuffer(memory, np.uint8)[page : page + room]
        for guard in (inside.ctypes.data - page, inside.ctypes.data + room):
            at = ctypes.c_void_p(guard)
            assert ctypes.CDLL(None).mprotect(at, ctypes.c_size_t(page), 0) == 0
        return inside
    for_weights, for_grads = guarded(), guarded()

    def placed(inside, x, last):
        at = inside[room - x.nbytes :] if last else inside[: x.nbytes]
        at[...] = x.view(np.uint8)
        return at.view(x.dtype)

    l1, l2, step = 0.25, 0.125, 0.5
    for dtype in oracle.DTYPES:
        x, y = values.assorted(dtype, 300, 1), values.assorted(dtype, 300, 2)
        for length in [*range(140), 255, 256, 257]:
            w, g = x[:length], y[:length]
            for last in (True, False):
                at, to = placed(for_weights, w, last), placed(for_grads, g, last)
                plan = fp.Plan(at, L1L2(l1, l2))
                plan.value_and_grad(to, -2.0)
                wanted = plan_oracle.gradient(w, g, l1, l2, -2.0)
                assert plan_oracle.same_bits(to, wanted), (dtype, length, "gradient")
                write_grad(plan, [to], -2.0)
                wanted = plan_oracle.stored_gradient(w, g.dtype, l1, l2, -2.0)
                assert plan_oracle.same_bits(to, wanted), (dtype, length, "stored gradient")
                plan.prox(step)
                wanted = plan_oracle.proximal(w, l1, l2, step)
                assert plan_oracle.same_bits(at, wanted), (dtype, length, "prox")
                to = placed(for_grads, np.nan_to_num(g), last)
                plan.clip_grad_norm(to, 1e-3)
                plan.decay(step)
                assert plan_oracle.same_bits(at, plan_oracle.decayed(wanted, l2, step))
                if length > 3:
                    fp.Plan(at[::-3], L1L2(l1, l2)).add_grad(to[::-3])
                    fp.Plan(at[::3], L1L2(l1, l2)).prox(step)
    print("all")
"""


@needs_mprotect
@pytest.mark.parametrize("isa", fp._core.supported_isas())
def test_edges_of_memory(isa: str) -> None:
    assert fresh.output(f"    isa = {isa!r}\n{EDGES}", PYTHONPATH=PATH) == "all"
