"""Files of torch.save, of now and of before zip: what is listed and read, and what is refused."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import fused_penalties as fp
from command import process, run_json
from fused_penalties import _core
from fused_penalties._formats import pytorch
from fused_penalties.files import FileFault, Tensor, batches, open_tensors
from test_large_files import peak
from weight_files import assert_holds, fault, ints, listed, loaded, notes

torch = pytest.importorskip("torch", reason="not installed: torch")

BEFORE_ZIP = "in the format before zip, which cannot be mapped: it is loaded whole"


@pytest.fixture(params=["zip", "before zip"])
def save(request: pytest.FixtureRequest, tmp_path: Path):
    def write(value: object, name: str = "w.pt") -> Path:
        is_zip = request.param == "zip"
        torch.save(value, tmp_path / name, _use_new_zipfile_serialization=is_zip)
        return tmp_path / name

    return write


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_a_state_dict(save, dtype):
    arrays = {"weight": ints(300, 20, dtype=dtype), "bias": ints(dtype=dtype), "none": ints(0, 3)}
    state = {name: of_numpy(array) for name, array in arrays.items()}
    for suffix in (".pt", ".pth", ".bin", ".ckpt", ".PT"):
        found = listed(save(state, f"model{suffix}"))
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            assert_holds(found[name], array)


def of_numpy(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def test_a_training_checkpoint(save):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(5, 4)).sum().backward()
    optimizer.step()
    path = save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": 1000,
            "done": True,
            "loss": 0.5,
            "config": {"name": "x", "layers": [1, 2]},
            "more": [torch.ones(2), (torch.ones(3),)],
        }
    )
    found = listed(path)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state |= {
        f"optimizer.state.{number}.{name}": tensor
        for number, moments in optimizer.state_dict()["state"].items()
        for name, tensor in moments.items()
    }
    state |= {"more.0": torch.ones(2), "more.1.0": torch.ones(3)}
    counter = "model.1.num_batches_tracked"
    assert set(found) == {*state}  # numbers of Python's are no tensors
    assert notes(path)[-1] == "numbers beside the tensors: step = 1000, loss = 0.5"
    assert found[counter] == Tensor(counter, (), "int64", 8, None)
    for name, tensor in state.items():
        if name != counter:
            assert_holds(found[name], tensor.numpy())
    assert list(listed_by(path, r"^model\.0")) == ["model.0.weight", "model.0.bias"]


def test_numbers_of_python_are_noted(save):
    counters = {"epoch": 0, "batch": 1, "best": 2, "worst": 3}
    path = save({"step": 1000, "lr": [1.0], "w": torch.ones(2), "at": counters, "done": True})
    said = (
        "numbers beside the tensors: step = 1000, at.epoch = 0, at.batch = 1, at.best = 2, 1 more"
    )
    assert notes(path)[-1] == said
    assert list(listed(path)) == ["w"]


def listed_by(path: Path, start: str) -> list[str]:
    import re

    return [tensor.name for tensor in open_tensors(str(path), re.compile(start).search)]


def test_one_tensor_has_the_name_of_the_file(save):
    path = save(torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)), "kernel.pt")
    assert_holds(listed(path)["kernel"], np.arange(6, dtype=np.float32).reshape(2, 3))


def test_tied_weights_count_each_and_are_named(save):
    tied = torch.arange(6.0)
    path = save({"embed": tied, "head": tied, "other": torch.arange(6.0)})
    found = listed(path)
    for name in ("embed", "head", "other"):
        assert_holds(found[name], tied.numpy())
    assert notes(path)[-1] == "1 share their weights, 'head' with 'embed' first; each is counted"


def test_views_that_overlap_are_named_as_tied_weights_are(save):
    base = torch.arange(60.0).reshape(6, 10)
    columns = {"left": base[:, :4], "middle": base[:, 3:7], "right": base[:, 7:]}
    rows = {"top": base[:3], "bottom": base[3:]}
    for tensors, said in [
        ({**columns}, "1 share their weights, 'middle' with 'left' first"),
        ({"right": columns["right"], "left": columns["left"]}, None),  # interleaved, but apart
        ({**rows}, None),
        ({"all": base, **rows}, "2 share their weights, 'top' with 'all' first"),
        ({**rows, "all": base}, "1 share their weights, 'all' with 'top' first"),
        (
            {"part": base[1], "turned": base.t()},
            "1 share their weights, 'turned' with 'part' first",
        ),
        (dict.fromkeys("abcdefghijklmnopqrst", base), "19 share their weights, 'b' with 'a' first"),
    ]:
        expected = [f"{said}; each is counted"] * (said is not None)
        assert [note for note in notes(save(tensors)) if "share" in note] == expected


def views(base: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "turned": base.t(),
        "columns": base[:, 3:40],
        "some": base[::3, ::2].t(),
        "one column": base[:, 5],
        "broadcast": base[:, :1].expand(-1, 7),
        "broadcast, turned": base[0].expand(3, -1).t(),
        "windows": base.flatten().unfold(0, 5, 2)[:2000],
        "negative": torch._neg_view(base),
    }


@pytest.mark.parametrize("most", [8192, 1 << 20])
def test_views_have_the_sums_of_the_same_in_memory(save, most):
    rng = np.random.default_rng(0)
    base = torch.from_numpy(rng.standard_normal((500, 41), np.float32))
    tensors = open_tensors(str(save(views(base))))
    expected = {name: fp.sums(view.resolve_neg()) for name, view in views(base).items()}
    assert [tensor.name for tensor in tensors] == list(expected)
    for tensor, got in zip(tensors, loaded(tensors, most), strict=True):
        sums = fp.sums(got)
        assert (sums.abs, sums.square) == (expected[tensor.name].abs, expected[tensor.name].square)
        assert tensor.size == got.size


def test_other_kinds_are_listed(tmp_path):
    others = {
        "ids": (torch.arange(3), "int64", 24),
        "mask": (torch.ones(3, dtype=torch.bool), "bool", 3),
        "complex": (torch.ones(2, dtype=torch.complex64), "complex64", 16),
        "float8": (torch.ones(4).to(torch.float8_e4m3fn), "float8_e4m3fn", 4),
        "sparse": (torch.eye(3).to_sparse(), "sparse_coo float32", 0),
        "meta": (torch.ones(5, device="meta"), "meta float32", 0),
    }
    torch.save({name: tensor for name, (tensor, _, _) in others.items()}, tmp_path / "w.pt")
    found = listed(tmp_path / "w.pt")
    assert found == {
        name: Tensor(name, tuple(tensor.shape), dtype, nbytes, None)
        for name, (tensor, dtype, nbytes) in others.items()
    }


def saved_on_a_gpu(path: Path, out: Path) -> Path:
    """The same file with the location that tensors on a GPU have, in its pickle."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(out, "w") as changed:
        for member in archive.infolist():
            data = archive.read(member)
            if member.filename.endswith("data.pkl"):
                assert b"X\x03\x00\x00\x00cpu" in data
                data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            changed.writestr(member.filename, data)
    return out


