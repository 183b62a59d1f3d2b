"""What this build says about itself, which kernels it picks, and what importing it drags in."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import re
from pathlib import Path

import pytest

import fresh
import fused_penalties as fp

# 1/3 and 0.1 in float32 and float16: sums with more than a few bits.
SUMS = """
    import json
    import numpy as np
    import fused_penalties as fp
    weights = [np.arange(9999, dtype=dtype) / 3 + dtype(0.1) for dtype in (np.float32, np.float16)]
    sums = fp.sums(weights)
    found = [value.hex() for value in [*sums.abs.tolist(), *sums.square.tolist()]]
    print(json.dumps([fp.build_info()["active_isa"], found]))
"""


def test_build_info() -> None:
    info = fp.build_info()
    assert set(info) == {"version", "isas", "active_isa", "why_isa", "threads", "cuda"}
    assert info["version"] == fp.__version__ == importlib.metadata.version("fused-penalties")
    assert set(fp._core.supported_isas()) <= set(info["isas"])
    assert info["active_isa"] in fp._core.supported_isas()
    assert "scalar" in info["isas"]
    assert isinstance(info["threads"], int)
    assert info["threads"] >= 1
    assert info["cuda"] is False or isinstance(info["cuda"], str)


@pytest.mark.parametrize("name", fp._core.supported_isas())
def test_the_environment_forces_an_isa(name: str) -> None:
    active, found = json.loads(fresh.output(SUMS, FUSED_PENALTIES_ISA=name))
    assert active == name
    assert found == json.loads(fresh.output(SUMS))[1]


WHY = """
    import json
    import fused_penalties as fp
    info = fp.build_info()
    print(json.dumps([info["active_isa"], info["why_isa"]]))
"""


def is_zen_4() -> bool:
    """By what Linux says of the processor: AMD's family 25 (19h) with AVX-512."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    family = re.search(r"^cpu family\s*: 25$", text, re.M)
    return "AuthenticAMD" in text and family is not None and "avx512vl" in text


def test_without_a_wish_the_fastest_isa_is_taken() -> None:
    active, why = json.loads(fresh.output(WHY, FUSED_PENALTIES_ISA=""))
    if is_zen_4():
        assert (active, why) == (
            "avx2",
            "faster here than avx512, which this processor runs in halves",
        )
    else:
        widest = next(isa for isa in fp.build_info()["isas"] if isa in fp._core.supported_isas())
        assert (active, why) == (widest, "the widest that this processor has")


@pytest.mark.parametrize("name", fp._core.supported_isas())
def test_an_isa_that_was_asked_for_says_so(name: str) -> None:
    assert json.loads(fresh.output(WHY, FUSED_PENALTIES_ISA=name)) == [name, "asked for"]


NOT_SUPPORTED = ["sse9", "AVX 2", "avx2 ", "../avx2"]
NOT_SUPPORTED += [isa for isa in fp.build_info()["isas"] if isa not in fp._core.supported_isas()]


@pytest.mark.parametrize("name", NOT_SUPPORTED)
@pytest.mark.parametrize("call", ["sums(np.ones(3))", "partial_sums([])", "build_info()"])
def test_an_isa_that_is_not_supported(name: str, call: str) -> None:
    code = f"""
    import numpy as np
    import fused_penalties as fp
    for turn in range(2):
        try:
            fp.{call}
        except RuntimeError as error:
            print(error)
    """
    first, second = fresh.output(code, FUSED_PENALTIES_ISA=name).splitlines()
    assert first == second
    assert "not supported" in first
    assert "FUSED_PENALTIES_ISA" in first
    assert name in first
    for isa in fp._core.supported_isas():
        assert isa in first, "says which names there are"


def test_switching_to_an_isa_that_is_not_supported_changes_nothing() -> None:
    before = fp.build_info()["active_isa"]
    with pytest.raises((RuntimeError, ValueError), match="not supported"):
        fp._core.use_isa("sse9")
    assert fp.build_info()["active_isa"] == before


def test_import_brings_no_framework() -> None:
    code = """
    import sys
    import fused_penalties
    heavy = ("torch", "tensorflow", "keras", "jax", "cupy", "rich", "safetensors", "scipy")
    print([name for name in heavy if name in sys.modules])
    """
    assert fresh.output(code) == "[]"


def test_sums_bring_no_framework() -> None:
    code = """
    import sys
    import ml_dtypes, numpy as np
    import fused_penalties as fp
    fp.sums({"a": np.ones(3), "b": np.ones(3, ml_dtypes.bfloat16), "c": [[1.0, 2.0]]}, unique=True)
    heavy = ("torch", "tensorflow", "keras", "jax", "cupy", "rich", "safetensors", "scipy")
    print([name for name in heavy if name in sys.modules])
    """
    assert fresh.output(code) == "[]"


def test_warnings_are_errors_on_import() -> None:
    code = "import warnings; warnings.simplefilter('error'); import fused_penalties"
    assert fresh.output(code) == ""


@pytest.mark.parametrize("name", ["py.typed", "_core.pyi"])
def test_typing_files_are_shipped(name: str) -> None:
    assert importlib.resources.files("fused_penalties").joinpath(name).is_file()


def test_the_stub_lists_what_the_extension_has() -> None:
    stub = importlib.resources.files("fused_penalties").joinpath("_core.pyi").read_text()
    public = [name for name in dir(fp._core) if not name.startswith("_")]
    assert [name for name in public if f"def {name}(" not in stub and f"{name}:" not in stub] == []


def test_public_names() -> None:
    assert sorted(fp.__all__) == sorted(set(fp.__all__))
    for name in fp.__all__:
        assert hasattr(fp, name)
    for name in ("sums", "partial_sums", "Sums", "PartialSums", "StreamingSums", "build_info"):
        assert name in fp.__all__
        assert getattr(fp, name).__doc__
