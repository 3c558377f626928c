"""What an engine is asked and answers, as records, and what it must be able to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from morfi.engine.steering import Applied, Captured


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to continue a prompt: greedy at `temperature` 0; generation ends at a newline or `max_tokens`.

    >>> Sampling(max_tokens=16, temperature=0.5, top_k=40, n=4, seed=1).n
    4
    """

    max_tokens: int = 16
    temperature: float = 0.0
    top_k: int = 0
    n: int = 1
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer of the model: `text` up to, without, the newline that ended it.

    >>> [(answer,)] = engine.generate([[504, 3575, 282]], Sampling())
    >>> answer.text, answer.finish_reason
    """

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
