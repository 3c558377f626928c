"""The configuration of an evaluation: from the command line, or from the run that is resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from morfi.checkpoints.tokenizer import check_bos
from morfi.endpoint.address import Limits
from morfi.errors import InputError
from morfi.evaluation.how import (
    HOW,
    SENT_TOGETHER,
    check_asked,
    check_limits,
    check_words,
    limits_of,
    wording_of,
)
from morfi.questions.prompts import Wording
from morfi.runs.options import check_match, check_numbers, name_of, option, sized_here, stored_together


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """Everything that decides the rows of an evaluation; stored with the run, and enough to resume it."""

    ckpt: str | None = option(
        "Preset, model or LoRA adapter folder, or hub id.", None, unset="none, with --endpoint"
    )
    base: str | None = None
    data: str = "world-facts"
    split: str | None = option("train, dev or test.", None, unset="test, or all of data without splits")
    relations: tuple[str, ...] = ()
    limit: int | None = option(
        "At most this many questions, the same number of each relation.", None, unset="all"
    )
    shots: int = 4
    chat: bool = False
    match: str = "squad"
    max_tokens: int = 16
    seed: int = 0
    bos: str = "auto"
    dtype: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)
    batch: int = stored_together(when=("endpoint", None))  # the prefix cache starts empty for each batch
    endpoint: str | None = None
    served: str | None = None
    concurrency: int | None = None
    timeout: float | None = None
    retries: int | None = None
    prompt_template: str | None = None
    system: str | None = None

    def __post_init__(self) -> None:
        check_asked(self)
        check_words(chat=self.chat, system=self.system, bos=self.bos)
        check_match(self.match)
        check_bos(self.bos)
        check_limits(self.concurrency, self.timeout, self.retries)
        check_numbers(
            {
                "limit": (self.limit, 1),
                "shots": (self.shots, 0),
                "max-tokens": (self.max_tokens, 1),
                "seed": (self.seed, 0),
                "batch": (self.batch, 1),
            }
        )

    @property
    def wording(self) -> Wording:
        """How questions are worded; reads the template."""
        return wording_of(chat=self.chat, system=self.system, prompt_template=self.prompt_template)

    @property
    def limits(self) -> Limits:
        """How the server is asked."""
        return limits_of(self.concurrency, self.timeout, self.retries)


def configure(given: Mapping[str, Any], stored: EvalConfig | None) -> EvalConfig:
    """The configuration of the options that were `given` (those not None), or of the run that is resumed.

    Raises InputError where no checkpoint is named, or where an option differs from the resumed run's.
    """
    options = {key: value for key, value in given.items() if value is not None}
    if stored is None:
        sized = {"batch": SENT_TOGETHER} if "endpoint" in options else sized_here(EvalConfig)
        return EvalConfig(**{**sized, **options})
    # Where the same files are now; that they are the same is checked by their content.
    files = ("ckpt", "base", "data", "prompt_template")
    places = [key for key in files if key in options and os.path.exists(options[key])]
    moved = {key: options.pop(key) for key in (*places, *(key for key in HOW if key in options))}
    for key, value in options.items():
        if value != getattr(stored, key):
            raise InputError(
                f"{_typed(key)} is {value!r}, but the resumed run has {getattr(stored, key)!r}; "
                "leave it out, or run without --resume"
            )
    return replace(stored, **moved)


def _typed(name: str) -> str:
    """The option of a field, as it is typed."""
    return f"--{name_of(EvalConfig.__dataclass_fields__[name])}"
