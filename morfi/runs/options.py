"""The options of commands: fields of configurations, with their help and defaults, and what they may hold."""

from __future__ import annotations

import csv
import math
import numbers
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from morfi.device import is_gpu
from morfi.errors import InputError, nearest
from morfi.questions.matching import MATCH_MODES, MATCH_RULES, pattern_of
from morfi.questions.templates import FIELDS

MAX_SEED = 2**32 - 1  # the largest that numpy, and so vLLM, takes
MAX_WHOLE = 10**9  # of every whole number without bounds of its own: fits int32 wherever it is stored
Whole = int | tuple[int, ...] | None
Bounded = tuple[Whole, int] | tuple[Whole, int, int]

_SHOWN = 80  # characters of a value in a message
_EXPECTED = {str: "names", int: "whole numbers", float: "numbers"}


@dataclass(frozen=True, slots=True)
class Option:
    """The option of a configuration's field, beside what the field says itself: its name, type and default.

    `unset` says what happens without the option where no value does; `cpu` and `gpu` are defaults on such a
    machine. `off` is the name of a flag that turns it off; a `repeatable` one may be given several times.
    With `when`, (field, value, ...), the option decides something, or has this default, only while that other
    field has one of these values.
    """

    help: str
    unset: str = ""
    name: str = ""  # the field's, if empty
    metavar: str | None = None
    off: str = ""
    repeatable: bool = False
    required: bool | None = None  # whether there is no default, if None
    cpu: int | None = None
    gpu: int | None = None
    when: tuple[str | None, ...] | None = None


OWN_DTYPE = "its own; float32 on CPUs without bfloat16"
# Those that mean the same in every command.
_SHARED = {
    "base": Option("The base model of an adapter.", unset="the one that adapter_config.json names"),
    "data": Option('"world-facts", "world-facts@2", a file of questions, or a folder of P*.json files.'),
    "split": Option("train, dev or test."),
    "relations": Option("Between commas, such as P17,P36; '\"a, b\",c' quotes one.", unset="all"),
    "limit": Option("At most this many questions.", unset="all"),
    "shots": Option("Exemplars before each question."),
    "match": Option(f"How answers are judged: {MATCH_RULES}."),
    "max_tokens": Option("Longest answer."),
    "seed": Option("The seed of everything that is drawn at random."),
    "bos": Option("BOS before each prompt: auto, as the model needs it; yes or no."),
    "dtype": Option("bfloat16, float16 or float32.", unset=OWN_DTYPE),
    "engine": Option("A vLLM engine setting; repeatable.", unset="morfi's own", metavar="KEY=VALUE"),
    "batch": Option("Questions answered and stored together."),
    "chat": Option("Use the checkpoint's chat template.", off="no-chat"),
    "endpoint": Option(
        "OpenAI-compatible server to ask, such as http://host:8000/v1.", unset="none", metavar="URL"
    ),
    "served": Option("The server's name for the model.", unset="none", name="model", metavar="NAME"),
    "concurrency": Option("Requests to the server at once.", unset="32"),
    "timeout": Option("Seconds for the server to answer one.", unset="120"),
    "retries": Option("Times that a request is sent again.", unset="6"),
    "prompt_template": Option(
        f"Jinja file for the text of a prompt, of {FIELDS}.", unset="Q: and A:", metavar="FILE"
    ),
    "system": Option("Text of the system before a chat.", unset="none", metavar="TEXT"),
}


def option(text: str, default: Any = MISSING, **more: Any) -> Any:
    """A field of a configuration that is an option; `text` is its help, the rest as of `Option`."""
    return field(default=default, metadata={"option": Option(text, **more)})


def run_of(command: str, **more: Any) -> Any:
    """A field of a configuration that names the run of another command."""
    return option(f"The run of `morfi {command}`.", metavar="RUN", **more)


def series_of(**more: Any) -> Any:
    """A field of a configuration that names a series of checkpoints."""
    return option("A run of `morfi train`, or a TOML file of checkpoints.", metavar="RUN|FILE", **more)


def data_of_series() -> Any:
    """A field for the questions of a series that has none of its own."""
    return option("As for eval, with a TOML file.", None, unset="the train run's own questions")


def stored_together(**more: Any) -> Any:
    """A field for how many questions are stored together: some ten seconds of work, which a kill may lose."""
    return option(_SHARED["batch"].help, 512, gpu=8192, **more)


