"""Writes golden.json: inputs made of integers alone, and what the oracle answers for them.

`python tests/golden.py` writes it anew and says what changed. A change to the numbers in it is a
change to the contract, unless the list of cases changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import oracle
import values

PATH = Path(__file__).with_name("golden.json")
LENGTHS = [1, 2, 100, 1000, 4096, 10_000]


def patterns(seed: int, count: int, bits: int) -> list[int]:
    """The high bits of a 64-bit linear congruential generator (Knuth's MMIX constants)."""
    result = []
    for _ in range(count):
        seed = (seed * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        result.append(seed >> (64 - bits))
    return result


def weights(dtype: str, lowest: int, exponents: int, seed: int, count: int) -> np.ndarray:
    """Weights of either sign whose exponent fields are `lowest` and the `exponents - 1` above."""
    exponent_bits, fraction_bits = values.EXPONENT_AND_FRACTION_BITS[dtype]
    width = 1 + exponent_bits + fraction_bits
    result = []
    for pattern in patterns(seed, count, width):
        sign = pattern >> (width - 1) << (width - 1)
        exponent = lowest + (pattern >> fraction_bits) % (1 << exponent_bits) % exponents
        fraction = pattern % (1 << fraction_bits)
        result.append(sign | exponent << fraction_bits | fraction)
    return values.from_patterns(np.array(result, np.uint64), dtype)


def inputs() -> list[dict[str, Any]]:
    """The cases without their answers."""
    cases = []
    for dtype, (exponent_bits, _) in values.EXPONENT_AND_FRACTION_BITS.items():
        bias = (1 << (exponent_bits - 1)) - 1
        ranges = {
            "near one": (bias - 3, 5),
            "subnormal": (0, 1),
            "smallest": (0, 3),
            "largest finite": (2 * bias - 1, 2),
            "all finite": (0, 2 * bias + 1),
            "all": (0, 2 * bias + 2),
            "middle": (bias - bias // 4, bias // 2),
        }
        for name, (lowest, exponents) in ranges.items():
            for length in LENGTHS:
                case = {"dtype": dtype, "range": name, "lowest": lowest, "exponents": exponents}
                cases.append({**case, "seed": len(cases), "count": length})
    return cases


def array(case: dict[str, Any]) -> np.ndarray:
    """The weights of one case."""
    arguments = ("dtype", "lowest", "exponents", "seed", "count")
    return weights(*(case[name] for name in arguments))


def answered(case: dict[str, Any]) -> dict[str, Any]:
    """A case with its sums as float.hex() writes them."""
    sum_abs, sum_square = oracle.sums(array(case))
    return {**case, "abs": sum_abs.hex(), "square": sum_square.hex()}


def written() -> list[dict[str, Any]]:
    """The cases of the file, with their answers."""
    return json.loads(PATH.read_text())


def main() -> None:
    before = written() if PATH.exists() else []
    cases = [answered(case) for case in inputs()]
    changed = sum(case not in before for case in cases)
    lines = ",\n".join(json.dumps(case) for case in cases)
    PATH.write_text(f"[\n{lines}\n]\n")
    print(f"{PATH.name}: {len(cases)} cases by the oracle, {changed} new or changed")


if __name__ == "__main__":
    main()
