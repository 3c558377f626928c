"""The steerings of one request as what is done at each position: equal ones are one, projections joint.

At a position and layer, x becomes (I - P)(x + sum (t - f(x)) d) + sum s e: P projects on all directions that
are projected out there, so nothing is left along any; each latent that is ablated (t = 0) or clamped (to t,
in any case, where it fires, or where f(x) lies outside of an interval) contributes t d in place of f(x) d,
and what those do is seen by the projection; what is added comes on top. All f are of the x from before. The
operation itself only sums changes that see the same x, so P becomes an orthonormal basis, and d, where there
is a P, (I - P) d.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from morfi.engine.directions import Direction, pack, unpack
from morfi.engine.operations import ABLATE, ADD, CLAMP, CLAMP_FIRING, CLAMP_INTERVAL, PROJECT, Operation
from morfi.engine.steering import MAX_ENTRIES, Steering, disjoint, spans
from morfi.errors import InputError

if TYPE_CHECKING:
    import torch

Spans = list[tuple[int, int | None]]
_NOTHING = 1e-6  # of a direction's length: what float32 vectors leave of one that lies in the span of others


@dataclass(frozen=True, slots=True)
class Entry:
    """A change that one row of the bank makes: `users` has the bits of the steerings that it carries out."""

    layer: int
    direction: str
    operation: Operation
    strength: float
    low: float
    users: int
    spans: Spans

    @property
    def put_in(self) -> float:
        """The factor of d that comes into x, whatever x is."""
        return self.operation.put_in(self.strength, self.low)


@dataclass(frozen=True, slots=True)
class Joint:
    """The changes of a request, and the packed directions that they need, by name."""

    entries: tuple[Entry, ...]
    directions: Mapping[str, bytes]


def join(steering: Sequence[Steering], directions: Mapping[str, bytes], n_prompt: int) -> Joint:
    """The changes that `steering` makes to a sequence whose prompt has `n_prompt` tokens.

    `directions` are packed, by the names in `steering`. Raises InputError where steerings contradict each
    other, or need more than MAX_ENTRIES rows of the bank.
    """
    names: dict[bytes, str] = {}  # equal directions have one name, whatever the request calls them
    for name, packed in directions.items():
        names.setdefault(packed, name)
    found: dict[tuple[int, str, Operation, float, float, int], Spans] = {}
    needed: dict[str, bytes] = {}
    for layer in sorted({one.layer for one in steering}):
        here = [number for number, one in enumerate(steering) if one.layer == layer]
        for active, places in _sweep([(n, spans(steering[n].positions, n_prompt)) for n in here]).items():
            changes = _Changes(layer)
            for number in here:
                if active >> number & 1:
                    packed = directions[str(steering[number].direction)]
                    changes.take(number, steering[number], names[packed], packed)
            for change, packed in changes.all():
                found.setdefault((layer, *change), []).extend(places)
                needed[change.direction] = packed
    if len(needed) > MAX_ENTRIES:
        raise InputError(
            f"projections together with others at differing positions need {len(needed)} directions here, at "
            f"most {MAX_ENTRIES} are taken; give the projections the same positions"
        )
    return Joint(tuple(Entry(*key, disjoint(places)) for key, places in found.items()), needed)


def put_in_together(joint: Joint) -> Iterable[list[tuple[Entry, bytes]]]:
    """Changes that are put into the stream at once: those of a layer at the same positions."""
    for layer in sorted({entry.layer for entry in joint.entries}):
        here = [one for one in joint.entries if one.layer == layer and one.operation.puts_in]
        for active in _sweep([(number, one.spans) for number, one in enumerate(here)]):
            entries = [one for number, one in enumerate(here) if active >> number & 1]
            yield [(one, joint.directions[one.direction]) for one in entries]


class _Setting(NamedTuple):
    """How a latent is set, and to what."""

    operation: Operation
    strength: float
    low: float = 0.0

    def __str__(self) -> str:
        where = " where it fires" if self.operation == CLAMP_FIRING else ""
        low = f"{self.low:g} to " if self.operation.has_low else ""
        return f"{low}{self.strength:g}{where}"


class Change(NamedTuple):
    """An entry without layer and positions."""

    direction: str
    operation: Operation
    strength: float
    low: float
    users: int


class _Changes:
    """Those of one layer at positions where the same steerings act."""

    def __init__(self, layer: int) -> None:
        self._layer = layer
        self._added: dict[str, list[tuple[int, float]]] = {}
        # Latents: the steerings that set them, and how.
        self._set: dict[str, tuple[list[int], _Setting]] = {}
        self._projected: dict[str, list[int]] = {}
        self._packed: dict[str, bytes] = {}

    def take(self, number: int, one: Steering, name: str, packed: bytes) -> None:
        """Adds steering `number` of the request."""
        self._packed[name] = packed
        if one.does == PROJECT:
            self._projected.setdefault(name, []).append(number)
            return
        if one.does == ADD:
            self._added.setdefault(name, []).append((number, one.strength))
            return
        if one.does not in (ABLATE, CLAMP, CLAMP_FIRING, CLAMP_INTERVAL):
            raise NotImplementedError(f"what {one.operation} does beside others is not said here")
        setting = _Setting(one.does, one.strength, one.low)
        if one.does.has_low and one.low == one.strength:
            setting = _Setting(CLAMP, one.strength)
        # Where a latent does not fire it is 0 already, so that setting it to 0 is ablating it.
        if not setting.strength and not setting.operation.has_low:
            setting = _Setting(ABLATE, 0.0)
        numbers, known = self._set.setdefault(name, ([], setting))
        if known != setting:
            values = " and ".join(map(str, sorted((known, setting), key=lambda two: two.strength)))
            raise InputError(
                f"one latent is to have the values {values} at one position after layer {self._layer} "
                "(ablated is 0); give it one"
            )
        numbers.append(number)

    def all(self) -> Iterable[tuple[Change, bytes]]:
        """The changes, each with its packed direction."""
        for name, parts in self._added.items():
            total = math.fsum(strength for _, strength in parts)
            if total:
                yield Change(name, ADD, total, 0.0, _bits(n for n, _ in parts)), self._packed[name]
        projecting = [number for numbers in self._projected.values() for number in numbers]
        removed = tuple(self._packed[name] for name in self._projected)
        for name, (numbers, setting) in self._set.items():
            own, packed = _rest(self._packed[name], removed)
            if packed is not None:
                yield Change(own or name, *setting, _bits(numbers)), packed
            elif setting.operation.put_in(setting.strength, setting.low):
                raise InputError(
                    f"a latent is to have the value {setting} after layer {self._layer} where its "
                    "direction is projected out; leave one of the two out"
                )
            else:  # the projection takes what it contributes
                projecting += numbers
        if len(removed) == 1:
            (name,) = self._projected
            yield Change(name, PROJECT, 0.0, 0.0, _bits(projecting)), removed[0]
            return
        for name, packed in _basis(removed):
            yield Change(name, PROJECT, 0.0, 0.0, _bits(projecting)), packed


def _bits(numbers: Iterable[int]) -> int:
    return sum(1 << number for number in set(numbers))


@functools.lru_cache(maxsize=256)
def _basis(packed: tuple[bytes, ...]) -> tuple[tuple[str, bytes], ...]:
    """An orthonormal basis of what these directions span, named and packed."""
    basis: list[torch.Tensor] = []
    for data in packed:
        vector = unpack(data).vector.double()
        left = _without(vector, basis)
        if left.norm() > _NOTHING * vector.norm():
            basis.append(left / left.norm())
    made = [Direction(vector.float()) for vector in basis]
    return tuple((one.sha256, pack(one)) for one in made)


@functools.lru_cache(maxsize=256)
def _rest(packed: bytes, removed: tuple[bytes, ...]) -> tuple[str | None, bytes | None]:
    """The latent with what is left of its vector without the span of `removed`, by name and packed.

    Without a name where nothing is removed, without any where nothing is left.
    """
    if not removed:
        return None, packed
    latent = unpack(packed)
    vector = latent.vector.double()
    left = _without(vector, [unpack(data).vector.double() for _, data in _basis(removed)])
    if left.norm() <= _NOTHING * vector.norm():
        return None, None
    made = Direction(left.float(), latent.encoder, latent.bias, latent.threshold, latent.norm_rescaled)
    return made.sha256, pack(made)


def _without(vector: torch.Tensor, basis: Sequence[torch.Tensor]) -> torch.Tensor:
    for _ in range(2):  # once leaves rounding errors of what was large
        for one in basis:
            vector = vector - (vector @ one) * one
    return vector


def _sweep(parts: Sequence[tuple[int, Spans]]) -> dict[int, Spans]:
    """The positions at which the same of the numbered `parts` are active, by their bits; each its own."""
    toggles: dict[float, int] = {}
    for number, places in parts:
        for start, stop in places:
            for edge in (start, math.inf if stop is None else stop):
                toggles[edge] = toggles.get(edge, 0) ^ 1 << number
    found: dict[int, Spans] = {}
    edges, active = sorted(toggles), 0
    for edge, after in itertools.pairwise([*edges, math.inf]):
        active ^= toggles[edge]
        if active and edge < after:
            stop = None if after == math.inf else int(after)
            found.setdefault(active, []).append((int(edge), stop))
    return found
