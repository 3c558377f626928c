"""The rows of the store as records; sha256 are hex digits, times carry a zone, durations are in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from statistics import fmean
from typing import Any

from morfi.questions.question import Question
from morfi.statistics import Interval, spread_interval

EARLY_STOP = "early-stop"  # the epoch setting of the best epoch on dev


def exact(level: float) -> float:
    """The level as a person writes it: a whole number without a fraction."""
    whole = float(level).is_integer() and abs(level) < 2**53
    return int(level) if whole else level


class RunKind(StrEnum):
    """The command that makes a run; the evaluations that a sweep makes are of a kind of their own."""

    EVAL = "eval"
    SPLIT = "split"
    MIX = "mix"
    TRAIN = "train"
    SWEEP = "sweep"
    SWEEP_EVAL = "sweep-eval"
    CAPTURE = "capture"
    FIND = "find"
    STEER = "steer"


EVERY = 2**62  # a limit that no number of runs reaches
STARTED = tuple(kind for kind in RunKind if kind != RunKind.SWEEP_EVAL)  # by a person


@dataclass(frozen=True, slots=True)
class Asked:
    """How a run asked its questions, by whatever command.

    What its settings do not say is None, or what held before there was a choice.
    """

    ckpt: str | None = None  # of an eval or split run, as it was given
    data: str | None = None
    split: str | None = None
    limit: int | None = None
    shots: int | None = None
    samples: int = 0
    match: str = "squad"
    max_tokens: int | None = None
    bos: str | None = None
    dtype: str | None = None
    endpoint: str | None = None  # the URL of the server that was asked


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The record of a run; equal `fingerprint`s mean runs that would give the same rows."""

    run_id: str
    kind: str  # a `RunKind`
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

    @property
    def asked(self) -> Asked:
        """How the run asked its questions, as far as its settings say so."""
        known = {one.name for one in fields(Asked)}
        said = {name: value for name, value in self.config.items() if name in known and value is not None}
        return Asked(**said)

    @property
    def bos_shown(self) -> str:
        """Whether the prompts begin with BOS, in words: at an endpoint that is for the server."""
        if self.asked.endpoint:
            return "the server's"
        return "yes" if self.bos else "no"


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
class JudgedAnswer:
    """An answer with its verdicts: `correct` by the rule of its run, the others by `squad` and `answer`."""

    text: str
    answer: str
    finish_reason: str
    correct: bool
    correct_squad: bool
    correct_answer: bool
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    attempt: int


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """One judged answer, with the prompt as the model saw it; `sample` 0 is the greedy one."""

    run_id: str
    question_id: str
    sample: int
    prompt: str
    judged: JudgedAnswer


@dataclass(frozen=True, slots=True)
class BaselineRow:
    """The best constant answer to the `n` questions of a relation in a split, right for `n_accepting`."""

    split: str
    relation: str
    n: int
    answer: str  # in the form that the run's rule compares
    n_accepting: int


@dataclass(frozen=True, slots=True)
class KnowledgeRow:
    """A model's knowledge of one question (arXiv 2405.05904): the shares of right answers and their category.

    `p_greedy` is over the few-shot prompts, `p_sampled` over all samples of all prompts (0 where none were
    drawn). `category` is "HighlyKnown", "MaybeKnown", "WeaklyKnown" or "Unknown".
    """

    question_id: str
    split: str
    relation: str
    subject: str
    question: str
    answers: tuple[str, ...]
    p_greedy: float
    p_sampled: float
    category: str

    @property
    def known(self) -> bool:
        """Whether any answer was right."""
        return self.category != "Unknown"

    @property
    def asked(self) -> Question:
        """The question itself."""
        return Question(self.question_id, self.relation, self.subject, self.question, self.answers)


@dataclass(frozen=True, slots=True)
class MixtureRow:
    """One training question of the mixture D_level; `position` is its place there, from 0."""

    level: int  # percent Unknown
    position: int
    question_id: str
    category: str


@dataclass(frozen=True, slots=True)
class EpochRow:
    """One epoch of one training: mean loss an answer token, and greedy answers right on dev questions."""

    level: int
    seed: int
    epoch: int
    loss: float
    n_steps: int
    n_dev: int  # 0 where dev accuracy was not measured
    n_dev_correct: int
    train_s: float
    dev_s: float
    attempt: int


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """A checkpoint M_level,epoch_setting in the folder `path`, identified by its adapter's sha256.

    `epoch_setting` is the number of an epoch that was asked for, or `EARLY_STOP`; `epoch` is the real one.
    """

    level: int
    seed: int
    epoch_setting: str
    epoch: int
    path: str
    adapter_sha256: str
    manifest: Mapping[str, Any]
    attempt: int


