"""Golden values: a change shows even where the oracle and the kernels changed alike."""

from __future__ import annotations

import pytest

import fused_penalties as fp
import golden

CASES = golden.written()


def test_the_file_is_complete() -> None:
    """`python tests/golden.py` was run after its list of cases changed."""
    answers = ("abs", "square")
    given = [{k: v for k, v in case.items() if k not in answers} for case in CASES]
    assert given == golden.inputs()


def test_oracle() -> None:
    assert [golden.answered(case) for case in CASES] == CASES


@pytest.mark.usefixtures("isa")
def test_kernels() -> None:
    sums = fp.sums([golden.array(case) for case in CASES])
    assert [value.hex() for value in sums.abs.tolist()] == [case["abs"] for case in CASES]
    assert [value.hex() for value in sums.square.tolist()] == [case["square"] for case in CASES]
