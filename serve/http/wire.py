"""Steering and comparing on the wire, as pydantic models; nothing else is taken."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, model_validator

from morfi.engine.operations import ADD, ALPHA, AMOUNTS, CLAMP_INTERVAL, HIGH, LOW, OPERATIONS, default_of
from morfi.engine.steering import MAX_ENTRIES
from morfi.serve.http.fields import Neutral, without_neutral
from morfi.serve.http.gate import MAX_STRENGTHS


def _without_point(value: Any) -> Any:
    """100.0 as 100, for JSON knows one kind of number; everything else as it is."""
    return int(value) if type(value) is float and value.is_integer() else value


WHOLE = BeforeValidator(_without_point)  # of every field of whole numbers
Finite = Annotated[float, Field(allow_inf_nan=False)]
LatentId = Annotated[int, Field(ge=0, lt=1 << 31), WHOLE]
Positions = Literal["all", "prompt", "generated", "last_prompt", "system", "user", "assistant"]
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
    others = [f'"{default_of(one).name}" with `{one.field}`' for one in AMOUNTS if one != ALPHA]
    return f'{"; ".join(parts)}. Default "{ADD.name}", or {", or ".join(others)}.'


Layer = Annotated[int, Field(ge=0, lt=1 << 31), WHOLE]
VectorName = Annotated[str, Field(min_length=1, max_length=128)]


class _Amounted(Wire):
    """A direction with an operation, and the amounts that were given for it under their fields' names."""

    op: OperationName | None = Field(default=None, description=_formulas())
    layer: Layer | None = Field(default=None, description="After which decoder layer, from 0.")
    positions: Positions | None = Field(default=None, description="The steering's, where left out.")

    @property
    def label(self) -> str:
        """The direction as messages name it."""
        raise NotImplementedError

    @property
    def operation(self) -> OperationName:
        """The operation, with the default filled in."""
        if self.op is not None:
            return self.op
        given = [amount for amount in AMOUNTS if self._given(amount.field) is not None]
        if not given and self.lower is not None:
            return CLAMP_INTERVAL.name
        return default_of(given[-1]).name if given else ADD.name

    @property
    def amount(self) -> float | None:
        """The amount of the operation; None for an operation that takes no number."""
        amount = OPERATIONS[self.operation].amount
        return None if amount is None else self._given(amount.field)

    @property
    def lower(self) -> float | None:
        """The lower bound of an interval, where one was given."""
        return self._given(LOW)

    @property
    def put_in(self) -> float:
        """The factor of the direction that comes into the stream, whatever that is."""
        return OPERATIONS[self.operation].put_in(self.amount or 0.0, self.lower or 0.0)

    def _given(self, field: str) -> float | None:
        found: float | None = getattr(self, field, None)
        return found

    def _check_amounts(self) -> None:
        """Raises ValueError unless just what the operation takes is given."""
        does = OPERATIONS[self.operation]
        wanted = {amount.field: amount == does.amount for amount in AMOUNTS} | {LOW: does.has_low}
        for field, is_wanted in wanted.items():
            is_given = self._given(field) is not None
            if is_given != is_wanted:
                verb = "takes no" if is_given else "needs"
                raise ValueError(f'{self.label}: "{self.operation}" {verb} {field}')
        low, high = self.lower, self.amount
        if low is not None and high is not None and low > high:
            raise ValueError(f"{self.label}: {LOW} is {low:g}, above {HIGH.field}, which is {high:g}")


class _OfSae(_Amounted):
    """A latent of an SAE."""

    id: LatentId
    sae: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="The SAE's name; may be left out where there is one."
    )
    clamp: Finite | None = Field(default=None, description="The value that the latent is set to.")
    high: Finite | None = Field(default=None, description="The largest value that the latent keeps.")
    low: Finite | None = Field(default=None, description="With `high`, the smallest.")

    @property
    def label(self) -> str:
        """The latent as messages name it."""
        return f"latent {self.id}"


class _Named(_Amounted):
    """A vector of the server."""

    vector: VectorName

    @property
    def label(self) -> str:
        """The vector as messages name it."""
        return f'vector "{self.vector}"'


class _Strong(_Amounted):
    """A direction with its own strength."""

    alpha: Finite | None = Field(default=None, description='Strength of "add" in median residual norms.')

    @model_validator(mode="after")
    def _has_its_strength(self) -> Self:
        self._check_amounts()
        return self


class Latent(_Strong, _OfSae):
    """A latent, and what is done along its decoder row d of unit length; f is its activation."""


class Vector(_Strong, _Named):
    """A vector, and what is done along its unit vector d; it has no f."""


_LARGE = "Whether the stream may be moved by more than two median residual norms."


