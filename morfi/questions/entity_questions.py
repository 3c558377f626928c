"""The folder layout of EntityQuestions (Sciavolino et al. 2021): a JSON list for each relation and split."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morfi.errors import InputError
from morfi.questions.sets import SPLITS, UNSPLIT, answers_of, shown, text_of
from morfi.types import Question

_FILE_NAME = re.compile(r"(P\d+)(?:\.(train|dev|test))?\.json")


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


def read_folder(folder: Path) -> dict[str, list[Question]]:
    """The questions of a folder by split, with the subject of each found from its relation's wording.

    The folder holds train/, dev/ and test/ with P17.train.json and so on, or the folder dataset/ in it does,
    or it holds P17.test.json or P17.json files itself; other files are left alone. A file is a list of
    {"question", "answers"}. The subject is what remains of a question without the words that all questions of
    its relation, in all splits, begin and end with. Ids read "P17/test/00000".
    Raises InputError for an unusable folder, file or question.
    """
    by_relation: dict[str, list[_Row]] = {}
    for source in _sources(folder):
        by_relation.setdefault(source.relation, []).extend(_rows(source))
    splits: dict[str, list[Question]] = {}
    for relation, rows in by_relation.items():
        for row, subject in zip(rows, _subjects(rows), strict=True):
            name = f"{relation}/{row.source.split}/{row.number:05d}"
            question = Question(name, relation, subject, row.text, row.answers)
            splits.setdefault(row.source.split, []).append(question)
    return splits


def _sources(folder: Path) -> list[_Source]:
    """The files to read, sorted by relation and split."""
    root = folder / "dataset" if (folder / "dataset").is_dir() else folder
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
    return sorted(sources, key=lambda source: (source.relation, SPLITS.index(source.split) if named else 0))


def _sources_in(folder: Path, split: str | None) -> Iterator[_Source]:
    for path in sorted(folder.glob("P*.json")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            continue
        relation, named = match.groups()
        if split and named and named != split:
            raise InputError(f"{path} is named {named} but lies in {split}; move or rename it")
        yield _Source(path, relation, split or named or UNSPLIT)


def _rows(source: _Source) -> list[_Row]:
    content = _json_list(source.path)
    rows: list[_Row] = []
    for number, item in enumerate(content):
        where = f"{source.path}, question {number + 1}"
        if not isinstance(item, dict):
            raise InputError(f'{where}: found {shown(item)}; expected "question" and "answers"')
        for key in ("question", "answers"):
            if key not in item:
                raise InputError(f'{where}: "{key}" is missing; expected "question" and "answers"')
        text = text_of(item["question"], f'{where}: "question"')
        rows.append(_Row(source, number, text, answers_of(item["answers"], f'{where}: "answers"')))
    return rows


def _json_list(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}, column {error.colno}"
        raise InputError(f"{where}: not valid JSON ({error.msg})") from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path}: JSON nested too deeply or a number too long") from error
    if not isinstance(content, list) or not content:
        raise InputError(f"{path} holds {shown(content)}; expected a JSON list of at least one question")
    return content


def _subjects(rows: Sequence[_Row]) -> list[str]:
    """What differs between the questions of one relation, for each of them."""
    path = rows[0].source.path
    if len({row.text for row in rows}) < 2:
        raise InputError(
            f"{path}: {rows[0].source.relation} has one question only, {shown(rows[0].text)}, so its "
            'subject cannot be told from its wording; give a JSONL file with "subject" instead'
        )
    texts = [row.text for row in rows]
    n_before = _shared_length(texts)
    rests = [text[n_before:] for text in texts]
    n_after = _shared_length([rest[::-1] for rest in rests])
    subjects = [rest[: len(rest) - n_after].strip() for rest in rests]
    for row, subject in zip(rows, subjects, strict=True):
        if not subject:
            raise InputError(
                f"{row.source.path}, question {row.number + 1}: {shown(row.text)} holds no subject, only the "
                f"words that all questions of {row.source.relation} share; correct the question"
            )
    return subjects


def _shared_length(texts: Sequence[str]) -> int:
    """How many characters all texts begin with, cut back to where a word ends in every one of them."""
    first, last = min(texts), max(texts)  # what these two share, all between them share
    differing = (place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    length = next(differing, min(len(first), len(last)))
    while length and any(text[length - 1 : length + 1].isalnum() and len(text) > length for text in texts):
        length -= 1
    return length