def test_saved_on_a_gpu(tmp_path):
    torch.save({"w": of_numpy(ints(70, 3))}, tmp_path / "w.pt")
    path = saved_on_a_gpu(tmp_path / "w.pt", tmp_path / "gpu.pt")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(path)
    assert_holds(listed(path)["w"], ints(70, 3))


def test_only_what_is_from_before_zip_is_loaded(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt")
    assert notes(tmp_path / "w.pt") == []
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    assert notes(tmp_path / "w.pt") == [BEFORE_ZIP]


def test_an_index_of_torch_files(tmp_path):
    arrays = {"a": ints(3, 2), "b": ints(5), "c": ints(4)}
    shards = {"a": "model-1.bin", "b": "model-2.bin", "c": "model-2.bin"}
    for shard in set(shards.values()):
        held = {name: of_numpy(arrays[name]) for name in arrays if shards[name] == shard}
        torch.save(held, tmp_path / shard)
    path = tmp_path / "pytorch_model.bin.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 60}, "weight_map": shards}))
    assert notes(path) == []
    for name, array in arrays.items():
        assert_holds(listed(path)[name], array)
    assert_holds(listed(tmp_path)["b"], arrays["b"])
    path.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert fault(path) == "weight_map['a']: 'model-1.safetensors' is no .bin beside it"


def test_the_command_and_its_totals(save, capsys):
    path = save({"w": of_numpy(ints(400, 30)), "v": torch.ones(7), "step": 3})
    report = run_json(capsys, path)
    expected = fp.sums([ints(400, 30), np.ones(7, np.float32)])
    assert report["totals"]["abs"] == expected.total_abs
    assert report["totals"]["square"] == expected.total_square
    assert [row["abs"] for row in report["tensors"]] == [*expected.abs]


# What is refused


class Evil:
    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple[object, ...]:
        return self.call[0], self.call[1:]


def test_a_malicious_file_is_refused_by_name(save, tmp_path):
    trace = tmp_path / "sprung"
    for call, name in [
        ((os.system, f"touch {trace}"), f"{os.system.__module__}.system"),
        ((Path.touch, trace), "getattr"),
        ((exec, f"open({str(trace)!r}, 'w')"), "exec"),
        ((subprocess.check_call, ["touch", str(trace)]), "check_call"),
    ]:
        path = save({"w": torch.ones(2), "evil": Evil(*call)})
        message = fault(path)
        assert message.startswith("refused: it holds ")
        assert f"{name}, which torch.load(weights_only=True) does not load; " in message
        assert not trace.exists()
    done = process(path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"fused-penalties: {path}: {message}\n"


def test_what_holds_more_than_weights_is_refused_by_name(save):
    assert "it holds torch.nn.modules.linear.Linear, " in fault(save(torch.nn.Linear(2, 2)))
    assert "it holds numpy." in fault(save({"w": np.ones(3)}))
    for value in (np.float64(3.0), argparse.Namespace(lr=0.1)):  # as scripts of training save them
        message = fault(save({"w": torch.ones(2), "more": value}))
        assert message.endswith("; if you trust the file, save its state_dict alone")


def test_what_has_no_end(save):
    inside: list[object] = [torch.ones(1)]
    inside.append(inside)
    assert fault(save({"w": inside})) == "nested without an end"


def test_what_is_no_file_of_torch_save(tmp_path):
    path = tmp_path / "model.bin"
    for content in (b"lmgg" * 9, pickle.dumps({"w": [1.0]}), b"\x80", pickle.dumps(2**70, 2)):
        path.write_bytes(content)
        assert fault(path) == "not a file of torch.save; pickles of others are never loaded"
    np.savez(tmp_path / "w.npz", w=ints(3))
    (tmp_path / "w.npz").rename(path)
    assert fault(path) == "not a file of torch.save: no data.pkl in it"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", bytes(1000))
    assert fault(path).startswith("its members are compressed")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("w/constants.pkl", b"")
    assert fault(path).startswith("a TorchScript archive, whose code is never loaded")


def test_torch_files_broken(save):
    path = save({"w": of_numpy(ints(400, 30)), "v": torch.ones(7)})
    whole = path.read_bytes()
    for length in (40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        message = fault(path)
        assert message.startswith("truncated or corrupt: ")
        assert len(message) < 300
    done = process(path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_a_torch_file_that_changes_while_it_is_read(tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"w": torch.ones(9000)}, path)
    tensors = open_tensors(str(path))
    os.utime(path, ns=(0, 0))
    with pytest.raises(FileFault, match=r"w\.pt: it was changed while it was read$"):
        loaded(tensors)


NEEDS_MAPS = pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="needs /proc, which Linux has"
)


@NEEDS_MAPS
@pytest.mark.parametrize("kind", ["whole", "view"])
def test_a_torch_file_that_is_cut_short_while_it_is_mapped(tmp_path, kind):
    """PyTorch's own map would end the process: what is mapped here is guarded."""
    path = tmp_path / "w.pt"
    base = of_numpy(ints(3000, 1000))
    torch.save({"w": base if kind == "whole" else base[:, 1:]}, path)
    (batch,) = batches(open_tensors(str(path)), 1 << 30, mapped=True)
    if kind == "whole":
        (array,) = batch.read()
        os.truncate(path, 5000)
        assert not array.reshape(-1)[-1000:].any()
        with pytest.raises(FileFault, match=r"w\.pt: it was changed while it was read$"):
            batch.check()
    else:
        os.truncate(path, 5000)
        with pytest.raises(FileFault, match=r"w\.pt: it was changed while it was read$"):
            batch.read()


@NEEDS_MAPS
def test_a_view_in_a_torch_file_that_is_cut_short_while_it_is_copied(tmp_path, monkeypatch):
    path = tmp_path / "w.pt"
    torch.save({"w": of_numpy(ints(3000, 1000))[:, 1:]}, path)
    (batch,) = batches(open_tensors(str(path)), 1 << 30, mapped=True)
    map_file = _core.FileMap

    def cut_once_mapped(*stretch: int) -> _core.FileMap:
        mapped = map_file(*stretch)
        os.truncate(path, 5000)
        return mapped

    monkeypatch.setattr(_core, "FileMap", cut_once_mapped)
    with pytest.raises(FileFault, match=r"w\.pt: it was changed while it was read$"):
        batch.read()


@NEEDS_MAPS
def test_memory_does_not_grow_with_a_torch_file(tmp_path):
    """Pages that were read are given back, though PyTorch maps the file too."""
    torch.save({"w": torch.ones(100 << 20 >> 2)}, tmp_path / "w.pt")
    torch.save({"w": torch.ones(500 << 20 >> 2)}, tmp_path / "large.pt")
    small, large = (peak(tmp_path / name) for name in ("w.pt", "large.pt"))
    assert large - small < 64 << 20


def test_numbers_that_are_big_endian(tmp_path, monkeypatch):
    """PyTorch swaps them in memory, which then is not what the file has."""
    array = ints(500, 41)
    torch.save(
        {"w": of_numpy(array.byteswap()), "view": of_numpy(array.byteswap())[:, 1:]},
        tmp_path / "w.pt",
    )
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as archive,
        zipfile.ZipFile(tmp_path / "big.pt", "w") as big,
    ):
        for member in archive.infolist():
            data = b"big" if member.filename.endswith("/byteorder") else archive.read(member)
            big.writestr(member.filename, data)
    found = listed(tmp_path / "big.pt")
    assert_holds(found["w"], array)
    assert_holds(found["view"], array[:, 1:])


def test_where_maps_cannot_be_known(tmp_path, monkeypatch):
    """As on macOS: elements are taken from PyTorch's map."""
    monkeypatch.setattr(pytorch, "_maps_of", lambda source: [])
    array = ints(500, 41)
    torch.save({"w": of_numpy(array), "view": of_numpy(array)[:, 1:]}, tmp_path / "w.pt")
    found = listed(tmp_path / "w.pt")
    assert_holds(found["w"], array)
    assert_holds(found["view"], array[:, 1:])
    os.utime(tmp_path / "w.pt", ns=(0, 0))
    with pytest.raises(FileFault, match=r"w\.pt: it was changed while it was read$"):
        loaded([found["w"]])


INTERRUPTED = """
import os, signal, time, torch
def load(*args, **options):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
torch.load = load
from fused_penalties.cli import main
raise SystemExit(main())
"""


def test_interrupt_within_torch(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt")
    command = [sys.executable, "-c", INTERRUPTED, "report", str(tmp_path / "w.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "fused-penalties: interrupted\n"


def test_without_torch(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt")
    code = "import sys; sys.modules['torch'] = None; from fused_penalties.cli import main; main()"
    command = [sys.executable, "-c", code, "report", str(tmp_path / "w.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.startswith(
        f"fused-penalties: {tmp_path / 'w.pt'}: PyTorch, which reads it, "
    )
    assert done.stderr.endswith("; pip install 'fused-penalties[torch]'\n")
