"""From what a request gives, a text, a chat or token ids, to the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from morfi.serve.http.gate import Refused

if TYPE_CHECKING:
    from morfi.serve.http.bodies import ChatMessage
    from morfi.serve.http.state import ServerState


def text_ids(state: ServerState, text: str) -> list[int]:
    """The tokens of a text as every run of morfi asks it: with BOS where the model needs one, once."""
    add = not state.begins_with_bos([text])
    found: list[int] = state.tokenizer(text, add_special_tokens=add)["input_ids"]
    return found


def chat_ids(state: ServerState, messages: Sequence[ChatMessage]) -> list[int]:
    """The tokens of a chat up to where the answer begins; raises Refused (422) for one that has no form."""
    from jinja2 import TemplateError

    if not getattr(state.tokenizer, "chat_template", None):
        raise Refused(422, "chat", "this checkpoint has no chat template; give text", param="messages")
    plain = [{"role": one.role, "content": one.text} for one in messages]
    try:
        text = state.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError) as error:
        raise Refused(
            422, "chat", f"the checkpoint's chat template refuses this chat: {error}", param="messages"
        ) from error
    found: list[int] = state.tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


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
