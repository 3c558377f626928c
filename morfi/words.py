"""Numbers and lists in the words of a message."""

from __future__ import annotations

from collections.abc import Iterable


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """The number with its noun: "1 answer", "2 answers"; `plural` where it is not the noun with an s."""
    return f"{n} {by_number(n, noun, plural or f'{noun}s')}"


def by_number(n: int, one: str, several: str) -> str:
    """The word that goes with a number: `one` with 1, else `several`."""
    return one if n == 1 else several


def together(names: Iterable[object]) -> str:
    """The names as a sentence has them: "1, 2 and 5"."""
    *first, last = map(str, names)
    return f"{', '.join(first)} and {last}" if first else last
