"""What is an array, and what is not: the same from every entry of the package.

Every array here has the elements 1, -2, -3 and 4, whatever its shape, so that Σ|w| is 10.
"""

from __future__ import annotations

import array
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fused_penalties as fp
from fresh import output
from fused_penalties import contrib
from fused_penalties.regularizers import L1, OrthogonalRegularizer

W = np.array([[1, -2], [-3, 4]], np.float32)
Make = Callable[[], Any]

# From an array to its Σ|w|. A plan is apart: it does not take copies.
ENTRIES: dict[str, Callable[[Any], Any]] = {
    "sums": lambda x: fp.sums(x).total_abs,
    "sums of a list": lambda x: fp.sums([x]).abs[0],
    "sums of a mapping": lambda x: fp.sums({"w": x}).abs[0],
    "partial_sums": lambda x: fp.partial_sums(x).sums().total_abs,
    "partial_sums of a mapping": lambda x: fp.partial_sums({"w": x}).sums().total_abs,
    "StreamingSums": lambda x: streamed(x),
    "penalty": lambda x: fp.penalty(x, L1(1.0)),
    "penalty of a mapping": lambda x: fp.penalty({"w": x}, {".": L1(1.0)}),
    "L1": lambda x: L1(1.0)(x),
    "l1_regularizer": lambda x: contrib.l1_regularizer(1.0)(x),
    "apply_regularization": lambda x: contrib.apply_regularization(L1(1.0), x),
    "apply_regularization to a list": lambda x: contrib.apply_regularization(L1(1.0), [x]),
    "add_n": lambda x: fp.add_n([fp.tf1.losses.Loss("w", [x], [L1(1.0)])]),
}
PLANS: dict[str, Callable[[Any], Any]] = {
    "Plan": lambda x: fp.Plan(x, L1(1.0)).value(),
    "Plan of a list": lambda x: fp.Plan([x], L1(1.0)).value(),
    "Plan of a mapping": lambda x: fp.Plan({"w": x}, {".": L1(1.0)}).value(),
}
entries = pytest.mark.parametrize("entry", {**ENTRIES, **PLANS})


def streamed(x: Any) -> float:
    stream = fp.StreamingSums()
    stream.update(x)
    return float(stream.sums().total_abs)


class ByDLPack:
    def __dlpack__(self, **arguments: Any) -> Any:
        return W.__dlpack__(**arguments)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class ByArray:
    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return W


class ByArrayCopied:
    dtype = "what NumPy knows nothing of"

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return W.copy()


class ByDLPackCopied(ByDLPack):
    def __dlpack__(self, **arguments: Any) -> Any:
        return W.copy().__dlpack__(**arguments)


class Subclass(np.ndarray):
    """One that is in the way of whoever asks it for another view."""

    def view(self, *arguments: Any) -> Any:
        return [1, 2, 3]


def torch() -> Any:
    return pytest.importorskip("torch")


def pandas() -> Any:
    return pytest.importorskip("pandas")


def sparse() -> Any:
    return pytest.importorskip("scipy.sparse")


def jax() -> Any:
    return pytest.importorskip("jax")


def memmap() -> np.ndarray:
    """Of this very file, whose bytes stay what they are."""
    x = np.memmap(__file__, np.float32, "c", shape=(4,))
    x[:] = W.reshape(-1)
    return x


ARRAYS: dict[str, Make] = {
    "array": lambda: W,
    "view": lambda: W[::-1].T,
    "subclass": lambda: np.ndarray.view(W, Subclass),
    "matrix": lambda: W.view(np.matrix),
    "memmap": memmap,
    "memoryview": lambda: memoryview(W),
    "read-only memoryview": lambda: memoryview(W.reshape(-1)).toreadonly(),
    "array.array": lambda: array.array("d", [1, -2, -3, 4]),
    "DLPack": ByDLPack,
    "__array__": ByArray,
    "pandas Series": lambda: pandas().Series([1.0, -2.0, -3.0, 4.0]),
    "pandas Index": lambda: pandas().Index([1.0, -2.0, -3.0, 4.0]),
    "pandas DataFrame": lambda: pandas().DataFrame({"a": [1.0, -2.0], "b": [-3.0, 4.0]}),
    "pandas Float32": lambda: pandas().Series([1.0, -2.0, -3.0, 4.0], dtype="Float32"),
    "pandas Float64": lambda: pandas().array([1.0, -2.0, -3.0, 4.0], dtype="Float64"),
    "torch": lambda: torch().tensor(W.copy()),
    "torch bfloat16": lambda: torch().tensor(W.copy()).bfloat16().T,
    "torch Parameter": lambda: torch().nn.Parameter(torch().tensor(W.copy())),
    "jax": lambda: jax().numpy.asarray(W),
}
COPIES: dict[str, Make] = {
    "list": lambda: [[1.0, -2.0], [-3.0, 4.0]],
    "__array__ of a copy": ByArrayCopied,
    "DLPack of a copy": ByDLPackCopied,
    "pandas DataFrame of two dtypes": lambda: pandas().DataFrame(
        {"a": [1.0, -2.0], "b": np.array([-3.0, 4.0], "f4")}
    ),
}


