"""The questions that world-facts@2 adds: in which country an airport is.

The facts come from the PyPI package airportsdata (MIT licence); the wording and the choice of questions are
ours.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from morfi.questions.packaged import package_folder
from morfi.questions.question import Question
from morfi.questions.recognition import subject_key
from morfi.questions.sets import split_of

ATTRIBUTION = (
    "Facts on airports from airportsdata (https://github.com/mborsetti/airportsdata), MIT licence, copyright "
    "2020 Mike Borsetti, 2014 mwgg; selection and wording by morfi."
)
RELATION = "P17-airport"  # Wikidata's property "country", as that of cities, of another kind of subject

_PACKAGE, _PACKAGE_VERSION = "airportsdata", "20260905"
_WORDING = "In which country is {}?"
_MAX_PER_COUNTRY = 200  # or a constant answer would be right for one airport in four
_LAST_WORDS = ("Airport", "Field", "Airfield", "Aerodrome", "Airstrip", "Airpark", "Base")
_NOT_PLAIN = frozenset('/(,;"')  # in names of two spellings, or with a remark
_DISPUTED = frozenset(("ECN", "HGA", "SUI"))  # IATA codes, beside the airports of these time zones
_DISPUTED_ZONES = frozenset(("Europe/Simferopol", "Asia/Gaza", "Asia/Hebron"))

# Two airports whose names differ by these words alone may be taken for one another.
_COMMON_WORDS = frozenset(
    (
        *("airport", "field", "airfield", "aerodrome", "airstrip", "airpark", "air", "seaplane", "base"),
        *("international", "national", "domestic", "regional", "county", "city", "municipal"),
        *("general", "executive", "memorial", "new", "force", "naval"),
    )
)


@dataclass(frozen=True, slots=True)
class Place:
    """A subject of the other questions: its split, and its country where they ask for that."""

    split: str
    country: str | None


@dataclass(frozen=True, slots=True)
class Places:
    """What questions on airports must agree with; `subject_key`s stand for names."""

    subjects: Mapping[str, Place]  # of the other questions, by key
    countries: Mapping[str, tuple[str, ...]]  # accepted names of sovereign countries, by code
    regions: frozenset[str]  # keys of countries, territories and US states, by all their names
    populations: Mapping[tuple[str, str], int]  # of cities, by code of the country and key
    salt: str  # of the hash that chooses the split of what is no subject


def folder() -> Path:
    """The folder of the package's files; raises InputError where it is absent or of another version."""
    return package_folder(_PACKAGE, _PACKAGE_VERSION, for_set="world-facts@2")


def airport_questions(places: Places) -> Iterator[tuple[str, Question]]:
    """The questions with their splits, those of the largest cities first, so many of each country at most.

    An airport stands in the split of the places that its name holds, else in that of its city. Left out are
    names that are not plain, that may mean another airport, or that hold a region, places of several splits,
    or a place of another country. Raises InputError when airportsdata is absent or of another version.
    """
    with (folder() / "airports.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    n_called = Counter(_core(row["name"]) for row in rows)

    def largest_first(row: Mapping[str, str]) -> tuple[int, str]:
        return -places.populations.get((row["country"], subject_key(row["city"])), 0), row["iata"]

    n_of: Counter[str] = Counter()
    for row in sorted(filter(_is_settled, rows), key=largest_first):
        name, code = row["name"], row["country"]
        if code not in places.countries or n_called[_core(name)] > 1 or n_of[code] == _MAX_PER_COUNTRY:
            continue
        answers, phrases = places.countries[code], _phrases(name)
        held = [places.subjects[key] for key in phrases if key in places.subjects]
        elsewhere = any(place.country not in (None, answers[0]) for place in held)
        if elsewhere or len({place.split for place in held}) > 1 or places.regions & set(phrases):
            continue
        n_of[code] += 1
        split = held[0].split if held else _split_of_city(row, places)
        yield split, Question(f"{RELATION}/{row['iata']}", RELATION, name, _WORDING.format(name), answers)


def _is_settled(row: Mapping[str, str]) -> bool:
    """Whether an airport has an IATA code, a plain name that says what it is, and a country of its own."""
    words = row["name"].split()
    plain = not _NOT_PLAIN & set(row["name"]) and row["name"] == " ".join(words) and words[-1] in _LAST_WORDS
    disputed = row["iata"] in _DISPUTED or row["tz"] in _DISPUTED_ZONES
    return bool(row["iata"]) and plain and not disputed and bool(_core(row["name"]))


def _split_of_city(row: Mapping[str, str], places: Places) -> str:
    key = subject_key(row["city"]) or _core(row["name"])
    return places.subjects[key].split if key in places.subjects else split_of(key, places.salt)


def _words(name: str) -> list[str]:
    """The words of a name's key, those that a hyphen joins apart."""
    return subject_key(name.replace("-", " ").replace("\u2013", " ")).split()


def _core(name: str) -> str:
    """A name without the words that most airports have in theirs; empty where it has no other."""
    return " ".join(word for word in _words(name) if word not in _COMMON_WORDS)


def _phrases(name: str) -> list[str]:
    """Every run of words in a name, as keys of places; with hyphens as they are too."""
    runs = []
    for words in (_words(name), subject_key(name).split()):
        runs += [" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
    return list(dict.fromkeys(runs))