@dataclass(frozen=True, slots=True)
class MeasuredRow:
    """A checkpoint of an experiment that a run has asked; the base model has no level, seed or epoch."""

    position: int  # 0 for the base model
    level: float | None
    seed: int | None
    epoch_setting: str | None
    epoch: int | None
    ckpt_sha256: str
    load_s: float  # merging the adapter and swapping the engine's weights
    attempt: int


@dataclass(frozen=True, slots=True)
class SweepRow(MeasuredRow):
    """A checkpoint that a sweep has answered with: its rows are those of the run `eval_run_id`."""

    eval_run_id: str


@dataclass(frozen=True, slots=True)
class CapturedRow(MeasuredRow):
    """A checkpoint whose residual streams are in the folder `path`: shards, with the sha256 of each file."""

    path: str
    files: Mapping[str, str]
    capture_s: float


@dataclass(frozen=True, slots=True)
class ConditionRow:
    """A condition of a find run, with what its SAE explains of it; `l0` is latents per token."""

    axis: str  # level or epochs
    position: int
    level: float
    seed: int
    epoch_setting: str
    epoch: int | None
    ckpt_sha256: str
    explained_variance: float
    l0: float

    @property
    def place(self) -> float:
        """The number along the axis."""
        return self.epoch if self.axis == "epochs" and self.epoch is not None else self.level


@dataclass(frozen=True, slots=True)
class TrendSummaryRow:
    """The findings along an axis on all latents together, see `morfi.latents.trends.TrendResult`."""

    axis: str
    n_selected: int
    n_questions: int
    n_firing: int
    expected_false: float
    smallest_s: int | None
    is_descriptive: bool
    sae_sha256: str
    layer: int


@dataclass(frozen=True, slots=True)
class FalseDiscoveriesRow:
    """The number of latents with |S| of at least `s`, and the share of them expected by chance."""

    axis: str
    s: int
    n_found: int
    fdr: float


@dataclass(frozen=True, slots=True)
class DirectionRow:
    """A direction of a steer run: `kind` is one of `morfi.interventions.directions.KINDS`.

    Alphas are in units of `median_norm`. `trend` is the latent's direction, 0 where there is none; `parts`
    are the alphas (for clamp the values) of the latents that are combined, by latent.
    """

    position: int
    direction: str  # its name
    kind: str
    latent: int | None
    layer: int
    operation: str
    median_norm: float
    trend: int
    s: int | None
    firing: float | None
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SteeredRow:
    """One judged answer of a steer run, from the checkpoint, its reference or the base model (`served`).

    Unsteered answers have the direction "" and the alpha 0. For clamp `alpha` is the latent's value; ablate
    and project have 0. `strength` is what was added, in raw units.
    """

    served: str
    direction: str
    alpha: float
    question_id: str
    strength: float
    steered_tokens: int
    judged: JudgedAnswer


@dataclass(frozen=True, slots=True)
class SweepAccuracy:
    """Accuracy of one checkpoint on one group of questions, over all seeds, with Wilson 95 % bounds.

    `questions` is "test Known", "test Unknown" or "train Unknown" (those in the checkpoint's own mixture);
    `level` and `epoch_setting` are None for the base model. All seeds are asked the same test questions, so
    the bounds, over answers, are too narrow for a statement about trainings: for that there is `over_seeds`.
    """

    level: float | None
    epoch_setting: str | None
    questions: str
    n_seeds: int
    n: int
    n_correct: int
    accuracy: float
    ci_low: float
    ci_high: float
    by_seed: tuple[float, ...] = ()  # the accuracy of each seed alone

    @property
    def is_base(self) -> bool:
        """Whether the base model gave the answers."""
        return self.level is None

    @property
    def mean(self) -> float:
        """The mean accuracy over seeds."""
        return fmean(self.by_seed) if self.by_seed else self.accuracy

    @property
    def over_seeds(self) -> Interval | None:
        """Student's t interval of the mean over seeds; None for one seed, and for seeds all alike."""
        return spread_interval(self.by_seed)

    @property
    def interval(self) -> Interval:
        """The 95 % interval of `mean`, inside 0 and 1: over seeds where there are several, else Wilson's."""
        over = self.over_seeds
        if over is None:
            return Interval(self.ci_low, self.ci_high)
        return Interval(max(0.0, over.low), min(1.0, over.high))


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A line of `morfi runs`; accuracy and its Wilson 95 % bounds are None before the first answer.

    `status` is "done", "running", "interrupted" or "failed". Times, requests and tokens are summed over the
    attempts that ended; a killed one leaves none.
    """

    run_id: str
    kind: str  # a `RunKind`
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
