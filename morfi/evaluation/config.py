"""The configuration of an evaluation: from the command line, or from the run that is resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from morfi.checkpoints.tokenizer import check_bos
from morfi.errors import InputError
from morfi.runs.options import check_match, check_numbers, option, sized_here, stored_together


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """Everything that decides the rows of an evaluation; stored with the run, and enough to resume it."""

    ckpt: str = option("Preset, model or LoRA adapter folder, or hub id.", required=False)
    base: str | None = option(
        "The adapter's base model, when its adapter_config.json is not to be followed.", None
    )
    data: str = "world-facts"
    split: str | None = option("train, dev or test.", None, unset="test, or all of data without splits")
    relations: tuple[str, ...] = ()
    limit: int | None = option("At most this many questions, the same number of each relation.", None)
    shots: int = 4
    chat: bool = option("Use the checkpoint's chat template.", False, off="no-chat")
    match: str = "squad"
    max_tokens: int = 16
    seed: int = 0
    bos: str = "auto"
    dtype: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)
    batch: int = stored_together()  # the prefix cache starts empty for each batch

    def __post_init__(self) -> None:
        check_match(self.match)
        check_bos(self.bos)
        if self.chat and self.bos != "auto":
            raise InputError(f"--bos {self.bos} with --chat: the chat template writes BOS; leave --bos out")
        check_numbers(
            {
                "limit": (self.limit, 1),
                "shots": (self.shots, 0),
                "max-tokens": (self.max_tokens, 1),
                "seed": (self.seed, 0),
                "batch": (self.batch, 1),
            }
        )


def configure(given: Mapping[str, Any], stored: EvalConfig | None) -> EvalConfig:
    """The configuration of the options that were `given` (those not None), or of the run that is resumed.

    Raises InputError where no checkpoint is named, or where an option differs from the resumed run's.
    """
    options = {key: value for key, value in given.items() if value is not None}
    if stored is None:
        if "ckpt" not in options:
            raise InputError(
                "--ckpt is missing: give a preset (smollm2), a model or adapter folder, or a hub id"
            )
        return EvalConfig(**{**sized_here(EvalConfig), **options})
    # Where the same files are now; that they are the same is checked by their content.
    places = [key for key in ("ckpt", "base", "data") if key in options and os.path.exists(options[key])]
    moved = {key: options.pop(key) for key in places}
    for key, value in options.items():
        if value != getattr(stored, key):
            raise InputError(
                f"--{key.replace('_', '-')} is {value!r}, but the resumed run has {getattr(stored, key)!r}; "
                "leave it out, or run without --resume"
            )
    return replace(stored, **moved)
