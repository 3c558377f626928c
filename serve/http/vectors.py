"""Named vectors to steer along, from numbers or from the bytes of a safetensors file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from morfi.engine.directions import Direction
from morfi.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}")


def read_vectors(file: Path) -> dict[str, Direction]:
    """The vectors of a safetensors file, by name; raises InputError for what is no such file or vector."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"--vectors {file} cannot be read: {error.strerror or error}") from error
    try:
        return unpacked(data)
    except InputError as error:
        raise InputError(f"--vectors {file}: {error}") from error


def unpacked(data: bytes) -> dict[str, Direction]:
    """The vectors in the bytes of a safetensors file, by name; raises InputError for anything else."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"these are not the bytes of a safetensors file ({error})") from error
    return checked(dict(sorted(tensors.items())))


def checked(given: Mapping[str, Any]) -> dict[str, Direction]:
    """Lists or tensors as directions, by name; raises InputError for none, and for one that leads nowhere."""
    if not given:
        raise InputError("no vectors; give one or more, by name")
    found = {}
    for name, numbers in given.items():
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{name[:128]!r} cannot be a vector's name; expected up to 128 letters, digits and ._:@+-, a "
                "letter or digit first"
            )
        try:
            found[name] = Direction(numbers)
        except InputError as error:
            raise InputError(f'vector "{name}": {error}') from error
    return found
