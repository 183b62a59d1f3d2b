"""What counts as an array on a GPU, on which stream it is read, and what is refused, and how."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import capsules
import fresh
import fused_penalties as fp
import gpu
import oracle
import values
from capsules import Framework, OldProducer, Producer
from fused_penalties import regularizers
from gpu import Twins, assert_same, assert_same_sums, cupy
from messages import exactly

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
pytestmark = gpu.marks
dtypes = pytest.mark.parametrize("dtype", oracle.DTYPES)
W = np.array([[1, -2], [-3, 4]], np.float32)


class Subclass(cupy.ndarray):
    """As users of CuPy make them."""


class OnlyInterface:
    """What the CUDA array interface asks of an array, and nothing else, as Numba's have it."""

    def __init__(self, array: Any, stream: Any = None, read_only: bool = False) -> None:
        self.array, self.stream, self.read_only = array, stream, read_only

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.array.shape,
            "typestr": self.array.dtype.str,
            "strides": self.array.strides,
            "data": (self.array.data.ptr, self.read_only),
            "stream": self.stream,
        }


WRAPS: dict[str, Callable[[Any], Any]] = {
    "interface": OnlyInterface,
    "DLPack": Producer,
    "DLPack 0": OldProducer,
    "managed memory": lambda array: Producer(array, kind=capsules.CUDA_MANAGED),
    "exchange table": Framework,
    "subclass": lambda array: array.view(Subclass),
}


@pytest.fixture(autouse=True)
def current_stream() -> None:
    Framework.stream = cupy.cuda.Stream.null


def views(dtype: str) -> list[np.ndarray]:
    x = values.make("lognormal", dtype, 9000).reshape(30, 300)
    return [x, x.T, x[:, ::-1], x[::2, ::7], x[:0], x[3, 4:5].reshape(()), x[0, 1:], x]


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("dtype", [name for name in oracle.DTYPES if name != "bfloat16"])
def test_kinds_of_arrays(wrap: str, dtype: str) -> None:
    twins = Twins(views(dtype))
    wrapped = [WRAPS[wrap](x) for x in twins.gpu]
    assert_same_sums(fp.sums(wrapped), fp.sums(twins.host))
    assert_same_sums(fp.sums(wrapped[0]), fp.sums(twins.host[0]))
    assert_same_sums(fp.sums({"w": wrapped[1]}), fp.sums({"w": twins.host[1]}))
    assert_same_sums(fp.sums([wrapped[0], *twins.gpu]), fp.sums([twins.host[0], *twins.host]))
    np.testing.assert_array_equal(fp.partial_sums(wrapped).limbs, fp.partial_sums(twins.host).limbs)
    plan, on_cpu = fp.Plan(wrapped, L1L2(0.1, 0.3)), fp.Plan(twins.host, L1L2(0.1, 0.3))
    assert_same(plan.value(), on_cpu.value())
    assert_same(plan.values(), on_cpu.values())
    twins.check()


@pytest.mark.parametrize("wrap", ["DLPack", "DLPack 0", "managed memory", "exchange table"])
def test_bfloat16_of_other_libraries(wrap: str) -> None:
    """CuPy's own DLPack, and the CUDA array interface, have no name for it."""
    twins = Twins(views("bfloat16"))
    wrapped = [WRAPS[wrap](x) for x in twins.gpu]
    assert_same_sums(fp.sums(wrapped), fp.sums(twins.host))
    assert_same(fp.Plan(wrapped, L2(0.1)).value(), fp.penalty(twins.host, L2(0.1)))


@pytest.mark.parametrize(
    "wrap", ["interface", "DLPack", "managed memory", "exchange table", "subclass"]
)
def test_kinds_of_arrays_that_are_written(wrap: str) -> None:
    x = values.make("normal", "float32", 9000).reshape(90, 100)
    twins = Twins([x, x[::-1, 1:].copy()[:, ::2], np.zeros_like(x), np.zeros((90, 50), np.float32)])
    wrapped = [WRAPS[wrap](array) for array in twins.gpu]
    plan, on_cpu = fp.Plan(wrapped[:2], L1L2(0.1, 0.3)), fp.Plan(twins.host[:2], L1L2(0.1, 0.3))
    for name, *arguments in (("prox", 0.1), ("decay", 0.1)):
        getattr(plan, name)(*arguments)
        getattr(on_cpu, name)(*arguments)
        twins.check()
    for _ in range(2):
        assert_same(plan.value_and_grad(wrapped[2:]), on_cpu.value_and_grad(twins.host[2:]))
        plan.add_grad(wrapped[2:], -2.0)
        on_cpu.add_grad(twins.host[2:], -2.0)
        norm = plan.clip_grad_norm(wrapped[2:], 1.0)
        assert_same(norm, on_cpu.clip_grad_norm(twins.host[2:], 1.0))
        twins.check()


