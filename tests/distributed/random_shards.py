"""NumPy arrays that are cut at random places, for any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fused_penalties.distributed import Shard


def random_shards(rank: int, ranks: int) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """A title, what this rank holds, and the whole arrays, the same on every rank.

    Blocks span several ranks, shards lie within a block, ranks hold nothing, or hold what comes
    before the shard of a lower rank.
    """
    rng = np.random.default_rng(5)
    for trial in range(6):
        kept, mine = {}, {}
        for name, dtype in ("a", np.float32), ("b", np.float64), ("c", np.float16):
            shape = (int(rng.integers(1, 60)), int(rng.integers(1, 300)))
            kept[name] = rng.standard_normal(shape).astype(dtype)
            cuts = [0, *sorted(rng.integers(0, shape[0] + 1, ranks - 1)), shape[0]]
            at = int(np.flatnonzero(rng.permutation(ranks) == rank)[0])
            rows = slice(int(cuts[at]), int(cuts[at + 1]))
            mine[name] = Shard(kept[name][rows], shape, (rows.start, 0))
        yield f"trial {trial}", mine, kept

    matrix = rng.standard_normal((50, 100))
    cuts = np.linspace(0, 5000, ranks + 1).astype(int)
    run = matrix.reshape(-1)[cuts[rank] : cuts[rank + 1]]  # as flat optimizers cut it
    yield "flat", {"flat": Shard(run, (5000,), (cuts[rank],))}, {"flat": matrix.reshape(-1)}

    parts = [np.asfortranarray(matrix)[k::ranks] for k in range(ranks)]  # strided in memory
    first = sum(map(len, parts[:rank]))
    mine = {"strided": Shard(parts[rank], (50, 100), (first, 0))}
    yield "strided", mine, {"strided": np.concatenate(parts, out=np.empty((50, 100)))}

    swapped = matrix.astype(matrix.dtype.newbyteorder())
    rows = slice(50 * rank // ranks, 50 * (rank + 1) // ranks)
    mine = {"bytes": Shard(swapped[rows], (50, 100), (rows.start, 0))}
    yield "bytes in another order", mine, {"bytes": matrix}
