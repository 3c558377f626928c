"""Copies between the host and a device for which neither waits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def to_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy of `values` on the device; the host does not wait for it.

    Torch gives pinned memory to no one else before the copy out of it has come.
    """
    found = torch.from_numpy(values)
    if device.type == "cpu":
        return found.clone()
    return found.pin_memory().to(device, non_blocking=True)


class Fetched:
    """Tensors of a device on their way to the host, on a stream of their own."""

    def __init__(self, tensors: Sequence[torch.Tensor], stream: torch.Stream | None) -> None:
        """Nobody may write to `tensors` any more; without a stream they are on the host already."""
        self._of_device = tensors  # kept until they are there: no one else gets their memory before
        self._ready: torch.Event | None = None
        self._on_host = list(tensors)
        if stream is None:
            return
        stream.wait_stream(torch.accelerator.current_stream(stream.device))
        with stream:
            self._on_host = [
                torch.empty(one.shape, dtype=one.dtype, pin_memory=True).copy_(one, non_blocking=True)
                for one in tensors
            ]
            self._ready = torch.Event(stream.device)
            self._ready.record(stream)

    @property
    def is_there(self) -> bool:
        """Whether nobody would have to wait."""
        return self._ready is None or self._ready.query()

    def wait(self) -> None:
        """Returns when the tensors are on the host."""
        if self._ready is not None:
            self._ready.synchronize()

    def take(self) -> list[torch.Tensor]:
        """The tensors on the host, once they are there."""
        self.wait()
        self._of_device = ()
        return self._on_host
