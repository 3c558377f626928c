"""Why a field of a body is refused, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from morfi.errors import nearest
from morfi.serve.http.fields import WHY


def words(error: Mapping[str, Any], place: Sequence[int | str], model: Any) -> str:
    """The reason for one of pydantic's errors at a `place` in a body of `model`.

    Of a field that is known and does nothing here, why it is not taken; of an unknown one, which is meant.
    """
    name = str(place[-1]) if place else ""
    if error["type"] != "extra_forbidden" or model is None:
        return str(error["msg"])
    return WHY.get(name) or f"unknown field; leave it out.{nearest(name, _beside(place[:-1], model))}"


def _beside(place: Sequence[int | str], model: Any) -> set[str]:
    """The fields that may stand at a place in a body of `model`."""
    models = _models(model)
    for part in place:
        own = [one.model_fields[part] for one in models if part in one.model_fields]
        if own:  # other parts are numbers of a list, and names that pydantic adds
            models = [inner for one in own for inner in _models(one.annotation)]
    return {name for one in models for name in one.model_fields}


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [one for part in get_args(annotation) for one in _models(part)]
