"""How what XLA calls on the CPU is compiled and found, in copies of the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path

import pytest

jax = pytest.importorskip("jax", reason="not installed: jax")
pytest.importorskip("optax", reason="not installed: optax")

import fused_penalties as fp  # noqa: E402
from fused_penalties.jax import _handler, build_info  # noqa: E402
from source_tree import PATH, SOURCE, tool  # noqa: E402

VALUE = """
import jax.numpy as jnp
from fused_penalties.jax import build_info, penalty
from fused_penalties.regularizers import L1

info = build_info()
print(float(penalty(jnp.ones(3), L1(0.5))), info["ffi"], info["library"])
print(info["why"])
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The package as pip installs it, without the library."""
    copy = tmp_path / "site" / "fused_penalties"
    installed = Path(fp.__file__).parent
    shutil.copytree(installed, copy, ignore=shutil.ignore_patterns("handler.so", "__pycache__"))
    assert (copy / "jax/csrc/jax/handler.cpp").exists()
    return copy


def run(package: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    surroundings = {**os.environ, "XDG_CACHE_HOME": str(package.parent / "cache")}
    surroundings.pop("CXX", None)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=package.parent,
        env=surroundings | {"PYTHONPATH": str(package.parent)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def build(package: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(package, "-m", "fused_penalties.jax", "build", **environment)


def value(package: Path) -> list[str]:
    done = run(package, "-c", VALUE)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_is_said_here() -> None:
    info = build_info()
    assert set(info) == {"ffi", "why", "library"}
    if info["ffi"]:
        assert Path(info["library"]).is_file()
        assert info["library"] in info["why"]
    else:
        assert info["library"] is None
        assert info["why"].startswith("jax.numpy: ")


def test_it_is_built_into_the_package(package: Path) -> None:
    first, why = value(package)
    assert first == "1.5 False None"
    assert why == (
        "jax.numpy: what XLA would call is not built; `python -m fused_penalties.jax build` "
        "makes it"
    )
    done = build(package)
    assert done.returncode == 0, done.stderr
    library = package / "jax" / "handler.so"
    assert done.stdout.splitlines()[0] == str(library)
    first, why = value(package)
    assert first == f"1.5 True {library}"
    assert str(library) in why
    assert [path.name for path in library.parent.glob(".build-*")] == []


def test_pip_knows_what_was_built(package: Path) -> None:
    """`pip uninstall` removes what it finds in this list."""
    listed = package.parent / f"fused_penalties-{fp.__version__}.dist-info"
    listed.mkdir()
    (listed / "RECORD").write_text("fused_penalties/__init__.py,,\n")
    for _ in range(2):
        done = build(package)
        assert done.returncode == 0, done.stderr
    files = metadata.PathDistribution(listed).files
    assert files is not None
    assert [Path(file.locate()) for file in files] == [
        package / "__init__.py",
        package / "jax" / "handler.so",
    ]


def test_one_of_another_interface_is_not_used(package: Path) -> None:
    header = package / "jax/csrc/jax/interface.hpp"
    text = header.read_text()
    assert "kJaxInterface = 1;" in text
    header.write_text(text.replace("kJaxInterface = 1;", "kJaxInterface = 999;"))
    done = build(package)
    assert done.returncode == 1
    assert "it was built for another version of fused_penalties" in done.stdout
    first, why = value(package)
    assert first == "1.5 False None"
    assert why.endswith("`python -m fused_penalties.jax build` makes it anew")


def test_one_of_another_xla_is_not_used(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given to XLA, it would leave JAX without a CPU."""
    monkeypatch.setattr(_handler, "_in_package", lambda: package / "jax" / "handler.so")
    monkeypatch.setattr(_handler, "_in_cache", lambda: package / "none")
    _handler.build()
    major, minor = _handler._xla_version()
    for other in (major, minor + 1), (major + 1, minor):
        monkeypatch.setattr(_handler, "_xla_version", lambda other=other: other)
        library, why = _handler._load()
        assert library is None
        assert "it was built for another version of JAX" in why


def test_what_is_no_library_is_not_used(package: Path) -> None:
    (package / "jax" / "handler.so").write_text("nothing")
    first, why = value(package)
    assert first == "1.5 False None"
    assert "cannot be used" in why


