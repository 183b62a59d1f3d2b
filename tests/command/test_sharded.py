"""Folders of safetensors, and what torch.distributed.checkpoint writes: parts become one tensor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from command import run_json
from fused_penalties._formats.boxes import boxes, in_order, tile
from fused_penalties.files import Tensor, open_tensors
from weight_files import assert_holds, fault, ints, listed, loaded, notes


def save_part(path: Path, parts: dict[str, tuple[np.ndarray, list[int]]], **metadata: str) -> None:
    """A file as torch.distributed.checkpoint writes it: arrays, and where each begins."""
    offsets = {name: {"saved_offsets": begin} for name, (_, begin) in parts.items()}
    arrays = {name: np.ascontiguousarray(array) for name, (array, _) in parts.items()}
    save_file(arrays, path, metadata={"DCP_SHARDING_INFO": json.dumps(offsets)} | metadata)


def cut_up(array: np.ndarray, cuts: tuple[list[int], ...]) -> list[tuple[np.ndarray, list[int]]]:
    """The parts that a grid of cuts makes, in C order of the grid, and where each begins."""
    ranges = [
        list(zip([0, *cut], [*cut, size], strict=True))
        for cut, size in zip(cuts, array.shape, strict=True)
    ]
    parts = [((), [])]
    for axis in ranges:
        parts = [
            ((*place, slice(low, high)), [*begin, low])
            for place, begin in parts
            for low, high in axis
        ]
    return [(array[place], begin) for place, begin in parts]


GRIDS = [
    ((4100, 7), ([1000, 2500], [])),  # rows, which do not end where a block of 8 KiB does
    ((300, 50), ([], [20])),
    ((300, 50), ([7, 150], [1, 49])),
    ((9, 8, 7), ([4], [], [3])),
    ((5, 6, 7, 8), ([2], [3], [4], [5])),
    ((40, 3), ([13, 13, 40], [])),  # of which some processes have nothing
]


@pytest.mark.parametrize(("shape", "cuts"), GRIDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_parts_are_one_tensor(tmp_path, shape, cuts, dtype):
    whole = ints(*shape, dtype=dtype)
    for number, part in enumerate(reversed(cut_up(whole, cuts))):
        save_part(tmp_path / f"{number}.safetensors", {"w": part})
    assert_holds(listed(tmp_path)["w"], whole)


def test_a_folder_has_the_bits_of_the_whole(tmp_path, capsys):
    rng = np.random.default_rng(0)
    arrays = {
        "rows": rng.standard_normal((3001, 17), np.float32),
        "columns": rng.standard_normal((99, 1025), np.float32),
        "norm": rng.standard_normal(200),
        "ids": np.arange(12).reshape(6, 2),
    }
    cuts = {"rows": ([1400], []), "columns": ([], [512]), "norm": ([],), "ids": ([3], [])}
    folder = tmp_path / "sharded"
    folder.mkdir()
    ranks: list[dict[str, tuple[np.ndarray, list[int]]]] = [{}, {}]
    for name, array in arrays.items():
        for rank, part in enumerate(cut_up(array, cuts[name])):
            ranks[rank][name] = part
    for rank, parts in enumerate(ranks):
        save_part(folder / f"shard-{rank + 1:05}-model-00001-of-00001.safetensors", parts)
    save_file(arrays, tmp_path / "whole.safetensors")
    of_folder, of_whole = (
        run_json(capsys, path, "--sort", "name")
        for path in (folder, tmp_path / "whole.safetensors")
    )
    assert [row | {"file": ""} for row in of_folder["tensors"]] == [
        row | {"file": ""} for row in of_whole["tensors"]
    ]
    assert of_folder["totals"] == of_whole["totals"]
    assert of_folder["notes"] == []


def test_a_part_alone_says_so(tmp_path):
    whole = ints(6, 2)
    for number, part in enumerate(cut_up(whole, ([2], [])), 1):
        path = tmp_path / f"shard-0000{number}-model-00001-of-00001.safetensors"
        save_part(path, {"w": part, "v": (ints(3), [0])})
        assert_holds(listed(path)["w"], part[0])
        (note,) = notes(path)
        assert "may be one part of a tensor that torch.distributed.checkpoint saved" in note
    save_part(tmp_path / "model-00001-of-00001.safetensors", {"w": (whole, [0, 0])})
    assert notes(tmp_path / "model-00001-of-00001.safetensors") == []


def test_parts_that_do_not_make_a_whole(tmp_path):
    low, middle, high = cut_up(ints(9, 4), ([3, 5], []))
    paths = [tmp_path / f"{n}.safetensors" for n in range(3)]
    for path, part in zip(paths, (low, middle, high), strict=True):
        save_part(path, {"w": part})
    assert listed(tmp_path)["w"].shape == (9, 4)

    save_part(paths[1], {"w": (middle[0], [2, 0])})
    overlap = "overlap, or leave a gap: is a file missing?"
    assert fault(tmp_path) == f"the parts of 'w' (3) {overlap}"
    paths[1].unlink()
    assert fault(tmp_path) == f"the parts of 'w' (2) {overlap}"
    save_part(paths[1], {"w": (middle[0].astype(np.float64), [3, 0])})
    assert fault(tmp_path) == "the parts of 'w' are not of one kind"
    save_file({"w": middle[0]}, paths[1])
    assert fault(tmp_path) == "'w' is in '1.safetensors' and in '0.safetensors'"
    for text in ("{}", "[]", '{"w": {}}', '{"w": {"saved_offsets": [-1, 0]}}', '{"w": 3}', "3"):
        save_file({"w": middle[0]}, paths[1], metadata={"DCP_SHARDING_INFO": text})
        message = "truncated or corrupt: its DCP_SHARDING_INFO does not say where 'w' begins"
        assert fault(paths[1]) == message
        assert fault(tmp_path) == f"'1.safetensors': {message}"
    save_file({"w": middle[0]}, paths[1], metadata={"DCP_SHARDING_INFO": "{"})
    assert fault(paths[1]).startswith("truncated or corrupt: ")


def test_the_own_format_of_torch_distributed_checkpoint_points_to_one_that_is_read(tmp_path):
    shard = tmp_path / "__0_0.distcp"
    shard.write_bytes(b"PK\3\4")
    (tmp_path / ".metadata").write_bytes(b"")
    for path in (tmp_path, shard):
        message = fault(path)
        assert message.startswith("in the own format of torch.distributed.checkpoint (.distcp)")
        assert "HuggingFaceStorageWriter" in message


def test_a_part_that_changes_while_it_is_read(tmp_path):
    for number, part in enumerate(cut_up(ints(3000, 4), ([], [1]))):
        save_part(tmp_path / f"{number}.safetensors", {"w": part})
    tensors = open_tensors(str(tmp_path))
    changed = tmp_path / "1.safetensors"
    os.utime(changed, ns=(0, 0))
    with pytest.raises(Exception, match=r"1\.safetensors: it was changed while it was read"):
        loaded(tensors)


# Folders


def test_a_folder(tmp_path):
    save_file({"b": ints(3), "c": ints(2)}, tmp_path / "1.safetensors")
    save_file({"a": ints(4)}, tmp_path / "2.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "deeper").mkdir()
    assert [tensor.name for tensor in open_tensors(str(tmp_path))] == ["a", "b", "c"]
    (tensor,) = open_tensors(str(tmp_path), lambda name: name == "a")
    assert_holds(tensor, ints(4))

    save_file({"a": ints(4)}, tmp_path / "3.safetensors")
    assert fault(tmp_path) == "'a' is in '2.safetensors' and in '3.safetensors'"
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "3.safetensors"}}))
    assert_holds(listed(tmp_path)["a"], ints(4))
    (tmp_path / "3.safetensors").unlink()
    assert fault(tmp_path).startswith(f"'{index.name}': shard '3.safetensors': No such file")
    (tmp_path / "model.safetensors.index.fp16.json").write_text("{}")
    assert fault(tmp_path).startswith("it has 2 indices, 'model.safetensors.index.fp16.json' first")


def test_folders_that_cannot_be_read(tmp_path):
    assert fault(tmp_path) == "a folder without weight files in it"
    (tmp_path / "w.safetensors").write_bytes(save({"w": ints(9)})[:-1])
    assert fault(tmp_path).startswith("'w.safetensors': truncated or corrupt: ")


# What torch.distributed.checkpoint itself writes

WORKER = """
import os, sys
import numpy as np, torch, torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

