"""What is served and can be steered along, as /v1/morfi shows it: pydantic models."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal, Self

from pydantic import BaseModel

from morfi.engine.operations import Operation

Level = int | float


class LimitsShown(BaseModel):
    """The limits of the server."""

    max_alpha: float
    large_alpha: float
    max_latents: int
    max_requests_in_flight: int
    max_body_bytes: int
    max_vectors: int
    max_strengths: int
    max_activation_tokens: int
    max_named_vectors: int


class FalseDiscoveriesShown(BaseModel):
    """The number of latents with |S| of at least `s`, and the share of them expected by chance."""

    s: int
    n_found: int
    fdr: float


class TrendsShown(BaseModel):
    """A find run's summary of all latents; false discoveries from the largest |S|, by shuffles."""

    n_selected: int
    n_firing: int
    expected_false: float
    is_descriptive: bool
    false_discoveries: list[FalseDiscoveriesShown]


class AmountShown(BaseModel):
    """The number that an operation takes, in a latent's `field`: in median norms or its own units."""

    name: str
    field: str
    in_norms: bool


class OperationShown(BaseModel):
    """An operation in words: what it does, and what a latent is then (before the amount, if it takes one)."""

    name: str
    says: str
    done: str
    needs_latent: bool
    only_firing: bool
    has_low: bool
    amount: AmountShown | None

    @classmethod
    def of(cls, operation: Operation) -> Self:
        """The row of the table, as far as clients need it."""
        return cls.model_validate(asdict(operation))


class OrderShown(BaseModel):
    """The numbers by which the find run orders checkpoints: levels of a property, or epochs of one level."""

    name: str
    unit: str | None
    is_level: bool


class SaeShown(BaseModel):
    """An SAE, and the unit of strengths after its layer: null where it does not say which layer it reads."""

    name: str
    layer: int | None
    d_sae: int
    operations: list[str]
    median_norm: float | None
    norm_from: str | None
    find_runs: list[str]


class VectorShown(BaseModel):
    """A vector to steer along; `length` is what it had, `sha256` that of its numbers in float32."""

    name: str
    sha256: str
    length: float


class FindRunShown(BaseModel):
    """A find run: the SAE whose latents it ranks, and by what."""

    id: str
    sae: str
    layer: int
    levels: list[Level]
    order: OrderShown
    trends: TrendsShown


class Capabilities(BaseModel):
    """The served model, and what may be asked of it."""

    model: str
    checkpoint: str
    n_layers: int
    d_model: int
    saes: list[SaeShown]
    vectors: list[VectorShown]
    find_runs: list[FindRunShown]
    vector_operations: list[str]
    operation_words: list[OperationShown]
    positions: list[str]
    turns: list[str]
    prompt: str
    chat: bool
    limits: LimitsShown
    needs_key: bool
    can_load: bool


class LatentRow(BaseModel):
    """The findings of the find run on a latent; nothing but its number where there is no find run."""

    id: int
    direction: Literal["rising", "falling", "none"] = "none"
    selected: bool = False
    score: float | None = None
    rho: float | None = None
    s: int | None = None
    false_discovery_rate: float | None = None  # of the latents with an |S| as large
    p: float | None = None
    slope: float | None = None
    stability: float | None = None
    firing: float | None = None
    means: list[float | None] = []


class LatentPage(BaseModel):
    """Some latents of `total`; `levels` are those of their means."""

    find_run: str
    total: int
    offset: int
    limit: int
    levels: list[Level]
    latents: list[LatentRow]


class NeighbourRow(BaseModel):
    """A latent with a similar decoder row."""

    id: int
    cosine: float
    direction: Literal["rising", "falling", "none"] = "none"
    selected: bool = False


class TopQuestionRow(BaseModel):
    """A question that a latent fires on."""

    id: str
    question: str
    relation: str
    answers: list[str]
    activation: float


class QuantileQuestionRow(TopQuestionRow):
    """A question that a latent fires on, and its place among all of those: 1 is the largest activation."""

    quantile: float


class DensityShown(BaseModel):
    """How many questions have activations between neighbouring `edges`, of those that a latent fires on."""

    n_questions: int
    n_firing: int
    edges: list[float]
    counts: list[int]


class TokenEffectRow(BaseModel):
    """A token, and the change of its logit where the stream moves by its own norm along the decoder row."""

    token_id: int
    token: str
    logit: float


class LatentDetails(LatentRow):
    """A latent with what it is close to, the tokens that it promotes and suppresses, and what it fires on.

    The last under the checkpoint, and only where there is a find run.
    """

    checkpoint: str
    sae: str
    find_run: str | None
    levels: list[Level]
    neighbours: list[NeighbourRow]
    promoted: list[TokenEffectRow]
    suppressed: list[TokenEffectRow]
    top_questions: list[TopQuestionRow] = []
    quantile_questions: list[QuantileQuestionRow] = []
    density: DensityShown | None = None


class QuestionRow(BaseModel):
    """A question to try, with answers of the newest sweep where they are known."""

    id: str
    question: str
    relation: str
    answers: list[str]
    reference_answer: str | None
    answer: str | None


class QuestionPage(BaseModel):
    """Some questions of `total`, with the checkpoint that is served."""

    checkpoint: str
    total: int
    offset: int
    limit: int
    questions: list[QuestionRow]


class CheckpointShown(BaseModel):
    """A checkpoint that may be loaded; its accuracy on Known test questions, from the newest sweep."""

    id: str
    name: str
    level: Level | None = None
    seed: int | None = None
    epochs: str | None = None
    accuracy: float | None = None


class CheckpointList(BaseModel):
    """All checkpoints, and which is served."""

    served: str
    checkpoints: list[CheckpointShown]


class Loaded(BaseModel):
    """The checkpoint that is served now, and how long that took."""

    served: str
    seconds: float
