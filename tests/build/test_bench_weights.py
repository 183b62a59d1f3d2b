"""The shapes in bench/weights.py are the published ones, and its files hold what it says."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

SCRIPT = Path(__file__).parents[2] / "bench" / "weights.py"


@pytest.fixture(scope="module")
def weights() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_weights", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# What the libraries themselves count: torchvision's documentation of ResNet50_Weights.IMAGENET1K_V1
# (num_params), and len(list(m.parameters())) and m.num_parameters() of Hugging Face models.
@pytest.mark.parametrize(
    ("model", "tensors", "elements"),
    [
        ("resnet50", 161, 25_557_032),
        ("bert-base", 199, 109_482_240),
        ("gpt2", 148, 124_439_808),
        ("llama-2-7b", 291, 6_738_415_616),
    ],
)
def test_published_totals(weights: ModuleType, model: str, tensors: int, elements: int) -> None:
    shapes = weights.shapes(model)
    assert len(shapes) == tensors
    assert sum(map(math.prod, shapes.values())) == elements


@pytest.mark.parametrize(
    ("model", "name", "shape"),
    [
        ("resnet50", "layer1.0.conv1.weight", (64, 64, 1, 1)),
        ("resnet50", "layer2.0.downsample.0.weight", (512, 256, 1, 1)),
        ("resnet50", "layer3.5.conv2.weight", (256, 256, 3, 3)),
        ("resnet50", "layer4.2.bn3.bias", (2048,)),
        ("bert-base", "encoder.layer.11.intermediate.dense.weight", (3072, 768)),
        ("bert-base", "encoder.layer.0.attention.self.query.bias", (768,)),
        ("bert-base", "pooler.dense.weight", (768, 768)),
        ("gpt2", "h.0.attn.c_attn.weight", (768, 2304)),
        ("gpt2", "h.11.mlp.c_proj.weight", (3072, 768)),
        ("llama-2-7b", "model.layers.31.mlp.down_proj.weight", (4096, 11008)),
    ],
)
def test_names_and_orientation(
    weights: ModuleType, model: str, name: str, shape: tuple[int, ...]
) -> None:
    assert weights.shapes(model)[name] == shape


def test_resnet50_has_no_running_statistics(weights: ModuleType) -> None:
    assert all(name.endswith((".weight", ".bias")) for name in weights.shapes("resnet50"))


def test_unknown_model(weights: ModuleType) -> None:
    with pytest.raises(ValueError, match="got 'vgg16'; wanted one of resnet50, bert-base, gpt2"):
        weights.shapes("vgg16")


@pytest.mark.parametrize(
    ("dtype", "in_numpy"),
    [
        ("float16", np.float16),
        ("bfloat16", ml_dtypes.bfloat16),
        ("float32", np.float32),
        ("float64", np.float64),
    ],
)
def test_file(
    weights: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    in_numpy: type,
) -> None:
    # The last stage of the network: the whole of it in four dtypes would be 400 MB of files.
    small = {k: v for k, v in weights.shapes("resnet50").items() if k.startswith("layer4.1.")}
    monkeypatch.setitem(weights._MODELS, "resnet50", lambda: small)
    paths = [tmp_path / name for name in ("0", "again", "1")]
    for path, seed in zip(paths, "001", strict=True):
        weights.main(["resnet50", str(path), "--dtype", dtype, "--seed", seed])

    elements = sum(map(math.prod, small.values()))
    assert f"{len(small)} tensors, {elements:,} elements" in capsys.readouterr().out
    loaded = load_file(paths[0])
    assert {name: x.shape for name, x in loaded.items()} == small
    assert {x.dtype for x in loaded.values()} == {np.dtype(in_numpy)}
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()

    values = np.concatenate([x.ravel() for x in loaded.values()]).astype(np.float64)
    # Eight standard errors of the mean and of the standard deviation, and the rounding of the
    # dtype: half a unit in the last of bfloat16's eight bits moves single values, not the mean.
    error = 8 / math.sqrt(elements)
    assert abs(values.mean()) < 0.02 * error
    assert values.std() == pytest.approx(0.02, rel=error + 2**-16)
    # Normal, not uniform or a constant: 68.27 % lie within one standard deviation.
    assert np.mean(np.abs(values) < 0.02) == pytest.approx(0.6827, abs=5e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["llama-2-7b", "x.safetensors"], "invalid choice: 'llama-2-7b'"),
        (["gpt2", "x.safetensors", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["gpt2", "x.safetensors", "--seed", "-1"], "--seed: -1 is negative"),
        (["gpt2", "no/such/folder/x.safetensors"], "is not a directory"),
    ],
)
def test_bad_command_lines(
    weights: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        weights.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
