"""The mixtures of a mix run: what stands in each, and what was left out before the draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from morfi.questions.relations import named
from morfi.report.tables import aligned, percent
from morfi.store.records import KnowledgeRow, MixtureRow
from morfi.training.mixtures import KNOWN_CATEGORIES, UNKNOWN, Dropped
from morfi.words import counted

_REASONS = {
    "shared_subject": "whose subject or text stands in dev or test",
    "other_category": "known, but of a category not chosen",
    "several_answers": "with several accepted answers",
    "majority": "with the relation's majority answer",
    "in_subject": "whose answer stands in the subject's name",
}


def mixture_table(
    rows: Sequence[MixtureRow], knowledge: Sequence[KnowledgeRow], dropped: Dropped | None = None
) -> str:
    """The table that `morfi mix` ends with: a line for each level, then its relations and what was dropped.

    `knowledge` names the relation of every question; `dropped` is None where only the stored rows are known.
    """
    found = mixture_object(rows, knowledge, dropped)
    categories = (UNKNOWN, *reversed(KNOWN_CATEGORIES))
    header = ("mixture", "n", "% Unknown", *categories)
    body = [
        (
            f"D_{level}",
            str(part["n"]),
            percent(part["by_category"][UNKNOWN] / part["n"]),
            *(str(part["by_category"][category]) for category in categories),
        )
        for level, part in found["levels"].items()
    ]
    lines = aligned([header, *body], numeric=range(1, 7))
    if found["relations"]:
        counts = ", ".join(f"{named(relation)} {n}" for relation, n in found["relations"].items())
        lines += ["", f"in every mixture: {counts}"]
    lines += [
        f"{', '.join(names)} have equally many Unknown questions; a larger --size tells them apart"
        for names in _alike(found["levels"])
    ]
    for name, n in found.get("dropped", {}).items():
        if n:
            lines.append(f"left out: {counted(n, 'train question')} {_REASONS[name]}")
    return "\n".join(lines)


def _alike(levels: Mapping[int, Mapping[str, Any]]) -> list[list[str]]:
    """The names of the mixtures, by their number of Unknown questions, where several have the same."""
    named: dict[int, list[str]] = {}
    for level, part in levels.items():
        named.setdefault(part["by_category"][UNKNOWN], []).append(f"D_{level}")
    return [names for names in named.values() if len(names) > 1]


def mixture_object(
    rows: Sequence[MixtureRow], knowledge: Sequence[KnowledgeRow], dropped: Dropped | None = None
) -> dict[str, Any]:
    """The object of `morfi mix --json`: `levels` by percent Unknown, places by relation, what was dropped."""
    relation_of = {row.question_id: row.relation for row in knowledge}
    levels = {
        level: _level([row for row in rows if row.level == level], relation_of)
        for level in sorted({row.level for row in rows})
    }
    relations = next(iter(levels.values()))["by_relation"] if levels else {}
    found: dict[str, Any] = {
        "levels": levels,
        "relations": {relation: counts["n"] for relation, counts in relations.items()},
    }
    return found if dropped is None else found | {"dropped": asdict(dropped)}


def _level(rows: Sequence[MixtureRow], relation_of: Mapping[str, str]) -> dict[str, Any]:
    categories = Counter(row.category for row in rows)
    places = Counter(relation_of[row.question_id] for row in rows)
    unknown = Counter(relation_of[row.question_id] for row in rows if row.category == UNKNOWN)
    return {
        "n": len(rows),
        "by_category": {name: categories[name] for name in (*KNOWN_CATEGORIES, UNKNOWN)},
        "by_relation": {name: {"n": places[name], "unknown": unknown[name]} for name in sorted(places)},
    }
