"""Gradients that a plan refuses, and that nothing is written before an error."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fused_penalties as fp
import oracle
from fused_penalties import contrib, regularizers
from layouts import read_only
from messages import exactly
from wrapped import FakeCuda, OnlyArray, OnlyDLPack

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
W = np.array([[1, -2], [-3, 4]], np.float32)


OVERLAP = np.zeros(64, np.float32)
BAD_GRADS: dict[str, tuple[Any, type[Exception]]] = {
    "float64": (np.zeros((2, 2)), TypeError),
    "float16": (np.zeros((2, 2), np.float16), TypeError),
    "int": (np.zeros((2, 2), int), TypeError),
    "complex": (np.zeros((2, 2), complex), TypeError),
    "None": (None, TypeError),
    "str": ("gradient", TypeError),
    "number": (1.0, (TypeError, ValueError)),
    "NumPy scalar": (np.float32(1.0), (TypeError, ValueError)),
    "list": ([[0.0, 0.0], [0.0, 0.0]], (TypeError, ValueError)),
    "masked": (np.ma.array(np.zeros((2, 2), np.float32)), TypeError),
    "other shape": (np.zeros((2, 3), np.float32), ValueError),
    "as many, other shape": (np.zeros((4, 1), np.float32), ValueError),
    "flat": (np.zeros(4, np.float32), ValueError),
    "one more axis": (np.zeros((1, 2, 2), np.float32), ValueError),
    "empty": (np.zeros((0, 2), np.float32), ValueError),
    "read-only": (read_only(np.zeros((2, 2), np.float32)), ValueError),
    "broadcast": (np.broadcast_to(np.float32(0.0), (2, 2)), ValueError),
    "read-only, by DLPack": (OnlyDLPack(read_only(np.zeros((2, 2), np.float32))), ValueError),
    "the weight": (OVERLAP[:4].reshape(2, 2), ValueError),
    "the weight, transposed": (OVERLAP[:4].reshape(2, 2).T, ValueError),
    "part of the weight": (OVERLAP[3:7].reshape(2, 2), ValueError),
    "the weight as bytes": (OVERLAP.view(np.uint8)[:16].view(np.float32).reshape(2, 2), ValueError),
}
CALLS: dict[str, Callable[[fp.Plan, Any], Any]] = {
    "add_grad": lambda plan, grads: plan.add_grad(grads),
    "value_and_grad": lambda plan, grads: plan.value_and_grad(grads),
}
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@calls
@pytest.mark.parametrize("bad", BAD_GRADS)
def test_errors_leave_everything_untouched(call: Any, bad: str) -> None:
    OVERLAP[...] = np.arange(64)
    grad, error = BAD_GRADS[bad]
    weights = {
        "first": W,
        "at fault": OVERLAP[:4].reshape(2, 2),
        "last": W,
    }
    for named, label in ((True, r"^grads\['at fault'\]: "), (False, r"^grads\[1\]: ")):
        plan = fp.Plan(weights if named else list(weights.values()), L1L2(0.1, 0.3))
        good = [np.ones_like(W) for _ in range(2)]
        grads = [good[0], grad, *good[1:]]
        with pytest.raises(error, match=label):
            call(plan, grads)
        if named:
            with pytest.raises(error, match=label):
                call(plan, dict(zip(weights, grads, strict=True)))
        assert all((g == 1.0).all() for g in good)
        assert OVERLAP.tolist() == list(range(64))
        if isinstance(grad, np.ndarray) and not np.shares_memory(grad, OVERLAP):
            assert not np.asarray(grad).any()


@calls
def test_what_16_bit_weights_take(call: Any) -> None:
    """Their own dtype or float32, and not the other 16-bit one."""
    for dtype, other in (("float16", "bfloat16"), ("bfloat16", "float16")):
        plan = fp.Plan(W.astype(oracle.DTYPES[dtype]), L1(0.5))
        for good in (dtype, "float32"):
            call(plan, np.zeros((2, 2), oracle.DTYPES[good]))
        for bad in (other, "float64"):
            with pytest.raises(TypeError, match=f"^grads: .*{bad}") as raised:
                call(plan, np.zeros((2, 2), oracle.DTYPES[bad]))
            assert dtype in str(raised.value)
            assert "float32" in str(raised.value)
    for dtype in ("float32", "float64"):
        plan = fp.Plan(W.astype(dtype), L1(0.5))
        for bad in oracle.DTYPES.keys() - {dtype}:
            with pytest.raises(TypeError, match=f"^grads: .*{bad}.*{dtype}"):
                call(plan, np.zeros((2, 2), oracle.DTYPES[bad]))


@calls
def test_gradients_on_another_device(call: Any) -> None:
    with pytest.raises((RuntimeError, ValueError), match=r"^grads\[0\]: .*(cuda|CUDA|device)"):
        call(fp.Plan([np.zeros(4, np.float32)], L1(0.5)), [FakeCuda()])


@calls
def test_what_would_be_written_into_a_copy(call: Any) -> None:
    """An array that only promises a NumPy one may hand out a copy each time."""

    class Copies(OnlyArray):
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return self.x.copy()

    with pytest.raises((TypeError, ValueError), match=r"^grads\[0\]: "):
        call(fp.Plan([W], L1(0.5)), [Copies(np.zeros_like(W))])


@calls
@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        (None, TypeError, "^grads: got None; wanted"),
        ("ab", TypeError, "^grads: got str; wanted"),
        (3.0, TypeError, "^grads: got float; wanted"),
        ([], ValueError, "^grads: got 0; wanted one for each of 2 weights"),
        ([W.copy()] * 3, ValueError, "^grads: got 3; wanted one for each of 2 weights"),
        (np.zeros((2, 2, 2), np.float32), TypeError, "^grads: got one array; wanted a sequence"),
        ({}, ValueError, "^grads: nothing for the weights named a, b$"),
        ({"a": W.copy()}, ValueError, "^grads: nothing for the weights named b$"),
        (
            {"a": W.copy(), "b": W.copy(), "typo": W.copy()},
            ValueError,
            "^grads: no weights are named typo$",
        ),
    ],
)
def test_wrong_collections(call: Any, grads: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call(fp.Plan({"a": W, "b": W}, L1(0.5)), grads)
    listed = grads.values() if isinstance(grads, dict) else grads if isinstance(grads, list) else []
    assert all(np.array_equal(g, W) for g in listed)


@calls
def test_a_frozen_weight_without_a_gradient(call: Any) -> None:
    torch = pytest.importorskip("torch")
    kernel = torch.ones(3, requires_grad=True)
    frozen = torch.ones(3, requires_grad=False)
    kernel.grad = torch.zeros(3)
    plan = fp.Plan({"kernel": kernel, "frozen": frozen}, L1(0.5))
    message = (
        "grads['frozen']: got None, for weights['frozen'] is frozen (its requires_grad is False); "
        "wanted an array, or None as the regularizer of this weight"
    )
    for grads in ([kernel.grad, None], {"frozen": None, "kernel": kernel.grad}):
        with pytest.raises(TypeError, match=exactly(message)):
            call(plan, grads)
    message = "grads: nothing for the weights named frozen (frozen: its requires_grad is False)"
    with pytest.raises(ValueError, match=exactly(message)):
        call(plan, {"kernel": kernel.grad})
    with pytest.raises(TypeError, match=r"^grads\['kernel'\]: got None; wanted an array$"):
        call(plan, [None, torch.zeros(3)])
    assert kernel.grad.tolist() == [0, 0, 0]
    plan.set_regularizer({"kernel": L1(0.5)})
    call(plan, [kernel.grad, None])
    assert kernel.grad.tolist() == [0.5, 0.5, 0.5]


@calls
def test_a_weight_that_keras_does_not_train(call: Any) -> None:
    class Variable:
        """As Keras' variables on NumPy: an array to NumPy, and a word whether it is trained."""

        trainable = False
        dtype = W.dtype

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return W

    plan = fp.Plan([Variable()], L1(0.5))
    message = "grads[0]: got None, for weights[0] is frozen (its trainable is False); wanted"
    with pytest.raises(TypeError, match=rf"^{re.escape(message)}"):
        call(plan, [None])


