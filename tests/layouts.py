"""Arrays of every layout: what is made of one cube of weights, by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

import oracle
import values


def cube(dtype: str) -> np.ndarray:
    """More than two blocks with axes of unlike, odd lengths."""
    block = oracle.block_elements(oracle.DTYPES[dtype])
    shape = (7, 11, block // 32 + 1)
    return values.make("lognormal", dtype, int(np.prod(shape))).reshape(shape)


def record_field(x: np.ndarray) -> np.ndarray:
    """Elements that lie an odd number of bytes apart, none of them aligned."""
    records = np.zeros(x.size, [("tag", np.uint8), ("w", x.dtype)])
    records["w"] = x.reshape(-1)
    return records["w"]


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C order": lambda x: x,
    "F order": np.asfortranarray,
    "transposed": lambda x: x.transpose(2, 0, 1),
    "flipped": lambda x: x[::-1, :, ::-1],
    "flipped and transposed": lambda x: x[:, ::-1].transpose(1, 2, 0),
    "flipped flat": lambda x: x.reshape(-1)[::-1],
    "new axes": lambda x: x[:, None, ::-1, :, None],
    "every third": lambda x: x[:, :, ::3],
    "every second, backwards": lambda x: x[::-1, :, ::-2],
    "every second plane": lambda x: x[::2],
    "a box": lambda x: x[2:6, 1:-3, 5:-2],
    "a box, transposed": lambda x: x[2:6, 1:-3, 5:-2].transpose(1, 2, 0),
    "a column": lambda x: x.reshape(77, -1)[:, 5],
    "F order, strided": lambda x: np.asfortranarray(x)[1::2, :, ::-2],
    "diagonal": lambda x: np.diagonal(x, axis1=0, axis2=2),
    "one element": lambda x: x[3, 4, 5],
    "0-d": lambda x: x[3, 4, 5:6].reshape(()),
    "one row of a big stride": lambda x: x[3:4, ::-1, 7:8],
    "empty": lambda x: x[:, 3:3],
    "empty and strided": lambda x: x[::2, 5:1, ::-3],
    "broadcast rows": lambda x: np.broadcast_to(x[0, 0], (40, x.shape[2])),
    "broadcast columns": lambda x: np.broadcast_to(x[0, 0, :, None], (x.shape[2], 40)),
    "broadcast scalar": lambda x: np.broadcast_to(x[1, 2, 3], (5, 999)),
    "broadcast once": lambda x: np.broadcast_to(x[::2], (1, *x[::2].shape)),
    "overlapping windows": lambda x: sliding_window_view(x[2, 3], 9),
    "overlapping windows, backwards": lambda x: sliding_window_view(x[2, 3], 9)[::-1, ::-2],
    "field of a record": record_field,
    "field of a record, backwards": lambda x: record_field(x)[::-3],
    "read-only": read_only,
}
