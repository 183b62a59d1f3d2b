"""What sums offer beside the sums: one buffer by its name, norms and root mean squares, JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fused_penalties as fp
from fused_penalties import regularizers
from messages import exactly

W = np.array([[1, -2], [-3, 4]], np.float32)
# Σ|w| = 10, 0, 7; Σw² = 30, 0, 25; 4, 0 and 2 elements.
WEIGHTS = {"kernel": W, "empty": np.zeros((0, 3), np.float16), "bias": np.array([3.0, -4.0])}


def test_norms_and_means() -> None:
    sums = fp.sums(WEIGHTS)
    assert sums.sizes.tolist() == [4, 0, 2]
    assert sums.l1_norm.tolist() == [10.0, 0.0, 7.0]
    assert sums.l2_norm.tolist() == [math.sqrt(30), 0.0, 5.0]
    assert sums.rms.tolist() == [math.sqrt(30 / 4), 0.0, math.sqrt(25 / 2)]
    assert (sums.total_l1_norm, sums.total_l2_norm) == (17.0, math.sqrt(55))
    assert sums.total_rms == math.sqrt(55 / 6)
    plan = fp.Plan(WEIGHTS, None)
    assert (plan.l1_norm(), plan.l2_norm()) == (sums.total_l1_norm, sums.total_l2_norm)
    assert plan.sums().rms.tolist() == sums.rms.tolist()


@pytest.mark.parametrize("weights", [[], {}, np.zeros(0)])
def test_of_nothing(weights: Any) -> None:
    sums = fp.sums(weights)
    assert sums.rms.tolist() == [0.0] * len(sums)
    assert (sums.total_l2_norm, sums.total_rms) == (0.0, 0.0)


def test_of_nan_and_infinity() -> None:
    sums = fp.sums([np.array([1.0, np.nan]), np.array([np.inf, 1.0])])
    assert np.isnan([sums.l2_norm[0], sums.rms[0], sums.total_l2_norm, sums.total_rms]).all()
    assert (sums.l2_norm[1], sums.rms[1]) == (math.inf, math.inf)


def test_one_buffer_by_its_name() -> None:
    sums = fp.sums(WEIGHTS)
    kernel = sums["kernel"]
    assert kernel == (10.0, 30.0, 4, None)
    assert [type(x) for x in kernel[:3]] == [float, float, int]
    assert kernel.abs == kernel.l1_norm == 10.0
    assert (kernel.l2_norm, kernel.rms) == (math.sqrt(30), math.sqrt(30 / 4))
    assert sums["empty"].rms == 0.0
    assert fp.Plan(WEIGHTS, None).sums()["bias"].l2_norm == 5.0
    assert fp.partial_sums(WEIGHTS).sums()["bias"] == (7.0, 25.0, None, None)


def test_no_buffer_of_this_name() -> None:
    sums = fp.sums(WEIGHTS)
    message = "sums['kernal']: no buffer has this name, only kernel, empty, bias"
    with pytest.raises(KeyError) as caught:
        sums["kernal"]
    assert caught.value.args == (message,)
    with pytest.raises(TypeError, match=r"^sums\[0\]: got 0; wanted a buffer's name, a s"):
        sums[0]  # type: ignore[index]
    with pytest.raises(TypeError, match=r"^sums\['w'\]: the weights were given without names; w"):
        fp.sums([W])["w"]


@pytest.mark.parametrize(
    ("weights", "sizes"),
    [
        ([W.T, W[::-1, 1], np.broadcast_to(W, (3, 2, 2))], [4, 2, 12]),
        ([np.float32(3), memoryview(np.ones(5))], [1, 5]),
        (np.ones(7, ml_dtypes.bfloat16), [7]),
        (np.ones((2, 3), ">f8"), [6]),
    ],
)
def test_sizes_of_whatever_is_summed(weights: Any, sizes: list[int]) -> None:
    for sums in fp.sums(weights), fp.Plan(weights, regularizers.L1()).sums():
        assert sums.sizes.dtype == np.int64
        assert sums.sizes.tolist() == sizes


def test_a_list_of_numbers_is_one_buffer() -> (
    None
):  # for sums: a plan refuses what it can only copy
    assert fp.sums([[1.0, 2.0], [3.0, 4.0]]).sizes.tolist() == [4]


def test_what_is_counted_once_has_one_size() -> None:
    sums = fp.sums([W, W], unique=True)
    assert sums.sizes.tolist() == [4, 0]
    assert sums.total_rms == math.sqrt(30 / 4)
    assert fp.sums([W, W]).sizes.tolist() == [4, 4]


def test_partial_sums_do_not_know_their_sizes() -> None:
    sums = fp.partial_sums(WEIGHTS).sums()
    assert sums.sizes is None
    assert sums.l2_norm.tolist() == [math.sqrt(30), 0.0, 5.0]
    message = (
        "rms: the sums come from PartialSums, which do not know how many elements there are; "
        "divide square by their number, and take the root"
    )
    for ask in (lambda: sums.rms, lambda: sums.total_rms, lambda: sums["kernel"].rms):
        with pytest.raises(ValueError, match=exactly(message)):
            ask()


def test_json() -> None:
    sums = fp.sums(WEIGHTS)
    assert json.loads(json.dumps(sums.to_dict())) == {
        "abs": [10.0, 0.0, 7.0],
        "square": [30.0, 0.0, 25.0],
        "total_abs": 17.0,
        "total_square": 55.0,
        "sizes": [4, 0, 2],
        "names": ["kernel", "empty", "bias"],
        "largest": None,
        "total_largest": None,
    }
    kernel = json.loads(json.dumps(sums["kernel"]._asdict()))
    assert kernel == {"abs": 10, "square": 30, "size": 4, "largest": None}
    assert json.loads(json.dumps([sums["kernel"].rms, sums.total_rms, sums.total_l2_norm]))
    nameless = json.loads(json.dumps(fp.partial_sums([W]).sums().to_dict()))
    assert (nameless["sizes"], nameless["names"]) == (None, None)
