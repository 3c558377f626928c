"""Options that several commands take: checked, and made fit to be stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from morfi.errors import InputError, nearest
from morfi.questions.matching import MATCH_MODES

MAX_SEED = 2**32 - 1  # the largest that numpy, and so vLLM, takes


def check_match(match: str) -> None:
    """Raises InputError for a way of comparing answers that there is not."""
    if match not in MATCH_MODES:
        hint = nearest(match, MATCH_MODES)
        raise InputError(f'--match is "{match}"; expected one of {", ".join(MATCH_MODES)}.{hint}')


def check_numbers(options: Mapping[str, tuple[int | None, int]]) -> None:
    """Raises InputError for an option under its least value: name to (value or None, least).

    A seed has a greatest value as well.
    """
    for name, (value, least) in options.items():
        if value is not None and value < least:
            raise InputError(f"--{name} is {value}; expected at least {least}")
        if name == "seed" and value is not None and value > MAX_SEED:
            raise InputError(f"--seed is {value}; expected at most {MAX_SEED}")


def located(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` for the store: folders and files with their whole paths, so that any folder can go on."""
    from morfi.checkpoints.presets import PRESETS

    found = dict(config)
    for key in ("ckpt", "model", "base", "data"):
        value = found.get(key)
        if isinstance(value, str) and value not in (*PRESETS, "world-facts"):
            path = Path(value).expanduser()
            found[key] = str(path.absolute()) if path.exists() else value
    return found