@pytest.mark.parametrize("wrap", WRAPS)
def test_penalties_of_other_libraries(wrap: str) -> None:
    x = values.make("normal", "float32", 9000)
    if wrap == "interface":
        OnlyInterface.dtype = x.dtype  # type: ignore[attr-defined]
    wrapped = WRAPS[wrap](gpu.on_gpu(x))
    assert_same(fp.penalty([wrapped], L1(0.1)), L1(0.1)(x))
    assert_same(L2(0.1)(wrapped), L2(0.1)(x))


def test_tied_arrays_of_several_libraries() -> None:
    there = gpu.on_gpu(np.ones((3, 4), np.float32))
    shared = [
        there,
        Producer(there),
        OnlyInterface(there.T),
        Framework(there),
        there.view(Subclass),
    ]
    assert_same(fp.sums(shared, unique=True).abs, [12.0, 0.0, 0.0, 0.0, 0.0])
    fp.Plan(shared, L1(1.0)).prox(0.125)
    assert (there.get() == 1 - 5 * 0.125).all()


@pytest.mark.parametrize("wrap", ["DLPack", "DLPack 0"])
def test_capsules_are_released(wrap: str) -> None:
    before = capsules.alive()
    there = gpu.on_gpu(W)
    fp.sums([WRAPS[wrap](there)])
    assert capsules.alive() == before
    plan = fp.Plan([WRAPS[wrap](there)], L1(0.1))
    assert capsules.alive() == before + 1, "it keeps the memory"
    del plan
    assert capsules.alive() == before


# Streams.


@pytest.mark.parametrize("kind", [Producer, OldProducer])
def test_which_stream_dlpack_is_asked_for(kind: type[Producer]) -> None:
    """The one that will read; the default stream is called 1."""
    producer = kind(gpu.on_gpu(W))
    (stream,) = gpu.streams(1)
    for current, handle in ((cupy.cuda.Stream.null, 1), (stream, stream.ptr)):
        for call in (
            lambda: fp.sums([producer]),
            lambda: fp.partial_sums([producer]),
            lambda: fp.penalty([producer], L1(0.1)),
            lambda: fp.Plan([producer], L1(0.1)),
        ):
            producer.asked.clear()
            with current:
                call()
            assert set(producer.asked) == {handle}
        grad = Producer(gpu.on_gpu(W))
        with current:
            fp.Plan([gpu.on_gpu(W)], None).clip_grad_norm([grad], 1.0)
        assert set(grad.asked) == {handle}


def test_dlpack_waits_for_what_its_library_does() -> None:
    first, second = gpu.streams(2)
    there = gpu.on_gpu(np.zeros(9000, np.float32))
    cupy.cuda.Device().synchronize()
    streams = {stream.ptr: stream for stream in (first, second)}
    x = values.make("normal", "float32", 9000)

    def arrives(handle: int) -> None:
        streams[handle].wait_event(first.record())

    with first:
        there.set(x)
    with second:
        assert_same_sums(fp.sums([Producer(there, arrives)]), fp.sums([x]))


def test_the_interface_waits_for_its_stream() -> None:
    first, second = gpu.streams(2)
    there = gpu.on_gpu(np.zeros(9000, np.float32))
    cupy.cuda.Device().synchronize()
    x = values.make("normal", "float32", 9000)
    with first:
        there.set(x)
    with second:
        assert_same_sums(fp.sums([OnlyInterface(there, first.ptr)]), fp.sums([x]))


def many(w: Any) -> float:
    """A regularizer that is no sum of L1 and L2."""
    return float(w.shape[0])


