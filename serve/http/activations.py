"""POST /v1/morfi/activations: which latents of an SAE fire on a text, token by token."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Self

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, model_validator
from vllm.entrypoints.serve.utils.api_utils import with_cancellation

from morfi.engine.steering import Capture
from morfi.serve.http.bodies import ChatMessage, Text, TokenIds
from morfi.serve.http.gate import Refused
from morfi.serve.http.prompts import chat_ids, check_fits, text_ids
from morfi.serve.http.routes import ERRORS, enter
from morfi.serve.http.state import ServerState
from morfi.serve.http.steerable import ServedSae
from morfi.serve.http.unique import UniqueKeysRoute
from morfi.serve.http.wire import WHOLE, Body, Layer

if TYPE_CHECKING:
    import torch

router = APIRouter(prefix="/v1/morfi", responses=ERRORS, route_class=UniqueKeysRoute)
MAX_TOP = 100
_PROMPTS = ("text", "messages", "token_ids")
_CHUNK = 64  # tokens encoded at a time: a row has all latents


class Asked(Body):
    """A text, a chat or token ids, and the SAE whose latents are looked at."""

    text: Text | None = Field(default=None, description="With BOS in front where the model needs one.")
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = Field(
        default=None, description="By the checkpoint's chat template, up to where its answer begins."
    )
    token_ids: TokenIds | None = Field(default=None, description="As they are.")
    sae: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="The SAE's name; may be left out where there is one."
    )
    layer: Layer | None = Field(default=None, description="Only for an SAE that does not say which it reads.")
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP), WHOLE] = Field(
        default=10, description="Latents of each token, the most active first."
    )

    @model_validator(mode="after")
    def _has_one_prompt(self) -> Self:
        if sum(getattr(self, name) is not None for name in _PROMPTS) != 1:
            raise ValueError("give one of text, messages and token_ids")
        return self


class ActiveLatent(BaseModel):
    """A latent with its activation."""

    id: int
    activation: float


class TokenActivations(BaseModel):
    """A token, how many latents fire on it, and the most active of them."""

    position: int
    token_id: int
    token: str
    n_active: int
    latents: list[ActiveLatent]


class Activations(BaseModel):
    """The latents that fire on each token of the prompt, under the checkpoint."""

    checkpoint: str
    sae: str
    layer: int
    tokens: list[TokenActivations]


@router.post("/activations")
@with_cancellation  # type: ignore[untyped-decorator]
async def activations(body: Asked, raw_request: Request) -> Activations:
    """The most active latents of each token, computed in float32 from the captured residual stream."""
    state: ServerState = raw_request.app.state.morfi
    await enter(raw_request, 1)
    sae, layer = state.steerable.read_after(body.sae, body.layer)
    token_ids = await asyncio.to_thread(_token_ids, state, body)
    given = next(name for name in _PROMPTS if getattr(body, name) is not None)
    limit = state.gate.limits.max_activation_tokens
    if len(token_ids) > limit:
        raise Refused(422, "length", f"{len(token_ids)} tokens; at most {limit} at a time", param=given)
    check_fits(state, len(token_ids), 1, given)
    (captured,) = await state.engine.capture(token_ids, Capture((layer,), "all"))
    found = await asyncio.to_thread(_most_active, sae, captured.values, body.top_k)
    return Activations(
        checkpoint=state.served,
        sae=sae.name,
        layer=layer,
        tokens=[
            TokenActivations(
                position=position,
                token_id=token_id,
                token=state.tokenizer.decode([token_id]),
                n_active=n_active,
                latents=latents,
            )
            for position, (token_id, (n_active, latents)) in enumerate(zip(token_ids, found, strict=True))
        ],
    )


def _token_ids(state: ServerState, body: Asked) -> list[int]:
    if body.text is not None:
        return text_ids(state, body.text)
    if body.messages is not None:
        return chat_ids(state, body.messages)
    assert body.token_ids is not None
    state.check_token_ids([body.token_ids], "token_ids")
    return body.token_ids


def _most_active(sae: ServedSae, x: torch.Tensor, top_k: int) -> Sequence[tuple[int, list[ActiveLatent]]]:
    """Of each row of x [n_tokens, d_model], how many latents fire, and the `top_k` that fire most."""
    found = []
    for rows in x.split(_CHUNK):  # type: ignore[no-untyped-call]
        values = sae.sae.encode(rows)
        best = values.topk(min(top_k, sae.d_sae), dim=1)
        counts = (values > 0).sum(1).tolist()
        for count, ids, top in zip(counts, best.indices.tolist(), best.values.tolist(), strict=True):
            latents = [
                ActiveLatent(id=one, activation=value)
                for one, value in zip(ids, top, strict=True)
                if value > 0
            ]
            found.append((count, latents))
    return found
