"""Steering and capture of the residual stream, as requests ask for them: records without an engine in them.

A position is the index of a token in its sequence, prompt and answer together; a negative one counts from the
end of the prompt, so -1 is the last prompt token. "After layer L" means the residual stream that decoder
layer L (from 0) hands to the next one.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from morfi.engine.operations import ADD, OPERATIONS, Operation
from morfi.errors import InputError, nearest

if TYPE_CHECKING:
    import torch

NAMED_POSITIONS = ("all", "prompt", "generated", "last_prompt")
MAX_ENTRIES = 8  # steerings of one request
MAX_CAPTURED_LAYERS = 4  # of one request
FLOAT32_MAX = 3.4028234663852886e38
INT32_MAX = (1 << 31) - 1  # of what layers, latents and positions are kept in

Positions = str | tuple[int | tuple[int, int | None], ...]


@dataclass(frozen=True, slots=True)
class Latent:
    """Latent `index` of an SAE that was registered with the engine under the name `sae`.

    >>> str(Latent("my-sae", 1234))
    'my-sae/1234'
    """

    sae: str
    index: int

    def __post_init__(self) -> None:
        if not isinstance(self.sae, str) or not self.sae:
            raise InputError(f"a latent needs the name of a registered SAE, got {_shown(self.sae)}")
        object.__setattr__(self, "index", _checked_count(self.index, "latent", "latent"))

    def __str__(self) -> str:
        return f"{self.sae}/{self.index}"


@dataclass(frozen=True, slots=True)
class Steering:
    """One change to the residual stream x after `layer`, at `positions`.

    `operation` is a name of `morfi.engine.operations`: "add" (x + strength d), "ablate" (x - f(x) d: the
    latent's own contribution leaves), "clamp" (x + (strength - f(x)) d: the latent is set to `strength`),
    "clamp_firing" (the same, only where f(x) > 0), "clamp_interval" (the latent is kept between `low` and
    `strength`: nothing changes where it is there) or "project" (x without its component along d).
    `direction` names a registered direction d, or a `Latent` of a registered SAE, which alone has an f.
    Several steerings of one layer and position act together: additions sum up; ablations and clamps all see
    the x from before them, and one latent has one value; projections leave nothing along any of their
    directions, and only what is added comes on top.
    `positions` is "all", "prompt", "generated", "last_prompt", or a tuple of positions and half-open ranges
    (start, stop), where stop None means to the end; those that a sequence does not have are passed over, and
    its `Applied` counts none there. Raises InputError for what could not mean anything.

    >>> Steering(15, Latent("my-sae", 1234), "clamp", 0.0, positions="generated").operation
    'clamp'
    """

    layer: int
    direction: str | Latent
    operation: str = ADD.name
    strength: float = 0.0
    positions: Positions = "all"
    low: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.operation, str) or self.operation not in OPERATIONS:
            name = self.operation if isinstance(self.operation, str) else _shown(self.operation)
            raise InputError(
                f'steering operation "{name}" is none of {", ".join(OPERATIONS)}.{nearest(name, OPERATIONS)}'
            )
        object.__setattr__(self, "layer", _checked_count(self.layer, "steering layer", "layer"))
        if not isinstance(self.direction, str | Latent) or not self.direction:
            raise InputError(
                f"steering needs the name of a registered direction, got {_shown(self.direction)}"
            )
        object.__setattr__(self, "strength", _checked_strength(self.strength))
        object.__setattr__(self, "low", _checked_strength(self.low, "low"))
        object.__setattr__(self, "positions", _plain_positions(self.positions))
        if self.does.amount is None and self.strength:
            raise InputError(f"{self.operation} takes no strength, got {self.strength:g}; leave it out")
        if self.low and not self.does.has_low:
            raise InputError(f"{self.operation} takes no low, got {self.low:g}; leave it out")
        if self.does.has_low and self.low > self.strength:
            raise InputError(
                f"{self.operation} from {self.low:g} to {self.strength:g}: expected low to be at most the "
                "strength, which is the upper bound"
            )
        spans(self.positions, 1)

    @property
    def does(self) -> Operation:
        """The operation."""
        return OPERATIONS[self.operation]

    @property
    def may_change(self) -> bool:
        """Whether it changes anything anywhere."""
        return not self.does.is_sum or self.strength != 0

    @property
    def always_changes(self) -> bool:
        """Whether it changes every one of its positions, whatever a latent's value there is."""
        return self.may_change and not self.does.needs_latent


@dataclass(frozen=True, slots=True)
class Capture:
    """The residual stream after each of `layers`, at `positions`, after any steering there.

    With `before` the values from before the steering of that layer are taken instead. Positions as for
    `Steering`; those that a sequence does not have give no rows. The last generated token is never put into
    the model, so there is nothing to capture for it.

    >>> Capture(layers=(15, 20)).positions
    'last_prompt'
    """

    layers: tuple[int, ...]
    positions: Positions = "last_prompt"
    before: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.layers, tuple | list | range) or not self.layers:
            raise InputError(
                f"capture needs a tuple of one layer or more, such as (15,), got {_shown(self.layers)}"
            )
        if len(self.layers) > MAX_CAPTURED_LAYERS:
            raise InputError(
                f"capture names {len(self.layers)} layers, at most {MAX_CAPTURED_LAYERS} are taken at a time"
            )
        layers = tuple(_checked_count(layer, "capture layer", "layer") for layer in self.layers)
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "positions", _plain_positions(self.positions))
        if len(set(self.layers)) != len(self.layers):
            raise InputError(f"capture names a layer twice: {list(self.layers)}")
        if not isinstance(self.before, bool):
            raise InputError(f"capture's before is true or false, got {_shown(self.before)}")
        spans(self.positions, 1)