LIBRARY_CALLS: dict[str, Callable[[Any], Any]] = {
    "sums": lambda w: fp.sums([w]).abs,
    "total": lambda w: fp.sums(w).total_square,
    "penalty": lambda w: fp.penalty([w], L1L2(0.1, 0.3)),
    "penalty by functions": lambda w: fp.penalty([w, w], [L1(0.1), many]),
    "L1": L1(0.1),
    "value": lambda w: fp.Plan([w], L1L2(0.1, 0.3)).value(),
    "values": lambda w: fp.Plan([w], L1L2(0.1, 0.3)).values(),
    "value by functions": lambda w: fp.Plan([w, w], [L1(0.1), many]).value(),
    "values by functions": lambda w: fp.Plan([w, w], [L1(0.1), many]).values(),
    "named": lambda w: fp.Plan({"w": w}, L1(0.1)).named()["w"],
    "l1_norm": lambda w: fp.Plan([w], None).l1_norm(),
    "l2_norm": lambda w: fp.Plan([w], None).l2_norm(),
}


@pytest.mark.parametrize("current_device", [0, pytest.param(1, marks=gpu.several)])
@pytest.mark.parametrize("call", LIBRARY_CALLS)
def test_work_is_on_the_stream_of_the_weights_library(call: str, current_device: int) -> None:
    """It says which one that is at the moment; CuPy's current stream and device do not matter."""
    first, second = gpu.streams(2)
    there = gpu.on_gpu(np.zeros(9000, np.float32))
    cupy.cuda.Device().synchronize()
    x = values.make("normal", "float32", 9000)
    Framework.stream = first
    with first:
        there.set(x)
    with cupy.cuda.Device(current_device):
        current = second if current_device == 0 else cupy.cuda.Stream.null
        with current:
            result = LIBRARY_CALLS[call](Framework(there))
            assert cupy.cuda.get_current_stream().ptr == current.ptr
    assert result.device.id == 0
    with first:
        assert_same(result, LIBRARY_CALLS[call](x))


def test_the_stream_of_the_weights_library_changes() -> None:
    first, second = gpu.streams(2)
    x = values.make("normal", "float32", 9000)
    twins = Twins([x, np.zeros_like(x)])
    on_cpu = fp.Plan(twins.host[0], L1L2(0.1, 0.3))
    cupy.cuda.Device().synchronize()
    Framework.stream = first
    plan = fp.Plan([Framework(twins.gpu[0])], L1L2(0.1, 0.3))
    for turn in range(4):
        Framework.stream = (first, second)[turn % 2]
        value = plan.value_and_grad([Framework(twins.gpu[1])])
        plan.prox(0.01)
        wanted = on_cpu.value_and_grad(twins.host[1])
        on_cpu.prox(0.01)
    with second:
        assert_same(value, wanted)
        twins.check()


def test_gradients_of_another_library() -> None:
    """They are read after what that did to them, and it sees what was written."""
    first, second = gpu.streams(2)
    x, g = (values.make("normal", "float32", 9000, seed) for seed in (1, 2))
    twins = Twins([x, np.zeros_like(g)])
    cupy.cuda.Device().synchronize()
    Framework.stream = first
    plan, on_cpu = fp.Plan(twins.gpu[0], L1L2(0.1, 0.3)), fp.Plan(x, L1L2(0.1, 0.3))
    grads = Framework(twins.gpu[1])
    for name, *arguments in (("add_grad", 0.5), ("value_and_grad", 0.5), ("clip_grad_norm", 1.0)):
        with first:
            twins.gpu[1].set(g)
        with second:
            result = getattr(plan, name)([grads], *arguments)
        twins.host[1][:] = g
        wanted = getattr(on_cpu, name)([twins.host[1]], *arguments)
        with first:
            assert_same(twins.gpu[1], twins.host[1])
        if wanted is not None:
            with second:
                assert_same(result, wanted)


@gpu.several
def test_the_interface_of_an_array_on_the_other_gpu() -> None:
    with cupy.cuda.Device(1):
        there = gpu.on_gpu(W)
        cupy.cuda.Device().synchronize()
    sums = fp.sums([OnlyInterface(there)])
    fp.Plan([OnlyInterface(there)], L1(0.5)).prox(1.0)
    with cupy.cuda.Device(1):
        assert sums.abs.device.id == 1
        assert_same(sums.abs, [10.0])
        assert_same(there, np.sign(W) * (np.abs(W) - np.float32(0.5)))


