"""/v1/completions and /v1/chat/completions: vLLM's own, with steering and what it did."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import ExitStack
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse
from vllm.entrypoints.openai.completion.protocol import CompletionResponse
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import with_cancellation

from morfi.errors import MorfiError
from morfi.serve.http.async_engine import ABORTED, Followed
from morfi.serve.http.bodies import ChatBody, CompletionBody, Sampled, SteeredChat, SteeredCompletion
from morfi.serve.http.gate import Refused, ended
from morfi.serve.http.guard import error_object
from morfi.serve.http.prompts import chat_turns
from morfi.serve.http.state import Planned, ServerState
from morfi.serve.http.turns import ChatTurns
from morfi.serve.http.unique import UniqueKeysRoute
from morfi.serve.http.wire import ErrorAnswer, Steering, SteeringApplied

router = APIRouter(route_class=UniqueKeysRoute)
_ERROR = 'data: {"error"'  # how vLLM's part of a stream begins that says what went wrong
UNBUFFERED = {"x-accel-buffering": "no"}  # for nginx, which would hold a stream back
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorAnswer, "description": description}
    for code, description in (
        (400, "What vLLM refuses, and large strengths without `allow_large`."),
        (401, "No key, or a wrong one."),
        (403, "A key that may not do this, or a page of another site."),
        (404, "No such thing."),
        (408, "The request came too slowly."),
        (409, "What it needs is not there as it was, is being loaded, or is kept by running answers."),
        (413, "The body is too large."),
        (422, "A field is wrong."),
        (429, "Too much is in flight; try again later."),
        (500, "The answer could not be given as asked: what workers report is not all that was to be done."),
        (503, "A checkpoint is being loaded; try again later."),
    )
}


class CompletionAnswer(CompletionResponse):  # type: ignore[misc]
    """OpenAI's answer, with the id of the checkpoint that gave it, and what was applied."""

    checkpoint: str
    steering_applied: SteeringApplied | None = None


class ChatAnswer(ChatCompletionResponse):  # type: ignore[misc]
    """OpenAI's answer, with the id of the checkpoint that gave it, and what was applied."""

    checkpoint: str
    steering_applied: SteeringApplied | None = None


def answers(model: type[Any]) -> dict[int | str, dict[str, Any]]:
    """For the document: an answer as JSON, or a stream of its parts."""
    stream: dict[str, dict[str, Any]] = {"text/event-stream": {}}
    return ERRORS | {200: {"model": model, "description": "The answer, or its parts.", "content": stream}}


@router.post(
    "/v1/completions", responses=answers(CompletionAnswer), summary="OpenAI's completions, with steering"
)
@with_cancellation  # type: ignore[untyped-decorator]
async def complete(body: CompletionBody, raw_request: Request) -> Response:
    """A completion of each prompt, steered if the request says so; `steering_applied` says what was done."""
    return await generate(raw_request, body, SteeredCompletion, "openai_serving_completion.create_completion")


@router.post("/v1/chat/completions", responses=answers(ChatAnswer), summary="OpenAI's chat, with steering")
@with_cancellation  # type: ignore[untyped-decorator]
async def chat(body: ChatBody, raw_request: Request) -> Response:
    """An answer in a chat, steered if the request says so; `steering_applied` says what was done."""
    return await generate(raw_request, body, SteeredChat, "openai_serving_chat.create_chat_completion")


async def generate(
    raw_request: Request, body: CompletionBody | ChatBody, kind: type[Any], create: str
) -> Response:
    """The answer of vLLM's handler `create`, by its place in the app's state, to a request of its `kind`."""
    state = await admit(raw_request, body, body.n_answers)
    if isinstance(body, CompletionBody):
        state.check_token_ids(body.token_prompts)
    request = kind(**body.given(), **_bos_once(state, body))
    turns = await asyncio.to_thread(chat_turns, state, body) if isinstance(body, ChatBody) else None
    planned = await follow(state, request, body, raw_request.scope["morfi.cleanup"], turns)
    serving, handler = create.split(".")
    vllm = getattr(raw_request.app.state, serving)
    vllm.system_fingerprint = state.fingerprint  # nothing else is in flight while checkpoints change
    found = await getattr(vllm, handler)(request, raw_request)
    return await answer(found, state.served, planned, request._followed, body.n_answers)


def _bos_once(state: ServerState, body: CompletionBody | ChatBody) -> dict[str, bool]:
    """The fields that keep vLLM from putting BOS in front of prompts that begin with it."""
    if not isinstance(body, CompletionBody) or body.add_special_tokens is not None:
        return {}
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    return {"add_special_tokens": False} if state.begins_with_bos(prompts) else {}


async def admit(raw_request: Request, body: Sampled, n_answers: int) -> ServerState:
    """Counts the request in flight until it is over; raises Refused where it cannot come in."""
    state: ServerState = raw_request.app.state.morfi
    if body.model not in (None, state.model):
        # Not left to vLLM, which writes what clients say to the log.
        raise Refused(404, "model", f"there is no such model; {state.model} is served", param="model")
    await enter(raw_request, n_answers, body.steering)
    return state


