"""What steering needs of an engine, and under which names the engine knows the directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from morfi.conditions.live import LiveEngine
from morfi.engine.directions import Direction, SaeLatents
from morfi.engine.protocol import Completion, Sampling
from morfi.engine.steering import Latent, Steering
from morfi.engine.strengths import AMOUNTS, steering_of
from morfi.interventions.directions import Target
from morfi.latents.sae import Sae


class SteeringEngine(LiveEngine, Protocol):
    """An engine that steers each request its own way; `morfi.serve.engine.Engine` is the real one."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        on_finished: Callable[[int], None] | None = None,
        *,
        steering: Sequence[Sequence[Steering]] | None = None,
    ) -> list[list[Completion]]:
        """As any engine; each prompt has its own steerings, and its answer says what was applied."""
        ...

    def register(self, what: Direction | SaeLatents) -> str:
        """Makes a direction or SAE known; returns the name that `Steering` or `Latent` take."""
        ...


@dataclass(slots=True)
class Steerer:
    """Turns a direction's name and a strength into the steerings of a request."""

    engine: SteeringEngine
    sae: Sae
    positions: str
    _known: dict[str, tuple[Target, str | Latent | None]] = field(default_factory=dict)
    _sae_name: str = ""

    def register(self, target: Target) -> None:
        """Makes a target known to the engine, if it is not."""
        row = target.row
        if row.direction in self._known:
            return
        handle: str | Latent | None = None
        if row.operation in ("ablate", "clamp") and row.latent is not None:
            self._sae_name = self._sae_name or self.engine.register(self.sae.directions())
            handle = Latent(self._sae_name, row.latent)
        elif row.operation == "add" or not row.parts:
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
        amount = alpha if row.operation in AMOUNTS else None
        return [
            steering_of(
                row.layer,
                handle,
                row.operation,
                amount,
                median_norm=row.median_norm,
                positions=self.positions,
            )
        ]
