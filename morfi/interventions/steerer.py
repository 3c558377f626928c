"""Directions as an engine knows them, by name, and the steerings of a request along them."""

from __future__ import annotations

from dataclasses import dataclass, field

from morfi.engine.directions import Direction
from morfi.engine.operations import OPERATIONS
from morfi.engine.protocol import Engine
from morfi.engine.steering import Latent, Steering
from morfi.engine.strengths import steering_of
from morfi.interventions.directions import Target
from morfi.latents.sae import Sae


@dataclass(slots=True)
class Steerer:
    """Turns a direction's name and a strength into the steerings of a request."""

    engine: Engine
    sae: Sae
    positions: str
    low: float = 0.0
    _known: dict[str, tuple[Target, str | Latent | None]] = field(default_factory=dict)
    _sae_name: str = ""

    def register(self, target: Target) -> None:
        """Makes a target known to the engine, if it is not."""
        row = target.row
        if row.direction in self._known:
            return
        handle: str | Latent | None = None
        operation = OPERATIONS[row.operation]
        if operation.needs_latent and row.latent is not None:
            self._sae_name = self._sae_name or self.engine.register(self.sae.directions())
            handle = Latent(self._sae_name, row.latent)
        elif operation.is_sum or not row.parts:
            handle = self.engine.register(Direction(target.vector))
        self._known[row.direction] = (target, handle)

    def steering(self, direction: str, alpha: float) -> list[Steering]:
        """The steerings of a request along the target of this name; [] for the name ""."""
        if not direction:
            return []
        target, handle = self._known[direction]
        row = target.row
        if handle is None:  # latents that are steered along one by one
            return [
                one
                for latent, amount in row.parts.items()
                for one in self.steering(f"latent {latent}", amount)
            ]
        operation = OPERATIONS[row.operation]
        amount = alpha if operation.amount is not None else None
        return [
            steering_of(
                row.layer,
                handle,
                row.operation,
                amount,
                median_norm=row.median_norm,
                positions=self.positions,
                low=self.low if operation.has_low else 0.0,
            )
        ]
