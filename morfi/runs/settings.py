"""The settings of a run as they are stored, and read back as the dataclass that they were written from."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from morfi.errors import InputError
from morfi.store.records import RunRecord

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    SettingsT = TypeVar("SettingsT", bound=DataclassInstance)


def to_store(settings: DataclassInstance) -> dict[str, Any]:
    """The form of `settings` that is stored: with whole paths, so that a run can go on from any folder."""
    from morfi.checkpoints.presets import PRESETS
    from morfi.questions import world_facts

    found = asdict(settings)
    for key in ("ckpt", "base", "data", "prompts", "prompt_template"):
        value = found.get(key)
        if isinstance(value, str) and value not in (*PRESETS, *world_facts.NAMES):
            path = os.path.expanduser(value)  # os.path: a name that cannot be a file's is none that is there
            found[key] = str(Path(path).absolute()) if os.path.exists(path) else value
    return found


def settings_of(run: RunRecord, settings: type[SettingsT]) -> SettingsT:
    """The settings of `run`; those that an earlier morfi did not store yet have their defaults.

    Raises InputError for settings that this morfi does not know.
    """
    try:
        # JSON has lists only.
        return settings(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in run.config.items()}
        )
    except TypeError as error:
        raise InputError(
            f"{run.run_id} was made by another morfi: this one does not know its settings ({error}); "
            f"run `morfi {run.kind}` again"
        ) from error