@dataclass(frozen=True, slots=True)
class Applied:
    """The outcome of one steering: it changed the residual stream after `layer` at `n_tokens` positions.

    Positions count where the stream is another one afterwards: not those where a latent that is ablated does
    not fire, nor any at strength 0. Those whose keys and values came from the prefix cache do: they were
    changed alike when they were computed.
    """

    steering: Steering
    n_tokens: int


@dataclass(frozen=True, eq=False, slots=True)
class Captured:
    """The residual stream after `layer`: `values` float32 [n, d_model], a row for each of `positions`."""

    layer: int
    positions: tuple[int, ...]
    token_ids: tuple[int, ...]  # the tokens at these positions
    values: torch.Tensor


def spans(positions: Positions, n_prompt: int) -> list[tuple[int, int | None]]:
    """The half-open ranges of absolute positions that `positions` means for a prompt of `n_prompt` tokens.

    Sorted and disjoint; a stop of None is the sequence's end. Positions before the first are left out.
    Raises InputError for positions that are none, or that no sequence has.
    """
    if isinstance(positions, str):
        if positions not in NAMED_POSITIONS:
            raise InputError(
                f'positions "{positions}" is none of {", ".join(NAMED_POSITIONS)}.'
                f"{nearest(positions, NAMED_POSITIONS)}"
            )
        named: dict[str, tuple[int, int | None]] = {
            "all": (0, None),
            "prompt": (0, n_prompt),
            "generated": (n_prompt, None),
            "last_prompt": (n_prompt - 1, n_prompt),
        }
        return [named[positions]]
    if not isinstance(positions, tuple) or not positions:
        raise InputError(f"positions are a name or a tuple of positions and ranges, got {_shown(positions)}")
    found = [_span(place, n_prompt) for place in positions]
    return disjoint([(start, stop) for start, stop in found if stop is None or start < stop])


def n_positions(positions: Positions, n_prompt: int, n_computed: int) -> int:
    """How many of a sequence's first `n_computed` positions are meant."""
    return n_within(spans(positions, n_prompt), n_computed)


def n_within(places: Sequence[tuple[int, int | None]], n_computed: int) -> int:
    """How many of a sequence's first `n_computed` positions lie in disjoint ranges."""
    return sum(
        max(0, (n_computed if stop is None else min(stop, n_computed)) - start) for start, stop in places
    )


def within(places: Sequence[tuple[int, int | None]], start: int, stop: int) -> list[tuple[int, int]]:
    """The parts of half-open ranges that lie in [start, stop)."""
    parts = []
    for low, high in places:
        first, last = max(low, start), stop if high is None else min(high, stop)
        if first < last:
            parts.append((first, last))
    return parts


def to_json(steering: Sequence[Steering], capture: Capture | None) -> dict[str, Any]:
    """The specification of a request as plain JSON: what `SamplingParams.extra_args["morfi"]` holds."""
    found: dict[str, Any] = {}
    if steering:
        found["steering"] = [
            {
                "layer": one.layer,
                "direction": _plain_direction(one.direction),
                "operation": one.operation,
                "strength": one.strength,
                "positions": _plain(one.positions),
                "low": one.low,
            }
            for one in steering
        ]
    if capture is not None:
        found["capture"] = {
            "layers": list(capture.layers),
            "positions": _plain(capture.positions),
            "before": capture.before,
        }
    return found


def from_json(specification: object) -> tuple[tuple[Steering, ...], Capture | None]:
    """The records that `to_json` made it from; raises InputError for anything else, unknown keys included."""
    whole = _mapping(specification, "a steering specification", ("steering", "capture"))
    entries = whole.get("steering", [])
    if not isinstance(entries, list):
        raise InputError(f"steering is a list, got {type(entries).__name__}")
    if len(entries) > MAX_ENTRIES:
        raise InputError(f"{len(entries)} steerings in one request, at most {MAX_ENTRIES} are taken")
    known = ("layer", "direction", "operation", "strength", "positions", "low")
    steering = []
    for entry in entries:
        fields = dict(_mapping(entry, "an entry of steering", known))
        if missing := {"layer", "direction"} - set(fields):
            raise InputError(f"an entry of steering lacks {', '.join(sorted(missing))}")
        if isinstance(fields["direction"], dict):
            named = _mapping(fields["direction"], "a latent", ("sae", "latent"))
            fields["direction"] = Latent(named.get("sae", ""), named.get("latent", -1))
        if "positions" in fields:
            fields["positions"] = _from_plain(fields["positions"])
        steering.append(Steering(**fields))
    if whole.get("capture") is None:
        return tuple(steering), None
    fields = dict(_mapping(whole["capture"], "capture", ("layers", "positions", "before")))
    if not isinstance(fields.get("layers"), list):
        raise InputError(f"capture's layers are a list, got {_shown(fields.get('layers'))}")
    fields["layers"] = tuple(fields["layers"])
    if "positions" in fields:
        fields["positions"] = _from_plain(fields["positions"])
    return tuple(steering), Capture(**fields)


