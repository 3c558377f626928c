"""Requests to an OpenAI-compatible server and what it answers, as bodies of JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from morfi.engine.protocol import Completion, Sampling, TokenCounts
from morfi.errors import MorfiError, reason_of

# What stays as it is while a server runs, and with morfi's until it loads another checkpoint; `created` and
# permissions may be made anew for every request.
_LASTING = ("id", "object", "owned_by", "root", "parent", "max_model_len", "checkpoint", "checkpoint_sha256")

_HALVES = re.compile("[\ud800-\udfff]")


_Count = Annotated[int, Field(ge=0, lt=1 << 31)]


class _Cached(BaseModel):
    cached_tokens: _Count | None = None


class _Usage(BaseModel):
    prompt_tokens: _Count
    completion_tokens: _Count = 0
    prompt_tokens_details: _Cached | None = None


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    finish_reason: str | None = None
    text: str | None = None
    message: _Message | None = None


class _Answer(BaseModel):
    model: str
    choices: list[_Choice]
    usage: _Usage | None = None


class _Listed(BaseModel, extra="allow"):
    id: str


class _Listing(BaseModel):
    data: list[_Listed]


def listed(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What /v1/models says of each model, by name: that of it which lasts."""
    try:
        listing = _Listing.model_validate(found)
    except ValidationError as error:
        raise MorfiError(f"/models lists no models: {reason_of(error)}") from error
    return {
        one.id: {name: value for name, value in one.model_dump().items() if name in _LASTING}
        for one in listing.data
    }


def answered_by(found: Mapping[str, Any]) -> dict[str, str]:
    """The checkpoint of an answer or listing, and its engine, where morfi's server names them; else nothing.

    Of other servers nothing is taken: the `system_fingerprint` of many changes while the model is the same.
    """
    if not isinstance(found.get("checkpoint"), str):
        return {}
    given = {name: found.get(name) for name in ("checkpoint", "system_fingerprint")}
    return {name: value for name, value in given.items() if isinstance(value, str)}


def body(model: str, asked: str | list[dict[str, str]], sampling: Sampling, sample: int) -> dict[str, Any]:
    """The request for one completion of a text, or one answer to messages; `sample` is its number."""
    named = "prompt" if isinstance(asked, str) else "messages"
    found: dict[str, Any] = {
        "model": model,
        named: asked,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "stop": ["\n"],
    }
    if sampling.seed is not None:
        found["seed"] = sampling.seed + sample  # as vLLM makes those of several samples
    if sampling.top_k:
        found["top_k"] = sampling.top_k
    return found


def completion(found: dict[str, Any], model: str, sampling: Sampling, *, chat: bool) -> Completion:
    """The one completion in the answer `found`; raises MorfiError where that is not what was asked for."""
    try:
        answer = _Answer.model_validate(found)
    except ValidationError as error:
        raise MorfiError(f"the answer is none of OpenAI's API: {reason_of(error)}") from error
    if answer.model != model:
        raise MorfiError(
            f'"{answer.model}" answered, where "{model}" was asked; if it is the one that is meant, give '
            f"--model {answer.model}"
        )
    if len(answer.choices) != 1:
        raise MorfiError(f"the answer has {len(answer.choices)} choices where 1 was asked for")
    (choice,) = answer.choices
    message = choice.message or _Message()
    text = message.content if chat else choice.text
    if choice.finish_reason not in ("stop", "length"):
        how = f'was ended by "{choice.finish_reason}"' if choice.finish_reason else "has no finish_reason"
        raise MorfiError(f"an answer {how}; expected stop or length")
    if text is None:
        raise MorfiError("the answer's choice holds no text")
    if _HALVES.search(text):
        raise MorfiError("an answer's text holds half of a surrogate pair, which is no Unicode")
    usage, details = answer.usage, answer.usage and answer.usage.prompt_tokens_details
    if choice.finish_reason == "length" and usage and usage.completion_tokens < sampling.max_tokens:
        raise MorfiError(
            f"an answer was cut after {usage.completion_tokens} of {sampling.max_tokens} tokens: the model's "
            "context is full; give fewer --shots or --max-tokens"
        )
    return Completion(
        text=text.split("\n", 1)[0],
        token_ids=(),
        finish_reason=choice.finish_reason,
        n_cached_tokens=(details.cached_tokens or 0) if details else 0,
        counted=TokenCounts(usage.prompt_tokens, usage.completion_tokens) if usage else TokenCounts(0, 0),
    )
