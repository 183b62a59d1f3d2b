"""Weights that are torch's: memory, streams and results are torch's too; CuPy need not be there.

Where the GPU is emulated so is torch (``emulated/torch.py``); the tests at the end need a real one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fresh
import fused_penalties as fp
import gpu
import oracle
import values
from fused_penalties import _memory, regularizers
from gpu import Twins, cupy

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a GPU that torch can use", allow_module_level=True)

L1, L2, L1L2 = regularizers.L1, regularizers.L2, regularizers.L1L2
pytestmark = gpu.marks


def tensor_of(array: Any) -> Any:
    """A CuPy array's memory as a tensor."""
    return torch.Tensor(array) if gpu.EMULATED else torch.from_dlpack(array)


def assert_same(got: Any, wanted: Any) -> None:
    """A tensor with the bits of a NumPy array or of a number."""
    wanted = np.asarray(wanted)
    assert type(got) is torch.Tensor
    found = got.cpu().numpy()
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    assert found.tobytes() == wanted.tobytes()


def assert_same_sums(got: fp.Sums, wanted: fp.Sums) -> None:
    names = "abs", "square", "rms", "l2_norm"
    for name in (*names, *(f"total_{name}" for name in names)):
        assert_same(getattr(got, name), getattr(wanted, name))
    assert (got.names, got.sizes.tolist()) == (wanted.names, wanted.sizes.tolist())


def many(w: Any) -> float:
    """A regularizer that is no sum of L1 and L2."""
    return float(w.shape[0])


