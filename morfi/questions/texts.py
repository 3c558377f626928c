"""Texts that are no questions: a file of plain lines, or of JSON lines with a "text" each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from morfi.errors import InputError
from morfi.files import note_source
from morfi.questions.question import Question
from morfi.questions.sets import UNSPLIT, QuestionSet, question_set, shown, text_of

RELATION = "text"  # of all texts, which have none


def load_texts(source: str) -> QuestionSet:
    """The texts of a file as questions without answers, of one split and relation.

    A file whose first line begins with "{" holds JSON objects with "text" and perhaps "id"; any other holds
    a text on each line. Blank lines are passed over; a text without an id is known by the number of its line.
    Raises InputError, with file and line, for what cannot be read.
    """
    path = Path(source)
    note_source(path)
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason} at byte {error.start})") from error
    lines = [(number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f'{path} holds no texts; expected one on each line, or JSON lines with "text"')
    is_json = lines[0][1].lstrip().startswith("{")
    first_line_of: dict[str, int] = {}
    questions = []
    for number, given_id, text in _entries(path, lines, is_json=is_json):
        name = str(number) if given_id is None else given_id
        if (earlier := first_line_of.setdefault(name, number)) != number:
            raise InputError(
                f"{path}, line {number}: the id {shown(name)} is taken by line {earlier}; ids must differ"
            )
        questions.append(Question(name, RELATION, "", text, ()))
    return question_set(path.name, {UNSPLIT: questions})


def _entries(
    path: Path, lines: list[tuple[int, str]], *, is_json: bool
) -> Iterator[tuple[int, str | None, str]]:
    """Line number, id where one is given, and text of each line."""
    for number, line in lines:
        where = f"{path}, line {number}"
        if not is_json:
            yield number, None, text_of(line.removesuffix("\r"), where)
            continue
        row = _object(line, where)
        given = row.get("id")
        yield (
            number,
            None if given is None else text_of(given, f'{where}: "id"'),
            text_of(row.get("text"), f'{where}: "text"'),
        )


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f'{where} is not JSON ({error}); expected an object with "text"') from error
    if not isinstance(row, dict):
        raise InputError(f'{where}: found {shown(row)}; expected a JSON object with "text"')
    return row
