"""Turns of a chat as positions: the tokens that a checkpoint's chat template makes of what messages say.

The template is asked twice: with the messages, and with a mark in place of what each of them says. What
stands between the marks is the template's own, so the rest of the first text is what the messages say.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from morfi.serve.http.gate import Refused

TURNS = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class ChatTurns:
    """The tokens of a chat up to where the answer begins, and those that each role's messages are in."""

    token_ids: tuple[int, ...]
    spans: Mapping[str, tuple[tuple[int, int], ...]]  # half-open, by role; those without tokens left out

    def positions(self, role: str) -> tuple[tuple[int, int | None], ...]:
        """What a role says; for "assistant" with the answer to come. Raises Refused (422) for none."""
        found: tuple[tuple[int, int | None], ...] = self.spans.get(role, ())
        if role == "assistant":
            found = (*found, (len(self.token_ids), None))
        if not found:
            raise Refused(
                422,
                "positions",
                f'positions "{role}": the chat has no {role} message with a token in it',
                param="steering.positions",
            )
        return found


def turns_of(tokenizer: Any, messages: Sequence[tuple[str, str]], **options: Any) -> ChatTurns:
    """The turns of a chat of (role, content), by the tokenizer's template with these options.

    A token with a character of a message in it belongs to the message. Raises Refused (422) for a chat that
    the template refuses, and for a template that gives what messages say back in another form.
    """
    contents = [content for _, content in messages]
    text = rendered(tokenizer, messages, **options)
    marks = [f"morfi{number}x{uuid.uuid4().hex}" for number in range(len(messages))]
    marked = rendered(
        tokenizer, [(role, mark) for (role, _), mark in zip(messages, marks, strict=True)], **options
    )
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans: dict[str, list[tuple[int, int]]] = {}
    for (role, _), (start, stop) in zip(messages, _places(text, marked, contents, marks), strict=True):
        inside = [
            number
            for number, (low, high) in enumerate(found["offset_mapping"])
            if low < stop and high > start and low < high
        ]
        if inside:
            spans.setdefault(role, []).append((inside[0], inside[-1] + 1))
    return ChatTurns(tuple(found["input_ids"]), {role: tuple(each) for role, each in spans.items()})


def rendered(tokenizer: Any, messages: Sequence[tuple[str, str]], **options: Any) -> str:
    """The text of a chat of (role, content) up to where the answer begins; raises Refused (422) for none."""
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise Refused(422, "chat", "this checkpoint has no chat template; give text", param="messages")
    plain = [{"role": role, "content": content} for role, content in messages]
    try:
        return str(
            tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True, **options)
        )
    except (TemplateError, TypeError, ValueError) as error:
        message = f"the checkpoint's chat template refuses this chat: {error}"
        raise Refused(422, "chat", message, param="messages") from error


def _places(text: str, marked: str, contents: Sequence[str], marks: Sequence[str]) -> list[tuple[int, int]]:
    """Where in `text` each of `contents` stands, as its mark does in `marked`."""
    pieces, left = [], marked
    for number, mark in enumerate(marks):
        before, found, left = left.partition(mark)
        if not found or mark in left:
            raise _unclear(number, "is not there once")
        pieces.append(before)
    pieces.append(left)
    if not text.startswith(pieces[0]):
        raise _unclear(0, "changes what stands before it")
    places, at = [], len(pieces[0])
    for number, content in enumerate(contents):
        is_last = number == len(contents) - 1
        for said in (content, content.strip(), content.lstrip(), content.rstrip()):
            after = at + len(said)
            rest = text[after:] == pieces[-1] if is_last else text.startswith(pieces[number + 1], after)
            if text.startswith(said, at) and rest:
                break
        else:
            raise _unclear(number, "comes in another form")
        places.append((at, after))
        at = after + len(pieces[number + 1])
    return places


def _unclear(number: int, why: str) -> Refused:
    return Refused(
        422,
        "positions",
        f"the checkpoint's chat template does not keep turns apart: message {number} {why}",
        param="steering.positions",
    )
