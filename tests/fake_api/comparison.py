"""Comparisons: answers of the default and of each strength, streamed."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fake_api.api import FakeApi, Refused
from fake_api.contents import MAX_STRENGTHS, MEDIAN_NORM, OTHER_SAE, POSITIONS, SAE
from morfi.engine.operations import LOW, OPERATIONS
from morfi.questions.matching import is_correct


def own_numbers(op: str) -> set[str]:
    """The fields of a latent that an operation takes in the latent's own units."""
    amount = OPERATIONS[op].amount
    own = {amount.field} if amount is not None and not amount.in_norms else set()
    return own | ({LOW} if OPERATIONS[op].has_low else set())


def runs_of(api: FakeApi, body: Mapping[str, Any]) -> list[tuple[float | None, str, Any]]:
    """Strength, whole answer and what was applied, of the default and of each strength."""
    strengths = body["strengths"]
    if not 1 <= len(strengths) <= MAX_STRENGTHS:
        raise Refused(422, f"{len(strengths)} strengths; expected 1 to {MAX_STRENGTHS}")
    if not all(math.isfinite(alpha) and abs(alpha) <= api.max_alpha for alpha in strengths):
        raise Refused(422, f"strengths reach from {-api.max_alpha:g} to {api.max_alpha:g}")
    if any(abs(alpha) > 2 for alpha in strengths) and not body.get("allow_large"):
        raise Refused(400, "so large a strength needs allow_large")
    if body.get("positions", "all") not in POSITIONS or ("question" in body) == ("prompt" in body):
        raise Refused(422, "give one of question and prompt, and positions that there are")
    (latent,) = body.get("latents") or body["vectors"]
    op = latent.get("op", "add")
    if op not in OPERATIONS or own_numbers(op) != {"clamp", "high", "low", "alpha"} & set(latent):
        raise Refused(422, f"a latent of a comparison with op {op} is not like this: {latent}")
    if op != "add" and strengths != [0]:
        raise Refused(422, f"no strength acts on {op}")
    if "vector" not in latent and latent.get("sae") not in (SAE, OTHER_SAE):
        raise Refused(422, f"no SAE {latent.get('sae')} is served")
    row = api.latent(latent.get("id", api.latents[0]["id"]))
    question = body.get("question") or body["prompt"]
    runs: list[tuple[float | None, str, Any]] = [(None, api.answer(question, None, None), None)]
    where = {"sae": SAE, "layer": latent.get("layer", 25), "positions": body.get("positions", "all")}
    for alpha in strengths:
        effect = alpha if op == "add" else -2.0 if row["direction"] == "rising" else 2.0
        number = {name: latent[name] for name in own_numbers(op)} or {"alpha": alpha}
        applied = {
            "checkpoint": api.served,
            "latents": [{"id": row["id"], "op": op, **number, "strength": alpha * MEDIAN_NORM, **where}],
            "vectors": [],
            "n_tokens": [api.n_tokens],
        }
        runs.append((alpha, api.answer(question, effect, row), applied))
    return runs


async def stream(
    api: FakeApi, runs: list[tuple[float | None, str, Any]], accepted: list[str] | None
) -> AsyncIterator[str]:
    """The answers in pieces, in turn, as a batch gives them."""
    pieces = [re.findall(r"\s*\S{1,4}", f" {text}") for _, text, _ in runs]
    events: list[dict[str, Any]] = []
    for step in range(max(map(len, pieces)) + 1):
        for index, (strength, text, applied) in enumerate(runs):
            head: dict[str, Any] = {"strength": strength, "index": index - 1, "checkpoint": api.served}
            if step < len(pieces[index]):
                events.append(head | {"text": pieces[index][step]})
            elif step == len(pieces[index]):
                end: dict[str, Any] = {"done": True, "finish_reason": "stop"}
                if accepted is not None:
                    correct = {rule: is_correct(text, accepted, rule) for rule in ("squad", "answer")}
                    end |= {"accepted": accepted, "correct": correct}
                told = applied is not None and not api.forgets_applied
                events.append(head | end | ({"steering_applied": applied} if told else {}))
    is_whole = False
    try:
        for place, event in enumerate(events):
            await asyncio.sleep(api.delay_s)
            if api.stream_ends and place == api.n_sent:
                await asyncio.sleep(0.2)  # what was sent has been read by then
                if api.stream_ends == "breaks":
                    raise ConnectionError("the test wants this stream broken")
                if api.stream_ends == "fails":
                    error = {
                        "message": api.text("the engine stopped"),
                        "type": "InternalServerError",
                        "code": 500,
                    }
                    yield f"data: {json.dumps({'error': error})}\n\n"
                is_whole = True
                return
            yield f"data: {json.dumps(event)}\n\n"
        yield "data: [DONE]\n\n"
        is_whole = True
    finally:
        if not is_whole and not api.stream_ends:
            api.n_left += 1
