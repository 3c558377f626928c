"""Steering and comparing on the wire, as pydantic models; nothing else is taken."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, model_validator

from morfi.engine.operations import ADD, ALPHA, AMOUNTS, OPERATIONS
from morfi.engine.steering import MAX_ENTRIES
from morfi.serve.http.fields import Neutral, without_neutral
from morfi.serve.http.gate import MAX_STRENGTHS


def _without_point(value: Any) -> Any:
    """100.0 as 100, for JSON knows one kind of number; everything else as it is."""
    return int(value) if type(value) is float and value.is_integer() else value


WHOLE = BeforeValidator(_without_point)  # of every field of whole numbers
Finite = Annotated[float, Field(allow_inf_nan=False)]
LatentId = Annotated[int, Field(ge=0, lt=1 << 31), WHOLE]
Positions = Literal["all", "prompt", "generated", "last_prompt"]
if TYPE_CHECKING:
    OperationName = str
else:
    OperationName = Literal[tuple(OPERATIONS)]


class Wire(BaseModel):
    """The rules of all requests: unknown fields, and numbers as text, are refused; null is as none."""

    model_config = ConfigDict(extra="forbid", strict=True)
    NEUTRAL: ClassVar[Mapping[str, Neutral]] = {}  # fields that are taken where they mean nothing

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, data: Any) -> Any:
        found = without_neutral(data, cls.NEUTRAL)
        if not isinstance(found, dict):
            return found
        return {
            name: value for name, value in found.items() if value is not None or name not in cls.model_fields
        }

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        found = handler.resolve_ref_schema(handler(schema))
        for name, neutral in cls.NEUTRAL.items():
            found["properties"][name] = {"title": name, "description": "Without effect.", **neutral.schema}
        return found


class Body(Wire):
    """A whole request body."""

    @model_validator(mode="before")
    @classmethod
    def _is_unicode(cls, data: Any) -> Any:
        # JSON can hold halves of surrogate pairs, which no tokenizer takes.
        try:
            json.dumps(data, ensure_ascii=False, default=str).encode()
        except (UnicodeEncodeError, RecursionError) as error:
            raise ValueError("the body is not valid Unicode, or nested too deeply") from error
        return data


def _formulas() -> str:
    """The operations in the words of the schema."""
    parts = [f'"{one.name}": {one.formula}' for one in OPERATIONS.values()]
    others = [
        f'"{one.name}" with `{one.amount.field}`' for one in OPERATIONS.values() if one.amount and one != ADD
    ]
    return f'{"; ".join(parts)}. Default "{ADD.name}", or {", or ".join(others)}.'


class _Amounted(Wire):
    """A latent with an operation and the amounts that people gave for it, under the names of their fields."""

    id: LatentId
    op: OperationName | None = Field(default=None, description=_formulas())
    clamp: Finite | None = Field(default=None, description='The value of the latent for "clamp".')

    @property
    def operation(self) -> OperationName:
        """The operation, with the default filled in."""
        if self.op is not None:
            return self.op
        given = [
            one for one in OPERATIONS.values() if one.amount and self._given(one.amount.field) is not None
        ]
        return given[-1].name if given else ADD.name

    @property
    def amount(self) -> float | None:
        """The amount of the operation; None for an operation that takes no number."""
        amount = OPERATIONS[self.operation].amount
        return None if amount is None else self._given(amount.field)

    def _given(self, field: str) -> float | None:
        found: float | None = getattr(self, field, None)
        return found


class Latent(_Amounted):
    """A latent, and what is done along its decoder row d of unit length; f is its activation."""

    alpha: Finite | None = Field(default=None, description='Strength of "add" in median residual norms.')

    @model_validator(mode="after")
    def _has_its_strength(self) -> Self:
        taken = OPERATIONS[self.operation].amount
        for amount in AMOUNTS:
            is_given = self._given(amount.field) is not None
            if is_given != (amount == taken):
                verb = "takes no" if is_given else "needs"
                raise ValueError(f'latent {self.id}: "{self.operation}" {verb} {amount.field}')
        return self


class Steering(Wire):
    """How a request is steered: all its latents at the same positions, after the layer of the find run."""

    latents: list[Latent] = Field(min_length=1, max_length=MAX_ENTRIES)
    positions: Positions = "all"
    layer: Annotated[int, WHOLE] | None = Field(
        default=None, description="May be left out: there is only the find run's."
    )


class ComparedLatent(_Amounted):
    """A latent of a comparison, whose alpha is each of the strengths; another amount stays as it is."""

    def at(self, alpha: float) -> Latent:
        """The latent at one of the strengths."""
        amounts = {one.field: self._given(one.field) for one in AMOUNTS if one != ALPHA}
        if OPERATIONS[self.operation].amount == ALPHA:
            amounts[ALPHA.field] = alpha
        return Latent(id=self.id, op=self.operation, **amounts)

    @model_validator(mode="after")
    def _has_its_strength(self) -> Self:
        self.at(0.0)
        return self


class Comparison(Body):
    """A prompt answered as it is, and steered at each of some strengths."""

    question: str | None = Field(
        default=None, min_length=1, description="Asked in the form of the experiment."
    )
    prompt: str | None = Field(default=None, min_length=1, description="Continued as it is.")
    latents: list[ComparedLatent] = Field(min_length=1, max_length=MAX_ENTRIES)
    strengths: list[Finite] = Field(
        min_length=1, max_length=MAX_STRENGTHS, description="alpha of each comparison."
    )
    positions: Positions = "all"
    max_tokens: Annotated[int, Field(ge=1, le=512), WHOLE] = 16
    stream: bool = False

    @model_validator(mode="after")
    def _has_one_prompt(self) -> Self:
        if (self.question is None) == (self.prompt is None):
            raise ValueError("give either question or prompt")
        return self


class AppliedLatent(BaseModel):
    """The change along one latent; `strength` is in raw units of the residual stream, or of the latent."""

    id: int
    op: OperationName
    alpha: float | None = None
    clamp: float | None = None
    strength: float


class SteeringApplied(BaseModel):
    """The steering that was applied, by the workers' own report.

    `n_tokens` says of each choice at how many tokens the residual stream was changed; `note` is there where
    that is 0.
    """

    layer: int
    positions: Positions
    checkpoint: str
    latents: list[AppliedLatent]
    n_tokens: list[int]
    note: str | None = None


class Answer(BaseModel):
    """The default answer of a comparison; `correct` by rule, where the question is one that is known here."""

    text: str
    finish_reason: str
    correct: dict[str, bool] | None = None


class SteeredAnswer(Answer):
    """The answer at one strength."""

    strength: float
    steering_applied: SteeringApplied


class Compared(BaseModel):
    """A comparison's result; `steered` in the order of the strengths, `accepted` where they are known."""

    prompt: str
    checkpoint: str
    accepted: list[str] | None = None
    default: Answer
    steered: list[SteeredAnswer]


class ErrorInfo(BaseModel):
    """An error."""

    message: str
    type: str
    param: str | None = None
    code: int


class ErrorAnswer(BaseModel):
    """Every answer that is no success, in the shape of OpenAI's."""

    error: ErrorInfo
