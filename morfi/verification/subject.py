"""An open engine beside the same model in transformers, and the prompts and directions to try them with."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from morfi.checkpoints import Checkpoint
from morfi.checkpoints.tokenizer import open_tokenizer
from morfi.device import is_gpu
from morfi.engine.directions import Direction
from morfi.engine.operations import Operation
from morfi.engine.protocol import Completion, Engine, Sampling
from morfi.engine.steering import Capture, Positions, Steering
from morfi.errors import InputError
from morfi.questions import load_questions, select
from morfi.questions.prompts import zero_shot
from morfi.verification.reference import Streams
from morfi.verification.tolerance import Expected, Standard, load_standard

if TYPE_CHECKING:
    import torch

N_PROMPTS = 8
N_TOKENS = 8  # of an answer
LONGEST = 160  # tokens of a prompt whose beginning is cached
SEEN = 4.0  # times the tolerance that a change must make for a check to see whether it is there

Prompt = tuple[int, ...]


@dataclass(eq=False, slots=True)
class Subject:
    """What is verified: `engine` serves `checkpoint`, `standard` is the same model in transformers."""

    engine: Engine
    checkpoint: Checkpoint
    standard: Standard
    prompts: tuple[Prompt, ...]
    streams: tuple[Streams, ...]  # the standard's of the prompts, nothing steered
    directions: dict[str, Direction] = field(default_factory=dict)
    _names: dict[tuple[int, int, bool, bool], str] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        """The layers of the model."""
        return len(self.standard.exact.layers)

    @property
    def some_layers(self) -> tuple[int, ...]:
        """The first, the middle and the last layer, each once."""
        return tuple(dict.fromkeys((0, self.n_layers // 2, self.n_layers - 1)))

    @property
    def context(self) -> int:
        """The tokens that prompt and answer may have together."""
        return int(self.engine.settings["max_model_len"])

    @property
    def long_prompt(self) -> Prompt:
        """Prompts one after the other, long enough for the prefix cache."""
        joined = [token for prompt in self.prompts * LONGEST for token in prompt]
        return tuple(joined[: min(LONGEST, self.context - N_TOKENS)])

    def ask(
        self,
        prompts: Sequence[Prompt],
        steering: Sequence[Sequence[Steering]] | None = None,
        capture: Sequence[Capture | None] | None = None,
        n_tokens: int = N_TOKENS,
    ) -> list[Completion]:
        """The greedy answers of the engine."""
        found = self.engine.generate(
            prompts, Sampling(max_tokens=n_tokens), steering=steering, capture=capture
        )
        return [one for (one,) in found]

    def follow(self, prompt: Prompt, answer: Completion, steering: Sequence[Steering] = ()) -> Expected:
        """The expected streams over the tokens of prompt and answer, the last one left out."""
        tokens = (*prompt, *answer.token_ids[:-1])
        return self.standard.run(tokens, len(prompt), steering, self.directions)

    def norm(self, layer: int) -> float:
        """The median length of the residual stream after `layer`, over the prompts."""
        return float(self._rows(layer).norm(dim=1).median())

    def steering(
        self,
        operation: Operation,
        layer: int,
        *,
        amount: float = 1.0,
        positions: Positions = "all",
        number: int = 0,
    ) -> Steering:
        """A steering along direction `number` of `layer`.

        `amount` is the strength in residual norms, or in deviations of a latent's value. It is left out for
        an operation that takes none; an interval reaches down from it by half of its size.
        """
        strength = 0.0
        if operation.amount is not None:
            strength = amount * self.norm(layer) if operation.amount.in_norms else amount
        jumps = operation.only_firing and operation.puts_in  # where the latent begins to fire
        fires = jumps and self.checkpoint.dtype != "float32"
        name = self._direction(layer, number, is_latent=operation.needs_latent, fires=fires)
        low = strength - abs(strength) / 2 if operation.has_low else 0.0
        return Steering(layer, name, operation.name, strength, positions, low)

    def _direction(self, layer: int, number: int, *, is_latent: bool, fires: bool) -> str:
        key = (layer, number, is_latent, fires)
        if key not in self._names:
            made = self._make(*key)
            self._names[key] = name = self.engine.register(made)
            self.directions[name] = made
        return self._names[key]

    def _make(self, layer: int, number: int, is_latent: bool, fires: bool) -> Direction:
        """A direction of unit length, or a latent that `fires`, or does at about half of the positions.

        Half random, half along the mean stream, so that there is something to project out. Every second
        latent is of an SAE that rescales the stream; its contribution is about half a residual norm. In
        float32 some have a threshold, at which others would jump with the rounding.
        """
        import torch

        draw = torch.Generator().manual_seed(zlib.crc32(f"{layer} {number} {is_latent}".encode()))
        rows = self._rows(layer)
        vector, encoder = torch.randn(2, rows.shape[1], generator=draw)
        mean = rows.mean(0)
        vector = vector / vector.norm() + mean / mean.norm()
        vector = vector / vector.norm()
        if not is_latent:
            return Direction(vector)
        rescaled = number % 2 == 1
        norm = rows.norm(dim=1, keepdim=True)
        unit = norm / rows.shape[1] ** 0.5 if rescaled else torch.ones_like(norm)
        p = (rows / unit) @ encoder
        values = p.sort().values
        inner = values[len(values) // 4 : len(values) - len(values) // 4]
        widest = int(inner.diff().argmax()) if len(inner) > 1 else 0  # of the gaps
        middle = inner[widest : widest + 2].mean()
        deviation = float((p - middle).abs().median()) or 1.0
        if fires:
            middle = values[0] - deviation
        scale = 0.5 * float((norm / unit).median())
        return Direction(
            vector * scale,
            encoder / deviation,
            bias=-float(middle) / deviation,
            threshold=0.25 if self.checkpoint.dtype == "float32" and number % 4 >= 2 else 0.0,
            norm_rescaled=rescaled,
        )

    def _rows(self, layer: int) -> torch.Tensor:
        """The residual stream after `layer` at every position of the prompts but the first, [n, d_model].

        At the first position, to which everything attends, it is out of proportion in many models.
        """
        import torch

        found = [one.after[layer] for one in self.streams]
        return torch.cat([rows[1:] if len(rows) > 1 else rows for rows in found])


def open_subject(engine: Engine, checkpoint: Checkpoint) -> Subject:
    """What is verified, of an open engine that was started on `checkpoint` and serves it.

    The standard is loaded on the GPU where the engine has left enough of its memory, else on the CPU.
    """
    standard = load_standard(checkpoint.model_dir, checkpoint.dtype, standard_device(checkpoint))
    longest = max(2, (int(engine.settings["max_model_len"]) - N_TOKENS) // 2)
    prompts = tuple(prompt[:longest] for prompt in prompts_for(checkpoint, standard.exact.n_vocab))
    streams = tuple(standard.exact.run(prompt) for prompt in prompts)
    return Subject(engine, checkpoint, standard, prompts, streams)


def standard_device(checkpoint: Checkpoint) -> str:
    """The device with room for a standard now: it takes up to three times the size of the model's files."""
    import torch

    if not is_gpu():
        return "cpu"
    free, _ = torch.cuda.mem_get_info()
    n_bytes = sum(path.stat().st_size for path in checkpoint.model_dir.glob("*.safetensors"))
    return "cuda" if free > 4 * n_bytes else "cpu"


def prompts_for(checkpoint: Checkpoint, n_vocab: int, n: int = N_PROMPTS) -> list[Prompt]:
    """Short questions of the embedded facts; token ids at random where there are none, or no tokenizer."""
    try:
        tokenizer = open_tokenizer(checkpoint.model_dir).tokenizer
        facts = load_questions("world-facts").splits["test"]
        asked = zero_shot(select(facts, limit=n, seed=0), tokenizer)
        found = [tuple(one.token_ids) for one in asked]
        if all(found) and max(max(one) for one in found) < n_vocab:
            return found
    except (InputError, OSError, ValueError):
        pass  # they are only there to be natural text
    draw = random.Random(0)  # noqa: S311 - nothing secret
    return [tuple(draw.randrange(n_vocab) for _ in range(12 + number)) for number in range(n)]