def test_memory_that_moved() -> None:
    w = Framework(gpu.on_gpu(W))
    plan = fp.Plan([gpu.on_gpu(W), w], L1(1.0))
    value = plan.value()
    old, w.array = w.array, gpu.on_gpu(W)
    grads = [gpu.on_gpu(np.zeros_like(W)) for _ in range(2)]
    for call in (
        plan.value,
        plan.sums,
        lambda: plan.add_grad(grads),
        lambda: plan.prox(1.0),
        lambda: plan.clip_grad_norm(grads, 1.0),
    ):
        with pytest.raises(RuntimeError, match=r"^weights\[1\]: its memory has moved"):
            call()
    w.array = old
    assert_same(plan.value(), value.get())
    assert not any(grad.get().any() for grad in grads)


# Devices.


def test_arrays_on_the_cpu_and_on_a_gpu() -> None:
    here, there = W, gpu.on_gpu(W)
    mixed = "{}: is on {} but {} is on {}; wanted all on one device".format
    for call in (fp.sums, fp.partial_sums, lambda w: fp.Plan(w, L1(0.1))):
        with pytest.raises(
            ValueError, match=exactly(mixed("weights[2]", "cuda:0", "weights[1]", "the CPU"))
        ):
            call([np.zeros(0), here, there])
        with pytest.raises(
            ValueError, match=exactly(mixed("weights['b']", "the CPU", "weights['a']", "cuda:0"))
        ):
            call({"a": there, "b": here})
        with pytest.raises(
            ValueError, match=exactly(mixed("weights[1]", "the CPU", "weights[0]", "cuda:0"))
        ):
            call([Producer(there), [1.0, 2.0]])
    with pytest.raises(
        ValueError, match=exactly(mixed("weights[1]", "cuda:0", "weights[0]", "the CPU"))
    ):
        fp.penalty([here, there], L1(0.1))
    # Whether it is read does not matter for a plan; for one penalty nothing is asked of it.
    assert_same(fp.penalty([here, there], [None, L1(0.1)]), L1(0.1)(W))


@gpu.several
def test_arrays_on_two_gpus() -> None:
    zero = gpu.on_gpu(W)
    with cupy.cuda.Device(1):
        one = gpu.on_gpu(W)
    mixed = "{}: is on cuda:{} but {} is on cuda:{}; wanted all on one device".format
    for call in (
        fp.sums,
        fp.partial_sums,
        lambda w: fp.Plan(w, L1(0.1)),
        lambda w: fp.penalty(w, L1(0.1)),
    ):
        with pytest.raises(ValueError, match=exactly(mixed("weights[1]", 1, "weights[0]", 0))):
            call([zero, one])
        with pytest.raises(ValueError, match=exactly(mixed("weights[2]", 0, "weights[0]", 1))):
            call([Producer(one), one, zero])
    plan = fp.Plan([zero], L1(0.1))
    both = "grads[0]: is on cuda:1 but weights[0] is on cuda:0; wanted both on one device"
    for call in (plan.add_grad, plan.value_and_grad, lambda g: plan.clip_grad_norm(g, 0.1)):
        with pytest.raises(ValueError, match=exactly(both)):
            call([one])
    with cupy.cuda.Device(1):
        assert_same(one, W)


