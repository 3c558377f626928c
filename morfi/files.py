"""Folders and files that appear whole or not at all, whenever the process is killed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.checkpoints.weights import Weights, open_file

if TYPE_CHECKING:
    import torch

_PART = ".part-"


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` that takes its name, on disk, when the block ends without an error.

    A folder that was there before is replaced. After an error `path` is what it was.
    """
    part, replaced = path.with_name(f"{_PART}{path.name}"), path.with_name(f"{_PART}old-{path.name}")
    _remove(part)
    _remove(replaced)
    part.mkdir(parents=True)
    try:
        yield part
        for file in part.iterdir():
            _sync(file)
        _sync(part)
        if path.exists():
            path.rename(replaced)
        part.rename(path)
        _sync(path.parent)
    finally:
        _remove(part)
        _remove(replaced)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replaces the file at `path` by `value` as JSON, in one step and on disk."""
    part = path.with_name(f"{_PART}{path.name}")
    try:
        part.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        _sync(part)
        part.replace(path)
        _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


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


def sweep(folder: Path) -> None:
    """Deletes what a killed process left unfinished in `folder`."""
    for path in folder.glob(f"{_PART}*"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
