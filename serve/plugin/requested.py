"""The steering and capture of a call's prompts, as the engine keeps them and as workers are told of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from morfi.engine.protocol import Sampling
from morfi.engine.steering import Capture, Steering
from morfi.errors import InputError

# In place of True, where reports are to come with a request's last output, and others are kept or are not.
WITH_END, IN_CORE = "with_end", "in_core"


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


def wanted_of(
    n_prompts: int,
    sampling: Sampling | Sequence[Sampling],
    steering: Sequence[Sequence[Steering]] | None,
    capture: Capture | Sequence[Capture | None] | None,
) -> list[Wanted]:
    """What each of `n_prompts` is to be done with; raises InputError where the lengths differ."""
    samplings = [sampling] * n_prompts if isinstance(sampling, Sampling) else sampling
    captures = [capture] * n_prompts if capture is None or isinstance(capture, Capture) else capture
    steerings = [()] * n_prompts if steering is None else [tuple(each) for each in steering]
    for given, what in ((samplings, "samplings"), (steerings, "steerings"), (captures, "captures")):
        if len(given) != n_prompts:
            raise InputError(f"{len(given)} {what} were given for {n_prompts} prompts; give one for each")
    return [Wanted(*each) for each in zip(samplings, steerings, captures, strict=True)]


def answer_ids(request_id: str, n: int) -> list[str]:
    """vLLM's ids of the `n` answers to a request, by its own id of that."""
    return [f"{number}_{request_id}" for number in range(n)] if n > 1 else [request_id]


def sample_of(request_id: str) -> int:
    """Which of the answers of a request the id belongs to; morfi's own ids have no "_" in front."""
    number, separator, _ = request_id.partition("_")
    return int(number) if separator and number.isdecimal() else 0


@dataclass(slots=True)
class OpenShards:
    """The captures that go to shards just now: how many requests did, and which positions of each count."""

    n_requests: int = 0
    computed: list[tuple[int, int, int]] = field(default_factory=list)
