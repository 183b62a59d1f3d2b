"""torch's memory and streams."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from numpy.typing import NDArray


class TorchMemory:
    """As `Memory` says."""

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        return torch.empty(shape, dtype=getattr(torch, dtype), device=f"cuda:{device}")

    def current_stream(self, device: int) -> int:
        handle: int = torch.cuda.current_stream(device).cuda_stream
        return handle

    def on(self, device: int, stream: int) -> AbstractContextManager[Any]:
        if stream == self.current_stream(device):
            return nullcontext()
        external: Any = torch.cuda.ExternalStream  # which takes no 0
        one = external(stream, device=device) if stream else torch.cuda.default_stream(device)
        foreign: AbstractContextManager[Any] = torch.cuda.stream(one)
        return foreign

    def to_device(self, array: Any, device: int) -> Any:
        return torch.as_tensor(array, device=f"cuda:{device}")

    def to_host(self, array: Any) -> NDArray[Any]:
        host: NDArray[Any] = array.cpu().numpy()
        return host

    def is_number(self, value: Any, device: int) -> bool:
        return (
            type(value) is torch.Tensor
            and value.get_device() == device
            and value.numel() == 1
            and value.is_floating_point()
            and value.element_size() >= 4
        )

    def cast(self, array: Any, dtype: str) -> Any:
        return array.to(getattr(torch, dtype))
