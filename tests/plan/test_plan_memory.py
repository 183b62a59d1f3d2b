"""What a plan may touch: memory that moved, that may not be written, or that others share."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fused_penalties as fp
from fused_penalties.regularizers import L1, L2


def swap(tensor: Any) -> None:
    torch = pytest.importorskip("torch")
    torch.utils.swap_tensors(tensor, torch.zeros(32, 32))


def to_half(tensor: Any) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Module()
    module.w = torch.nn.Parameter(tensor)
    module.w.data = module.w.data.half()  # what module.half() does to each of its parameters
    tensor.data = module.w.data


def set_data(tensor: Any) -> None:
    tensor.data = tensor.data.clone()


def transpose(tensor: Any) -> None:
    tensor.data = tensor.data.t()  # the same memory, where a gradient's elements meet others


TENSOR_MOVES: dict[str, Callable[[Any], object]] = {
    "share_memory_": lambda t: t.share_memory_(),
    "resize_": lambda t: t.resize_(1 << 20),
    "smaller": lambda t: t.resize_(16, 16),
    "storage resize_": lambda t: t.untyped_storage().resize_(0),
    "data": set_data,
    "half": to_half,
    "transposed": transpose,
    "swapped": swap,
}
ARRAY_MOVES: dict[str, Callable[[Any], object]] = {
    "resize": lambda x: x.resize((64, 64), refcheck=False),
    "smaller": lambda x: x.resize((16, 16), refcheck=False),
    "empty": lambda x: x.resize(0, refcheck=False),
    "__setstate__": lambda x: x.__setstate__(np.zeros((32, 32), np.float32).__reduce__()[2]),
}


def assert_moved(plan: fp.Plan, grads: list[np.ndarray], writable: bool = True) -> None:
    calls: list[Callable[[], object]] = [
        plan.value,
        plan.values,
        plan.sums,
        plan.l2_norm,
        lambda: plan.add_grad(grads),
        lambda: plan.value_and_grad(grads),
        lambda: plan.clip_grad_norm(grads, 1.0),
    ]
    if writable:
        calls += [lambda: plan.prox(1.0), lambda: plan.decay(0.1)]
    for call in calls:
        with pytest.raises(RuntimeError, match=r"^weights\[1\]: its memory has moved"):
            call()
    assert all((grad == 2).all() for grad in grads)


GRADS = [np.full(3, 2, np.float32), np.full((32, 32), 2, np.float32)]


@pytest.mark.parametrize("move", TENSOR_MOVES)
def test_torch_tensor_that_moved_is_refused(move: str) -> None:
    torch = pytest.importorskip("torch")
    tensors = [torch.ones(3), torch.ones(32, 32)]
    plan = fp.Plan(tensors, L1(1.0))
    assert plan.value() == 1027.0
    TENSOR_MOVES[move](tensors[1])
    assert_moved(plan, GRADS)
    assert tensors[0].tolist() == [1.0, 1.0, 1.0]


def test_modules_of_torch_that_moved_are_refused() -> None:
    torch = pytest.importorskip("torch")
    for move in (lambda m: m.half(), lambda m: m.to(torch.float64)):
        module = torch.nn.Linear(3, 2)
        plan = fp.Plan(dict(module.named_parameters()), L1(1.0))
        move(module)
        with pytest.raises(RuntimeError, match=r"^weights\['weight'\]: its memory has moved"):
            plan.value()


@pytest.mark.parametrize("of", ["itself", "its owner", "its subclass"])
@pytest.mark.parametrize("move", ARRAY_MOVES)
def test_array_whose_memory_was_given_up_is_refused(of: str, move: str) -> None:
    class Mine(np.ndarray):
        pass

    owner = np.ones((32, 32), np.float32)
    view = {
        "itself": lambda: owner,
        "its owner": lambda: owner[:, ::-1].T,
        "its subclass": lambda: owner.view(Mine)[:],
    }[of]()
    first = np.ones(3, np.float32)
    plan = fp.Plan([first, view], L1(1.0))
    assert plan.value() == 1027.0
    ARRAY_MOVES[move](owner)
    assert_moved(plan, GRADS)
    assert (first == 1).all()


def test_array_that_changed_its_dtype_or_shape_in_place_is_refused() -> None:
    for name, other in (("dtype", "f2"), ("shape", (3, 4)), ("dtype", ">f4")):
        x = np.ones(12, np.float32)
        plan = fp.Plan([np.ones(3), x], L1(1.0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy advises against it
            setattr(x, name, other)
        with pytest.raises(RuntimeError, match=r"^weights\[1\]: its memory has moved"):
            plan.value()


class Rebound:
    """An array by DLPack or NumPy's protocol, which may become another one."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x


