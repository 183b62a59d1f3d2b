"""How far off our sums and those of others are, against exact sums in integers.

Of 1,000 to 10 million elements (--quick: a million, --full: 100 million) of several kinds. What
fused-penalties guarantees is checked: where an error is larger than that, the case fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench import child
from bench.settings import Settings
from bench.work import Row

PARTS = {
    "normal": "normal, with the spread that weights have",
    "extreme": "all magnitudes that the dtype has, the squares of which go beyond it",
    "constant": "0.1 again and again, so that all roundings go one way",
    "Cauchy": "a single one may be most of the sum",
    "lognormal": "a few are far larger than most",
}


def run(parts: Sequence[str], settings: Settings) -> Iterator[Row]:
    return child.rows("bench.cases.accuracy.works", settings, parts=parts)
