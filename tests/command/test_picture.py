"""The picture of a checkpoint: what a layer is, which are marked, and what is drawn."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from command import failing, run
from fused_penalties import cli
from fused_penalties._picture import Layer, layers_of, odd_ones
from fused_penalties._report import Row
from weight_files import ints

# Without matplotlib


def row(name: str, array: np.ndarray, file: str = "w.npz") -> Row:
    wide = array.astype(np.float64)
    sums = float(abs(wide).sum()), float((wide * wide).sum()), 0.0
    largest = float(abs(wide).max(initial=0))
    return Row(file, name, array.shape, "float32", array.size, array.nbytes, *sums, largest)


def test_the_tensors_of_a_layer_are_drawn_as_one():
    rows = [
        row("net.1.weight", np.array([3.0, -5.0])),
        row("out", np.array([2.0])),
        row("net.1.bias", np.array([1.0, 1.0])),
        Row("w.npz", "net.1.steps", (), "int64", 1, 8),
        row("a/kernel", np.array([4.0])),
        row("net.1.weight", np.array([7.0]), file="other.npz"),
        row("none.weight", np.zeros(0)),
    ]
    assert layers_of(rows) == [
        Layer("net.1", 10 / 4, 3.0, True),
        Layer("out", 2.0, 2.0, True),
        Layer("a", 4.0, 4.0, True),
        Layer("net.1", 7.0, 7.0, True),
    ]


def layer(name: str, rms: float, is_finite: bool = True) -> Layer:
    return Layer(name, rms / 2, rms, is_finite)


def test_odd_layers_are_found_among_those_of_their_kind():
    """A norm of ones is no explosion beside matrices of hundredths, nor are those near death."""
    layers = [layer(f"{n}.norm", 1.0) for n in range(5)] + [
        layer(f"{n}.mlp", 0.005) for n in range(9)
    ]
    assert odd_ones(layers) == {"near-dead": [], "exploding": [], "NaN or infinity": []}
    layers[1] = layer("1.norm", 101.0)
    layers[2] = layer("2.norm", 0.0099)
    layers[6] = layer("1.mlp", 0.0)
    layers[7] = layer("2.mlp", 0.51)
    layers[8] = layer("3.mlp", 0.49)
    layers[9] = layer("4.mlp", math.nan, False)
    layers[10] = layer("5.mlp", math.inf)  # the sum of what is finite
    expected = {"near-dead": [2, 6], "exploding": [1, 7, 10], "NaN or infinity": [9]}
    assert odd_ones(layers) == expected


def test_odd_layers_of_which_there_are_few_kinds():
    layers = [
        layer("a", 0.1),
        layer("b", 0.1),
        layer("c", 0.0005),
        layer("d.1", 11.0),
        layer("d.2", 9),
    ]
    assert odd_ones(layers) == {"near-dead": [2], "exploding": [3], "NaN or infinity": []}
    assert odd_ones([]) == {"near-dead": [], "exploding": [], "NaN or infinity": []}
    assert odd_ones([layer("a", math.nan, False)])["NaN or infinity"] == [0]
    assert odd_ones([layer("a", 0.0)])["near-dead"] == [0]


def test_without_matplotlib(tmp_path, tiny):
    """One line, before anything is read."""
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from fused_penalties import cli\ncli.batches = None\nraise SystemExit(cli.main())"
    )
    path = tmp_path / "layers.png"
    command = [sys.executable, "-c", code, "report", tiny, "--plot", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        f"fused-penalties: {path}: matplotlib, which draws it, cannot be imported ("
    )
    assert done.stderr.endswith("); pip install 'fused-penalties[plot]'\n")
    assert not path.exists()


def test_matplotlib_is_imported_for_a_picture_only(tiny):
    code = (
        "import sys; from fused_penalties.cli import main; main()\n"
        "assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, "report", tiny], check=True, capture_output=True)


# With it


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were saved."""
    figure = pytest.importorskip("matplotlib.figure", reason="not installed: matplotlib")
    saved: list[Any] = []
    save = figure.Figure.savefig

    def savefig(self: Any, *args: Any, **options: Any) -> None:
        saved.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(figure.Figure, "savefig", savefig)
    return saved


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def points(figure: Any) -> dict[str, list[tuple[float, float]]]:
    (axes,) = figure.axes
    return {
        line.get_label(): [
            *zip(map(float, line.get_xdata()), map(float, line.get_ydata()), strict=True)
        ]
        for line in axes.lines
        if not line.get_label().startswith("_")
    }


