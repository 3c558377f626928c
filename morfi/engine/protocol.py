"""Records of what an engine is asked and answers, and the protocol that every engine keeps."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from morfi.engine.steering import Applied, Capture, Captured, Steering
from morfi.errors import InputError

if TYPE_CHECKING:
    from morfi.checkpoints import Checkpoint
    from morfi.engine.directions import DecoderRows, Direction, SaeLatents


_MOST = 2**31 - 1  # that vLLM's int32 holds
_MAX_SEED = 2**32 - 1  # the largest that numpy, and so vLLM, takes


def check_prompts(prompts: Sequence[Sequence[int]], context: int, n_tokens: int) -> None:
    """Raises InputError for a prompt without tokens, or too many for an answer within `context`.

    Also for anything in a prompt that is no token id of a vocabulary of `n_tokens`.
    """
    for number, prompt in enumerate(prompts):
        place = f"prompt {number} of {len(prompts)}"
        if not isinstance(prompt, Sequence) or isinstance(prompt, str | bytes):
            raise InputError(
                f"{place} is a {type(prompt).__name__}; expected a list of token ids, "
                "such as load_tokenizer(...).encode gives"
            )
        if not all(issubclass(kind, numbers.Integral) for kind in set(map(type, prompt))):
            wrong = next(token for token in prompt if not isinstance(token, numbers.Integral))
            raise InputError(f"{place} holds {wrong!r}; expected token ids alone")
        if prompt and not (min(prompt) >= 0 and max(prompt) < n_tokens):
            wrong = next(token for token in prompt if not 0 <= token < n_tokens)
            raise InputError(f"{place} holds the token id {wrong}; expected 0 to {n_tokens - 1}")
        if not 0 < len(prompt) < context:
            raise InputError(
                f"{place} has {len(prompt)} tokens; give it 1 to {context - 1}, "
                "which leaves room for an answer"
            )


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to continue a prompt: greedy at `temperature` 0; generation ends at a newline or `max_tokens`.

    It ends where the engine's context is full as well. Raises InputError for what could not mean anything.

    >>> Sampling(max_tokens=16, temperature=0.5, top_k=40, n=4, seed=1).n
    4
    """

    max_tokens: int = 16
    temperature: float = 0.0
    top_k: int = 0
    n: int = 1
    seed: int | None = None

    def __post_init__(self) -> None:
        bounds = {"max_tokens": (1, _MOST), "top_k": (0, _MOST), "n": (1, _MOST), "seed": (0, _MAX_SEED)}
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if value is None and name == "seed":
                continue
            if (
                isinstance(value, bool)
                or not isinstance(value, numbers.Integral)
                or not least <= int(value) <= most
            ):
                raise InputError(
                    f"sampling {name} is {value!r}; expected a whole number from {least} to {most}"
                )
            object.__setattr__(self, name, int(value))
        value = self.temperature
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < math.inf:
            raise InputError(f"sampling temperature is {value!r}; expected a finite number of 0 or more")
        object.__setattr__(self, "temperature", float(value))
        if self.n > 1 and not self.temperature:
            raise InputError(f"sampling n is {self.n} at temperature 0, where all answers are one; give n=1")


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens of a prompt and of its completion, by whoever has the tokenizer."""

    prompt: int
    output: int


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
    counted: TokenCounts | None = None  # where the engine gives no `token_ids` and takes none


@dataclass(frozen=True, slots=True)
class MergeDifference:
    """How a merge on a device differs from the CPU's.

    Of all `numbers` some are `different`. `worst` is the largest difference over what sums in another order
    may cause there, in the tensor `where`: at most 1 is right.
    """

    numbers: int
    different: int
    worst: float
    where: str

    @staticmethod
    def of_all(parts: Sequence[MergeDifference]) -> MergeDifference | None:
        """That of all parts together; None of no part."""
        if not parts:
            return None
        most = max(parts, key=lambda part: part.worst)
        n_numbers, n_different = sum(part.numbers for part in parts), sum(part.different for part in parts)
        return replace(most, numbers=n_numbers, different=n_different)


class Engine(Protocol):
    """An engine over one checkpoint at a time.

    `morfi.serve.engine.Engine` is vLLM in this process, `morfi.endpoint.engine.EndpointEngine` a server.
    """

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings the engine really runs with, for the run's record."""
        ...

    @property
    def device(self) -> str:
        """The device's name and size."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        on_finished: Callable[[int], None] | None = None,
        *,
        steering: Sequence[Sequence[Steering]] | None = None,
        capture: Capture | Sequence[Capture | None] | None = None,
    ) -> list[list[Completion]]:
        """The completions of each prompt (token ids), in the order of `prompts`, `n` as its sampling says.

        `sampling` is one for all prompts or one for each. `on_finished` is called with the number of
        completions that ended since its last call. `steering` gives each prompt its own steerings, and its
        completions say what was applied; `capture` says what is taken of each prompt.
        """
        ...

    def reset_prefix_cache(self) -> None:
        """Forgets every cached prefix, so that what follows does not depend on what came before."""
        ...

    def register(self, what: Direction | SaeLatents | DecoderRows) -> str:
        """Makes a direction or SAE known; returns the name that `Steering` or `Latent` take."""
        ...

    def shards(self, folder: Path) -> AbstractContextManager[None]:
        """For a block: what is captured in it goes to `folder`, which appears whole at its end."""
        ...

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Serves `checkpoint` from now on; raises MorfiError, and serves no mixture, where it cannot."""
        ...


@runtime_checkable
class ComparesMerges(Protocol):
    """An engine that may merge adapters on its own device."""

    def compare_merge(self, checkpoint: Checkpoint) -> MergeDifference | None:
        """How its live weights, loaded last, differ from a merge on the CPU; None where nothing can."""
        ...


class StartEngine(Protocol):
    """Starts an engine for a block: `morfi.serve.engine.start_engine`, or that of an endpoint."""

    def __call__(
        self, checkpoint: Checkpoint, *, context: int, seed: int, overrides: Mapping[str, Any]
    ) -> AbstractContextManager[Engine]:
        """An engine over `checkpoint` for requests of up to `context` tokens."""
        ...


class TimeVllm(Protocol):
    """Makes vLLM answer without morfi: `morfi.serve.without_plugin.seconds_without_plugin`."""

    def __call__(
        self,
        checkpoint: Checkpoint,
        prompts: Sequence[Sequence[int]],
        *,
        context: int,
        overrides: Mapping[str, Any],
        n_tokens: int,
        n_rounds: int,
    ) -> list[float]:
        """The seconds of each of `n_rounds` in which the batch of `prompts` is answered greedily."""
        ...
