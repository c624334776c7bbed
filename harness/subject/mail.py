"""Values on their way from the device to the host, without either waiting for the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Mail:
    """A small tensor that the host will want to read, sent off when the device comes to it.

    Reading it waits only if it has not arrived yet. Later changes of the tensor do not reach it.

    Args:
        tensor: what to send.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._arrived: torch.Event | None = None
        if tensor.device.type == "cpu":
            self._copy = tensor.clone()
            return
        self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._copy.copy_(tensor, non_blocking=True)
        self._arrived = torch.Event(tensor.device)
        self._arrived.record()

    def read(self) -> list[Any]:
        """The tensor's values."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copy.tolist()