@calls
def test_a_mapping_needs_names(call: Any) -> None:
    with pytest.raises(ValueError, match=r"^grads: got a mapping for weights without names"):
        call(fp.Plan([W], L1(0.5)), {"w": np.zeros_like(W)})


@pytest.mark.parametrize(
    ("upstream", "error"),
    [
        (True, TypeError),
        (np.True_, TypeError),
        (np.array(True), TypeError),
        ("1.0", TypeError),
        (np.array("1.0"), TypeError),
        (None, TypeError),
        (1j, TypeError),
        (np.complex64(1), TypeError),
        ([1.0], TypeError),
        (np.array(1.0, object), TypeError),
        (np.ones(1), ValueError),
        (np.ones((1, 1)), ValueError),
        (np.ones(2), ValueError),
        (10**400, ValueError),
    ],
)
def test_what_is_no_upstream(upstream: Any, error: type[Exception]) -> None:
    g = np.zeros_like(W)
    plan = fp.Plan(W, L1(0.5))
    for call in (plan.add_grad, plan.value_and_grad):
        with pytest.raises(error, match=r"^upstream: got "):
            call(g, upstream)
    assert not g.any()


@calls
def test_functions_have_no_gradient(call: Any) -> None:
    def mine(x: np.ndarray) -> float:
        return float(x.max())

    for regularizer in (
        [L1(0.5), mine],
        [L1(0.5), contrib.sum_regularizer([L1(0.5), mine])],
        [L1(0.5), regularizers.OrthogonalRegularizer()],
    ):
        grads = [np.zeros_like(W), np.zeros_like(W)]
        plan = fp.Plan({"a": W, "b": W}, regularizer)
        with pytest.raises(TypeError, match=r"^regularizer: no gradient is known of .*\['b'\] has"):
            call(plan, grads)
        assert not np.any(grads)
        plan.set_regularizer([L1(0.5), None])
        call(plan, grads)
        assert np.any(grads[0])


@calls
def test_a_plan_works_after_an_error(call: Any) -> None:
    plan = fp.Plan([W, W], L1(0.5))
    good = np.zeros_like(W)
    with pytest.raises(TypeError):
        call(plan, [good, None])
    call(plan, [good, np.zeros_like(W)])
    assert good.tolist() == [[0.5, -0.5], [-0.5, 0.5]]
    assert plan.value() == 10.0