def fake() -> Any:
    torch()
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch().ones(3)


def distributed() -> Any:
    """A DTensor of a group of one process."""
    dist = pytest.importorskip("torch.distributed")
    if not dist.is_available():
        pytest.skip("a torch without distributed")
    from torch.distributed.tensor import DTensor, Replicate, init_device_mesh

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return DTensor.from_local(torch().ones(3), init_device_mesh("cpu", (1,)), [Replicate()])


def masked() -> Any:
    torch()
    from torch.masked import masked_tensor

    return masked_tensor(torch().ones(3), torch().tensor([True, False, True]))


def wrapped() -> Any:
    """A subclass whose values are somewhere else."""

    class Doubled(torch().Tensor):
        @staticmethod
        def __new__(cls: Any, inner: Any) -> Any:
            return torch().Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

        @classmethod
        def __torch_dispatch__(cls, *arguments: Any, **more: Any) -> Any:
            raise NotImplementedError

    return Doubled(torch().ones(3))


REFUSED: dict[str, tuple[Make, str]] = {
    "masked array": (lambda: np.ma.array(W), "a masked array, a MaskedArray; .*without a mask"),
    "csr_matrix": (lambda: sparse().csr_matrix(W), "csr_matrix, which is sparse; .*dense"),
    "coo_array": (lambda: sparse().coo_array(W), "coo_array, which is sparse; .*dense"),
    "dok_matrix": (lambda: sparse().dok_matrix(W), "dok_matrix, which is sparse; .*dense"),
    "empty csr": (lambda: sparse().csr_array((0, 3)), "csr_array, which is sparse; .*dense"),
    "torch sparse_coo": (lambda: torch().eye(3).to_sparse(), "Tensor of layout .*_coo; .*dense"),
    "torch sparse_csr": (
        lambda: torch().eye(3).to_sparse_csr(),
        "Tensor of layout .*_csr; .*dense",
    ),
    "lazy parameter": (
        lambda: torch().nn.LazyLinear(8).weight,
        "UninitializedParameter, .*no values until .*wanted",
    ),
    "lazy buffer": (
        lambda: torch().nn.LazyBatchNorm1d().running_mean,
        "UninitializedBuffer, .*no values until .*wanted",
    ),
    "meta": (lambda: torch().ones(3, device="meta"), "Tensor that has a shape but no values"),
    "meta parameter": (
        lambda: torch().nn.Linear(3, 2, device="meta").weight,
        "Parameter that has a shape but no values",
    ),
    "fake": (fake, "FakeTensor that has a shape but no values; wanted"),
    "torch masked": (masked, "a masked array, a MaskedTensor; .*without a mask"),
    "distributed": (distributed, "DTensor, which is distributed; .*to_local"),
    "wrapper": (wrapped, "Doubled, whose values are made when torch asks; wanted"),
    "untyped storage": (lambda: torch().ones(3).untyped_storage(), "UntypedStorage; wanted"),
    "storage": (lambda: torch().ones(3).storage(), "TypedStorage; wanted"),
    "abstract jax": (lambda: jax().ShapeDtypeStruct((3,), np.float32), "ShapeDtypeStruct; wanted"),
    "None": (lambda: None, "None"),
}


WITH_DTYPE = [
    kind for kind in REFUSED if kind not in ("None", "abstract jax") and "storage" not in kind
]


@entries
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays(kind: str, entry: str) -> None:
    assert {**ENTRIES, **PLANS}[entry](ARRAYS[kind]()) == 10.0


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_read_at_once(kind: str, entry: str) -> None:
    assert ENTRIES[entry](COPIES[kind]()) == 10.0


@pytest.mark.parametrize("entry", PLANS)
@pytest.mark.parametrize("kind", COPIES)
def test_a_plan_refuses_copies(kind: str, entry: str) -> None:
    with pytest.raises(TypeError, match=r"^weights.*gives copies of its values, .*wanted"):
        PLANS[entry](COPIES[kind]())


