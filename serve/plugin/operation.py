"""`torch.ops.morfi.residual`: what decoder layers call on their output, on behalf of the current state."""

from __future__ import annotations

import torch

from morfi.serve.plugin.shared_layers import SharedLayers
from morfi.serve.plugin.step import ResidualState

_current: ResidualState | None = None


def use(state: ResidualState | None) -> None:
    """Makes `state` the one that the operation works with, in this process, from now on."""
    global _current  # noqa: PLW0603 - an operation in a graph cannot be handed an object
    _current = state


def apply(hidden: torch.Tensor, residual: torch.Tensor | None, layer: int) -> None:
    """Steering and capture after `layer`, where nothing is compiled."""
    if _current is not None and (_current.work or _current.device_work is not None):
        _current.apply(layer, hidden, residual)


def _apply(hidden: torch.Tensor, residual: torch.Tensor | None, line: torch.Tensor) -> None:
    """The operation `torch.ops.morfi.residual`, in graphs that are the same for every layer."""
    if _current is not None and (_current.work or _current.device_work is not None):
        _current.apply_at(line, hidden, residual)


def shared_layers() -> SharedLayers | None:
    """The sharing of layers in the current step; None where requests have nothing in common."""
    return None if _current is None else _current.shared_layers


_library = torch.library.Library("morfi", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("residual(Tensor(a!) hidden, Tensor? residual, Tensor line) -> ()")  # type: ignore[no-untyped-call]
_library.impl("residual", _apply, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]


@torch.library.register_fake("morfi::residual")  # type: ignore[untyped-decorator]
def _fake(hidden: torch.Tensor, residual: torch.Tensor | None, line: torch.Tensor) -> None: ...
