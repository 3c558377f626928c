"""Keys of a question's JSON object: those that are read, and those that look as if they were meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from morfi.errors import InputError

KEYS = ("id", "relation", "subject", "question", "answers")
OPTIONAL_KEYS = ("split",)

_NAMES_OF_SPLITS = frozenset(("train", "dev", "test", "validation", "valid", "val"))
_ALIKE = 0.85  # what difflib says of a key and its misspelling; "position" and "question" are at 0.62

# How other data sets and people name what is read here; compared without case, "_", "-" and blanks.
_OTHER_NAMES = {
    "id": ("qid", "questionid", "uid"),
    "relation": ("prop", "property", "predicate", "rel", "relationid", "propid"),
    "subject": ("subj", "sub", "entity", "head", "ssub", "swikititle", "subjectname"),
    "question": ("query", "prompt", "text", "questiontext"),
    "answers": (
        *("answer", "obj", "object", "possibleanswers", "aliases", "answeraliases", "normalizedaliases"),
        *("oaliases", "objaliases", "alternatives", "acceptedanswers", "target", "targets", "gold"),
    ),
    "split": ("fold", "subset", "partition"),
}


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The JSON object of `pairs`; raises InputError for a key that stands in it twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f'the key "{twice}" stands twice in one object; give it once')
    return found


def check_keys(row: Mapping[str, Any], where: str) -> None:
    """Raises InputError for a key that is missing, naming what may stand for it."""
    for key in KEYS:
        if key not in row:
            meant = [given for given in row if given not in KEYS and meant_by(given) == key]
            hint = f'; "{meant[0]}" is not read: call it "{key}"' if meant else ""
            raise InputError(f'{where}: "{key}" is missing{hint}; expected the keys {", ".join(KEYS)}')


class SplitKeys:
    """The keys of a file's rows that are "split" misspelled: by their names, and by all of their values.

    Without "split" all questions would be asked, those of train as well.
    """

    def __init__(self) -> None:
        self._first: dict[str, str] = {}  # where each key that may be meant stands first
        self._others: set[str] = set()  # keys with a value that names no split

    def add(self, row: Mapping[str, Any], where: str) -> None:
        """Takes note of the keys of `row`, which stands at `where`."""
        for given in row:
            if given != "split" and _is_like_split(given):
                self._first.setdefault(given, where)
                value = row[given]
                if _plain(given) != "split" and not (
                    isinstance(value, str) and value.strip().lower() in _NAMES_OF_SPLITS
                ):
                    self._others.add(given)

    def check(self) -> None:
        """Raises InputError for the first key that is meant to be "split"."""
        for given, where in self._first.items():
            if given not in self._others:
                raise InputError(f'{where}: "{given}" is not read; call it "split", or leave it out')


@lru_cache(maxsize=4096)  # every row of a file has the same keys
def _is_like_split(given: str) -> bool:
    """Whether one character added, left out, changed or swapped with the next makes `given` "split"."""
    plain, wanted = _plain(given), "split"
    if abs(len(plain) - len(wanted)) > 1:
        return False
    longer, shorter = (plain, wanted) if len(plain) > len(wanted) else (wanted, plain)
    if len(longer) > len(shorter):
        return any(longer[:place] + longer[place + 1 :] == shorter for place in range(len(longer)))
    differing = [place for place, (a, b) in enumerate(zip(plain, wanted, strict=True)) if a != b]
    return len(differing) < 2 or (
        len(differing) == 2
        and differing[1] == differing[0] + 1
        and sorted(plain[differing[0] : differing[0] + 2]) == sorted(wanted[differing[0] : differing[0] + 2])
    )


@lru_cache(maxsize=4096)  # every row of a file has the same keys
def meant_by(given: str) -> str | None:
    """The known key that one of another name may stand for; None for one that resembles none."""
    plain = _plain(given)
    for key in (*KEYS, *OPTIONAL_KEYS):
        if plain in (key, f"{key}s", key.removesuffix("s"), *_OTHER_NAMES[key]):
            return key
    close = difflib.get_close_matches(plain, (*KEYS, *OPTIONAL_KEYS), n=1, cutoff=_ALIKE)
    return close[0] if close else None


def notes_on(names: Iterable[str], path: str) -> list[str]:
    """A sentence for each of `names`, keys of a file's rows, that looks as if it were read and is not."""
    notes = []
    for given in sorted(set(names) - {*KEYS, *OPTIONAL_KEYS}):
        if (key := meant_by(given)) is not None:
            notes.append(
                f'{path}: "{given}" is not read; what counts is "{key}"'
                + (", so it adds no accepted answer" if key == "answers" else "")
            )
    return notes


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