async def enter(raw_request: Request, n_answers: int, steering: Steering | None = None) -> None:
    """Waits for a load that goes on, and counts the request in flight from then on until it is over."""
    state: ServerState = raw_request.app.state.morfi
    await state.gate.opened(n_answers)
    along = {state.steerable.key_of(one) for one in steering.entries} if steering else set()
    raw_request.scope["morfi.cleanup"].enter_context(state.gate.admitted(n_answers, along))
    state.check_answers()


async def follow(
    state: ServerState, request: Any, body: Sampled, cleanup: ExitStack, turns: ChatTurns | None
) -> Planned | None:
    """Gives vLLM's request the body's steering, if any; `cleanup` is closed at its end."""
    if body.steering is None:
        return None
    check_generated(body.steering, body.most_tokens, turns)
    planned = await state.plan(body.steering, cleanup, turns)
    request._steering = planned.entries
    request._prompt = None if turns is None else turns.token_ids
    return planned


def check_generated(steering: Steering, max_tokens: int | None, turns: ChatTurns | None = None) -> None:
    """Raises Refused (422) for steering of generated tokens alone where none is put into the model."""
    generated = ["generated"]
    if turns is not None and "assistant" not in turns.spans:
        generated.append("assistant")
    for one in steering.entries:
        if steering.positions_of(one) in generated and max_tokens in (0, 1):
            raise Refused(
                422,
                "positions",
                f"of max_tokens {max_tokens} none is generated under steering: the last token is never put "
                "into the model; give 2 or more",
                param="steering.positions",
            )


async def answer(
    found: Any, checkpoint: str, planned: Planned | None, followed: Sequence[Followed], n_answers: int
) -> Response:
    """vLLM's answer, or stream of parts, with the checkpoint that gave it and what was applied.

    A stream that would begin with an error is answered by that error and its status.
    """
    if isinstance(found, ErrorResponse):
        return JSONResponse(found.model_dump(), found.error.code)
    if hasattr(found, "model_dump"):
        content = found.model_dump()
        if any(choice.get("finish_reason") == ABORTED for choice in content["choices"]):
            raise ended()
        content["checkpoint"] = checkpoint
        if planned is not None:
            content["steering_applied"] = planned.applied(followed).model_dump(exclude_none=True)
        return JSONResponse(content)
    first = await anext(found, "")
    if first.startswith(_ERROR):
        await found.aclose()
        error = json.loads(first.removeprefix("data: "))
        return JSONResponse(error, error["error"]["code"])
    found = _continued(first, found)
    if planned is not None:
        found = with_applied(found, planned, followed, n_answers)
    return StreamingResponse(named(found, checkpoint), headers=UNBUFFERED, media_type="text/event-stream")


async def _continued(first: str, parts: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """A stream whose first part has been read."""
    try:
        yield first
        async for part in parts:
            yield part
    finally:
        await parts.aclose()


async def named(parts: AsyncGenerator[str, None], checkpoint: str) -> AsyncIterator[str]:
    """The parts of a stream, each with the checkpoint that it is of; one that was ended ends in an error."""
    start = f'data: {{"checkpoint":{json.dumps(checkpoint)},'
    try:
        async for part in parts:
            # Quotes within a text are escaped, so this is the field itself.
            if f'"finish_reason":"{ABORTED}"' in part:
                refused = ended()
                yield f"data: {json.dumps(error_object(str(refused), refused.reason, refused.status))}\n\n"
                yield "data: [DONE]\n\n"
                return
            is_answer = part.startswith('data: {"') and not part.startswith(_ERROR)
            yield start + part.removeprefix("data: {") if is_answer else part
    finally:
        await parts.aclose()


async def with_applied(
    parts: AsyncGenerator[str, None], planned: Planned, followed: Sequence[Followed], n_answers: int
) -> AsyncGenerator[str, None]:
    """The parts of a stream, of which the one that ends the last choice says what was applied.

    A stream that would end without is ended by an error.
    """
    n_ended, said, failed = 0, False, False
    try:
        async for part in parts:
            text = part
            # Quotes within a text are escaped, so this is the field itself.
            if '"finish_reason":"' in part:
                chunk = json.loads(part.removeprefix("data: "))
                n_ended += sum(choice.get("finish_reason") is not None for choice in chunk["choices"])
                was_ended = any(choice.get("finish_reason") == ABORTED for choice in chunk["choices"])
                if n_ended == n_answers and not was_ended:
                    chunk["steering_applied"] = planned.applied(followed).model_dump(exclude_none=True)
                    text, said = f"data: {json.dumps(chunk)}\n\n", True
            failed = failed or part.startswith(_ERROR)
            if part.startswith("data: [DONE]") and not said and not failed:
                raise MorfiError("the stream ended before the workers reported what they steered")
            yield text
    except MorfiError as error:
        yield f"data: {json.dumps(error_object(str(error), 'steering', 500))}\n\n"
        yield "data: [DONE]\n\n"
    finally:
        await parts.aclose()
