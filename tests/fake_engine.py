"""The stand-in for an engine in tests: a `morfi.engine.protocol.Engine` without a model or vLLM."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.engine.protocol import Completion, Sampling
from morfi.engine.shards import ShardWriter, write_requests
from morfi.engine.steering import Applied, Capture, Steering, n_positions
from morfi.errors import InputError
from morfi.files import whole_folder

if TYPE_CHECKING:
    from morfi.checkpoints import Checkpoint
    from morfi.engine.directions import DecoderRows, Direction, SaeLatents
    from morfi.engine.protocol import StartEngine

SPECIAL = ("<s>", "</s>", "<unk>")  # of the tokenizer of single bytes


@dataclass
class FakeEngine:
    """Starts itself as an engine that knows some answers; stops after so many batches where it is told to.

    The engine reads the last question off the prompt, so its answer depends on nothing else, as a greedy
    model's does. The first sample is what `sampled` says, else the greedy answer; the others are wrong.
    `batches` holds the questions of each batch that was answered, `samplings` how they were to be.
    """

    known: Mapping[str, str]
    stop_after: int | None = None
    error: BaseException = field(default_factory=lambda: RuntimeError("the engine died"))
    n_lost: int = 0  # answers missing from each batch
    starts: list[dict[str, Any]] = field(default_factory=list)
    batches: list[list[str]] = field(default_factory=list)
    samplings: list[list[Sampling]] = field(default_factory=list)
    sampled: Mapping[str, str] = field(default_factory=dict)
    n_resets: int = 0
    loaded: list[str] = field(default_factory=list)  # names of the checkpoints, in order
    unloadable: frozenset[str] = frozenset()
    captured: list[tuple[Sequence[int], tuple[int, ...]]] = field(default_factory=list)
    registered: dict[str, Any] = field(default_factory=dict)  # directions and SAEs, by name
    served: str = "base"
    # What a question is answered with when steered (or not: no steerings) in a checkpoint, by its name.
    answers: Callable[[str, Sequence[Steering], str], str | None] = lambda *_: None
    n_unsteered: int = 0  # requests of each batch whose steering is not followed
    steerings: list[list[Sequence[Steering]]] = field(default_factory=list)
    pause_s: float = 0.0  # that each batch takes
    settings: Mapping[str, Any] = field(default_factory=lambda: {"block_size": 32})
    device: str = "fake"

    @contextlib.contextmanager
    def __call__(self, checkpoint: Checkpoint, **options: Any) -> Iterator[FakeEngine]:
        self.starts.append({"checkpoint": checkpoint, **options})
        self.served = "base"
        yield self

    def reset_prefix_cache(self) -> None:
        self.n_resets += 1

    @contextlib.contextmanager
    def shards(self, folder: Path) -> Iterator[None]:
        """Rows of width 8 that depend on layer and prompt; the first rises with each checkpoint."""
        import torch

        with whole_folder(folder) as part:
            self.captured = []
            yield
            writer = ShardWriter(part, "worker", 1 << 20)
            place = self.place()
            for number, (prompt, layers) in enumerate(self.captured):
                for layer in layers:
                    draw = torch.Generator().manual_seed(hash((layer, *prompt)) % 2**31)
                    values = torch.randn(1, 8, generator=draw)
                    values[0, 0] = place + 0.01 * values[0, 0]
                    writer.add(layer, values, (number, 0), [len(prompt) - 1], [prompt[-1]])
            writer.close()
            write_requests(part, [(n, 0, len(prompt)) for n, (prompt, _) in enumerate(self.captured)])

    def place(self) -> float:
        """How high the checkpoint stands that is served: how many were loaded."""
        return len(self.loaded)

    def register(self, what: Direction | SaeLatents | DecoderRows) -> str:
        self.registered[what.sha256] = what
        return what.sha256

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        if checkpoint.name in self.unloadable:
            raise InputError(f"{checkpoint.name} does not fit")
        self.loaded.append(checkpoint.name)
        self.served = checkpoint.name

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        on_finished: Callable[[int], None] | None = None,
        *,
        steering: Sequence[Sequence[Steering]] | None = None,
        capture: Capture | Sequence[Capture | None] | None = None,
    ) -> list[list[Completion]]:
        if capture is not None:
            assert isinstance(capture, Capture)
            self.captured += [(tuple(prompt), capture.layers) for prompt in prompts]
        if self.stop_after is not None and len(self.batches) >= self.stop_after:
            raise self.error
        time.sleep(self.pause_s)
        wanted = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        asked = [_last_question(prompt) for prompt in prompts]
        self.batches.append(asked)
        self.samplings.append(list(wanted))
        if on_finished is not None:
            on_finished(sum(each.n for each in wanted))
        completions = [
            [self._complete(question, each, number) for number in range(each.n)]
            for question, each in zip(asked, wanted, strict=True)
        ]
        if steering is not None:
            self.steerings.append(list(steering))
            completions = [
                [self._steer(each[0], question, prompt, wanted)]
                for each, question, prompt, wanted in zip(completions, asked, prompts, steering, strict=True)
            ]
            completions[: self.n_unsteered] = [
                [replace(one, applied=())] for (one,) in completions[: self.n_unsteered]
            ]
        return completions[: len(completions) - self.n_lost]

    def _steer(
        self, plain: Completion, question: str, prompt: Sequence[int], wanted: Sequence[Steering]
    ) -> Completion:
        answer = self.answers(question, wanted, self.served)
        n_computed = len(prompt) + len(plain.token_ids) - 1
        applied = tuple(Applied(one, n_positions(one.positions, len(prompt), n_computed)) for one in wanted)
        return replace(plain, text=plain.text if answer is None else answer, applied=applied)

    def _complete(self, question: str, sampling: Sampling, number: int) -> Completion:
        answer = self.known.get(question, "no idea")
        if sampling.temperature > 0:
            answer = self.sampled.get(question, answer) if number == 0 else "no idea"
        return Completion(f" {answer} ", tuple(answer.encode())[: sampling.max_tokens], "stop", 5)


def _last_question(token_ids: Sequence[int]) -> str:
    text = bytes(i - len(SPECIAL) for i in token_ids if i >= len(SPECIAL)).decode()
    return text.rpartition("Q: ")[2].removesuffix("\nA:")


if TYPE_CHECKING:
    _keeps_the_protocol: StartEngine = FakeEngine({})
