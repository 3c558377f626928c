"""The folder layout of EntityQuestions (Sciavolino et al. 2021): a JSON list for each relation and split."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from morfi.errors import InputError
from morfi.questions.formats import rows_of
from morfi.questions.question import Question
from morfi.questions.sets import SPLITS, UNSPLIT, answers_of, shown, text_of
from morfi.questions.wordings import find_subjects

NAME = "EntityQuestions"
_MOST_NAMED = 3  # wordings in one note
_FILE_NAME = re.compile(r"(P\d+)(?:\.(train|dev|test))?\.jsonl?(?:\.(?:gz|bz2|xz|zst))?")


@dataclass(frozen=True, slots=True)
class _Source:
    path: Path
    relation: str
    split: str


@dataclass(frozen=True, slots=True)
class _Row:
    source: _Source
    number: int  # place in its file, from 0
    text: str
    answers: tuple[str, ...]


def read_folder(folder: Path) -> tuple[dict[str, list[Question]], list[str]]:
    """The questions of a folder by split, the subject of each found from its relation's wording; and notes.

    The folder holds train/, dev/ and test/ with P17.train.json and so on, or the folder dataset/ in it does,
    or it holds P17.test.json or P17.json files itself, each also compressed (P17.json.gz) or as JSON lines
    (P17.jsonl); other files are left alone. A file is a list of {"question", "answers"}. The subject is what
    remains of a question without the wording that it shares with others of its relation, in all splits. Ids
    read "P17/test/00000". The notes, a sentence each, say where this was not plain.
    Raises InputError for an unusable folder, file or question.
    """
    return _read(_sources(folder))


def folders(path: Path) -> list[Path]:
    """The folders below `path` whose files `read_folder` may read; none where it is a file."""
    root = _root(path)
    inside = [root / split for split in SPLITS]
    return [one for one in (inside if root == path else [root, *inside]) if one.is_dir()]


def _root(folder: Path) -> Path:
    """The folder that holds the splits."""
    return folder / "dataset" if (folder / "dataset").is_dir() else folder


def is_one(path: Path) -> bool:
    """Whether the file is one of such a folder's, by its name and by what its first question lacks."""
    if _FILE_NAME.fullmatch(path.name) is None or not path.is_file():
        return False
    _, first = next(rows_of(path), ("", None))
    return isinstance(first, dict) and not {"id", "relation", "subject"} & first.keys()


def read_file(path: Path) -> tuple[dict[str, list[Question]], list[str]]:
    """As `read_folder`, of one file."""
    match = _FILE_NAME.fullmatch(path.name)
    assert match is not None
    return _read([_Source(path, match[1], match[2] or UNSPLIT)])


def _read(sources: Sequence[_Source]) -> tuple[dict[str, list[Question]], list[str]]:
    by_relation: dict[str, list[_Row]] = {}
    for source in sources:
        by_relation.setdefault(source.relation, []).extend(_rows(source))
    splits: dict[str, list[Question]] = {}
    notes: list[str] = []
    for relation, rows in by_relation.items():
        subjects, said = _subjects(rows)
        notes += said
        for row, subject in zip(rows, subjects, strict=True):
            name = f"{relation}/{row.source.split}/{row.number:05d}"
            question = Question(name, relation, subject, row.text, row.answers)
            splits.setdefault(row.source.split, []).append(question)
    return splits, notes


def _sources(folder: Path) -> list[_Source]:
    """The files to read, sorted by relation and split."""
    root = _root(folder)
    in_splits = [source for split in SPLITS for source in _sources_in(root / split, split)]
    sources = in_splits or list(_sources_in(root, None))
    if not sources:
        raise InputError(
            f"{folder} holds no questions; expected train/P17.train.json, dev/P17.dev.json, "
            "test/P17.test.json and so on, or P17.test.json or P17.json in the folder itself"
        )
    named = [source for source in sources if source.split != UNSPLIT]
    if named and len(named) < len(sources):
        unnamed = next(source for source in sources if source.split == UNSPLIT)
        raise InputError(
            f"{unnamed.path} does not say its split, {named[0].path} does; name all files like one of them"
        )
    first_of: dict[tuple[str, str], Path] = {}
    for source in sources:
        first = first_of.setdefault((source.relation, source.split), source.path)
        if first is not source.path:
            raise InputError(f"{source.path} and {first} are the same relation and split; keep one of them")
    return sorted(sources, key=lambda source: (source.relation, SPLITS.index(source.split) if named else 0))


def _sources_in(folder: Path, split: str | None) -> Iterator[_Source]:
    for path in sorted(folder.glob("P*.json*")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            continue
        relation, named = match.groups()
        if split and named and named != split:
            raise InputError(f"{path} is named {named} but lies in {split}; move or rename it")
        yield _Source(path, relation, split or named or UNSPLIT)


def _rows(source: _Source) -> list[_Row]:
    rows: list[_Row] = []
    for number, (place, item) in enumerate(rows_of(source.path)):
        # Entries of a list are counted as the questions that they are; lines are as they stand in the file.
        where = (
            place if place.startswith(f"{source.path}, line ") else f"{source.path}, question {number + 1}"
        )
        if not isinstance(item, dict):
            raise InputError(f'{where}: found {shown(item)}; expected "question" and "answers"')
        for key in ("question", "answers"):
            if key not in item:
                raise InputError(f'{where}: "{key}" is missing; expected "question" and "answers"')
        text = text_of(item["question"], f'{where}: "question"')
        rows.append(_Row(source, number, text, answers_of(item["answers"], f'{where}: "answers"')))
    if not rows:
        raise InputError(f"{source.path} holds no questions; expected a JSON list of at least one question")
    return rows


def _subjects(rows: Sequence[_Row]) -> tuple[list[str], list[str]]:
    """The subjects of the questions of one relation, and what is to be said of how they were found."""
    path, relation = rows[0].source.path, rows[0].source.relation
    if len({row.text for row in rows}) < 2:
        raise InputError(
            f"{path}: {relation} has one question only, {shown(rows[0].text)}, so its "
            'subject cannot be told from its wording; give a JSONL file with "subject" instead'
        )
    found = find_subjects([row.text for row in rows])
    for row, subject in zip(rows, found.subjects, strict=True):
        if subject == "":
            raise InputError(
                f"{row.source.path}, question {row.number + 1}: {shown(row.text)} holds no subject, only the "
                f"words that all questions of {relation} share; correct the question"
            )
    notes = []
    if len(found.wordings) > 1:
        named = ", ".join(f"{wording} ({wording.n})" for wording in found.wordings[:_MOST_NAMED])
        more = ", ..." if len(found.wordings) > _MOST_NAMED else ""
        notes.append(f"{relation}: subjects were found from {len(found.wordings)} wordings: {named}{more}")
    if found.moved:
        notes.append(
            f"{relation}: {', '.join(map(shown, found.moved))} is taken for a part of its subjects, all of "
            'which have it; if it is part of the question, give a JSONL file with "subject"'
        )
    if found.cuts:
        subject, beside = found.cuts[0]
        notes.append(
            f'{relation}: subjects such as "{subject}" end beside "{beside}" without a blank between them, '
            'and it may be a part of the name; if so, give a JSONL file with "subject"'
        )
    if unknown := [row for row, subject in zip(rows, found.subjects, strict=True) if subject is None]:
        notes.append(
            f"{relation}: {len(unknown)} questions are worded like no other, such as "
            f"{shown(unknown[0].text)}; their whole text stands for their subject"
        )
    subjects = [subject or row.text for row, subject in zip(rows, found.subjects, strict=True)]
    return subjects, notes
