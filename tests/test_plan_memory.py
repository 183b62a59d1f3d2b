"""What a plan may touch: memory that moved, that may not be written, or that others share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fused_penalties as fp
from fused_penalties.regularizers import L1, L2

MOVES: dict[str, Callable[[Any], object]] = {
    "share_memory_": lambda t: t.share_memory_(),
    "resize_": lambda t: t.resize_(1 << 20),
    "storage resize_": lambda t: t.untyped_storage().resize_(0),
}


@pytest.mark.parametrize("move", MOVES)
def test_torch_storage_that_moved_is_refused(move: str) -> None:
    torch = pytest.importorskip("torch")
    tensors = [torch.ones(3), torch.ones(1 << 10)]
    plan = fp.Plan(tensors, L1(1.0))
    assert plan.value() == 1027.0
    MOVES[move](tensors[1])
    grads = [np.zeros(3, np.float32), np.zeros(1 << 10, np.float32)]
    for call in (
        plan.value,
        plan.sums,
        lambda: plan.add_grad(grads),
        lambda: plan.prox(1.0),
        lambda: plan.decay(0.1),
    ):
        with pytest.raises(RuntimeError, match=r"^weights\[1\]: its memory has moved"):
            call()
    assert tensors[0].tolist() == [1.0, 1.0, 1.0]
    assert not grads[0].any()


def test_torch_lazily_negated_weight_is_refused() -> None:
    torch = pytest.importorskip("torch")
    lazy = torch.imag(torch.tensor([1 + 2j, 3 - 4j]).conj())
    with pytest.raises(TypeError, match=r"^weights\['b'\]: .*resolve_neg"):
        fp.Plan({"a": torch.ones(2), "b": lazy}, L1(1.0))


def test_jax_arrays_are_never_written() -> None:
    jax = pytest.importorskip("jax")
    x = jax.numpy.arange(1.0, 7.0)
    plan = fp.Plan([x], L1(1.0))
    with pytest.raises(ValueError, match=r"^weights\[0\]: is read-only, or a copy"):
        plan.prox(1.0)
    grad = jax.numpy.zeros(6)
    with pytest.raises(ValueError, match=r"^grads\[0\]: is read-only, or a copy"):
        plan.add_grad([grad])
    assert x.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert not np.asarray(grad).any()


def test_empty_gradients_do_not_hide_that_others_overlap() -> None:
    length, count = 400_000, 40
    base = np.zeros(length + 2 * count, np.float32)
    weights, grads = [], []
    for k in range(count):
        weights += [np.ones(length, np.float32), np.ones(0, np.float32)]
        grads += [base[2 * k : 2 * k + length], base[2 * k + 1 :][:0]]
    fp.Plan(weights, L2(0.5), threads=4).add_grad(grads)
    places = np.arange(len(base))
    first = np.clip((places - length) // 2 + 1, 0, None)
    assert (base == np.minimum(places // 2 + 1, count) - first).all()


@pytest.mark.parametrize("step", [1, 2])
def test_idle_changes_do_not_write(step: int) -> None:
    weight = np.full(10, np.float32(np.nan))[::step]
    weight.view(np.uint32)[:] = 0x7FC12345  # a NaN that any writing would replace
    grad = weight.copy()[::1]
    wide = np.repeat(grad, step)[::step]
    plan = fp.Plan([weight], L2(1.0))
    plan.add_grad([wide], 0.0)
    plan.decay(0.0)
    plan.clip_grad_norm([np.zeros(len(weight), np.float32)], 1.0)
    for array in (weight, wide):
        assert (array.view(np.uint32) == 0x7FC12345).all()


def test_decay_leaves_read_only_weights_without_l2_alone() -> None:
    fixed, free = np.ones(3, np.float32), np.ones(3, np.float32)
    fixed.flags.writeable = False
    fp.Plan([fixed, free], [L1(0.1), L2(0.5)]).decay(0.5)
    assert (fixed.tolist(), free.tolist()) == ([1.0] * 3, [0.5] * 3)


def test_infinite_upstream_leaves_absent_terms_out() -> None:
    grad = np.zeros(3, np.float32)
    fp.Plan([np.array([1, 0, -2], np.float32)], L2(1.0)).add_grad([grad], np.inf)
    assert grad[0] == np.inf
    assert np.isnan(grad[1])
    assert grad[2] == -np.inf


def test_windows_over_shared_elements_are_refused() -> None:
    base = np.ones(10, np.float32)
    windows = np.lib.stride_tricks.as_strided(base, (8, 3), (4, 4))
    with pytest.raises(ValueError, match=r"^weights\[0\]: repeats its elements"):
        fp.Plan([windows], L1(1.0)).prox(0.5)
    assert (base == 1).all()
