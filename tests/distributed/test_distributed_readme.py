"""The code in the README of `fused_penalties.distributed`, as it stands there."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fresh
import fused_penalties as fp
import readmes


def block(word: str) -> str:
    """The one with this word in it."""
    blocks = readmes.blocks(f"{readmes.PACKAGE}/distributed", "python")
    (found,) = (one for one in blocks if word in one)
    return found


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="not installed: torch")
def test_a_plan() -> None:
    """On one rank: the loss and the clipped gradients are those of plain torch."""
    code = f"""
import torch
import torch.distributed as dist
dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
torch.manual_seed(0)
model = torch.nn.Linear(30, 20)
x, y, criterion = torch.randn(8, 30), torch.randn(8, 20), torch.nn.functional.mse_loss

wanted = criterion(model(x), y) + 1e-4 * model.weight.square().sum()
wanted.backward()
torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
wanted_grads = [param.grad for param in model.parameters()]
model.zero_grad()

{block("model.named_parameters")}
torch.testing.assert_close(loss, wanted)
for param, grad in zip(model.parameters(), wanted_grads, strict=True):
    torch.testing.assert_close(param.grad, grad)
dist.destroy_process_group()
"""
    fresh.output(code, GLOO_SOCKET_IFNAME="lo", TORCH_CPP_LOG_LEVEL="ERROR")


@pytest.mark.skipif(importlib.util.find_spec("dask") is None, reason="not installed: dask")
@pytest.mark.filterwarnings("default:::dask")
def test_dask(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal(5_000_000, np.float32)
    file = tmp_path / "weights.npy"
    np.save(file, weights)
    names: dict[str, Any] = {"file": file, "size": weights.size}
    exec(block("import dask"), names)
    wanted = fp.sums(weights)
    assert len(names["parts"]) == 3
    assert names["sums"].total_abs == wanted.total_abs
    assert names["sums"].total_square == wanted.total_square