class ByDLPack(Rebound):
    def __dlpack__(self, **arguments: Any) -> Any:
        return self.x.__dlpack__(**arguments)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class ByArray(Rebound):
    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.x


@pytest.mark.parametrize("kind", [ByDLPack, ByArray])
def test_what_lends_other_memory_later_is_refused(kind: type[Rebound]) -> None:
    lender = kind(np.ones((32, 32), np.float32))
    plan = fp.Plan([np.ones(3, np.float32), lender], L1(1.0))
    lender.x[0] = 2.0
    assert plan.value() == 1059.0
    lender.x = np.ones((32, 32), np.float32)
    assert_moved(plan, GRADS, writable=False)


def test_numbers_never_change() -> None:
    plan = fp.Plan([np.float32(1.0), np.float64(2.0), 3.0, 4], L1(1.0))
    assert plan.value() == 10.0


def test_unmoved_weights_are_followed() -> None:
    """What changes values only, and arrays of the same memory that are thrown away."""
    torch = pytest.importorskip("torch")
    x, t = np.ones(4, np.float32), torch.nn.Parameter(torch.ones(4))
    plan = fp.Plan([x[::2], x[::-1].T, t, t.detach()[1:], np.ones(0), torch.ones(0)], L1(1.0))
    x[:] = 2.0
    with torch.no_grad():
        t.fill_(3.0)
    t.grad = torch.ones(4)
    assert plan.value() == 4.0 + 8.0 + 12.0 + 9.0


def test_torch_lazily_negated_weight_is_refused() -> None:
    torch = pytest.importorskip("torch")
    lazy = torch.imag(torch.tensor([1 + 2j, 3 - 4j]).conj())
    with pytest.raises(TypeError, match=r"^weights\['b'\]: .*resolve_neg"):
        fp.Plan({"a": torch.ones(2), "b": lazy}, L1(1.0))


def test_torch_lazily_negated_gradient_is_refused() -> None:
    torch = pytest.importorskip("torch")
    complexes = torch.tensor([1 + 2j, 3 - 4j])
    grads = [torch.ones(2), torch.imag(complexes.conj())]
    assert grads[1].is_neg()
    plan = fp.Plan([torch.ones(2), torch.ones(2)], L1(1.0))
    for call in (plan.add_grad, plan.value_and_grad, lambda g: plan.clip_grad_norm(g, 1.0)):
        with pytest.raises(TypeError, match=r"^grads\[1\]: .*resolve_neg"):
            call(grads)
    assert complexes.tolist() == [1 + 2j, 3 - 4j]
    assert grads[0].tolist() == [1.0, 1.0]
    plan.add_grad([grads[0], grads[1].resolve_neg()])
    assert grads[0].tolist() == [2.0, 2.0]


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


def test_a_subclass_that_gets_other_memory_when_asked_for_its_sign() -> None:
    torch = pytest.importorskip("torch")

    class Moving(torch.Tensor):
        def is_neg(self) -> bool:
            self.set_(torch.full((1 << 16,), 3.0))
            return False

    plan = fp.Plan(torch.ones(4).as_subclass(Moving), L1(1.0))
    assert plan.value() == 3 << 16
