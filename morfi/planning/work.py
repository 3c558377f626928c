"""The work of a stage as counts: what there is to compute, hold and write, whatever computes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Answering:
    """Requests to an engine.

    `prompt_tokens` are all, of which `cached` come from the prefix cache; `answer_tokens` are generated.
    """

    answers: int = 0
    prompt_tokens: int = 0
    cached: int = 0
    answer_tokens: int = 0
    steered: int = 0  # answers
    longest: int = 0  # tokens of a prompt and its answer
    # What equal requests share, in tokens that pass through the whole model: of prompts, of answers.
    skipped: float = 0.0
    skipped_answers: float = 0.0


@dataclass(frozen=True, slots=True)
class Training:
    """LoRA trainings: `tokens` with padding, `steps` those of the optimizer, `parts` micro-batches."""

    trainings: int = 0
    examples: int = 0  # with every epoch
    tokens: int = 0
    target_tokens: int = 0
    steps: int = 0
    parts: int = 0
    epochs: int = 0  # of all trainings
    dev_answers: int = 0
    dev_tokens: int = 0
    dev_passes: int = 0  # forward passes of a batch
    checkpoints: int = 0
    largest_part: int = 0  # tokens of the largest micro-batch
    largest_targets: int = 0  # answer tokens of it


@dataclass(frozen=True, slots=True)
class Sae:
    """An SAE's training, and what is encoded by one."""

    tokens: int = 0
    steps: int = 0
    encoded: int = 0  # rows
    d_sae: int = 0


@dataclass(frozen=True, slots=True)
class Work:
    """The work of one stage; `words` say it, `rows` are captured, `disk` by what is written in bytes."""

    stage: str
    words: str
    starts: int = 0  # engines
    swaps: int = 0
    answering: Answering = field(default_factory=Answering)
    training: Training | None = None
    sae: Sae | None = None
    rows: int = 0
    disk: Mapping[str, int] = field(default_factory=dict)
    passing: int = 0  # bytes on the disk for the while of the stage
