"""The steering inside a KV block of a request, as a part of the block's key in vLLM's prefix cache.

Keys and values depend on what was done at their position and before. vLLM chains the keys of blocks, so one
whose key says what was steered at which positions in it is shared by just those requests that have the same
tokens and the same steering up to its end: the unsteered beginning of a prompt by everybody, whatever
positions their steerings name and from wherever they count.
"""

from __future__ import annotations

import json
from typing import Any

from morfi.engine.steering import Steering, from_json, spans, within
from morfi.serve.plugin.joint import Spans

Key = tuple[str, str]
_STEERED = "morfi_steered"


def block_key(request: Any, start: int, stop: int) -> Key | None:
    """The steering in the positions [start, stop) of vLLM's `Request`; None where there is none.

    Directions are named by their content's sha256, so equal keys are equal changes.
    """
    found = [
        (*fields, parts) for fields, steered in _steered(request) if (parts := within(steered, start, stop))
    ]
    return ("morfi", json.dumps(found)) if found else None


def _steered(request: Any) -> list[tuple[tuple[object, ...], Spans]]:
    """The steerings of a request that change anything, with their absolute positions; worked out once."""
    found: list[tuple[tuple[object, ...], Spans]] | None = getattr(request, _STEERED, None)
    if found is None:
        found = [
            (_fields(one), spans(one.positions, request.num_prompt_tokens))
            for one in _steering(request.sampling_params)
            if one.may_change
        ]
        setattr(request, _STEERED, found)
    return found


def _steering(params: Any) -> tuple[Steering, ...]:
    specification = None if params is None else (params.extra_args or {}).get("morfi")
    if not specification or not specification.get("steering"):
        return ()
    return from_json({"steering": specification["steering"]})[0]


def _fields(one: Steering) -> tuple[object, ...]:
    return (one.layer, str(one.direction), one.operation, one.strength, one.low)
