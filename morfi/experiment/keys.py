"""What commands say of their options, in the words of an experiment: as keys of the tables of its stages."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from morfi.errors import FaultsError, MorfiError
from morfi.terminal import Progress

_OPTION = re.compile(r"(?<![\w-])--(no-)?([a-z][a-z-]*)")
_OWN = frozenset({"db", "from", "json", "set", "until", "verbose"})  # of `morfi run` itself


def as_keys(text: str) -> str:
    """`text` with the key of each option that it names: "--size is 0" is "size is 0".

    A command between backticks is one that a person types, and stays.
    """
    parts = text.split("`")
    parts[::2] = (_OPTION.sub(_key, part) for part in parts[::2])
    return "`".join(parts)


def _key(option: re.Match[str]) -> str:
    off, name = option.groups()
    if name in _OWN:
        return option[0]
    return f"{name} = false" if off else name


@contextlib.contextmanager
def said_of(stage: str) -> Iterator[None]:
    """What goes wrong in the block is said of the table of `stage`: [mix] size is 0."""
    try:
        yield
    except FaultsError:
        raise  # of a file of its own, whose lines name no options
    except MorfiError as error:
        error.args = (f"[{stage.replace(' ', '.')}] {as_keys(str(error))}",)
        raise


class Keys:
    """A progress whose phases name keys where those of a command name options."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.start, self.advance = progress.start, progress.advance

    def phase(self, text: str) -> None:
        """Says what is done now."""
        self._progress.phase(as_keys(text))