def option_of(one: Field[Any]) -> Option:
    """The option of a configuration's field."""
    found: Option = one.metadata.get("option") or _SHARED[one.name]
    return found


def name_of(one: Field[Any]) -> str:
    """The name of the option of a configuration's field, without the hyphens before it."""
    return option_of(one).name or one.name.replace("_", "-")


def default_here(one: Field[Any], *, gpu: bool | None = None) -> Any:
    """The value of a configuration's field that is not given; None where it has none.

    On this machine, or one that has a `gpu` or has not.
    """
    known = option_of(one)
    if known.cpu or known.gpu:
        return (known.gpu if (is_gpu() if gpu is None else gpu) else known.cpu) or one.default
    if one.default_factory is not MISSING:
        return one.default_factory()
    return None if one.default is MISSING or known.unset else one.default


def sized_here(config: type, *, gpu: bool | None = None) -> dict[str, Any]:
    """The defaults of a configuration that depend on the machine, by field, as of `default_here`."""
    sized = [
        one
        for one in fields(config)
        if "option" in one.metadata and (option_of(one).cpu or option_of(one).gpu)
    ]
    return {one.name: default_here(one, gpu=gpu) for one in sized}


def default_text(one: Field[Any]) -> str:
    """The default of a configuration's field as a person types it, on any machine; "" where it has none."""
    known, default = option_of(one), one.default
    if known.unset or default is None or default is MISSING:
        return known.unset
    if known.cpu or known.gpu:
        return f"{known.cpu or default}; {known.gpu or default} on a GPU"
    if isinstance(default, bool):
        name = name_of(one) if default else known.off
        return f"--{name}" if name else ""
    parts = default if isinstance(default, tuple) else (default,)
    return ",".join(part if isinstance(part, str) else f"{part:.10g}" for part in parts)


def listed(name: str, text: str, each: type[str] | type[int] | type[float]) -> tuple[Any, ...]:
    """The values between commas in the `text` of an option; raises InputError where there are none such."""
    expected = f'{name} is "{_short(text)}"; expected {_EXPECTED[each]} between commas'
    # As in CSV, so that a name may hold commas or have blanks around it: '"city, state",P17'.
    line = text.replace("\r", " ").replace("\n", " ")
    try:
        parts = next(csv.reader([line], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise InputError(f"{expected} ({error})") from error
    given = [part.strip() for part in parts]
    if not all(given) or not given:
        raise InputError(expected)
    try:
        return tuple(each(part) for part in given)
    except ValueError as error:
        raise InputError(expected) from error


def _short(text: str) -> str:
    """The text, or its beginning where nobody would read all of it."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def check_match(match: str) -> None:
    """Raises InputError for a way of judging answers that there is not."""
    try:
        known = match in MATCH_MODES or pattern_of(match) is not None
    except InputError as error:
        raise InputError(f"--match {error}") from error
    if not known:
        raise InputError(f'--match is "{match}"; expected one of {MATCH_RULES}.{nearest(match, MATCH_MODES)}')


def check_numbers(options: Mapping[str, Bounded]) -> None:
    """Raises InputError for an option that holds no whole number, or one that is out of bounds.

    By name, (value, least) or (value, least, most): `most` is MAX_WHOLE unless it is given, MAX_SEED for a
    seed. The value may be a tuple of numbers, or None where the option was not given.
    """
    for name, (value, least, *given) in options.items():
        most = given[0] if given else MAX_SEED if name == "seed" else MAX_WHOLE
        for one in value if isinstance(value, tuple) else () if value is None else (value,):
            if isinstance(one, bool) or not isinstance(one, numbers.Integral):
                raise InputError(f"--{name} is {one!r}; expected a whole number")
            if one < least:
                raise InputError(f"--{name} is {_short(str(one))}; expected at least {least}")
            if one > most:
                raise InputError(f"--{name} is {_short(str(one))}; expected at most {most}")


def check_amount(name: str, value: float, *, above_zero: bool) -> None:
    """Raises InputError for an option that is negative, infinite or NaN, or 0 where it must be above."""
    if not math.isfinite(value) or value < 0 or (above_zero and value == 0):
        raise InputError(
            f"--{name} is {value:g}; expected {'a number above 0' if above_zero else '0 or more'}"
        )