@gpu.several
@pytest.mark.parametrize("current", [0, 1])
def test_the_other_gpu(current: int) -> None:
    """Everything happens there, whichever device is the current one."""
    arrays = [values.make("normal", dtype, 9000) for dtype in oracle.DTYPES]
    with cupy.cuda.Device(1):
        (stream,) = gpu.streams(1)
        twins = Twins([*arrays, *(np.zeros_like(x) for x in arrays)])
        cupy.cuda.Device().synchronize()
    on_cpu = fp.Plan(twins.host[:4], L1L2(0.1, 0.3))
    with cupy.cuda.Device(current):
        results = [fp.sums(twins.gpu[:4]).total_abs, fp.penalty(twins.gpu[:4], L1(0.1))]
        plan = fp.Plan(twins.gpu[:4], L1L2(0.1, 0.3))
        results += [plan.value(), plan.value_and_grad(twins.gpu[4:]), plan.l2_norm()]
        plan.set_regularizer(L1(0.5))
        results.append(plan.clip_grad_norm(twins.gpu[4:], 1.0))
        plan.prox(0.1)
        assert cupy.cuda.Device().id == current
        limbs = fp.partial_sums(twins.gpu[:4]).limbs
        with pytest.raises(ValueError, match=r"^grads\[0\]: "):
            plan.add_grad([gpu.on_gpu(x) for x in arrays] if current == 0 else arrays)
    wanted = [fp.sums(arrays).total_abs, fp.penalty(arrays, L1(0.1)), on_cpu.value()]
    wanted += [on_cpu.value_and_grad(twins.host[4:]), on_cpu.l2_norm()]
    wanted.append(on_cpu.clip_grad_norm(twins.host[4:], 1.0))
    on_cpu.set_regularizer(L1(0.5))
    on_cpu.prox(0.1)
    with cupy.cuda.Device(1):
        for got, want in zip(results, wanted, strict=True):
            assert got.device.id == 1
            assert_same(got, want)
        np.testing.assert_array_equal(limbs, fp.partial_sums(twins.host[:4]).limbs)
        twins.check()
        with stream:
            assert_same(plan.value(), on_cpu.value())


def test_gradients_on_the_cpu() -> None:
    plan = fp.Plan({"a": gpu.on_gpu(W)}, L1(0.1))
    grad = np.zeros_like(W)
    message = "grads['a']: is on the CPU but weights['a'] is on cuda:0; wanted both on one device"
    for call in (plan.add_grad, plan.value_and_grad, lambda g: plan.clip_grad_norm(g, 0.1)):
        with pytest.raises(ValueError, match=exactly(message)):
            call([grad])
    assert not grad.any()
    on_cpu = fp.Plan([W.copy()], L1(0.1))
    there = gpu.on_gpu(np.zeros_like(W))
    for call in (on_cpu.add_grad, on_cpu.value_and_grad, lambda g: on_cpu.clip_grad_norm(g, 0.1)):
        with pytest.raises(
            ValueError, match=r"^grads\[0\]: is on cuda:0 but weights\[0\] is on the CPU"
        ):
            call([there])
    assert_same(there, grad)


# What is refused, and that nothing is written before.


def bad_grads(weight: Any) -> dict[str, tuple[Any, type[Exception], str]]:
    make = lambda shape, dtype=np.float32: gpu.on_gpu(np.zeros(shape, dtype))  # noqa: E731
    return {
        "float64": (
            make((2, 2), np.float64),
            TypeError,
            "got dtype float64; wanted float32, the weight's",
        ),
        "float16": (
            make((2, 2), np.float16),
            TypeError,
            "got dtype float16; wanted float32, the weight's",
        ),
        "int32": (make((2, 2), np.int32), TypeError, "dtype int32 is not supported"),
        "None": (None, TypeError, "got None; wanted an array"),
        "other shape": (make((2, 3)), ValueError, "got shape (2, 3); wanted (2, 2), the weight's"),
        "flat": (make(4), ValueError, "got shape (4,); wanted (2, 2), the weight's"),
        "empty": (make((0, 2)), ValueError, "got shape (0, 2); wanted (2, 2), the weight's"),
        "broadcast": (cupy.broadcast_to(make(()), (2, 2)), ValueError, "repeats its elements"),
        "the weight": (weight, ValueError, "overlaps the memory of "),
        "the weight, transposed": (weight.T, ValueError, "overlaps the memory of "),
        "part of the weight": (
            cupy.ndarray((2, 2), np.float32, weight.data + 8),
            ValueError,
            "overlaps the memory of ",
        ),
        "read-only, by DLPack": (
            Producer(make((2, 2)), flags=capsules.READ_ONLY),
            ValueError,
            "is read-only, or a copy",
        ),
        "DLPack 0": (OldProducer(make((2, 2))), ValueError, "is read-only, or a copy"),
        "read-only, by the interface": (
            OnlyInterface(make((2, 2)), read_only=True),
            ValueError,
            "is read-only, or a copy",
        ),
    }