class _Many(Wire):
    """Directions that a request names."""

    @model_validator(mode="after")
    def _names_some(self) -> Self:
        n = len(self.latents) + len(self.vectors)  # type: ignore[attr-defined]
        if not 1 <= n <= MAX_ENTRIES:
            raise ValueError(f"{n} latents and vectors; expected 1 to {MAX_ENTRIES}")
        return self


class Steering(_Many):
    """How a request is steered: latents and vectors, after the layer and at the positions of each."""

    latents: list[Latent] = Field(default_factory=list, max_length=MAX_ENTRIES)
    vectors: list[Vector] = Field(default_factory=list, max_length=MAX_ENTRIES)
    positions: Positions = Field(default="all", description="Of those that name none themselves.")
    layer: Layer | None = Field(
        default=None,
        description="Of those that name none themselves; latents are steered after their SAE's.",
    )
    allow_large: bool = Field(default=False, description=_LARGE)

    @property
    def entries(self) -> list[Latent | Vector]:
        """All that is steered along."""
        return [*self.latents, *self.vectors]

    def positions_of(self, one: Latent | Vector) -> Positions:
        """The positions of one of them."""
        return one.positions or self.positions


class _Weak(_Amounted):
    """A direction of a comparison, whose alpha is each of the strengths; another amount stays as it is."""

    @property
    def _others(self) -> dict[str, Any]:
        """The fields that are not the alpha, with the operation filled in."""
        return {**self.model_dump(exclude_none=True), "op": self.operation}

    @property
    def takes_alpha(self) -> bool:
        """Whether the strengths make a difference to it."""
        return OPERATIONS[self.operation].amount == ALPHA

    def _alpha(self, alpha: float) -> dict[str, Any]:
        return {ALPHA.field: alpha} if self.takes_alpha else {}


class ComparedLatent(_Weak, _OfSae):
    """A latent of a comparison."""

    def at(self, alpha: float) -> Latent:
        """The latent at one of the strengths."""
        return Latent(**self._others, **self._alpha(alpha))

    @model_validator(mode="after")
    def _has_its_strength(self) -> Self:
        self.at(0.0)
        return self


class ComparedVector(_Weak, _Named):
    """A vector of a comparison."""

    def at(self, alpha: float) -> Vector:
        """The vector at one of the strengths."""
        return Vector(**self._others, **self._alpha(alpha))

    @model_validator(mode="after")
    def _has_its_strength(self) -> Self:
        self.at(0.0)
        return self


class Comparison(_Many, Body):
    """A prompt answered as it is, and steered at each of some strengths."""

    question: str | None = Field(
        default=None, min_length=1, description="Asked in the form of the experiment."
    )
    prompt: str | None = Field(default=None, min_length=1, description="Continued as it is.")
    latents: list[ComparedLatent] = Field(default_factory=list, max_length=MAX_ENTRIES)
    vectors: list[ComparedVector] = Field(default_factory=list, max_length=MAX_ENTRIES)
    strengths: list[Finite] = Field(
        min_length=1,
        max_length=MAX_STRENGTHS,
        description="alpha of each comparison; [0] where none is taken.",
    )
    positions: Positions = "all"
    layer: Layer | None = None
    allow_large: bool = Field(default=False, description=_LARGE)
    max_tokens: Annotated[int, Field(ge=1, le=512), WHOLE] = 16
    stream: bool = False

    @model_validator(mode="after")
    def _has_one_prompt(self) -> Self:
        if (self.question is None) == (self.prompt is None):
            raise ValueError("give either question or prompt")
        return self

    @model_validator(mode="after")
    def _has_what_its_strengths_act_on(self) -> Self:
        entries = (*self.latents, *self.vectors)
        if self.strengths != [0] and not any(one.takes_alpha for one in entries):
            operations = " or ".join(dict.fromkeys(f'"{one.operation}"' for one in entries))
            raise ValueError(f"no strength acts on {operations}; give strengths as [0]")
        return self

    def at(self, strength: float) -> Steering:
        """The steering at one of the strengths."""
        return Steering(
            latents=[one.at(strength) for one in self.latents],
            vectors=[one.at(strength) for one in self.vectors],
            positions=self.positions,
            layer=self.layer,
            allow_large=self.allow_large,
        )


class _Applied(BaseModel):
    """The change along a direction; `strength` is in raw units of the residual stream, or of the latent."""

    op: OperationName
    alpha: float | None = None
    layer: int
    positions: Positions
    strength: float


class AppliedLatent(_Applied):
    """The change along one latent."""

    id: int
    sae: str
    clamp: float | None = None
    high: float | None = None
    low: float | None = None


class AppliedVector(_Applied):
    """The change along one vector."""

    vector: str


class SteeringApplied(BaseModel):
    """The steering that was applied, by the workers' own report.

    `n_tokens` says of each choice at how many tokens the residual stream was changed, after any layer; `note`
    is there where that is 0.
    """

    checkpoint: str
    latents: list[AppliedLatent]
    vectors: list[AppliedVector]
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
