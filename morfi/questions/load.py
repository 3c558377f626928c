"""Question sets from what a user names: the embedded facts, a file, or a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from morfi.errors import InputError, nearest
from morfi.files import read_once
from morfi.questions import entity_questions, world_facts
from morfi.questions.formats import READABLE, rows_of
from morfi.questions.keys import KEYS, SplitKeys, check_keys, notes_on
from morfi.questions.question import Question
from morfi.questions.sets import SPLITS, UNSPLIT, QuestionSet, answers_of, question_set, shown, text_of


def load_questions(source: str, *, read_by: str | None = None) -> QuestionSet:
    """The question set that `source` names: one of `world_facts.NAMES`, a file, or a folder of P*.json.

    Raises InputError, with file and line, for anything that cannot be read or is not a question. `read_by` is
    the run that read it before, if one did: the error then says how to name where it is now.
    """
    if (version := world_facts.NAMES.get(source)) is not None:
        folder, *beside = world_facts.folders(version)
        return read_once(folder, ("questions", version), partial(world_facts.build, version), beside=beside)
    path = Path(source)
    try:
        if path.exists():
            beside = entity_questions.folders(path)
            return read_once(path, "questions", partial(_questions_at, path), beside=beside)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if source == entity_questions.NAME:
        raise InputError(
            f"no folder {path.absolute()}; unpack dataset.zip of github.com/princeton-nlp/EntityQuestions, "
            "and give the folder that holds train, dev and test."
        )
    here = "" if path.is_absolute() else f" in {Path.cwd()}"
    raise InputError(
        f'no question file or folder "{source}"{here}; give "world-facts", a file ({READABLE}), or a folder '
        f"of P*.json files.{nearest(source, world_facts.NAMES)}"
        + ("" if read_by is None else f" --data says where that of {read_by} is now")
    )


def _questions_at(path: Path) -> QuestionSet:
    """The question set of a file or a folder that is there."""
    if path.is_dir():
        splits, notes = entity_questions.read_folder(path)
        return replace(question_set(path.resolve().name, splits), notes=tuple(notes))
    read = entity_questions.read_file if entity_questions.is_one(path) else _read_file
    splits, notes = read(path)
    return replace(question_set(path.name, splits), notes=tuple(notes))


def _read_file(path: Path) -> tuple[dict[str, list[Question]], list[str]]:
    names: set[str] = set()
    like_split = SplitKeys()
    splits: dict[str, list[Question]] = {}
    first_place_of: dict[str, str] = {}
    first_has_split: bool | None = None
    for where, given in rows_of(path):
        if not isinstance(given, dict):
            raise InputError(f"{where}: found {shown(given)}; expected a JSON object with {', '.join(KEYS)}")
        # Tables written as JSON lines say null where a row lacks a value.
        row = {key: value for key, value in given.items() if value is not None or key in KEYS}
        question = _question(row, where)
        names |= row.keys()
        earlier = first_place_of.setdefault(question.id, where)
        if earlier is not where:
            taken = earlier.removeprefix(f"{path}, ")
            raise InputError(f"{where}: the id {shown(question.id)} is taken by {taken}; ids must differ")
        has_split = "split" in row
        if not has_split:
            like_split.add(row, where)
        if first_has_split is None:
            first_has_split = has_split
        if has_split != first_has_split:
            raise InputError(f'{where}: "split" must be in all rows or in none; earlier rows differ')
        if has_split and row["split"] not in SPLITS:
            raise InputError(f'{where}: "split" is {shown(row["split"])}; expected train, dev or test')
        splits.setdefault(row["split"] if has_split else UNSPLIT, []).append(question)
    like_split.check()
    if not splits:
        raise InputError(f"{path} holds no questions; expected rows with {', '.join(KEYS)}")
    return splits, notes_on(names, str(path))


def _question(row: Mapping[str, Any], where: str) -> Question:
    check_keys(row, where)
    texts = {key: text_of(row[key], f'{where}: "{key}"') for key in KEYS if key != "answers"}
    # Blanks around a relation's name are never meant, and nobody sees them in a table or can type them.
    texts["relation"] = texts["relation"].strip()
    answers = answers_of(row["answers"], f'{where}: "answers"')
    return Question(texts["id"], texts["relation"], texts["subject"], texts["question"], answers)