def test_it_is_built_into_the_cache_if_the_package_cannot_be_written(package: Path) -> None:
    code = """
    import os
    from fused_penalties.jax import _handler

    access = os.access  # the user may be one who can write everywhere
    os.access = lambda path, *mode: path != _handler._FOLDER and access(path, *mode)
    print(_handler.build())
    """
    done = run(package, "-c", textwrap.dedent(code))
    assert done.returncode == 0, done.stderr
    library = Path(done.stdout.strip())
    assert library.parent == package.parent / "cache" / "fused-penalties"
    assert fp.__version__ in library.name
    assert value(package)[0] == f"1.5 True {library}"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PATH": ""}, "error: there is no C++ compiler: none of c++, g++ and clang++ is found"),
        ({"CXX": "no-such-compiler"}, "No such file or directory: 'no-such-compiler'"),
        ({"CXX": "false"}, " ended with 1:"),
    ],
)
def test_without_a_compiler(package: Path, environment: dict[str, str], message: str) -> None:
    done = build(package, **environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(package.rglob("handler.so"))


def cmake(folder: Path, include: str) -> subprocess.CompletedProcess[str]:
    import pybind11

    options = {
        "FUSED_PENALTIES_CUDA": "OFF",
        "FUSED_PENALTIES_XLA_INCLUDE": include,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    definitions = [f"-D{name}={value}" for name, value in options.items()]
    return subprocess.run(
        [tool("cmake"), "-S", SOURCE, "-B", folder, "-G", "Ninja", *definitions],
        env={**os.environ, "PATH": PATH},
        capture_output=True,
        text=True,
        check=False,
    )


def test_cmake_builds_the_same(package: Path, tmp_path: Path) -> None:
    folder = tmp_path / "build"
    done = cmake(folder, jax.ffi.include_dir())
    assert done.returncode == 0, done.stderr
    subprocess.run(
        [tool("cmake"), "--build", folder, "--target", "fused_penalties_handler"],
        env={**os.environ, "PATH": PATH},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    shutil.copy(folder / "handler.so", package / "jax")
    assert value(package)[0] == f"1.5 True {package / 'jax' / 'handler.so'}"


def test_cmake_says_what_it_wants(tmp_path: Path) -> None:
    done = cmake(tmp_path / "build", str(tmp_path))
    assert done.returncode != 0
    assert "jax.ffi.include_dir()" in done.stderr


EXPORT = """
import sys
import jax, numpy as np
from jax import export
from fused_penalties.jax import penalty
from fused_penalties.regularizers import L1L2

checks = [export.DisabledSafetyCheck.custom_call(target) for target in sys.argv[1:]]
function = jax.jit(jax.value_and_grad(lambda w: penalty(w, L1L2(0.5, 0.25))))
for platforms in ["cpu"], ["cpu", "cuda"]:
    exporting = export.export(function, platforms=platforms, disabled_checks=checks)
    with open("-".join(platforms), "wb") as file:
        file.write(exporting(jax.ShapeDtypeStruct((10_007,), np.float32)).serialize())
"""

CALL = """
import fused_penalties as fp
import numpy as np
from jax import export

w = np.random.default_rng(0).standard_normal(10_007).astype(np.float32)
wide = w.astype(np.float64)
for name in "cpu", "cpu-cuda":
    with open(name, "rb") as file:
        value, gradient = export.deserialize(bytearray(file.read())).call(w)
    np.testing.assert_allclose(value, (0.5 * abs(wide) + 0.25 * wide**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, 0.5 * np.sign(wide) + 0.5 * wide, rtol=1e-6)
    print(np.float32(value) == np.float32(fp.penalty([w], fp.regularizers.L1L2(0.5, 0.25))))
"""


def test_it_is_exported(package: Path) -> None:
    pytest.importorskip("flatbuffers", reason="not installed: flatbuffers")  # jax.export's
    importing = "import fused_penalties.jax" + CALL

    # Without the library the export is plain XLA, which asks for nothing.
    done = run(package, "-c", EXPORT)
    assert done.returncode == 0, done.stderr
    done = run(package, "-c", CALL)
    assert done.returncode == 0, done.stderr

    build(package)
    done = run(package, "-c", EXPORT)
    assert "Cannot serialize code with custom calls" in done.stderr
    done = run(package, "-c", EXPORT, _handler.TARGET)
    assert done.returncode == 0, done.stderr
    done = run(package, "-c", importing)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True\nTrue\n"

    # Processes that do not know the library, and then ones that cannot.
    not_found = f"No FFI handler registered for {_handler.TARGET}"
    assert not_found in run(package, "-c", CALL).stderr
    (package / "jax" / "handler.so").unlink()
    assert not_found in run(package, "-c", importing).stderr
