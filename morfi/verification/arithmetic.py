"""The arithmetic of every operation as it is defined, in float32: what kernels and engines must equal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from morfi.engine.operations import ABLATE, ADD, CLAMP, CLAMP_FIRING, CLAMP_INTERVAL, PROJECT

if TYPE_CHECKING:
    import torch

    from morfi.engine.directions import Direction
    from morfi.engine.steering import Steering

# For each operation that sets a latent: from its activations f [n] and the steering to what they become.
TARGETS: Mapping[str, Callable[[torch.Tensor, Steering], torch.Tensor]] = {
    ABLATE.name: lambda f, _: f * 0,
    CLAMP.name: lambda f, one: f * 0 + one.strength,
    CLAMP_FIRING.name: lambda f, one: f.where(f == 0, one.strength),
    CLAMP_INTERVAL.name: lambda f, one: f.where(f > one.low, one.low).where(f < one.strength, one.strength),
}
KNOWN = frozenset({*TARGETS, ADD.name, PROJECT.name})


@dataclass(frozen=True, slots=True)
class Steered:
    """The residual stream after some steerings, and where each of them changed it."""

    x: torch.Tensor  # float32 [n, d_model]
    changed: tuple[torch.Tensor, ...]  # bool [n] for each steering


def steered(x: torch.Tensor, active: Sequence[tuple[Steering, Direction]]) -> Steered:
    """The float32 rows x [n, d_model] after the steerings `active`, all of which act on every row.

    Latents are set first, from the x before; then what lies along projected directions leaves; what is added
    comes on top. Raises NotImplementedError for an operation that is not defined here.
    """
    import torch

    for one, _ in active:
        if one.operation not in KNOWN:
            raise NotImplementedError(f"the operation {one.operation} has no reference arithmetic")
    result, changes = x.clone(), dict[int, torch.Tensor]()
    for number, (one, direction) in enumerate(active):
        if one.operation in TARGETS:
            change = _set(x, direction, one)
            result += change
            changes[number] = change.any(1)
    removed = [direction.vector for one, direction in active if one.does == PROJECT]
    if removed:
        basis = torch.linalg.qr(torch.stack(removed, 1).to(x.device)).Q  # [d_model, n_removed]
        result -= (result @ basis) @ basis.T
    for number, (one, direction) in enumerate(active):
        if one.does == ADD:
            result += added(direction, one.strength).to(x.device)
        if number not in changes:
            changes[number] = torch.full((len(x),), one.may_change, device=x.device)
    return Steered(result, tuple(changes[number] for number in range(len(active))))


def added(direction: Direction, strength: float) -> torch.Tensor:
    """What "add" adds, float32 [d_model]: a latent's direction counts at unit length."""
    d = direction.vector
    return strength * (d if direction.encoder is None else d / d.norm())


def activations(x: torch.Tensor, direction: Direction) -> torch.Tensor:
    """The latent's activations f [n] of the rows x [n, d_model]."""
    import torch

    assert direction.encoder is not None
    p = (x / _unit(x, direction)[:, None]) @ direction.encoder.to(x.device) + direction.bias
    return torch.where(p > direction.threshold, p, torch.zeros_like(p))


def _set(x: torch.Tensor, direction: Direction, one: Steering) -> torch.Tensor:
    """The change [n, d_model] that gives a latent the value which the operation sets."""
    f = activations(x, direction)
    factor = (TARGETS[one.operation](f, one) - f) * _unit(x, direction)
    change: torch.Tensor = factor[:, None] * direction.vector.to(x.device)
    return change


def _unit(x: torch.Tensor, direction: Direction) -> torch.Tensor:
    """The length [n] that counts as 1 in the SAE's own units."""
    import torch

    scale = x.norm(dim=1) / math.sqrt(x.shape[1])
    return scale if direction.norm_rescaled else torch.ones_like(scale)
