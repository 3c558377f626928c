"""Files of tensors, written and read."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from morfi.checkpoints.weights import Weights, open_file

if TYPE_CHECKING:
    import torch


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes a safetensors file; raises OSError where the disk does not take it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from error
    # The library makes its files private; these are as readable as the folder they lie in.
    path.chmod(path.parent.stat().st_mode & 0o666)


def read_tensors(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file whose names begin with `prefix`, by the rest of their names.

    Raises InputError for a damaged file.
    """
    wanted = {name: entry for name, entry in open_file(path).tensors.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): tensor for name, tensor in Weights(wanted)}
