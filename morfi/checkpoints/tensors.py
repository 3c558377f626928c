"""Files of tensors, read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from morfi.checkpoints.weights import Weights, open_file

if TYPE_CHECKING:
    import torch


def read_tensors(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file whose names begin with `prefix`, by the rest of their names.

    Raises InputError for a damaged file.
    """
    wanted = {name: entry for name, entry in open_file(path).tensors.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): tensor for name, tensor in Weights(wanted)}