def _checked_count(value: object, what: str, kind: str) -> int:
    """The number of a layer or latent."""
    plain: Any = _plain_index(value)
    if not _is_index(plain) or not 0 <= plain <= INT32_MAX:
        raise InputError(
            f"{what} {_shown(value)} is not a {kind}; {kind}s are counted from 0, to {INT32_MAX} at most"
        )
    return int(plain)


def _shown(value: object) -> str:
    """The value as one line that is not long."""
    try:
        line = " ".join(repr(value).split())
    except ValueError:  # Python writes no whole number of thousands of digits
        return "a number of thousands of digits"
    return line if len(line) <= 200 else f"{line[:200]}..."


def _checked_strength(value: object, what: str = "strength") -> float:
    """The number as a float: NumPy's, and those in a tensor or array without dimensions, are taken."""
    value = plain_number(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(f"steering {what} {_shown(value)} is not a finite number")
    if not isinstance(value, int):
        value = float(value)
    if not -FLOAT32_MAX <= value <= FLOAT32_MAX:
        shown = "of more than 38 digits" if isinstance(value, int) else f"{value!r}"
        raise InputError(f"steering {what} {shown} is not a finite number that float32 holds (to 3.4e38)")
    return float(value)


def plain_number(value: Any) -> Any:
    """What a tensor or array without dimensions holds, as Python's own; anything else as it is."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    return value


def _plain_index(value: object) -> object:
    """A whole number as Python's own, anything else as it is."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return int(value) if whole else value  # type: ignore[call-overload]


def _plain_positions(positions: Any) -> Any:
    if not isinstance(positions, tuple):
        return positions
    return tuple(
        tuple(map(_plain_index, place)) if isinstance(place, tuple) else _plain_index(place)
        for place in positions
    )


def _is_index(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _span(place: object, n_prompt: int) -> tuple[int, int | None]:
    for one in place if isinstance(place, tuple) else (place,):
        if _is_index(one) and not -INT32_MAX < one < INT32_MAX:
            raise InputError(
                f"no sequence has the position {_shown(one)}; positions lie between {-INT32_MAX} and "
                f"{INT32_MAX}, and a range without an end has None as its stop"
            )
    if _is_index(place):
        start = _absolute(place, n_prompt)
        return (start, start + 1) if start >= 0 else (0, 0)
    if isinstance(place, tuple) and len(place) == 2 and _is_index(place[0]):
        start, stop = place
        if stop is None or _is_index(stop):
            if stop is not None and (start < 0) == (stop < 0) and stop <= start:
                raise InputError(f"the range {start}:{stop} holds no position; its stop is not part of it")
            end = None if stop is None else max(0, _absolute(stop, n_prompt))
            return max(0, _absolute(start, n_prompt)), end
    raise InputError(f"{_shown(place)} is neither a position nor a range (start, stop)")


def _absolute(position: int, n_prompt: int) -> int:
    return position + n_prompt if position < 0 else position


def disjoint(ranges: Sequence[tuple[int, int | None]]) -> list[tuple[int, int | None]]:
    """The half-open `ranges` in order, those that touch or overlap as one."""
    merged: list[tuple[int, int | None]] = []
    for start, stop in sorted(ranges, key=lambda one: one[0]):
        if merged and (merged[-1][1] is None or start <= merged[-1][1]):
            before, end = merged[-1]
            merged[-1] = (before, None if end is None or stop is None else max(end, stop))
        else:
            merged.append((start, stop))
    return merged


def _plain_direction(direction: str | Latent) -> object:
    return direction if isinstance(direction, str) else {"sae": direction.sae, "latent": direction.index}


def _plain(positions: Positions) -> object:
    if isinstance(positions, str):
        return positions
    return [list(place) if isinstance(place, tuple) else place for place in positions]


def _from_plain(positions: object) -> Positions:
    if isinstance(positions, list):
        return tuple(tuple(place) if isinstance(place, list) else place for place in positions)
    return positions  # type: ignore[return-value] # checked where it is used


def _mapping(value: object, what: str, known: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{what} is an object, got {type(value).__name__}")
    for key in value:
        if key not in known:
            raise InputError(f'{what} has no "{key}".{nearest(str(key), known)} Known: {", ".join(known)}')
    return value
