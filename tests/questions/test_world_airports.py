from __future__ import annotations

import unicodedata
from collections import defaultdict
from importlib import metadata
from pathlib import Path

import pytest

from morfi.errors import InputError
from morfi.evaluation.config import EvalConfig
from morfi.questions import QuestionSet, load_questions, world_airports, world_facts
from morfi.questions.matching import is_correct, majority_answer, normalise
from morfi.questions.question import Question
from morfi.runs.settings import to_store

# Changes with any question, answer or split: then the questions are those of a new version.
SHA256 = "34fae8d0314b52e781fda6e541141f367b3953caba27076f95a071a492775dec"


@pytest.fixture(scope="module")
def facts() -> QuestionSet:
    return load_questions("world-facts@2")


@pytest.fixture(scope="module")
def airports(facts: QuestionSet) -> dict[str, Question]:
    rows = [row for split in facts.splits.values() for row in split]
    return {row.id: row for row in rows if row.relation == "P17-airport"}


def words(name: str) -> list[str]:
    """The words of a name without case, punctuation and diacritics, by other means than the module's."""
    letters = (c for c in unicodedata.normalize("NFD", name) if not "\u0300" <= c <= "\u036f")
    return normalise("".join(letters)).split()


@pytest.mark.long
def test_version_two_is_version_one_and_airports(facts: QuestionSet, airports: dict[str, Question]) -> None:
    assert (facts.name, facts.sha256) == ("world-facts@2", SHA256)
    for split, rows in load_questions("world-facts").splits.items():
        n_airports = sum(row.id in airports for row in facts.splits[split])
        assert facts.splits[split][:-n_airports] == rows
    n_of = {split: sum(row.relation == "P17-airport" for row in rows) for split, rows in facts.splits.items()}
    assert n_of == {"train": 2893, "dev": 721, "test": 1163}


@pytest.mark.long
def test_airport_agrees_with_every_place_in_its_name(facts: QuestionSet) -> None:
    split_of, country_of = {}, {}
    by_first_word = defaultdict(list)
    for split, rows in facts.splits.items():
        for row in rows:
            if row.relation != "P17-airport":
                place = tuple(words(row.subject))
                split_of[place] = split
                by_first_word[place[0]].append(place)
                if row.relation == "P17":
                    country_of[place] = row.answers[0]
    n_holding = 0
    for split, rows in facts.splits.items():
        for row in rows:
            name = words(row.subject)
            for start, word in enumerate(name if row.relation == "P17-airport" else []):
                for place in by_first_word[word]:
                    if tuple(name[start : start + len(place)]) == place:
                        assert split_of[place] == split, row
                        assert country_of.get(place, row.answers[0]) == row.answers[0], row
                        n_holding += 1
    assert n_holding > 1_000


@pytest.mark.long
def test_questions_on_airports_are_plain_and_give_no_answer_away(airports: dict[str, Question]) -> None:
    subjects = [" ".join(words(row.subject)) for row in airports.values()]
    assert len(set(subjects)) == len(subjects)
    for row in airports.values():
        assert row.text == f"In which country is {row.subject}?"
        assert not set("/(,\n") & set(row.subject)
        assert not any(f" {normalise(answer)} " in f" {normalise(row.subject)} " for answer in row.answers)
    assert majority_answer(list(airports.values())).share < 0.05


@pytest.mark.long
def test_known_airports_are_asked_and_ambiguous_or_disputed_ones_are_not(
    airports: dict[str, Question],
) -> None:
    for code, name, answer in (
        ("LHR", "London Heathrow Airport", "the UK"),
        ("CDG", "Charles de Gaulle International Airport", "France"),
        ("HND", "Tokyo International Airport", "Japan"),
        ("SJO", "Juan Santamaria International Airport", "Costa Rica"),
        ("TLV", "Ben Gurion International Airport", "Israel"),
    ):
        row = airports[f"P17-airport/{code}"]
        assert row.subject == name
        assert is_correct(answer, row.answers, "squad")
    left_out = ("YXU", "SIP", "SUI", "HGA", "ECN", "PRN", "BSL", "SFO", "TPE")
    assert not {f"P17-airport/{code}" for code in left_out} & set(airports)


def test_another_version_of_airportsdata_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "9.9")
    places = world_airports.Places({}, {}, frozenset(), {}, "")
    with pytest.raises(InputError, match=r"^world-facts@2 .*found 9\.9: pip install airportsdata==20260905$"):
        list(world_airports.airport_questions(places))


def test_name_of_a_version_is_stored_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in world_facts.NAMES:
        Path(name).touch()
        assert to_store(EvalConfig(ckpt="smollm2", data=name))["data"] == name


def test_attribution_names_source_and_licence() -> None:
    assert "airportsdata" in world_airports.ATTRIBUTION
    assert "MIT" in world_airports.ATTRIBUTION
