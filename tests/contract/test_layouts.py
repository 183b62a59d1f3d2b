"""The order in which arrays of any layout are read: by increasing address as a rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

import fused_penalties as fp
import oracle
import values
from layouts import LAYOUTS, cube
from oracle import hexes

pytestmark = pytest.mark.usefixtures("isa")
dtypes = pytest.mark.parametrize("dtype", oracle.DTYPES)


def assert_like_oracle(x: np.ndarray) -> None:
    sums = fp.sums(x)
    expected_abs, expected_square = oracle.sums(x)
    assert hexes(sums.abs) == hexes([expected_abs])
    assert hexes(sums.square) == hexes([expected_square])


@dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(dtype: str, layout: str) -> None:
    assert_like_oracle(np.asarray(LAYOUTS[layout](cube(dtype))))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_big_endian_layouts(dtype: str, layout: str) -> None:
    x = cube(dtype)
    swapped = x.astype(x.dtype.newbyteorder(">"))
    assert_like_oracle(np.asarray(LAYOUTS[layout](swapped)))


@dtypes
def test_dense_arrays_have_one_answer(dtype: str) -> None:
    """The same memory read through any axes is the same buffer."""
    x = cube(dtype)
    views = [x, x.reshape(-1), x.transpose(1, 2, 0), x[::-1], x[..., ::-1].T, x[None, :, None]]
    sums = fp.sums(views)
    assert len(set(hexes(sums.abs))) == 1
    assert len(set(hexes(sums.square))) == 1


@dtypes
def test_axes_that_interleave_overlap(dtype: str) -> None:
    """No address comes twice, yet no order of the axes visits them in order: the C-order copy."""
    flat = cube(dtype).reshape(-1)
    view = as_strided(flat, (flat.size // 2 - 2, 2), (2 * flat.itemsize, 5 * flat.itemsize))
    for x in (view, view.T, view[::-1]):
        assert_like_oracle(x)
        assert_like_oracle(x.flatten(order="C"))
        assert hexes(fp.sums(x).abs) == hexes(fp.sums(x.flatten(order="C")).abs)


@dtypes
def test_memory_map(dtype: str, tmp_path: Path) -> None:
    x = cube(dtype)
    path = tmp_path / "weights"
    path.write_bytes(b"header!" + x.tobytes())
    mapped = np.memmap(path, x.dtype, "r", offset=7, shape=x.shape)
    assert hexes(fp.sums(mapped).abs) == hexes([oracle.sums(x)[0]])
    assert_like_oracle(mapped[:, ::-2])


@st.composite
def views(draw: st.DrawFn) -> np.ndarray:
    """A dense array, its axes in any order, sliced in any direction, perhaps repeated."""
    dtype = draw(st.sampled_from(list(oracle.DTYPES)))
    shape = draw(st.lists(st.integers(0, 24) | st.integers(1, 24), min_size=1, max_size=4))
    if len(shape) < 3:
        shape[0] *= draw(st.integers(1, 30))
    kind = draw(st.sampled_from(values.KINDS))
    x = values.make(kind, dtype, int(np.prod(shape)), draw(st.integers(0, 1 << 20)))
    x = values.at_offset(x, draw(st.integers(0, 63))).reshape(shape)
    if dtype != "bfloat16" and draw(st.booleans()):
        x = x.astype(x.dtype.newbyteorder(">"))
    x = x.transpose(draw(st.permutations(range(x.ndim))))
    x = x[tuple(draw(st.slices(length)) for length in x.shape)]
    if draw(st.booleans()):
        repeats = draw(st.integers(0, 3))
        x = np.broadcast_to(x[..., None], (*x.shape, repeats))
    return x


@given(st.lists(views(), max_size=4))
def test_any_view(arrays: list[np.ndarray]) -> None:
    sums = fp.sums(arrays)
    expected = [oracle.sums(x) for x in arrays]
    assert hexes(sums.abs) == hexes(a for a, _ in expected)
    assert hexes(sums.square) == hexes(s for _, s in expected)
    assert hexes([sums.total_abs, sums.total_square]) == hexes(oracle.totals(arrays))
