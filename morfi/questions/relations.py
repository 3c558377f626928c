"""What relations are called: the Wikidata properties that world-facts and EntityQuestions ask for."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "P17": "country",
        "P17-airport": "country of an airport",
        "P19": "place of birth",
        "P20": "place of death",
        "P26": "spouse",
        "P30": "continent",
        "P36": "capital",
        "P38": "currency",
        "P40": "child",
        "P50": "author",
        "P69": "educated at",
        "P78": "top-level domain",
        "P106": "occupation",
        "P112": "founded by",
        "P127": "owned by",
        "P131": "located in",
        "P136": "genre",
        "P159": "headquarters",
        "P169": "chief executive",
        "P170": "creator",
        "P175": "performer",
        "P176": "manufacturer",
        "P264": "record label",
        "P276": "location",
        "P298": "ISO code",
        "P407": "language",
        "P413": "position played",
        "P474": "calling code",
        "P495": "country of origin",
        "P740": "place of formation",
        "P800": "notable work",
        "P1376": "capital of",
    }
)


def named(relation: str) -> str:
    """A relation with its name, "country (P17)"; as the data have it where no name is known."""
    name = _NAMES.get(relation)
    return relation if name is None else f"{name} ({relation})"
