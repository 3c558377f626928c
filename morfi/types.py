"""The records that modules hand to each other, and the protocol of what generates text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from morfi.steering import Applied, Captured


@dataclass(frozen=True, slots=True)
class Question:
    """One closed-book question; `answers` holds every accepted answer, at least one."""

    id: str
    relation: str
    subject: str
    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to continue a prompt: greedy at `temperature` 0; generation ends at a newline or `max_tokens`."""

    max_tokens: int = 16
    temperature: float = 0.0
    top_k: int = 0
    n: int = 1
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer of the model: `text` up to, without, the newline that ended it."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str  # "stop": ended by a newline or the end token; "length": cut at max_tokens
    n_cached_tokens: int  # prompt tokens whose keys and values came from the prefix cache
    applied: tuple[Applied, ...] = ()  # what its steering did
    captured: tuple[Captured, ...] = ()


class Generator(Protocol):
    """What evaluation needs of an engine; `morfi.serve.engine.Engine` is the real one."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        on_finished: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """The completions of each prompt (token ids), in the order of `prompts`, `n` as its sampling says.

        `sampling` is one for all prompts or one for each. `on_finished` is called with the number of
        completions that ended since its last call.
        """
        ...

    def reset_prefix_cache(self) -> None:
        """Forgets every cached prefix, so that what follows does not depend on what came before."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings the engine really runs with, for the run's record."""
        ...

    @property
    def device(self) -> str:
        """What the engine runs on, in words."""
        ...


class Progress(Protocol):
    """Told what happens in a long run: phases by name, and units of work (answers, examples) as they end."""

    def phase(self, text: str) -> None:
        """A new phase begins."""
        ...

    def start(self, n_total: int, n_done: int) -> None:
        """Work begins; `n_done` of `n_total` units were done before."""
        ...

    def advance(self, n: int) -> None:
        """`n` more units are done."""
        ...
