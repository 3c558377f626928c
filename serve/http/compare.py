"""POST /v1/morfi/compare: a prompt answered as it is and steered at several strengths, all at once."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from vllm import SamplingParams
from vllm.entrypoints.serve.utils.api_utils import with_cancellation
from vllm.exceptions import VLLMError
from vllm.sampling_params import RequestOutputKind

from morfi.errors import MorfiError
from morfi.questions.matching import is_correct, parse_answer
from morfi.questions.prompts import ASKED
from morfi.serve.http.async_engine import ABORTED, Followed
from morfi.serve.http.gate import Refused, ended
from morfi.serve.http.guard import error_object
from morfi.serve.http.prompts import check_fits, text_ids
from morfi.serve.http.routes import ERRORS, UNBUFFERED, answers, check_generated, enter
from morfi.serve.http.state import Planned, ServerState
from morfi.serve.http.unique import UniqueKeysRoute
from morfi.serve.http.wire import Answer, Compared, Comparison, SteeredAnswer

router = APIRouter(prefix="/v1/morfi", responses=ERRORS, route_class=UniqueKeysRoute)
_DEFAULT = -1  # the index of the answer without steering
JUDGED = ("squad", "answer")  # as every answer that is stored


@dataclass(slots=True)
class Side:
    """One of the answers: at `strength`, or the default one, without a plan."""

    index: int
    strength: float | None
    planned: Planned | None
    followed: Followed | None
    accepted: Sequence[str] | None = None  # of a question that is known
    text: str = ""
    finish_reason: str = ""
    outputs: Any = field(default=None, repr=False)

    def answer(self) -> Answer | SteeredAnswer:
        """The result, once it has ended."""
        correct = None if self.accepted is None else verdicts(self.text, self.accepted)
        if self.planned is None or self.followed is None or self.strength is None:
            return Answer(text=self.text, finish_reason=self.finish_reason, correct=correct)
        return SteeredAnswer(
            text=self.text,
            finish_reason=self.finish_reason,
            correct=correct,
            strength=self.strength,
            steering_applied=self.planned.applied([self.followed]),
        )


@router.post("/compare", responses=answers(Compared))
@with_cancellation  # type: ignore[untyped-decorator]
async def compare(body: Comparison, raw_request: Request) -> Response:
    """The default answer and one for each strength: greedy, up to the end of the line."""
    state: ServerState = raw_request.app.state.morfi
    await enter(raw_request, 1 + len(body.strengths), body.at(0.0))
    prompt = body.prompt if body.prompt is not None else ASKED.format(question=body.question)
    check_generated(body.at(0.0), body.max_tokens)
    token_ids = await asyncio.to_thread(text_ids, state, prompt)
    check_fits(state, len(token_ids), body.max_tokens, "prompt")
    accepted = None if body.question is None else state.accepted(body.question)
    try:
        plans = [
            await state.plan(body.at(strength), raw_request.scope["morfi.cleanup"])
            for strength in body.strengths
        ]
    except Refused as refused:  # the fields of a steering stand in the body itself
        refused.param = (refused.param or "").removeprefix("steering.") or None
        raise
    sides = start(state, body, token_ids, plans, accepted)
    if body.stream:
        parts = events(sides, state.served)
        return StreamingResponse(parts, headers=UNBUFFERED, media_type="text/event-stream")
    try:
        async with asyncio.TaskGroup() as group:
            for side in sides:
                group.create_task(run(side))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    default, *steered = (side.answer().model_dump(exclude_none=True) for side in sides)
    found = {"prompt": prompt, "checkpoint": state.served, "default": default, "steered": steered}
    return JSONResponse(found if accepted is None else {**found, "accepted": list(accepted)})


def start(
    state: ServerState,
    body: Comparison,
    token_ids: Sequence[int],
    plans: Sequence[Planned],
    accepted: Sequence[str] | None,
) -> list[Side]:
    """The sides, the default one first, each with vLLM's outputs to come."""
    sides = [Side(_DEFAULT, None, None, None, accepted)]
    for index, (strength, planned) in enumerate(zip(body.strengths, plans, strict=True)):
        sides.append(Side(index, strength, planned, Followed(planned.entries), accepted))
    for side in sides:
        # The end of the line is looked for in the text, as a token may hold more than the newline.
        params = SamplingParams(
            temperature=0,
            max_tokens=body.max_tokens,
            stop=["\n"],
            output_kind=RequestOutputKind.DELTA,
        )
        if side.followed is not None:
            params = side.followed.attach(params)
        prompt = {"prompt_token_ids": list(token_ids)}
        side.outputs = state.engine.generate(prompt, params, f"compare-{uuid.uuid4().hex}")
    return sides


async def run(side: Side) -> None:
    """Takes all of a side's outputs."""
    async for _ in deltas(side):
        pass


async def deltas(side: Side) -> AsyncIterator[str]:
    """The parts of a side's text, as they come."""
    try:
        async for output in side.outputs:
            (part,) = output.outputs
            side.text += part.text
            if part.finish_reason is not None:
                if part.finish_reason == ABORTED:
                    raise ended()
                if part.finish_reason not in ("stop", "length"):
                    raise MorfiError(f'vLLM ended the request with "{part.finish_reason}"')
                side.finish_reason = part.finish_reason
            if part.text:
                yield part.text
    finally:
        await side.outputs.aclose()


async def events(sides: Sequence[Side], checkpoint: str) -> AsyncIterator[str]:
    """All sides as one stream of server-sent events; one that fails ends it with an error."""
    queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    async def feed(side: Side) -> None:
        name = {"strength": side.strength, "index": side.index, "checkpoint": checkpoint}
        async for text in deltas(side):
            queue.put_nowait({**name, "text": text})
        answered = side.answer().model_dump(exclude={"text", "strength"}, exclude_none=True)
        accepted = {} if side.accepted is None else {"accepted": list(side.accepted)}
        queue.put_nowait({**name, "done": True, **answered, **accepted})

    tasks = [asyncio.ensure_future(feed(side)) for side in sides]
    all_ended = asyncio.gather(*tasks)
    all_ended.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        while (event := await queue.get()) is not None:
            yield f"data: {json.dumps(event)}\n\n"
        await all_ended
    except Refused as refused:
        yield f"data: {json.dumps(error_object(str(refused), refused.reason, refused.status))}\n\n"
    except (MorfiError, VLLMError) as error:
        yield f"data: {json.dumps(error_object(str(error), 'steering', 500))}\n\n"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(all_ended, *tasks, return_exceptions=True)
    yield "data: [DONE]\n\n"


def verdicts(text: str, accepted: Sequence[str]) -> dict[str, bool]:
    """Whether an answer is right, by each of the rules that a run may judge by."""
    return {mode: is_correct(parse_answer(text), accepted, mode) for mode in JUDGED}
