"""The two errors every command knows: what the user gave was wrong, or the work failed while running."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from morfi.words import counted

# What pydantic says before the first of the reasons.
_PREAMBLE = re.compile(r"\d+ validation errors? for ")


class MorfiError(Exception):
    """Work failed while running; a command that meets it prints one line and exits with 1.

    >>> raise MorfiError("the engine gave 3 answers to 4; none is stored")
    """

    exit_code = 1


class EngineDiedError(MorfiError):
    """The engine is gone; it answers nothing more, and another one has to be started."""


class InputError(MorfiError):
    """Bad usage or bad input; a command that meets it prints one line and exits with 2.

    The message says what was wrong, the value, what was expected and what to do.

    >>> raise InputError("--limit is 0; expected at least 1")
    """

    exit_code = 2


class FaultsError(InputError):
    """Everything that is wrong with one input; a command prints a line for each fault below the first.

    >>> raise FaultsError("my-series.toml", ["base is missing", "level is nan; expected a finite number"])
    """

    def __init__(self, what: str, faults: Sequence[str]) -> None:
        self.lines = (f"{what}: {counted(len(faults), 'fault')}", *faults)
        super().__init__("\n  ".join(self.lines))


class Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C asked the process to end; only the exit code differs from Ctrl-C's.

    `name` is the signal's, such as SIGTERM.
    """

    def __init__(self, number: int, name: str) -> None:
        super().__init__(name)
        self.name = name
        self.exit_code = 128 + number


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean "x"?' for the entry of `known` closest to `word`, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f' Did you mean "{close[0]}"?' if close else ""


def reason_of(error: BaseException) -> str:
    """The first line of an error that says something; else its type.

    Of pydantic's errors that is the first reason, after the field that it is about.
    """
    lines = [line for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if not _PREAMBLE.match(lines[0]):
        return lines[0].strip()
    field = ""
    for line in lines[1:]:
        if not line.startswith(" "):
            field = f"{line}: "
            continue
        return field + line.strip().removeprefix("Value error, ").partition(" [type=")[0]
    return lines[0]
