"""From what a request gives, a text, a chat or token ids, to the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from morfi.serve.http.gate import Refused
from morfi.serve.http.turns import TURNS, ChatTurns, rendered, turns_of

if TYPE_CHECKING:
    from morfi.serve.http.bodies import ChatBody, ChatMessage
    from morfi.serve.http.state import ServerState


def text_ids(state: ServerState, text: str) -> list[int]:
    """The tokens of a text as every run of morfi asks it: with BOS where the model needs one, once."""
    add = not state.begins_with_bos([text])
    found: list[int] = state.tokenizer(text, add_special_tokens=add)["input_ids"]
    return found


def chat_ids(state: ServerState, messages: Sequence[ChatMessage]) -> list[int]:
    """The tokens of a chat up to where the answer begins; raises Refused (422) for one that has no form."""
    text = rendered(state.tokenizer, [(one.role, one.text) for one in messages])
    found: list[int] = state.tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def chat_turns(state: ServerState, body: ChatBody) -> ChatTurns | None:
    """The turns of a chat that is steered at some of them; None for one that is not."""
    if body.steering is None or not any(
        body.steering.positions_of(one) in TURNS for one in body.steering.entries
    ):
        return None
    options: dict[str, Any] = {}
    if body.reasoning_effort is not None:  # as vLLM gives it to the template
        options = {
            "reasoning_effort": body.reasoning_effort,
            "enable_thinking": body.reasoning_effort != "none",
        }
    return turns_of(state.tokenizer, [(one.role, one.text) for one in body.messages], **options)


def check_fits(state: ServerState, n_prompt: int, n_generated: int, param: str) -> None:
    """Raises Refused (422) for more tokens than the context has."""
    context = state.engine.model_config.max_model_len
    if n_prompt + n_generated > context:
        raise Refused(
            422,
            "length",
            f"{n_prompt} tokens and {n_generated} to generate do not fit in the context of {context}",
            param=param,
        )