@pytest.mark.filterwarnings("ignore")  # of torch's: some of these are prototypes, some deprecated
@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        (kind, entry)
        for kind in REFUSED
        for entry in [*ENTRIES, *PLANS]
        # There it means the store's collection.
        if kind != "None" or not entry.startswith("apply_regularization")
    ],
)
def test_what_is_refused(kind: str, entry: str) -> None:
    make, message = REFUSED[kind]
    x = make()
    place = r"\['w'\]" if "mapping" in entry else r"\[0\]" if "list" in entry else ""
    if entry == "add_n":
        place = r"\[0\]"
    what = "chunk" if entry == "StreamingSums" else "weights"
    with pytest.raises(TypeError, match=rf"^{what}{place}: got .*{message}"):
        {**ENTRIES, **PLANS}[entry](x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", WITH_DTYPE)
def test_what_is_refused_where_a_function_would_be_called(kind: str) -> None:
    make, message = REFUSED[kind]
    x = make()
    with pytest.raises(TypeError, match=rf"^weights\['w'\]: got .*{message}"):
        fp.penalty({"w": x}, lambda w: 0.0)
    with pytest.raises(TypeError, match=rf"^weights: got .*{message}"):
        OrthogonalRegularizer(1.0)(x)


@pytest.mark.parametrize("kind", [*ARRAYS, *COPIES])
def test_the_orthogonal_regularizer_reads_what_others_do(kind: str) -> None:
    x = {**ARRAYS, **COPIES}[kind]()
    wanted = OrthogonalRegularizer(1.0)
    if kind in ("memmap", "read-only memoryview", "array.array") or (
        kind.startswith("pandas") and "DataFrame" not in kind
    ):
        with pytest.raises(ValueError, match="must have rank 2"):
            wanted(x)
        return
    # The cosine between the rows (1, -2) and (-3, 4), or between those of the transpose.
    transposed = kind in ("view", "torch bfloat16") or "DataFrame" in kind
    cosine = 14 / np.sqrt(10 * 20) if transposed else 11 / np.sqrt(5 * 25)
    assert wanted(x) == pytest.approx(cosine, rel=1e-6)


@pytest.mark.parametrize("kind", ["lazy parameter", "meta", "csr_matrix", "masked array"])
def test_a_store_refuses_them_by_name(kind: str) -> None:
    make, message = REFUSED[kind]
    x = make()
    with pytest.raises(TypeError, match=rf"^variable dense/w: got .*{message}"):
        fp.VariableStore().get_variable("dense/w", x, regularizer=L1(1.0))


@pytest.mark.parametrize("entry", ["sums", "partial_sums", "penalty", "Plan"])
def test_parameter_dict(entry: str) -> None:
    a, b = torch().tensor([1.0, -2.0]), torch().tensor([-3.0, 4.0])
    parameters = torch().nn.ParameterDict({"a": a, "b": b})
    assert {**ENTRIES, **PLANS}[entry](parameters) == 10.0
    assert fp.sums(parameters).names == fp.Plan(parameters, L1(1.0)).names == ("a", "b")


def test_missing_values_of_pandas_are_nan() -> None:
    missing = pandas().array([1.0, None], dtype="Float32")
    for entry in ENTRIES.values():
        assert np.isnan(entry(missing))


def test_hdf5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "w.h5", "w") as file:
        weights = file.create_dataset("w", data=W)
        for entry in ENTRIES.values():
            assert entry(weights) == 10.0
        assert fp.sums(file).names == ("w",)
        with pytest.raises(TypeError, match=r"^weights\['w'\]: a Dataset gives copies"):
            fp.Plan(file, L1(1.0))


@pytest.mark.filterwarnings("ignore:.*value:DeprecationWarning")
def test_parameters_of_flax() -> None:
    nnx = pytest.importorskip("flax.nnx")
    parameter = nnx.Param(jax().numpy.asarray(W))
    for entry in {**ENTRIES, **PLANS}.values():
        assert entry(parameter) == 10.0
    plan = fp.Plan({"w": parameter}, L1(1.0))
    parameter.value = parameter.value * 2
    with pytest.raises(RuntimeError, match=r"^weights\['w'\]: its memory has moved"):
        plan.value()


VARIABLES = """
    import numpy as np
    import fused_penalties as fp
    from fused_penalties.regularizers import L1
    {make}
    plan = None
    assert fp.sums(variable).total_abs == fp.penalty(variable, L1(1.0)) == L1(1.0)(variable) == 3
    try:
        plan = fp.Plan({{"kernel": variable}}, L1(1.0))
        assert plan.value() == 3
    except TypeError as error:
        assert "weights['kernel']: a ResourceVariable gives copies" in str(error), error
    variable.assign(np.full(3, 2, "f4"))
    assert fp.sums(variable).total_abs == fp.penalty(variable, L1(1.0)) == L1(1.0)(variable) == 6
    try:
        assert plan is None or plan.value() == 6
    except RuntimeError as error:
        assert "weights['kernel']: its memory has moved" in str(error), error
    print("all")
"""
VARIABLE_KINDS = {
    "tensorflow": 'import tensorflow as tf; variable = tf.Variable(tf.ones(3), name="kernel")',
    "keras": 'import keras; variable = keras.Variable(np.ones(3, "f4"))',
}


@pytest.mark.parametrize("library", VARIABLE_KINDS)
def test_variables_that_are_assigned(library: str) -> None:
    """A plan that cannot see an assignment says so, at once or afterwards."""
    for needed in (library, "jax"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    code = VARIABLES.format(make=VARIABLE_KINDS[library])
    quiet = {"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    assert output(code, **quiet) == "all"
