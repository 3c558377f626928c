"""Keys of a question's JSON object: those that are read, and those that look as if they were meant to be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from morfi.errors import InputError, nearest

KEYS = ("id", "relation", "subject", "question", "answers")
OPTIONAL_KEYS = ("split",)

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
    """Raises InputError for a key that is missing, naming what may stand for it, and for "split" misspelled.

    Without "split" all questions would be asked, those of train as well.
    """
    for key in KEYS:
        if key not in row:
            meant = [given for given in row if given not in KEYS and meant_by(given) == key]
            hint = f'; "{meant[0]}" is not read: call it "{key}"' if meant else ""
            raise InputError(f'{where}: "{key}" is missing{hint}; expected the keys {", ".join(KEYS)}')
    if "split" not in row:
        for given in row:
            if (
                given not in KEYS
                and meant_by(given) == "split"
                and _plain(given) not in _OTHER_NAMES["split"]
            ):
                raise InputError(f'{where}: "{given}" is not read; call it "split", or leave it out')


def _is_split_misspelled(given: str) -> bool:
    return meant_by(given) == "split" and _plain(given) not in _OTHER_NAMES["split"]


@lru_cache(maxsize=4096)  # every row of a file has the same keys
def meant_by(given: str) -> str | None:
    """The known key that one of another name may stand for; None for one that resembles none."""
    plain = _plain(given)
    for key in (*KEYS, *OPTIONAL_KEYS):
        if plain in (key, f"{key}s", key.removesuffix("s"), *_OTHER_NAMES[key]):
            return key
    hint = nearest(plain, (*KEYS, *OPTIONAL_KEYS))
    return hint.split('"')[1] if hint and len(plain) > 3 else None


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
