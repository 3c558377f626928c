"""The bodies of /v1/completions and /v1/chat/completions, and the requests that vLLM makes of them.

They name the fields of OpenAI's interface, vLLM's further sampling parameters, and `steering`; those without
effect here stand in `fields`. Anything else is refused: vLLM ignores fields that it does not know, and a
misspelled `steering` must not be ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PrivateAttr, WithJsonSchema, field_validator, model_validator
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest

from morfi.serve.http import fields
from morfi.serve.http.async_engine import Followed
from morfi.serve.http.wire import WHOLE, Body, Steering, Wire

MAX_ANSWERS = 16  # n
MAX_PROMPTS = 64  # of one request
MAX_TOKENS = 1 << 20  # a request never gets more than the context has room for

Token = Annotated[int, Field(ge=0, lt=1 << 31), WHOLE]
TokenIds = Annotated[list[Token], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63, description="-1 is as none."), WHOLE]
Count = Annotated[int, Field(ge=1, le=MAX_TOKENS), WHOLE]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]

_PLAIN_ID = r"^(0|[1-9][0-9]{0,8})$"


def _plain_id(key: str) -> str:
    if not re.fullmatch(_PLAIN_ID, key):
        raise ValueError('a token id is written in up to nine digits without a zero before them, as "17"')
    return key


# vLLM makes numbers of the keys: of two that are one number, one would be lost.
TokenKey = Annotated[str, AfterValidator(_plain_id), WithJsonSchema({"type": "string", "pattern": _PLAIN_ID})]


class StreamOptions(Wire):
    """OpenAI's and vLLM's."""

    NEUTRAL = fields.STREAM_OPTIONS

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Sampled(Body):
    """The fields that both bodies have."""

    model: Text | None = None
    steering: Steering | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[TokenKey, Bias] | None = None
    max_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS), WHOLE] | None = None
    presence_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Share | None = None

    top_k: Annotated[int, Field(ge=-1, lt=1 << 31), WHOLE] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    # Logits are divided by it: the tiniest numbers that vLLM takes would make them infinite.
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10, allow_inf_nan=False)] | None = None
    stop_token_ids: Annotated[list[Token], Field(max_length=64)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS), WHOLE] | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None

    def given(self) -> dict[str, Any]:
        """The fields for vLLM: those that were given and are not null."""
        return self.model_dump(exclude_unset=True, exclude_none=True, exclude={"steering"}, by_alias=True)

    @property
    def most_tokens(self) -> int | None:
        """Tokens that an answer may have; None where only the context bounds it, or vLLM's default."""
        return self.max_tokens


class CompletionBody(Sampled):
    """OpenAI's request of a completion, with `steering`."""

    NEUTRAL = fields.COMPLETION

    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    echo: bool | None = None
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS), WHOLE] | None = Field(
        default=None, description="0 with `echo` only."
    )
    logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError(
                "max_tokens: 0 gives the prompt back with echo, and nothing without; give 1 or more"
            )
        return self

    @property
    def n_answers(self) -> int:
        """Choices that it will get."""
        several = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        return (self.n or 1) * (len(self.prompt) if several else 1)

    @property
    def token_prompts(self) -> list[list[int]]:
        """The prompts that are given as token ids."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], str):
            return []
        return [self.prompt] if isinstance(self.prompt[0], int) else self.prompt


class TextPart(Wire):
    """A part of a message."""

    NEUTRAL = fields.TEXT_PART

    type: Literal["text"]
    text: str


class ChatMessage(Wire):
    """A message of a chat: text only; an answer's message is taken as this server gives it."""

    NEUTRAL = fields.MESSAGE

    role: Literal["system", "user", "assistant", "developer"]
    content: str | Annotated[list[TextPart], Field(min_length=1)] | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """All of its content."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.content is None:
            if self.role != "assistant":
                raise ValueError(f"a {self.role} message needs content")
            self.content = ""  # an answer that is empty
        return self


def _numbers(value: Any) -> Iterator[int | float]:
    """The numbers of a value of JSON."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)


class JsonSchema(Wire):
    """A JSON schema that the answer must follow."""

    name: str
    json_schema: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None

    @field_validator("json_schema")
    @classmethod
    def _crosses_processes(cls, schema: dict[str, Any]) -> dict[str, Any]:
        # To the engine's process it goes as msgpack, whose integers have 64 bits.
        for number in _numbers(schema):
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError("a number of the schema is not finite")
            if isinstance(number, int) and not -(1 << 63) <= number < 1 << 64:
                raise ValueError("an integer of the schema does not fit into 64 bits")
        return schema


class ResponseFormat(Wire):
    """OpenAI's: text, a JSON object, or one after a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(default=None, description='With the type "json_schema" only.')

    @model_validator(mode="after")
    def _follows_its_schema(self) -> Self:
        if self.json_schema is None and self.type == "json_schema":
            raise ValueError('the type "json_schema" needs json_schema, an object with name and schema')
        if self.json_schema is not None and self.type != "json_schema":
            raise ValueError(
                f'no answer of the type "{self.type}" follows a schema; give the type "json_schema", or '
                "leave json_schema out"
            )
        return self


class ChatBody(Sampled):
    """OpenAI's request of a chat completion, with `steering`; without tools, pictures and sound."""

    NEUTRAL = fields.CHAT

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        default=None, description="For chat templates that look at it."
    )

    @property
    def most_tokens(self) -> int | None:
        """As for completions; vLLM takes the newer of the two fields where both are given."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def n_answers(self) -> int:
        """Choices that it will get."""
        return self.n or 1


class SteeredCompletion(CompletionRequest):  # type: ignore[misc]
    """vLLM's request, each of whose prompts is followed; `_followed` has one for each, in order."""

    _steering: tuple[Any, ...] = PrivateAttr(default=())
    _prompt: tuple[int, ...] | None = PrivateAttr(default=None)  # what it must be, where that is known
    _followed: list[Followed] = PrivateAttr(default_factory=list)

    def to_sampling_params(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's sampling parameters of its next prompt, with the steering."""
        return _attach(self, super().to_sampling_params(*args, **kwargs))


class SteeredChat(ChatCompletionRequest):  # type: ignore[misc]
    """As `SteeredCompletion`, for a chat."""

    _steering: tuple[Any, ...] = PrivateAttr(default=())
    _prompt: tuple[int, ...] | None = PrivateAttr(default=None)  # what it must be, where that is known
    _followed: list[Followed] = PrivateAttr(default_factory=list)

    def to_sampling_params(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's sampling parameters, with the steering."""
        return _attach(self, super().to_sampling_params(*args, **kwargs))


def _attach(request: Any, params: Any) -> Any:
    if not request._steering:
        return params
    followed = Followed(request._steering, prompt=request._prompt)
    request._followed.append(followed)
    return followed.attach(params)
