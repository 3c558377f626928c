"""A whole model with other weights of the same form, written for as long as it is looked at."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from morfi.checkpoints.live import live_tensors
from morfi.checkpoints.model_files import SIDE_FILES, ModelFiles
from morfi.checkpoints.weights import write_weights
from morfi.device import available_memory

if TYPE_CHECKING:
    import torch

_CHANGE = 0.1  # standard deviation of each weight's change, over the weight
_ROOM = 1.1  # times what is written that must be free


@contextmanager
def changed_model(model: ModelFiles) -> Iterator[Path]:
    """A folder, for the length of the block, with `model` in which every weight is another one."""
    with tempfile.TemporaryDirectory() as created:
        folder = Path(created)
        for name in ("config.json", *SIDE_FILES):
            if (model.path / name).is_file():
                shutil.copyfile(model.path / name, folder / name)
        write_weights(folder, _changed(model))
        yield folder


def lack_of_room(model: ModelFiles, dtype: str) -> str | None:
    """Why such a folder, and the model in transformers for an engine in `dtype`, would not fit; or None."""
    n_bytes = sum(path.stat().st_size for path in model.weights.shards())
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < _ROOM * n_bytes:
        return (
            f"{folder} has {free / 1e9:.3g} GB free, and a copy of the weights needs {n_bytes / 1e9:.3g} GB; "
            "set TMPDIR to where there is room"
        )
    n_weights = sum(math.prod(model.weights.tensors[name].shape) for name in live_tensors(model))
    needed = n_weights * (4 if dtype == "float32" else 6)  # in float32, and in the engine's dtype beside it
    memory = available_memory()
    if memory is not None and memory < _ROOM * needed:
        return (
            f"{memory / 1e9:.3g} GB of memory are available, and a second model in transformers needs "
            f"{needed / 1e9:.3g} GB"
        )
    return None


def _changed(model: ModelFiles) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor that an engine takes from the files, with every weight changed in proportion."""
    import torch

    live, draw = live_tensors(model), torch.Generator().manual_seed(0)
    for name, tensor in model.weights:
        if name in live and tensor.is_floating_point():
            factor = 1 + _CHANGE * torch.randn(tensor.shape, generator=draw)
            yield name, (tensor.float() * factor).to(tensor.dtype)
        elif name in live:
            yield name, tensor