RESULTS: dict[str, Callable[[Any], Any]] = {
    "penalty": lambda w: fp.penalty(w, L1L2(0.1, 0.3)),
    "penalty of nothing": lambda w: fp.penalty(w, None),
    "penalty by functions": lambda w: fp.penalty(w, [L1(0.1), many, None, None]),
    "only functions": lambda w: fp.penalty(w, many),
    "L1": lambda w: L1(0.1)(w[0]),
    "value": lambda w: fp.Plan(w, L1L2(0.1, 0.3)).value(),
    "values": lambda w: fp.Plan(w, L1L2(0.1, 0.3)).values(),
    "value by functions": lambda w: fp.Plan(w, [L1(0.1), many, None, None]).value(),
    "values by functions": lambda w: fp.Plan(w, [L1(0.1), many, None, None]).values(),
    "l1_norm": lambda w: fp.Plan(w, None).l1_norm(),
    "l2_norm": lambda w: fp.Plan(w, None).l2_norm(),
    "clip_grad_norm": lambda w: fp.Plan(w[1:2], None).clip_grad_norm(w[3:], 0.5),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("call", RESULTS)
def test_results_are_tensors(call: str, dtype: str) -> None:
    arrays = [values.make("normal", dtype, length, length) for length in (9000, 5, 0, 5)]
    twins = Twins(arrays)
    found = RESULTS[call]([tensor_of(x) for x in twins.gpu])
    wanted = RESULTS[call](arrays)
    assert_same(found, wanted)


def test_sums() -> None:
    arrays = [values.make("normal", dtype, 4000) for dtype in ("float32", "float64", "float16")]
    twins = Twins(arrays)
    names = ["a", "b", "c"]
    found = fp.sums(dict(zip(names, map(tensor_of, twins.gpu), strict=True)))
    wanted = fp.sums(dict(zip(names, arrays, strict=True)))
    assert_same_sums(found, wanted)
    assert found.to_dict() == wanted.to_dict()
    assert found["b"].size == 4000
    assert_same(found["b"].rms, wanted["b"].rms)
    parts = fp.partial_sums(list(map(tensor_of, twins.gpu)))
    assert parts.limbs.tolist() == fp.partial_sums(arrays).limbs.tolist()


def test_named() -> None:
    """Each with the dtype that it has alone."""
    arrays = {"a": values.make("normal", "float32", 50), "b": values.make("normal", "float64", 50)}
    twins = Twins(arrays.values())
    tensors = dict(zip(arrays, map(tensor_of, twins.gpu), strict=True))
    named = fp.Plan(tensors, L2(0.3)).named()
    for name, x in arrays.items():
        assert_same(named[name], L2(0.3)(x))


def test_the_library_of_a_mixed_list() -> None:
    """Torch's if one of them is torch's, wherever it stands."""
    x = values.make("normal", "float32", 100)
    twins = Twins([x, x + 1])
    first, second = twins.gpu
    for mixed in ([tensor_of(first), second], [first, tensor_of(second)]):
        assert_same(fp.penalty(mixed, L1(0.5)), fp.penalty([x, x + 1], L1(0.5)))
    assert type(fp.penalty([first, second], L1(0.5))) is cupy.ndarray


def test_work_is_on_torchs_stream_of_the_moment() -> None:
    """Each call waits for the one before it, and for nothing else."""
    x, g = (values.make("normal", "float32", 9000, seed) for seed in (1, 2))
    twins = Twins([x, g])
    weights, grads = map(tensor_of, twins.gpu)
    streams = [torch.cuda.Stream() for _ in range(2)]
    cupy.cuda.Device().synchronize()
    with torch.cuda.stream(streams[0]):
        plan = fp.Plan([weights], L1L2(0.1, 0.3))
    on_cpu = fp.Plan(twins.host[0], L1L2(0.1, 0.3))
    for turn in range(4):
        with torch.cuda.stream(streams[turn % 2]):
            value = plan.value_and_grad([grads])
            plan.prox(0.01)
            norm = plan.clip_grad_norm([grads], 1.0)
            wanted = on_cpu.value_and_grad(twins.host[1])
            on_cpu.prox(0.01)
            assert_same(norm, on_cpu.clip_grad_norm(twins.host[1], 1.0))
            assert_same(value, wanted)
    cupy.cuda.Device().synchronize()
    twins.check()


@pytest.mark.parametrize("call", ["add_grad", "value_and_grad", "clip_grad_norm", "prox"])
def test_cupy_sees_what_was_written_into_its_arrays(call: str) -> None:
    """And what it wrote before is seen: its stream comes before and after torch's."""
    x, g = (values.make("normal", "float32", 9000, seed) for seed in (1, 2))
    twins = Twins([x, x + 1, np.zeros_like(g), np.zeros_like(g)])
    on_cpu = fp.Plan(twins.host[:2], L1L2(0.1, 0.3))
    weights = [tensor_of(twins.gpu[0]), twins.gpu[1]]
    grads = [tensor_of(twins.gpu[2]), twins.gpu[3]]
    (cupys,), torchs = gpu.streams(1), torch.cuda.Stream()
    cupy.cuda.Device().synchronize()
    with cupys, torch.cuda.stream(torchs):
        plan = fp.Plan(weights, L1L2(0.1, 0.3))
        twins.gpu[3].set(g)
        twins.host[3][:] = g
        for one, given in ((plan, grads), (on_cpu, twins.host[2:])):
            arguments = {"clip_grad_norm": (given, 1.0), "prox": (0.01,)}.get(call, (given,))
            getattr(one, call)(*arguments)
        for at in (1, 3):
            assert twins.gpu[at].get().tobytes() == twins.host[at].tobytes()
    torchs.synchronize()
    twins.check()


@gpu.emulation
def test_nothing_is_waited_for() -> None:
    x = values.make("normal", "float32", 9000)
    (weights,) = map(tensor_of, Twins([x]).gpu)
    side = torch.cuda.Stream()
    cupy.cuda.Device().synchronize()
    with torch.cuda.stream(side):
        value = fp.penalty([weights], L1(0.5))
        assert not side.stream.done
        assert_same(value, L1(0.5)(x))
    assert side.stream.done


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64"])
@pytest.mark.parametrize("call", ["add_grad", "write_grad", "value_and_grad"])
@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_an_upstream_that_is_on_the_gpu(library: str, call: str, dtype: str) -> None:
    """Kernels read it in the order of the stream; types that they do not know are waited for."""
    of_cupy = library == "cupy"
    x, g = (values.make("normal", "float32", 9000, seed) for seed in (1, 2))
    twins = Twins([x, g])
    weights, grads = twins.gpu if of_cupy else map(tensor_of, twins.gpu)
    (cupys,), torchs = gpu.streams(1), torch.cuda.Stream()
    cupy.cuda.Device().synchronize()
    with cupys, torch.cuda.stream(torchs):
        plan, on_cpu = (fp.Plan([w], L1L2(0.1, 0.3)) for w in (weights, twins.host[0]))
        getattr(plan._plan, call)(plan._applied.evaluation.strengths, [grads], 0.0)
        getattr(on_cpu._plan, call)(on_cpu._applied.evaluation.strengths, [twins.host[1]], 0.0)
        one = np.array(-3, dtype)
        upstream = cupy.asarray(one) if of_cupy else torch.as_tensor(one, device="cuda:0")
        getattr(plan._plan, call)(plan._applied.evaluation.strengths, [grads], upstream)
        if gpu.EMULATED and dtype in ("float32", "float64"):
            assert not (cupys if of_cupy else torchs.stream).done
        getattr(on_cpu._plan, call)(on_cpu._applied.evaluation.strengths, [twins.host[1]], -3.0)
        (cupys if of_cupy else torchs).synchronize()
    twins.check()


@gpu.several
def test_on_the_other_device() -> None:
    x = values.make("normal", "float32", 9000)
    with cupy.cuda.Device(1):
        there = tensor_of(gpu.on_gpu(x))
        cupy.cuda.Device().synchronize()
    plan = fp.Plan([there], L1(0.5))
    for found in (plan.value(), plan.sums().total_abs, plan.sums().rms):
        assert found.__dlpack_device__() == (2, 1)
    assert_same(plan.value(), L1(0.5)(x))
    assert_same(plan.sums().rms, fp.sums([x]).rms)


def test_without_cupy() -> None:
    """A user of torch need not have it: not one call asks for it."""
    code = """
    import sys, numpy as np, torch, capsules
    import values
    x = values.make("normal", "float32", 9000)
    emulated = not hasattr(torch, "__version__")
    if not emulated:
        sys.modules["cupy"] = None
    weights, grads = (torch.as_tensor(a, device="cuda:0") for a in (x, np.zeros_like(x)))
    sys.modules["cupy"] = None
    import fused_penalties as fp
    from fused_penalties.regularizers import L1, L2, OrthogonalRegularizer
    assert fp.cuda.is_available()
    plan, on_cpu = fp.Plan([weights], L2(0.5)), fp.Plan([x], L2(0.5))
    zeros = np.zeros_like(x)
    for one, w, g in ((plan, weights, grads), (on_cpu, x, zeros)):
        one.set_regularizer(L1(0.5))
        results = [one.value_and_grad([g]), one.values(), one.l2_norm(), one.sums().rms]
        results += [fp.penalty([w], L2(0.5)), fp.penalty([w], lambda w: 2.0), L1(0.5)(w)]
        one.add_grad([g])
        one.prox(0.1)
        one.decay(0.1)
        results += [one.clip_grad_norm([g], 1.0), fp.partial_sums([w]).limbs]
        results = [r.cpu().numpy() if hasattr(r, "cpu") else np.asarray(r) for r in results]
        print([r.tobytes().hex() for r in results])
    print(grads.cpu().numpy().tobytes() == zeros.tobytes())
    print(weights.cpu().numpy().tobytes() == x.tobytes())
    """
    there, here, *same = fresh.output(code, PYTHONPATH=os.pathsep.join(sys.path)).splitlines()
    assert there == here
    assert same == ["True", "True"]


def test_memory_that_is_not_there() -> None:
    """The core writes into no array that is too small, or elsewhere."""
    core = fp._core.bind(
        [tensor_of(gpu.on_gpu(np.ones(9000, np.float32)))], None, True, None, True, False, False
    )
    library = _memory.of([tensor_of(gpu.on_gpu(np.ones(1, np.float32)))])
    sizes = core.table_bytes, 16, core.workspace_bytes, core.workspace_bytes
    memory = [library.empty((size,), "uint8", 0) for size in sizes]
    for at in range(4):
        short = list(memory)
        short[at] = library.empty((sizes[at] - 1,), "uint8", 0)
        with pytest.raises(
            ValueError,
            match=rf"^memory: got {sizes[at] - 1} bytes on cuda:0; wanted {sizes[at]} on",
        ):
            core.attach(0, *short)
    core.attach(0, *memory)
    with pytest.raises(ValueError, match=r"^memory: got 8 bytes on cuda:0; wanted 16 on cuda:0"):
        core.norm(0, library.empty((1,), "float64", 0))
    with pytest.raises(TypeError, match=r"^memory: got an array of another library"):
        core.norm(0, cupy.empty(2, np.float64))


# torch itself.


@gpu.hardware
@pytest.mark.parametrize("name", oracle.DTYPES)
def test_torch(name: str) -> None:
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
        assert type(value) is torch.Tensor
        side.synchronize()
        assert value.item() == float(on_cpu.value())
    wanted = [np.zeros_like(a) for a in arrays]
    on_cpu.add_grad(wanted)
    for grad, want in zip(grads, wanted, strict=True):
        got = grad.contiguous().view(unsigned.dtype).cpu().numpy().view(x.dtype)
        assert got.tobytes() == want.tobytes()
    torch.cuda.synchronize()


@gpu.hardware
def test_a_penalty_in_a_loss_waits_for_nothing() -> None:
    from fused_penalties.torch import penalty

    params = [torch.nn.Parameter(torch.randn(n, device="cuda")) for n in (9000, 70)]
    scale = torch.tensor(3.0, device="cuda")
    for turn in range(2):  # the first one finds the memory of weights and gradients
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if turn else "default")
        try:
            (penalty(params, L2(0.5)) * scale).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for param in params:
        assert torch.equal(param.grad, 2 * (3.0 * param.detach()))


@gpu.hardware
def test_a_graph_of_torch() -> None:
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
    with torch.cuda.graph(graph, stream=side):
        value = plan.value_and_grad([grad])
    for turn in range(1, 4):
        tensor.fill_(turn)
        graph.replay()
        torch.cuda.synchronize()
        assert float(value) == 4500.0 * turn
        assert grad[0].item() == 0.5 * turn
