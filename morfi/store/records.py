"""The rows of the store as records; sha256 are hex digits, times carry a zone, durations are in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What was asked of a run; equal `fingerprint`s mean runs that would give the same rows."""

    run_id: str
    kind: str
    created_at: datetime
    fingerprint: str
    config: Mapping[str, Any]
    ckpt: str
    ckpt_sha256: str
    base: str | None
    base_sha256: str | None
    adapter_sha256: str | None
    data: str
    data_sha256: str
    prompt: str
    bos: bool
    seed: int
    n_planned: int  # completions: questions times samples


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One process that works on a run, from its start."""

    started_at: datetime
    command: str
    pid: int
    host: str
    morfi_version: str
    git_commit: str | None
    versions: Mapping[str, str]
    device: str
    engine: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """How an attempt ended; `status` is "done", "interrupted" or "failed"."""

    ended_at: datetime
    status: str
    wall_s: float
    generate_s: float
    n_requests: int
    prompt_tokens: int
    output_tokens: int
    message: str | None = None


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """One judged answer, with the prompt as the model saw it; `sample` 0 is the greedy one."""

    run_id: str
    question_id: str
    sample: int
    prompt: str
    text: str
    answer: str
    finish_reason: str
    correct: bool
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    attempt: int


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A line of `morfi runs`; accuracy and its Wilson 95 % bounds are None before the first answer.

    `status` is "done", "running", "interrupted" or "failed". Times, requests and tokens are summed over the
    attempts that ended; a killed one leaves none.
    """

    run_id: str
    kind: str
    created_at: datetime
    status: str
    ckpt: str
    data: str
    n_planned: int
    n_done: int
    n: int
    n_correct: int
    accuracy: float | None
    ci_low: float | None
    ci_high: float | None
    n_attempts: int
    wall_s: float
    generate_s: float
    n_requests: int
    output_tokens: int
    requests_per_s: float | None


@dataclass(frozen=True, slots=True)
class RelationAccuracy:
    """Accuracy over the n questions of `relation` (None: of the whole run), with Wilson 95 % bounds."""

    relation: str | None
    n: int
    n_correct: int
    accuracy: float
    ci_low: float
    ci_high: float
