"""The configuration of an evaluation: from the command line, or from the run that is resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from morfi.checkpoints.tokenizer import check_bos
from morfi.endpoint.address import Limits, check_url
from morfi.errors import InputError
from morfi.questions.prompts import Wording
from morfi.questions.templates import FIELDS, read_template
from morfi.runs.options import check_match, check_numbers, name_of, option, sized_here, stored_together

HOW = ("concurrency", "timeout", "retries")  # which change no answer: a resumed run may have others
_SENT_TOGETHER = 256  # of which an error loses those that were answered


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """Everything that decides the rows of an evaluation; stored with the run, and enough to resume it."""

    ckpt: str | None = option("Preset, model or LoRA adapter folder, or hub id.", None)
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
    batch: int = stored_together(when=("endpoint", None))  # the prefix cache starts empty for each batch
    endpoint: str | None = option(
        "OpenAI-compatible server to ask in place of --ckpt, such as http://host:8000/v1.",
        None,
        metavar="URL",
    )
    served: str | None = option("The server's name for the model.", None, name="model", metavar="NAME")
    concurrency: int | None = option("Requests to the server at once.", None, unset="32")
    timeout: float | None = option("Seconds for the server to answer one.", None, unset="120")
    retries: int | None = option("Times that a request is sent again.", None, unset="6")
    prompt_template: str | None = option(
        f"Jinja file for the text of a prompt, of {FIELDS}.", None, metavar="FILE"
    )
    system: str | None = option("Text of the system before a chat.", None, metavar="TEXT")

    def __post_init__(self) -> None:
        self._check_asked()
        self._check_system()
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
                "concurrency": (self.concurrency, 1),
                "retries": (self.retries, 0),
            }
        )
        if self.timeout is not None and not 0 < self.timeout < float("inf"):
            raise InputError(f"--timeout is {self.timeout}; expected a number of seconds")

    @property
    def wording(self) -> Wording:
        """How questions are worded; reads the template."""
        path = self.prompt_template
        return Wording(self.chat, self.system, None if path is None else read_template(path))

    @property
    def limits(self) -> Limits:
        """How the server is asked."""
        given = {"concurrency": self.concurrency, "timeout_s": self.timeout, "retries": self.retries}
        return Limits(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]

    def _check_system(self) -> None:
        if self.system is None:
            return
        if not self.chat:
            raise InputError("--system without --chat: only a chat has a text of the system; give --chat")
        is_unicode = not any("\ud800" <= one <= "\udfff" for one in self.system)
        if not self.system.strip() or not is_unicode:
            raise InputError(f"--system is {self.system!r}; expected a text")

    def _check_asked(self) -> None:
        """Raises InputError unless either a checkpoint or a server is given, with the options of that one."""
        of_server = {name: getattr(self, name) for name in ("served", *HOW)}
        if self.endpoint is None:
            if self.ckpt is None:
                raise InputError(
                    "--ckpt is missing: give a preset (smollm2), a model or adapter folder, or a hub id; or "
                    "--endpoint and --model for a server"
                )
            for name, value in of_server.items():
                if value is not None:
                    raise InputError(f"{_typed(name)} without --endpoint; give the URL of a server as well")
            return
        local = {"ckpt": self.ckpt, "base": self.base, "dtype": self.dtype, "engine": self.engine or None}
        for name, value in (local | {"bos": None if self.bos == "auto" else self.bos}).items():
            if value is not None:
                raise InputError(f"{_typed(name)} with --endpoint: that is the server's; leave it out")
        check_url(self.endpoint)
        if not self.served:
            raise InputError("--model is missing: give the server's name for the model with --endpoint")


def configure(given: Mapping[str, Any], stored: EvalConfig | None) -> EvalConfig:
    """The configuration of the options that were `given` (those not None), or of the run that is resumed.

    Raises InputError where no checkpoint is named, or where an option differs from the resumed run's.
    """
    options = {key: value for key, value in given.items() if value is not None}
    if stored is None:
        sized = {"batch": _SENT_TOGETHER} if "endpoint" in options else sized_here(EvalConfig)
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
