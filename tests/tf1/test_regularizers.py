"""The regularizers of Keras 3: values, defaults, identifiers, configs, checks and messages."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import convention_oracle
import oracle
import values
from fused_penalties import regularizers
from messages import exactly

W = np.array([[1, -2], [-3, 4]], np.float32)
FUSED = [regularizers.L1, regularizers.L2, regularizers.L1L2]
factors = st.floats(min_value=0.0, max_value=1e3)
buffers = st.builds(
    values.make,
    st.sampled_from(["normal", "lognormal", "zeros"]),
    st.sampled_from(list(oracle.DTYPES)),
    st.integers(0, 600),
    st.integers(0, 9),
)


def same(value: object, expected: object) -> bool:
    """Equal in value and in dtype, and a NumPy scalar, not an array."""
    return (
        isinstance(value, np.floating)
        and value.dtype == np.asarray(expected).dtype
        and bool(value == expected)
    )


@pytest.mark.parametrize(
    ("regularizer", "expected"),
    [
        (regularizers.l1(0.5), 5.0),
        (regularizers.l1(1), 10.0),
        (regularizers.l2(1), 30.0),
        (regularizers.l2(0.5), 15.0),
        (regularizers.l1(), 0.099999994),
        (regularizers.l2(), 0.29999998),
        (regularizers.l1_l2(), 0.0),
        (regularizers.l1_l2(0.5, 0.5), 20.0),
        (regularizers.L1L2(l2=0.5), 15.0),
        (regularizers.OrthogonalRegularizer(0.1, "columns"), 0.09899495),
    ],
)
def test_numbers_every_user_knows(regularizer: regularizers.Regularizer, expected: float) -> None:
    assert same(regularizer(W), np.float32(expected))


def test_the_default_of_l1_to_the_last_bit() -> None:
    assert float(regularizers.L1()(W)).hex() == "0x1.9999980000000p-4"


def test_orthogonal_rows() -> None:
    # The cosine of (1, -2) and (-3, 4) is -11 / sqrt(5 * 25).
    expected = np.float32(np.float64(np.float32(0.01)) * 11 / math.sqrt(125))
    assert same(regularizers.OrthogonalRegularizer()(W), expected)
    assert expected == pytest.approx(0.0098387, abs=5e-8)


@given(x=buffers, l1=factors, l2=factors)
def test_values_of_any_weights(x: np.ndarray, l1: float, l2: float) -> None:
    cases = {
        regularizers.L1(l1): (l1, 0.0),
        regularizers.L2(l2): (0.0, l2),
        regularizers.L1L2(l1, l2): (l1, l2),
    }
    for regularizer, pair in cases.items():
        value = regularizer(x)
        assert value.dtype == (np.float64 if x.dtype == np.float64 else np.float32)
        assert float(value) == convention_oracle.penalty([x], [pair])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_16_bit_weights_do_not_overflow(dtype: type) -> None:
    x = np.full(1000, 256, dtype)
    assert same(regularizers.L2(1.0)(x), np.float32(1000 * 256**2))
    assert same(regularizers.L1(1.0)(x), np.float32(1000 * 256))


def test_a_nested_list_of_numbers_is_one_float32_array() -> None:
    assert same(regularizers.L1(0.5)([[1, -2], [-3, 4]]), np.float32(5.0))
    assert same(regularizers.L2(0.5)([3.0]), np.float32(4.5))
    columns = regularizers.OrthogonalRegularizer(0.1, "columns")
    assert same(columns(W.tolist()), np.float32(0.09899495))


def test_a_result_behaves_as_a_number() -> None:
    value = regularizers.L2(0.5)(W)
    assert float(value) == 15.0
    assert value + 1 == 16.0
    assert str(value) == "15.0"
    assert np.ndim(value) == 0


def test_orthogonal_of_16_bit_weights() -> None:
    columns = regularizers.OrthogonalRegularizer(0.1, "columns")
    for dtype in (np.float16, ml_dtypes.bfloat16):
        assert same(columns(W.astype(dtype)), np.float32(0.09899495))


@pytest.mark.parametrize("cls", FUSED)
def test_zero_weights_and_no_weights(cls: type[regularizers.Regularizer]) -> None:
    assert same(cls(0.5)(np.zeros((3, 4), np.float32)), np.float32(0.0))
    assert same(cls(0.5)(np.zeros((0, 4))), np.float64(0.0))


@pytest.mark.parametrize("cls", FUSED)
def test_the_sign_of_a_weight_does_not_matter(cls: type[regularizers.Regularizer]) -> None:
    x = values.make("normal", "float32", 777)
    assert cls(0.3)(x) == cls(0.3)(-x) == cls(0.3)(np.abs(x))


def test_a_factor_of_zero() -> None:
    x = np.array([np.inf, 1.0], np.float32)
    assert same(regularizers.L1(0)(x), np.float32(0.0))
    assert same(regularizers.L1L2(0.0, 0.0)(x.astype(np.float64)), np.float64(0.0))
    assert regularizers.L1(0.5)(x) == np.inf


def dot(u: list[float], v: list[float]) -> float:
    return float(sum(Fraction(a) * Fraction(b) for a, b in zip(u, v, strict=True)))


@pytest.mark.parametrize("mode", ["rows", "columns"])
def test_orthogonal_of_any_matrix(mode: str) -> None:
    x = values.make("normal", "float64", 5 * 7).reshape(5, 7)
    vectors = x if mode == "rows" else x.T
    cosines = [
        abs(dot(u, v)) / math.sqrt(dot(u, u) * dot(v, v))
        for k, u in enumerate(vectors.tolist())
        for v in vectors.tolist()[:k]
    ]
    value = regularizers.OrthogonalRegularizer(0.3, mode)(x)
    assert isinstance(value, np.float64)
    assert value == pytest.approx(0.3 * sum(cosines) / len(cosines), rel=1e-14)


@pytest.mark.parametrize("mode", ["rows", "columns"])
def test_orthogonal_vectors_cost_nothing(mode: str) -> None:
    rotation = np.array([[0, 2], [-3, 0]], np.float32)
    assert regularizers.OrthogonalRegularizer(0.5, mode)(rotation) == 0.0
    assert regularizers.OrthogonalRegularizer(0.5, mode)(np.ones((4, 4))) == pytest.approx(0.5)


def test_orthogonal_where_a_vector_is_zero_or_alone() -> None:
    assert regularizers.OrthogonalRegularizer(0.5)(np.array([[0.0, 0.0], [1.0, 2.0]])) == 0.0
    assert regularizers.OrthogonalRegularizer(0.5)(np.ones((1, 3))) == 0.0
    assert regularizers.OrthogonalRegularizer(0.5)(np.ones((0, 3))) == 0.0


def test_orthogonal_of_what_is_not_finite() -> None:
    assert np.isnan(regularizers.OrthogonalRegularizer()(np.array([[np.nan, 1.0], [1.0, 2.0]])))


def test_orthogonal_takes_matrices_only() -> None:
    message = "Inputs to OrthogonalRegularizer must have rank 2. Received: inputs.shape=(2, 2, 2)"
    with pytest.raises(ValueError, match=exactly(message)):
        regularizers.OrthogonalRegularizer()(np.ones((2, 2, 2)))


def test_orthogonal_has_two_modes() -> None:
    message = (
        'Invalid value for argument `mode`. Expected one of {"rows", "columns"}. Received: mode=x'
    )
    with pytest.raises(ValueError, match=exactly(message)):
        regularizers.OrthogonalRegularizer(mode="x")


@pytest.mark.parametrize(
    "factor", [0, 1, 2.5, True, -0.0, np.float32(0.5), np.float64(0.5), np.int32(2), Fraction(1, 4)]
)
def test_factors_that_are_accepted(factor: float) -> None:
    for kept in (
        regularizers.L1(factor).l1,
        regularizers.L2(factor).l2,
        regularizers.L1L2(l2=factor).l2,
        regularizers.OrthogonalRegularizer(factor).factor,
    ):
        assert type(kept) is float
        assert kept == float(factor)


@pytest.mark.parametrize(
    "factor",
    [-1, -0.5, math.nan, math.inf, -math.inf, "0.1", [0.1], 1j, np.float32(-1), np.array([0.1])],
)
def test_factors_that_are_refused(factor: object) -> None:
    for make, name in (
        (lambda: regularizers.L1(factor), "l1"),
        (lambda: regularizers.L2(factor), "l2"),
        (lambda: regularizers.L1L2(factor), "l1"),
        (lambda: regularizers.L1L2(0.1, factor), "l2"),
        (lambda: regularizers.OrthogonalRegularizer(factor), "factor"),
    ):
        message = (
            f"Invalid value for argument {name}: expected a non-negative float."
            f"Received: {name}={factor}"
        )
        with pytest.raises(ValueError, match=exactly(message)):
            make()


def test_a_factor_beyond_float64_is_refused() -> None:
    with pytest.raises(ValueError, match="Invalid value for argument l1"):
        regularizers.L1(10**400)


def test_none_means_the_default() -> None:
    assert regularizers.L1(None).l1 == regularizers.L2(None).l2 == 0.01
    assert regularizers.L1L2(None, None).coefficients == (0.0, 0.0)
    with pytest.raises(ValueError, match="Received: factor=None"):
        regularizers.OrthogonalRegularizer(None)  # type: ignore[arg-type]


def test_coefficients_are_of_the_form_without_a_half() -> None:
    assert regularizers.L1(0.1).coefficients == (0.1, 0.0)
    assert regularizers.L2(0.1).coefficients == (0.0, 0.1)
    assert regularizers.L1L2(0.1, 0.2).coefficients == (0.1, 0.2)
    assert regularizers.OrthogonalRegularizer().coefficients is None


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("l1", regularizers.L1),
        ("L1", regularizers.L1),
        ("l2", regularizers.L2),
        ("L2", regularizers.L2),
        ("l1l2", regularizers.L1L2),
        ("L1L2", regularizers.L1L2),
        ("l1_l2", regularizers.L1L2),
        ("orthogonal_regularizer", regularizers.OrthogonalRegularizer),
        ("OrthogonalRegularizer", regularizers.OrthogonalRegularizer),
    ],
)
def test_get_by_name(name: str, cls: type[regularizers.Regularizer]) -> None:
    assert type(regularizers.get(name)) is cls
    assert regularizers.get(name).get_config() == cls().get_config()
    assert type(regularizers.deserialize(name)) is cls
    assert type(regularizers.get({"class_name": name, "config": {}})) is cls


def test_get_of_what_is_no_name() -> None:
    l2 = regularizers.L2(0.1)
    assert regularizers.get(None) is None
    assert regularizers.get(l2) is l2
    assert regularizers.get(np.sum) is np.sum
    assert regularizers.get(regularizers.L2).l2 == 0.01
    assert regularizers.get({"class_name": "L2", "config": {"l2": 0.1}}).l2 == 0.1
    assert regularizers.get({"class_name": "L2"}).l2 == 0.01


@pytest.mark.parametrize("identifier", ["typo", "", 3, [], {"class_name": "typo", "config": {}}])
def test_get_of_what_is_unknown(identifier: object) -> None:
    message = f"Could not interpret regularizer identifier: {identifier}"
    with pytest.raises(ValueError, match=exactly(message)):
        regularizers.get(identifier)


def test_get_of_a_dict_without_a_class_name() -> None:
    with pytest.raises(ValueError, match=exactly("Unknown `config` as a `dict`, config={}")):
        regularizers.get({})


def test_get_checks_what_is_in_a_config() -> None:
    with pytest.raises(ValueError, match=r"float\.Received: l1=-0.5$"):
        regularizers.get({"class_name": "L1", "config": {"l1": -0.5}})
    with pytest.raises(TypeError, match="unexpected keyword argument 'l3'"):
        regularizers.get({"class_name": "L1", "config": {"l3": 0.5}})


@pytest.mark.parametrize(
    "regularizer",
    [
        regularizers.L1(0.1),
        regularizers.L2(0.1),
        regularizers.L1L2(0.1, 0.2),
        regularizers.OrthogonalRegularizer(0.1, "columns"),
    ],
)
def test_config_round_trips(regularizer: regularizers.Regularizer) -> None:
    config = regularizer.get_config()
    written = json.loads(json.dumps(regularizers.serialize(regularizer)))
    for again in (
        type(regularizer).from_config(config),
        regularizers.deserialize(written),
        regularizers.get(written),
    ):
        assert type(again) is type(regularizer)
        assert again.get_config() == config
        assert again(W) == regularizer(W)


def test_serialized_form() -> None:
    assert regularizers.serialize(regularizers.L2(0.1)) == {
        "module": "keras.regularizers",
        "class_name": "L2",
        "config": {"l2": 0.1},
        "registered_name": None,
    }
    assert regularizers.serialize(None) is None
    assert regularizers.deserialize(None) is None
    with pytest.raises(TypeError, match="wanted a Regularizer, which has a config"):
        regularizers.serialize(np.sum)  # type: ignore[arg-type]


class Cubes(regularizers.Regularizer):
    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, x: np.ndarray) -> float:
        return self.scale * float(np.sum(np.abs(x) ** 3))

    def get_config(self) -> dict[str, float]:
        return {"scale": self.scale}


class Ridge(regularizers.Regularizer):
    """Only coefficients: its value is the package's work."""

    @property
    def coefficients(self) -> tuple[float, float]:
        return 0.25, 0.5


