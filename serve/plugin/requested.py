"""The steering and capture of a call's prompts, as the engine keeps them while they run."""

from __future__ import annotations

from dataclasses import dataclass, field

from morfi.engine.protocol import Sampling
from morfi.engine.steering import Capture, Steering


@dataclass(frozen=True, slots=True)
class Wanted:
    """All that one prompt is to be done with."""

    sampling: Sampling
    steering: tuple[Steering, ...]
    capture: Capture | None
    shard: int | None = None  # its number in shards

    @property
    def is_followed(self) -> bool:
        """Whether anything but plain generation is asked for."""
        return bool(self.steering) or self.capture is not None


def answer_ids(request_id: str, n: int) -> list[str]:
    """vLLM's ids of the `n` answers to a request, by its own id of that."""
    return [f"{number}_{request_id}" for number in range(n)] if n > 1 else [request_id]


@dataclass(slots=True)
class OpenShards:
    """The captures that go to shards just now: how many requests did, and which positions of each count."""

    n_requests: int = 0
    computed: list[tuple[int, int, int]] = field(default_factory=list)