@pytest.mark.parametrize("bad", bad_grads(gpu.on_gpu(W)))
def test_errors_leave_everything_untouched(bad: str) -> None:
    twins = Twins(
        [W, np.zeros(64, np.float32)[:4].reshape(2, 2), W, np.ones_like(W), np.ones_like(W)]
    )
    first, weight, last, *good = twins.gpu
    grad, error, message = bad_grads(weight)[bad]
    named = {"first": first, "at fault": weight, "last": last}
    for weights, label in ((named, "grads['at fault']"), ([*named.values()], "grads[1]")):
        plan = fp.Plan(weights, L1L2(0.1, 0.3))
        for call in (
            plan.add_grad,
            plan.value_and_grad,
            lambda g, p=plan: p.clip_grad_norm(g, 0.1),
        ):
            if bad == "None" and call not in (plan.add_grad, plan.value_and_grad):
                continue
            with pytest.raises(error) as raised:
                call([good[0], grad, good[1]])
            assert str(raised.value).startswith(f"{label}: {message}")
    twins.check()


def test_what_16_bit_weights_take() -> None:
    for dtype, other in (("float16", "bfloat16"), ("bfloat16", "float16")):
        plan = fp.Plan(gpu.on_gpu(W.astype(oracle.DTYPES[dtype])), L1(0.5))
        for good in (dtype, "float32"):
            plan.add_grad(gpu.on_gpu(np.zeros((2, 2), oracle.DTYPES[good])))
        for bad in (other, "float64"):
            with pytest.raises(
                TypeError,
                match=f"^grads: got dtype {bad}; wanted {dtype}, the weight's, or float32$",
            ):
                plan.add_grad(gpu.on_gpu(np.zeros((2, 2), oracle.DTYPES[bad])))


UNWRITABLE: dict[str, Callable[[], Any]] = {
    "broadcast": lambda: cupy.broadcast_to(gpu.on_gpu(np.ones((), np.float32)), (2, 2)),
    "windows": lambda: cupy.ndarray((2, 2), np.float32, gpu.on_gpu(W).data, strides=(4, 4)),
    "read-only, by DLPack": lambda: Producer(gpu.on_gpu(W), flags=capsules.READ_ONLY),
    "DLPack 0": lambda: OldProducer(gpu.on_gpu(W)),
    "read-only, by the interface": lambda: OnlyInterface(gpu.on_gpu(W), read_only=True),
}


@pytest.mark.parametrize("update", ["prox", "decay"])
@pytest.mark.parametrize("what", UNWRITABLE)
def test_weights_that_cannot_be_written(update: str, what: str) -> None:
    good, bad = gpu.on_gpu(W), UNWRITABLE[what]()
    for weights, label in (
        ([good, bad], r"weights\[1\]"),
        ({"a": good, "b": bad}, r"weights\['b'\]"),
    ):
        plan = fp.Plan(weights, L1L2(0.5, 0.25))
        with pytest.raises(
            ValueError, match=f"^{label}: (is read-only, or a copy|repeats its elements)"
        ):
            getattr(plan, update)(0.1)
        assert_same(good, W)
        assert float(plan.value()) > 0
    plan = fp.Plan([good, bad], [L1L2(0.5, 0.25), None])
    getattr(plan, update)(0.1)
    assert good.tolist() != W.tolist()


def test_elements_that_are_not_aligned() -> None:
    """The GPU could not read them, and after such an attempt CUDA would refuse everything."""
    memory = gpu.on_gpu(np.zeros(64, np.uint8))
    for dtype in (np.float16, np.float32, np.float64):
        bad = cupy.ndarray((3,), dtype, memory.data + 1)
        for call in (fp.sums, lambda w: fp.Plan(w, L1(0.1)), lambda w: fp.penalty(w, L1(0.1))):
            with pytest.raises(ValueError, match=r"^weights\[1\]: "):
                call([gpu.on_gpu(W), bad])


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint16, np.bool_, np.complex64])
def test_what_is_no_array_of_floats(dtype: Any) -> None:
    there = gpu.on_gpu(np.ones(3, dtype))
    name = np.dtype(dtype).name
    for call in (fp.sums, fp.partial_sums, lambda w: fp.Plan(w, L1(0.1))):
        with pytest.raises(
            TypeError, match=rf"^weights\[1\]: dtype {name} is not supported; wanted"
        ):
            call([gpu.on_gpu(W), there])
    with pytest.raises(TypeError, match=rf"^weights: dtype {name} is not supported"):
        L1(0.1)(there)


