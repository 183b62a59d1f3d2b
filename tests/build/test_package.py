"""What is installed and what goes with a release: no stray file, one version of each linter."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import fused_penalties as fp
from source_tree import SOURCE

# The source of what is compiled for JAX, and that itself.
FOR_JAX = {"jax/csrc/dtype.hpp", "jax/csrc/jax/handler.cpp", "jax/csrc/jax/interface.hpp"}
BUILT = {Path(fp._core.__file__).name, "jax/handler.so"}


def test_all_modules_are_installed_and_nothing_else() -> None:
    source = SOURCE / "python/fused_penalties"
    wanted = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.suffix in {".py", ".pyi"} or path.name == "py.typed"
    }
    files = importlib.metadata.files("fused-penalties")
    assert files is not None
    paths = [file.as_posix() for file in files if file.suffix != ".pyc"]
    package = {path.partition("/")[2] for path in paths if path.startswith("fused_penalties/")}
    assert package - BUILT == wanted | FOR_JAX
    of_pip = re.compile(r"fused_penalties-[\w.]+\.dist-info/|.*\bbin/fused-penalties$")
    others = {path for path in paths if not path.startswith("fused_penalties/")}
    assert [path for path in others if not of_pip.match(path)] == []


def test_the_linters_before_a_commit_are_those_of_the_extra() -> None:
    needed = importlib.metadata.requires("fused-penalties")
    assert needed is not None
    extra = {line.partition(";")[0].strip() for line in needed if re.search("extra == .lint", line)}
    config = (SOURCE / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"[\w-]+==[\d.]+", config)) == extra


def test_the_changelog_begins_with_this_version() -> None:
    text = (SOURCE / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.search(r"^## (\S+), \d{4}-\d\d-\d\d$", text, re.MULTILINE)
    assert found is not None
    assert found[1] == fp.__version__
