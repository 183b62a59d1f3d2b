"""What fp.sums takes, in what wrapping, and what it says about everything else."""

from __future__ import annotations

import array
from collections import OrderedDict
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fused_penalties as fp
import oracle
import values
from oracle import hexes
from wrapped import FakeCuda, FakeCudaInterface, OldDLPack, OnlyArray, OnlyDLPack, OtherDevice

W = np.array([[1, -2], [-3, 4]], np.float32)
functions = pytest.mark.parametrize("function", [fp.sums, fp.partial_sums])
dtypes = pytest.mark.parametrize("dtype", oracle.DTYPES)


def assert_sums(sums: fp.Sums, arrays: list[np.ndarray]) -> None:
    expected = [oracle.sums(x) for x in arrays]
    assert hexes(sums.abs) == hexes(a for a, _ in expected)
    assert hexes(sums.square) == hexes(s for _, s in expected)
    assert hexes([sums.total_abs, sums.total_square]) == hexes(oracle.totals(arrays))


# Containers.


def test_one_array() -> None:
    sums = fp.sums(W)
    assert (sums.abs.tolist(), sums.square.tolist()) == ([10.0], [30.0])
    assert (sums.total_abs, sums.total_square) == (10.0, 30.0)
    assert sums.names is None
    assert sums.abs.dtype == sums.square.dtype == np.float64
    assert sums.abs.shape == sums.square.shape == (1,)
    assert type(sums.total_abs) is type(sums.total_square) is float


def generator(arrays: list[np.ndarray]) -> Iterator[np.ndarray]:
    yield from arrays


@pytest.mark.parametrize("wrap", [list, tuple, generator, iter])
def test_sequences_and_iterables(wrap: Any) -> None:
    arrays = [values.make("normal", dtype, 1000) for dtype in oracle.DTYPES]
    sums = fp.sums(wrap(arrays))
    assert_sums(sums, arrays)
    assert sums.names is None


@pytest.mark.parametrize("wrap", [dict, OrderedDict, MappingProxyType])
def test_mappings(wrap: Any) -> None:
    arrays = {"dense/kernel": W, "bias": np.ones(3), "": np.zeros(0, np.float16)}
    sums = fp.sums(wrap(arrays))
    assert_sums(sums, list(arrays.values()))
    assert sums.names == ("dense/kernel", "bias", "")


@pytest.mark.parametrize("wrap", [list, tuple, dict, generator])
def test_nothing(wrap: Any) -> None:
    sums = fp.sums(wrap([]))
    assert sums.abs.shape == sums.square.shape == (0,)
    assert hexes([sums.total_abs, sums.total_square]) == hexes([0.0, 0.0])
    assert sums.names == (() if wrap is dict else None)


def test_nested_lists_of_numbers_are_one_float32_array() -> None:
    for weights in ([[1, -2], [-3, 4]], [1.0, -2.0, -3.0, 4.0], ((1, -2), (-3, 4))):
        assert fp.sums(weights).abs.tolist() == [10.0]
    # One third is not the same number in float32.
    assert fp.sums([1 / 3]).abs.tolist() == [float(np.float32(1 / 3))]


def test_nested_lists_among_arrays() -> None:
    sums = fp.sums([W, [[1, -2], [-3, 4]]])
    assert sums.abs.tolist() == [10.0, 10.0]
    assert fp.sums({"a": [1.0, -1.0], "b": W}).abs.tolist() == [2.0, 10.0]


def test_results_do_not_change_with_the_weights() -> None:
    x = np.ones(10)
    sums = fp.sums(x)
    x[:] = 5.0
    assert (sums.abs.tolist(), sums.total_abs) == ([10.0], 10.0)


@dtypes
@functions
def test_weights_are_never_written(dtype: str, function: Any) -> None:
    x = values.make("any bits", dtype, 10_000)
    views = [x, x[::-2], x.reshape(100, 100).T, np.broadcast_to(x[:7], (3, 7))]
    if dtype != "bfloat16":
        views.append(x.view(x.dtype.newbyteorder(">")))
    before = x.tobytes()
    function(views)
    assert x.tobytes() == before


# Kinds of arrays.


@pytest.mark.parametrize("wrap", [OnlyDLPack, OldDLPack, OnlyArray])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_array_protocols(wrap: Any, dtype: str) -> None:
    x = values.make("lognormal", dtype, 9000).reshape(30, 300)
    arrays = [x, x.T, x[:, ::-1], x[:, ::7], x[:0], x[3, 4:5].reshape(()), x]
    assert_sums(fp.sums([wrap(array) for array in arrays]), arrays)
    assert_sums(fp.sums(wrap(x)), [x])
    assert_sums(fp.sums({"w": wrap(x), "plain": x}), [x, x])


@pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.1.0", reason="NumPy before 2.1 exports no such array"
)
def test_dlpack_of_a_read_only_array() -> None:
    x = values.make("normal", "float32", 100)
    x.flags.writeable = False
    assert_sums(fp.sums([OnlyDLPack(x)]), [x])


def test_dlpack_memory_is_released() -> None:
    deleted = []

    class Watched(np.ndarray):
        def __del__(self) -> None:
            deleted.append(True)

    fp.sums([OnlyDLPack(np.ones(5000, np.float32).view(Watched))])
    assert deleted


def test_failing_dlpack_export_says_where() -> None:
    class Broken(OnlyDLPack):
        def __dlpack__(self, **arguments: Any) -> Any:
            raise BufferError("no export today")

    with pytest.raises(TypeError, match=r"^weights\[1\]: .*no export today"):
        fp.sums([W, Broken(W)])


@pytest.mark.parametrize(("code", "dtype"), [("f", np.float32), ("d", np.float64)])
def test_buffers(code: str, dtype: type) -> None:
    x = array.array(code, [1 / 3, -2.5, 1e-9] * 1000)
    for buffer in (x, memoryview(x), memoryview(x)[::2], memoryview(x).toreadonly()):
        expected = np.frombuffer(x, dtype)[:: len(x) // len(buffer)]
        assert_sums(fp.sums(buffer), [expected])
        assert_sums(fp.sums([W, buffer]), [W, expected])


def test_subclasses_of_ndarray() -> None:
    class Mine(np.ndarray):
        pass

    x = values.make("normal", "float32", 100)
    assert_sums(fp.sums([x.view(Mine), x.view(np.recarray)]), [x, x])


def test_numpy_scalar() -> None:
    assert fp.sums(np.float32(-3.0)).abs.tolist() == [3.0]
    assert fp.sums([np.float64(-3.0), W]).abs.tolist() == [3.0, 10.0]


@pytest.mark.parametrize("requires_grad", [False, True])
def test_torch(requires_grad: bool) -> None:
    torch = pytest.importorskip("torch")
    names = ["float16", "bfloat16", "float32", "float64"]
    tensors, arrays = [], []
    for name in names:
        x = values.make("normal", name, 6000)
        tensor = torch.from_numpy(x.view(f"i{x.itemsize}").copy()).view(getattr(torch, name))
        tensor = tensor.reshape(60, 100).requires_grad_(requires_grad)
        x = x.reshape(60, 100)
        tensors += [tensor, tensor.T, tensor[:, ::3], tensor[5], tensor[:0], tensor[1, 2]]
        arrays += [x, x.T, x[:, ::3], x[5], x[:0], x[1, 2:3].reshape(())]
        tensors += [tensor[0].expand(9, 100), torch.nn.Parameter(tensor.detach())]
        arrays += [np.broadcast_to(x[0], (9, 100)), x]
    assert_sums(fp.sums(tensors), arrays)
    assert_sums(fp.sums(tensors[0]), arrays[:1])
    assert_sums(fp.sums(dict(enumerate_names(tensors))), arrays)


def enumerate_names(items: list[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"item {i}", item) for i, item in enumerate(items))


def test_torch_state_dict_and_parameters() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(30, 20)
    arrays = [parameter.detach().numpy() for parameter in model.parameters()]
    assert_sums(fp.sums(model.parameters()), arrays)
    assert_sums(fp.sums(model.state_dict()), arrays)
    assert fp.sums(model.state_dict()).names == ("weight", "bias")


def test_torch_negative_bit() -> None:
    """A tensor that is negated only when it is read: the sign does not matter here."""
    torch = pytest.importorskip("torch")
    tensor = torch.tensor([1 + 2j, -3 + 4j]).conj().imag
    assert tensor.is_neg()
    assert fp.sums(tensor).abs.tolist() == [6.0]


@pytest.mark.parametrize("what", ["int", "bool", "complex", "sparse", "meta"])
def test_torch_tensors_that_are_no_weights(what: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = {
        "int": lambda: torch.ones(3, dtype=torch.int64),
        "bool": lambda: torch.ones(3, dtype=torch.bool),
        "complex": lambda: torch.ones(3, dtype=torch.complex64),
        "sparse": lambda: torch.eye(3).to_sparse(),
        "meta": lambda: torch.ones(3, device="meta"),
    }[what]()
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"^weights\[1\]: "):
        fp.sums([W, tensor])


def test_jax() -> None:
    jax = pytest.importorskip("jax")
    arrays = [values.make("normal", name, 6000) for name in ("float16", "bfloat16", "float32")]
    device_arrays = [jax.numpy.asarray(x).reshape(60, 100) for x in arrays]
    assert_sums(fp.sums(device_arrays), arrays)
    assert_sums(fp.sums(device_arrays[0].T), [np.asarray(device_arrays[0].T)])
    assert_sums(fp.sums({"layer": device_arrays[2]}), arrays[2:])


# Tied weights.


def test_tied_weights_count_as_often_as_they_are_listed() -> None:
    sums = fp.sums([W, np.ones(2), W, W.T])
    assert sums.abs.tolist() == [10.0, 2.0, 10.0, 10.0]
    assert sums.total_abs == 32.0


def test_unique_counts_each_piece_of_memory_once() -> None:
    other = np.ones(2)
    sums = fp.sums([W, other, W, W.T, W.reshape(-1)[::-1], W.copy(), other], unique=True)
    assert sums.abs.tolist() == [10.0, 2.0, 0.0, 0.0, 0.0, 10.0, 0.0]
    assert sums.square.tolist() == [30.0, 2.0, 0.0, 0.0, 0.0, 30.0, 0.0]
    assert (sums.total_abs, sums.total_square) == (22.0, 62.0)


def test_unique_keeps_names_and_places() -> None:
    sums = fp.sums({"embedding": W, "bias": np.ones(3), "head": W.T}, unique=True)
    assert sums.names == ("embedding", "bias", "head")
    assert sums.abs.tolist() == [10.0, 3.0, 0.0]


def test_unique_tells_parts_of_one_array_apart() -> None:
    x = np.arange(8, dtype=np.float32)
    sums = fp.sums([x[:4], x[4:], x[::2], x[1::2]], unique=False)
    assert sums.abs.tolist() == [6.0, 22.0, 12.0, 16.0]
    assert fp.sums([x[:4], x[4:]], unique=True).abs.tolist() == [6.0, 22.0]
    assert fp.sums([x[::2], x[1::2]], unique=True).abs.tolist() == [12.0, 16.0]
    assert fp.sums([x[::2], x[::2]], unique=True).abs.tolist() == [12.0, 0.0]
    # The same first element and the same number of elements.
    assert fp.sums([x[:4:2], x[:6:3]], unique=True).abs.tolist() == [2.0, 3.0]
    assert fp.sums([x[:4].reshape(2, 2), x[:4]], unique=True).abs.tolist() == [6.0, 0.0]


def test_unique_tells_dtypes_apart_only_by_memory() -> None:
    empty = [np.zeros(0, np.float32), np.zeros(0, np.float32)]
    sums = fp.sums([*empty, np.float32([1.0]), np.float64([1.0])], unique=True)
    assert sums.abs.tolist() == [0.0, 0.0, 1.0, 1.0]


def test_unique_across_libraries() -> None:
    torch = pytest.importorskip("torch")
    x = np.ones((3, 4), np.float32)
    shared = [x, torch.from_numpy(x), torch.nn.Parameter(torch.from_numpy(x)), OnlyDLPack(x.T)]
    assert fp.sums(shared, unique=True).abs.tolist() == [12.0, 0.0, 0.0, 0.0]


# What is refused, and how.

NOT_FLOATING = {
    "int8": np.ones(3, np.int8),
    "uint16": np.ones(3, np.uint16),
    "int64": np.ones(3, np.int64),
    "bool": np.ones(3, np.bool_),
    "complex64": np.ones(3, np.complex64),
    "object": np.array([1.0, None], object),
    "str": np.array(["a", "bc"]),
    "bytes": np.array([b"a", b"bc"]),
    "structured": np.zeros(3, [("a", np.float32), ("b", np.float32)]),
    "datetime64": np.zeros(3, "datetime64[s]"),
    "float8_e4m3fn": np.ones(3, ml_dtypes.float8_e4m3fn),
    "empty int64": np.zeros(0, np.int64),
    "big-endian int32": np.ones(3, ">i4"),
    "array of int": array.array("i", [1, 2]),
    "bytearray": bytearray(b"abcd"),
}
if np.longdouble is not np.float64 and np.dtype(np.longdouble).itemsize > 8:
    NOT_FLOATING["longdouble"] = np.ones(3, np.longdouble)


@functions
@pytest.mark.parametrize("what", NOT_FLOATING)
def test_dtypes_that_are_no_weights(function: Any, what: str) -> None:
    bad = NOT_FLOATING[what]
    with pytest.raises(TypeError, match=r"^weights: "):
        function(bad)
    with pytest.raises(TypeError, match=r"^weights\[3\]: "):
        function([W, W, W, bad, None])
    with pytest.raises(TypeError, match=r"^weights\['dense/kernel'\]: "):
        function({"bias": W, "dense/kernel": bad})


@pytest.mark.parametrize("what", ["int64", "bool", "complex64", "float8_e4m3fn"])
def test_the_message_names_the_dtype_and_what_is_wanted(what: str) -> None:
    with pytest.raises(TypeError) as raised:
        fp.sums([NOT_FLOATING[what]])
    message = str(raised.value)
    assert what in message
    for wanted in ("float16", "bfloat16", "float32", "float64"):
        assert wanted in message


@functions
def test_none(function: Any) -> None:
    with pytest.raises(TypeError, match=r"^weights: .*None"):
        function(None)
    with pytest.raises(TypeError, match=r"^weights\[1\]: .*None"):
        function([W, None])
    with pytest.raises(TypeError, match=r"^weights\['bias'\]: .*None"):
        function({"kernel": W, "bias": None})


@pytest.mark.parametrize("bad", ["weights.npz", b"abcd", object(), 1 + 2j, len])
def test_things_that_are_no_arrays(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"^weights"):
        fp.sums(bad)
    with pytest.raises(TypeError, match=r"^weights\[1\]: "):
        fp.sums([W, bad])
    with pytest.raises(TypeError, match=r"^weights\['b'\]: "):
        fp.sums({"a": W, "b": bad})


@pytest.mark.parametrize("ragged", [[[1.0], [1.0, 2.0]], [1.0, [2.0]], [[[1.0]], [[1.0], [2.0]]]])
def test_ragged_lists(ragged: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"^weights"):
        fp.sums(ragged)
    with pytest.raises(ValueError, match=r"^weights\[1\]: "):
        fp.sums([W, ragged])


def test_lists_of_what_is_no_number() -> None:
    with pytest.raises(TypeError, match=r"^weights"):
        fp.sums([1.0, "two"])
    with pytest.raises(TypeError, match=r"^weights"):
        fp.sums([[1.0, None]])


without_cuda = pytest.mark.skipif(
    bool(fp.cuda.is_available()), reason="says what is said where there is no GPU"
)


@without_cuda
@functions
@pytest.mark.parametrize("fake", [FakeCuda, FakeCudaInterface])
def test_cuda_array_without_cuda(function: Any, fake: Any) -> None:
    with pytest.raises(RuntimeError, match=r"^weights: .*CUDA"):
        function(fake())
    with pytest.raises(RuntimeError, match=r"^weights\[0\]: .*CUDA"):
        function([fake(), fake()])
    with pytest.raises(RuntimeError, match=r"^weights\['w'\]: .*CUDA"):
        function({"w": fake()})


@functions
@pytest.mark.parametrize("fake", [FakeCuda, FakeCudaInterface])
def test_mixed_devices(function: Any, fake: Any) -> None:
    with pytest.raises(ValueError, match=r"^weights\[2\]: .*device"):
        function([W, W, fake(), fake()])
    with pytest.raises(ValueError, match=r"^weights\['b'\]: .*device"):
        function({"a": fake(), "b": W})


@functions
def test_other_devices(function: Any) -> None:
    with pytest.raises((TypeError, RuntimeError), match=r"^weights\[0\]: .*device"):
        function([OtherDevice()])


def test_a_bad_item_stops_the_call_before_anything_is_lost() -> None:
    """The weights, and what was read from an iterator, can be used again."""
    arrays = [W, np.ones(3), np.ones(3, int)]
    with pytest.raises(TypeError, match=r"^weights\[2\]: "):
        fp.sums(arrays)
    assert fp.sums(arrays[:2]).abs.tolist() == [10.0, 3.0]


def test_an_iterator_that_fails_passes_its_own_error_on() -> None:
    def failing() -> Iterator[np.ndarray]:
        yield W
        raise LookupError("out of weights")

    with pytest.raises(LookupError, match="out of weights"):
        fp.sums(failing())


def test_non_finite_weights_are_no_error() -> None:
    sums = fp.sums([np.array([np.nan, 1.0]), np.array([-np.inf, 1.0]), W])
    assert np.isnan(sums.abs[0])
    assert sums.abs[1:].tolist() == [np.inf, 10.0]
    assert np.isnan(sums.total_abs)


def test_unknown_arguments() -> None:
    with pytest.raises(TypeError):
        fp.sums(W, 2)  # type: ignore[misc]
    with pytest.raises(TypeError):
        fp.sums(W, nthreads=2)  # type: ignore[call-arg]


def test_names_that_read_alike() -> None:
    with pytest.raises(ValueError, match=r"^weights: two keys read '1'"):
        fp.sums({1: np.ones(2), "1": np.ones(2)})


def test_numbers_beyond_float32() -> None:
    assert fp.sums([1e300]).abs[0] == np.inf
    with pytest.raises(ValueError, match=r"^weights: got an integer beyond any float"):
        fp.sums([10**400])


def test_pairs_of_names_and_arrays_get_a_hint() -> None:
    with pytest.raises(TypeError, match=r"^weights\[0\]: .*dict\(\)"):
        fp.sums([("a", np.ones(2))])