def test_a_shape_without_memory() -> None:
    class Nothing(Producer):
        def __dlpack__(self, **_: Any) -> Any:
            return capsules.capsule(
                cupy.ndarray(
                    (3,),
                    np.float32,
                    cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(0, 0, None, 0), 0),
                )
            )

    with pytest.raises(ValueError, match=r"^weights\[0\]: has a shape but no data to read"):
        fp.sums([Nothing(gpu.on_gpu(W))])


def test_broken_exports_say_where() -> None:
    class Broken(Producer):
        def __dlpack__(self, **_: Any) -> Any:
            raise BufferError("no export today")

    with pytest.raises(TypeError, match=r"^weights\[1\]: .*no export today"):
        fp.sums([gpu.on_gpu(W), Broken(gpu.on_gpu(W))])


# Whether there is a GPU.


def test_is_available() -> None:
    available = fp.cuda.is_available()
    assert available
    assert bool(available) is True
    assert str(available) == "available"
    assert available.reason == ""
    assert isinstance(fp.build_info()["cuda"], str)


def test_without_cupy() -> None:
    """It says what is missing, and the CPU's side works."""
    code = """
    import sys
    sys.modules["cupy"] = None
    import numpy as np
    import fused_penalties as fp
    available = fp.cuda.is_available()
    print(bool(available), available)
    class There:
        def __dlpack_device__(self): return (2, 0)
        def __dlpack__(self, **_): raise AssertionError
    for weights in ([There()], [np.ones(3), There()]):
        try:
            fp.sums(weights)
        except (RuntimeError, ValueError) as error:
            print(error)
    print(fp.sums(np.ones(3)).total_abs)
    """
    lines = fresh.output(code, PYTHONPATH=os.environ.get("PYTHONPATH", "")).splitlines()
    assert lines[0].startswith("False CuPy, which holds the results, cannot be imported")
    assert "fused-penalties[cuda]" in lines[0]
    assert lines[1].startswith("weights[0]: is on cuda:0; CuPy, which holds the results, cannot be")
    assert lines[2].startswith("weights[1]: is on cuda:0 but weights[0] is on the CPU")
    assert lines[3] == "3.0"


# torch itself.


@gpu.hardware
@pytest.mark.parametrize("name", oracle.DTYPES)
def test_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use")
    x = values.make("normal", name, 6000).reshape(60, 100)
    unsigned = torch.from_numpy(x.view(f"i{x.itemsize}").copy())
    tensor = unsigned.view(getattr(torch, name)).cuda()
    tensors = [tensor, tensor.T, tensor[:, ::3], tensor[5], tensor[:0], torch.nn.Parameter(tensor)]
    arrays = [x, x.T, x[:, ::3], x[5], x[:0], x]
    assert_same_sums(fp.sums(tensors), fp.sums(arrays))
    plan, on_cpu = fp.Plan(tensors, L1L2(0.1, 0.3)), fp.Plan(arrays, L1L2(0.1, 0.3))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        grads = [torch.zeros_like(t) for t in tensors]
        value = plan.value_and_grad(grads)
        shared = torch.from_dlpack(value)
        side.synchronize()
        assert shared.item() == float(on_cpu.value())
    wanted = [np.zeros_like(a) for a in arrays]
    on_cpu.add_grad(wanted)
    for grad, want in zip(grads, wanted, strict=True):
        got = grad.contiguous().view(unsigned.dtype).cpu().numpy().view(x.dtype)
        assert got.tobytes() == want.tobytes()
    torch.cuda.synchronize()


@gpu.hardware
def test_a_graph_of_torch() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use")
    tensor = torch.ones(9000, device="cuda")
    grad = torch.zeros_like(tensor)
    plan = fp.Plan([tensor], L1(0.5))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        plan.value_and_grad([grad], 0.0)
        plan.value_and_grad([grad], 0.0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side, capture_error_mode="relaxed"):
        value = plan.value_and_grad([grad])
    for turn in range(1, 4):
        tensor.fill_(turn)
        graph.replay()
        torch.cuda.synchronize()
        assert float(value) == 4500.0 * turn
        assert grad[0].item() == 0.5 * turn
