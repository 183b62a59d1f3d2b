"""What users and their tools see of the package: names, help, and types that a checker knows."""

from __future__ import annotations

import inspect
import os
import pydoc
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

import fused_penalties as fp
from fused_penalties import contrib, cuda, regularizers, typing

SOURCE = Path(__file__).parents[2] / "python"

RIGHT = """
    import re
    from collections.abc import Iterator
    from typing import Any, SupportsFloat, assert_type

    import numpy as np
    from numpy.typing import NDArray

    import fused_penalties as fp
    from fused_penalties import contrib, regularizers
    from fused_penalties.typing import Regularizers, Scalar, Vector, Weights

    class Tensor:
        def __dlpack__(self, *, stream: int | None = None) -> Any:
            raise NotImplementedError
        def __dlpack_device__(self) -> tuple[int, int]:
            raise NotImplementedError

    class OnGpu:
        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            raise NotImplementedError

    w: NDArray[np.float32] = np.ones((3, 3), np.float32)

    def parameters() -> Iterator[Tensor]:
        raise NotImplementedError

    all_of_these: list[Weights] = [
        w, [w, w], (w, Tensor()), {"kernel": w}, parameters(), OnGpu(), {"a": Tensor()}, [1.0, 2.0],
        [[1, 2], [3, 4]], [[1.0], w], {1: w}.values(), memoryview(b""), 3.0,
    ]

    sums = fp.sums({"kernel": w})
    assert_type(sums.abs, Vector)
    assert_type(sums.rms, Vector)
    assert_type(sums.total_square, Scalar)
    assert_type(sums.sizes, NDArray[np.int64] | None)
    assert_type(sums["kernel"].l2_norm, Scalar)
    assert_type(sums.to_dict(), dict[str, Any])
    assert_type(fp.partial_sums(w).limbs, NDArray[np.int64])
    stream = fp.StreamingSums("float32", start=4)
    stream.update(w, threads=2)
    stream.update(Tensor())
    stream.merge(fp.StreamingSums.from_state(stream.state()))
    assert_type(stream.sums(), fp.Sums)
    assert_type(stream.dtype, str | None)
    np.sqrt(sums.abs)
    sums.abs[0] + sums.abs.argmax() + len(sums.abs)
    vector: Vector = np.ones(3)
    scalars: list[Scalar] = [1.0, np.float32(1), np.float64(1)]
    float(sums.total_abs) + 1.0 * sums.total_abs > 2.0

    assert_type(fp.penalty(w, regularizers.L2()), Scalar)
    assert_type(fp.l2_loss(Tensor()), Scalar)
    assert_type(regularizers.L1L2(0.1, 0.2)(w), Scalar)
    assert_type(contrib.l2_regularizer(0.1)(w), Scalar | None)
    assert_type(contrib.apply_regularization(contrib.l1_regularizer(0.1), [w]), Scalar)

    def largest(x: NDArray[np.float32]) -> np.float32:
        return np.float32(x.max())

    def small(name: str, x: NDArray[np.float32]) -> bool:
        return x.ndim < 2

    one: fp.RegularizerLike = largest
    kinds: list[Regularizers] = [
        None,
        largest,
        [None, regularizers.L1(), largest],
        {"bias|norm": None, ".*": regularizers.L2(1e-4)},
        {re.compile("bias"): None},
        [(small, None), (re.compile("head"), one), (".*", regularizers.L2(1e-4))],
        [(lambda name, x: x.ndim < 2, None)],
    ]
    store = fp.VariableStore()
    assert_type(store.plan(), fp.Plan)
    plan = fp.Plan(store)
    plan = fp.Plan(store, None, threads=2)
    plan = fp.Plan({"kernel": w}, [(small, None), (".*", regularizers.L2(1e-4))])
    plan.set_regularizer({"bias|norm": None, ".*": contrib.l2_regularizer(1e-4)})
    plan.set_regularizer(lambda step: regularizers.L2(0.1**step), step=3)
    assert_type(plan.value(), Scalar)
    assert_type(plan.values(), Vector)
    assert_type(plan.named(), dict[str, Scalar])
    assert_type(plan.value_and_grad([w, None], upstream=np.float32(2)), Scalar)
    assert_type(plan.clip_grad_norm({"kernel": w}, 1.0), Scalar)
    assert_type(plan.l2_norm(), Scalar)
    assert_type(plan.describe(), str)
"""

WRONG = """
    import numpy as np
    import fused_penalties as fp
    from fused_penalties import regularizers

    w = np.ones(3)
    fp.sums("w.npy")  # type: ignore[arg-type]
    fp.sums(None)  # type: ignore[arg-type]
    fp.sums(["a", "b"])  # type: ignore[list-item]
    fp.StreamingSums().update([w, w])  # type: ignore[arg-type]
    fp.penalty(w, 0.1)  # type: ignore[arg-type]
    fp.penalty(w, regularizers.L2)  # type: ignore[arg-type]
    fp.penalty({"w": w}, {"w": 0.1})  # type: ignore[arg-type]
    fp.penalty({"w": w}, [(3, None)])  # type: ignore[list-item]
    fp.Plan([w])  # type: ignore[call-overload]
    fp.sums(w).absolute  # type: ignore[attr-defined]
    fp.sums(w)[0]  # type: ignore[index]
    fp.Plan(w, None).value().shape  # type: ignore[attr-defined]
    fp.Plan(w, None).add_grad(3.0)  # type: ignore[arg-type]
"""


def test_a_type_checker_knows(tmp_path: Path) -> None:
    """Right uses pass, and what a checker can know to be wrong is found.

    An `ignore` that hides no error is one itself.
    """
    pytest.importorskip("mypy", reason="mypy is not installed")
    for name, code in ("right", RIGHT), ("wrong", WRONG):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--python-version=3.11",
            "--ignore-missing-imports",
            "right.py",
            "wrong.py",
        ],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", [fp, contrib, cuda, regularizers, typing])
def test_dir_lists_what_users_need(module: ModuleType) -> None:
    names = {name for name in dir(module) if not name.startswith("__")}
    assert names == set(module.__all__)
    for name in names:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("module", [fp, contrib, cuda, regularizers])
def test_help_shows_every_function_and_class(module: ModuleType) -> None:
    text = pydoc.plain(pydoc.render_doc(module))
    own = [getattr(module, name) for name in module.__all__]
    for one in filter(inspect.isroutine, own):
        assert f"\n    {one.__name__}(" in text
        assert pydoc.getdoc(one).splitlines()[0] in text
    for one in filter(inspect.isclass, own):
        if hasattr(one, "__origin__"):  # a type such as Callable[…], in Python 3.10
            continue
        assert f"\n    class {one.__name__}(" in text
        assert pydoc.getdoc(one).splitlines()[0] in text


def test_help_of_methods() -> None:
    for cls in fp.Plan, fp.Sums, fp.PartialSums, fp.StreamingSums, fp.VariableStore:
        for name in dir(cls):
            if not name.startswith("_") and callable(getattr(cls, name)):
                assert pydoc.getdoc(getattr(cls, name)), f"{cls.__name__}.{name}"