def test_what_is_drawn(capsys, tmp_path, drawn):
    arrays = {
        "layers.10.w": np.float32([4, -2]),
        "layers.2.w": np.float32([1, 1]),
        "layers.3.w": np.float32([np.inf]),
        "layers.4.w": np.float32([1e-4]),
        "layers.5.w": np.float32([0, 0]),
        "layers.6.w": np.float32([1e4]),
    }
    save_file(arrays, tmp_path / "w.safetensors")
    path = tmp_path / "layers.png"
    table = run(capsys, tmp_path / "w.safetensors", "--sort", "size")
    out = run(capsys, tmp_path / "w.safetensors", "--sort", "size", "--plot", path)
    assert out.splitlines()[:9] == table.splitlines()[:9]
    assert is_png(path)
    (figure,) = drawn
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    assert figure.get_facecolor()[:3] == (1, 1, 1)
    found = points(figure)
    # In the order of the checkpoint, whatever the order of the table.
    small, nan = float(np.float32(1e-4)), math.nan
    means, sizes = [1, nan, small, nan, 1e4, 3], [1, nan, small, nan, 1e4, 10**0.5]
    for label, values in (("mean magnitude, Σ|w|/n", means), ("root mean square", sizes)):
        np.testing.assert_allclose(found[label], [*enumerate(values, 1)], rtol=1e-15)
    np.testing.assert_allclose(found["near-dead: 2"], [(3, small)], rtol=1e-15)  # 0 is at the edge
    np.testing.assert_allclose(found["exploding: 1"], [(5, 1e4)], rtol=1e-15)
    assert found["NaN or infinity: 1"] == []
    at_edges = [
        line.get_xdata().tolist() for line in axes.lines if line.get_label().startswith("_")
    ]
    assert [place for line in at_edges for place in line] == [4, 2]
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ["layers.2", "layers.3", "layers.4", "layers.5", "layers.6", "layers.10"]
    assert axes.get_xlabel().splitlines() == [
        "6 layers, in their order",
        "near-dead: layers.4 (layer 3), layers.5 (layer 4)",
        "exploding: layers.6 (layer 5)",
        "NaN or infinity: layers.3 (layer 2)",
    ]


def test_pictures_of_all_sizes(capsys, tmp_path, drawn):
    checkpoints: list[dict[str, np.ndarray]] = [
        {"ids": np.arange(3)},
        {"zero": np.zeros(3, np.float32)},
        {"nan": np.float32([np.nan])},
        {"$x$\n.w": ints(2), "Σ.権重": ints(3), "$\\frac{.w": ints(4), "x" * 500: ints(5)},
        {f"layers.{n}.w": ints(3) + np.float32(n % 50 != 7) for n in range(500)},
    ]
    for number, arrays in enumerate(checkpoints):
        path = tmp_path / f"{number}.png"
        np.savez(tmp_path / "w.npz", **arrays)
        run(capsys, tmp_path / "w.npz", "--plot", path)
        assert is_png(path)
    assert len(points(drawn[-1])["root mean square"]) == 500
    run(capsys, tmp_path / "w.npz", "--plot", tmp_path / "w.svg")
    assert b"<svg" in (tmp_path / "w.svg").read_bytes()


def test_a_picture_of_merged_parts(capsys, tmp_path, drawn, tiny):
    run(capsys, tiny, "--plot", tmp_path / "one.png")
    run(capsys, tiny, "--part", "1/1", "--save", tmp_path / "part.npz")
    path = tmp_path / "merged.png"
    assert cli.main(["merge", str(tmp_path / "part.npz"), "--plot", str(path)]) == 0
    assert is_png(path)
    assert points(drawn[0]) == points(drawn[1])


def test_a_picture_that_cannot_be_there(capsys, tmp_path, drawn, tiny, monkeypatch):
    """It is said before hours of reading."""
    monkeypatch.setattr(cli, "batches", None)
    for name, fault in [
        ("layers.jpeg", "a picture is one of .png, .svg, .pdf"),
        ("none/layers.png", "No such file or directory"),
    ]:
        out, said = failing(capsys, 2, tiny, "--plot", tmp_path / name)
        assert (out, said) == ("", [f"{tmp_path / name}: {fault}"])
    assert drawn == []


def test_a_picture_on_a_full_disk(capsys, tiny, tmp_path, drawn):
    (tmp_path / "layers.png").symlink_to("/dev/full")
    out, said = failing(capsys, 2, tiny, "--plot", tmp_path / "layers.png")
    assert (out, said) == ("", [f"{tmp_path / 'layers.png'}: No space left on device"])
