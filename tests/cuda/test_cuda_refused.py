"""What is refused on a GPU, in what words, and that nothing is written before; several devices."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import capsules
import fused_penalties as fp
import gpu
import oracle
import values
from capsules import OldProducer, OnlyInterface, Producer
from fused_penalties import regularizers
from gpu import Twins, assert_same, cupy
from messages import exactly

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
pytestmark = gpu.marks
W = np.array([[1, -2], [-3, 4]], np.float32)


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
    # Whether it is read does not matter for a plan; for one penalty nothing is asked of it.
    with pytest.raises(
        ValueError, match=exactly(mixed("weights[1]", "cuda:0", "weights[0]", "the CPU"))
    ):
        fp.Plan([here, there], [None, L1(0.1)])
    assert_same(fp.penalty([here, there], [None, L1(0.1)]), L1(0.1)(W))
    assert_same(fp.penalty([here, there], [lambda w: 1.0, L1(0.5)]), np.float32(6.0))


def test_chunks_on_a_gpu() -> None:
    stream = fp.StreamingSums()
    for chunk in (gpu.on_gpu(W), Producer(gpu.on_gpu(W)), gpu.on_gpu(W[:0])):
        with pytest.raises(ValueError, match=exactly("chunk: is on cuda:0; wanted it on the CPU")):
            stream.update(chunk)
    assert (stream.dtype, stream.size) == (None, 0)


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


@gpu.emulation
def test_no_context_is_made_on_the_device_that_is_current() -> None:
    """By a thread that never used any: its current device is the first one, and stays that."""
    x = values.make("normal", "float32", 9000)
    with cupy.cuda.Device(1):
        (stream,) = gpu.streams(1)
        twins = Twins([x, np.zeros_like(x)])
        cupy.cuda.Device().synchronize()
    found: list[Any] = []

    def work() -> None:
        plan = fp.Plan([twins.gpu[0]], L1L2(0.1, 0.3))
        found.append(plan.value_and_grad([Producer(twins.gpu[1])]))
        with fp._core.OnDevice(1), stream:
            plan.value()
        del plan  # whose memory goes back later, by what follows
        found.append(fp.sums([OnlyInterface(twins.gpu[0], stream.ptr)]).total_abs)
        found.append(fp.penalty([twins.gpu[0]], [many]))
        assert cupy.cuda.runtime.getDevice() == 0

    cupy._lib.emulated_forget_context(0)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not cupy._lib.emulated_has_context(0)
    plan = fp.Plan([x], L1L2(0.1, 0.3))
    with cupy.cuda.Device(1):
        assert_same(found[0], plan.value_and_grad(twins.host[1:]))
        assert_same(found[1], fp.sums([x]).total_abs)
        assert_same(found[2], np.float32(9000))
        twins.check()


def many(w: Any) -> float:
    """A regularizer that is no sum of L1 and L2."""
    return float(w.shape[0])


@gpu.emulation
@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (12020, "the GPU's driver is one for CUDA 12.2; wanted one for CUDA 13.0"),
        (0, "there is no driver for a GPU; wanted one for CUDA 13.0"),
    ],
)
def test_a_driver_that_is_too_old(driver: int, reason: str) -> None:
    before = cupy._lib.emulated_driver(driver)
    try:
        available = fp.cuda.is_available.__wrapped__()
    finally:
        cupy._lib.emulated_driver(before)
    assert not available
    assert str(available) == f"{reason} (cudaErrorInsufficientDriver)"


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


@pytest.mark.parametrize("use", ["add_grad", "value_and_grad"])
def test_strengths_that_change_during_a_call(use: str) -> None:
    """It has those that it began with, and the next one the others."""
    there, grad = gpu.on_gpu(W), gpu.on_gpu(np.zeros_like(W))
    plan = fp.Plan([there], L1(1.0))
    calls = Producer(grad, arrives=lambda stream: plan.set_regularizer(L2(0.5)))
    value = getattr(plan, use)([calls])
    assert np.array_equal(grad.get(), np.sign(W))
    assert value is None or float(value) == 10.0
    assert float(plan.value()) == 15.0
    plan.add_grad([grad])
    assert np.array_equal(grad.get(), np.sign(W) + W)


def test_strengths_that_several_threads_set() -> None:
    """Whichever is the last one, the plan goes on."""
    plan = fp.Plan([gpu.on_gpu(W)], L1(1.0))
    values = {float(fp.Plan([W], L1(k)).value()) for k in range(1, 5)}
    for _ in range(50):
        threads = [
            threading.Thread(target=plan.set_regularizer, args=(L1(k),)) for k in range(1, 5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert float(plan.value()) in values


def test_strengths_of_another_plan() -> None:
    mine, other = (fp.Plan([gpu.on_gpu(W)] * n, L1(1.0))._plan for n in (1, 2))
    with pytest.raises(ValueError, match="another plan's"):
        mine.value(other.strengths(1.0, 1.0))