rank, ranks, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
mesh = init_device_mesh("cpu", (ranks,))
arrays = {name: torch.from_numpy(array) for name, array in np.load(f"{folder}/whole.npz").items()}
arrays["bf16"] = arrays["rows"].bfloat16()
places = {"rows": Shard(0), "columns": Shard(1), "replicated": Replicate(), "bf16": Shard(0)}
model = {
    name: distribute_tensor(array, mesh, [places[name]]) if name in places else array
    for name, array in arrays.items()
}
writer = HuggingFaceStorageWriter(
    f"{folder}/saved", save_distributed=True, enable_consolidation=sys.argv[4] == "consolidated"
)
dcp.save({"model": model}, storage_writer=writer)
dist.barrier()
os._exit(0)  # gloo's threads can end a process that goes by itself
"""


@pytest.mark.parametrize(("ranks", "way"), [(1, "sharded"), (2, "sharded"), (2, "consolidated")])
def test_torch_distributed_checkpoint(tmp_path, capsys, ranks, way):
    pytest.importorskip("torch", reason="not installed: torch")
    rng = np.random.default_rng(1)
    arrays = {
        "rows": rng.standard_normal((2049, 5), np.float32),
        "columns": rng.standard_normal((60, 301), np.float32),
        "replicated": rng.standard_normal(70),
        "plain": rng.standard_normal((3, 4), np.float32),
    }
    if way == "sharded":  # integers are not consolidated
        arrays["counter"] = np.array(5)
    np.savez(tmp_path / "whole.npz", **arrays)
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", WORKER]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(ranks), str(tmp_path), way],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        for worker in workers:
            _, said = worker.communicate(timeout=100)
            assert worker.returncode == 0, said
    finally:
        for worker in workers:
            worker.kill()

    saved = tmp_path / "saved"
    folders = [saved / "sharded", saved] if way == "consolidated" else [saved]
    assert len(list(folders[0].glob("shard-*.safetensors"))) == ranks
    arrays["bf16"] = arrays["rows"].astype(ml_dtypes.bfloat16)
    for folder in folders:
        found = listed(folder)
        assert set(found) == {f"model.{name}" for name in arrays}
        for name, array in arrays.items():
            if name == "counter":
                assert found[f"model.{name}"] == Tensor(f"model.{name}", (), "I64", 8, None)
            else:
                assert_holds(found[f"model.{name}"], array)
    reports = [run_json(capsys, folder, "--sort", "name")["totals"] for folder in folders]
    save_file(arrays, tmp_path / "whole.safetensors")
    reports.append(run_json(capsys, tmp_path / "whole.safetensors")["totals"])
    assert all(totals == reports[0] for totals in reports)


# Boxes


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_boxes_make_up_the_range(shape, data):
    size = int(np.prod(shape))
    begin = data.draw(st.integers(0, size))
    end = data.draw(st.integers(begin, size))
    numbers = np.arange(size).reshape(shape)
    found = [
        number
        for corner, sizes in boxes(shape, begin, end)
        for number in numbers[tuple(map(slice, corner, np.add(corner, sizes)))].ravel()
    ]
    assert found == list(range(begin, end))


def covers_once(shape: list[int], parts: list[tuple[list[int], list[int]]]) -> bool:
    count = np.zeros(shape, int)
    for begin, end in parts:
        count[tuple(map(slice, begin, end))] += 1
    return bool((count == 1).all())


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.data())
def test_tile(shape, data):
    whole = [[0] * len(shape), shape]
    parts = [whole]
    for _ in range(data.draw(st.integers(0, 5))):  # cut one in two
        begin, end = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        axis = data.draw(st.integers(0, len(shape) - 1))
        at = data.draw(st.integers(begin[axis], end[axis]))
        parts.append([begin, [*end[:axis], at, *end[axis + 1 :]]])
        parts.append([[*begin[:axis], at, *begin[axis + 1 :]], end])
    assert tile(shape, parts)
    assert covers_once(shape, parts)
    # And one that moves or goes away, or comes twice.
    change = data.draw(st.sampled_from(["move", "leave out", "double"]))
    begin, end = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
    if change == "double":
        parts += [[begin, end]] * 2
    elif change == "move":
        axis = data.draw(st.integers(0, len(shape) - 1))
        if begin[axis]:
            begin, end = list(begin), list(end)
            begin[axis] -= 1
            end[axis] -= 1
        parts.append([begin, end])
    assert tile(shape, parts) == covers_once(shape, parts)


def test_order_of_views():
    """That of csrc/CANON.md, as `fp.sums` has it of the same view."""
    flat = np.arange(720)
    base = flat.reshape(6, 5, 4, 6)
    for view in (base.T, base[::2, 1:3], base[:, 0, :, 1].T, base[:, :1].transpose(1, 3, 0, 2)):
        walked = in_order(view)
        assert list(walked.ravel()) == sorted(view.ravel())
    sliding = np.lib.stride_tricks.sliding_window_view(flat[:9], 3)
    for repeats in (np.broadcast_to(flat[:3], (2, 3)).T, sliding.T):
        assert list(in_order(repeats).ravel()) == list(repeats.ravel())