def test_a_class_of_ones_own_round_trips_by_its_name() -> None:
    written = regularizers.serialize(Cubes(2.0))
    assert written == {
        "module": __name__,
        "class_name": "Cubes",
        "config": {"scale": 2.0},
        "registered_name": "Cubes",
    }
    again = regularizers.deserialize(written, custom_objects={"Cubes": Cubes})
    assert isinstance(again, Cubes)
    assert again(W) == 200.0
    with pytest.raises(ValueError, match="Could not interpret regularizer identifier"):
        regularizers.deserialize(written)


def test_a_class_of_ones_own_with_coefficients() -> None:
    assert same(Ridge()(W), np.float32(0.25 * 10 + 0.5 * 30))


def test_the_base_class() -> None:
    base = regularizers.Regularizer()
    assert base(W) == 0.0
    assert base.coefficients is None
    with pytest.raises(NotImplementedError, match=r"does not implement get_config\(\)"):
        base.get_config()


@pytest.mark.parametrize("cls", [*FUSED, regularizers.OrthogonalRegularizer])
def test_one_array_of_a_supported_dtype(cls: type[regularizers.Regularizer]) -> None:
    regularizer = cls(0.5)
    with pytest.raises(TypeError, match=r"^weights: .*int32 is not supported"):
        regularizer(W.astype(np.int32))
    with pytest.raises(TypeError, match=r"^weights: got None"):
        regularizer(None)
    with pytest.raises(ValueError, match=r"^weights: got 2 arrays; wanted one"):
        regularizer([W, W])
    with pytest.raises(ValueError, match=r"^weights: got nested lists of unequal length"):
        regularizer([[1.0, 2.0], [3.0]])
