"""The names of relations."""

from __future__ import annotations

from morfi.questions.relations import named
from morfi.questions.world_airports import RELATION
from morfi.questions.world_facts import _WORDING


def test_every_relation_of_world_facts_has_a_name_and_others_stay_as_they_are() -> None:
    assert named("P36") == "capital (P36)"
    assert all(named(relation).endswith(f" ({relation})") for relation in (*_WORDING, RELATION))
    assert (named("city, state"), named("P0")) == ("city, state", "P0")
