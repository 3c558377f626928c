"""Turns of a chat as tokens, by chat templates as models have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from morfi.serve.http.gate import Refused
from morfi.serve.http.turns import turns_of

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The system's text stands in the first user turn; contents are trimmed.
MERGED = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{% set system = messages[0].content | trim + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "[INST] {{ system if loop.first else '' }}{{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
# A default system prompt, a header with the date, and no role but two.
DEFAULT = (
    "{% if messages[0].role != 'system' %}<s>system\nYou are helpful.\n{% endif %}"
    "{% for m in messages %}<s>{{ m.role }}\nToday: 26 Nov\n{{ m.content }}</s>{% endfor %}<s>model\n"
)
STRICT = "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.content }}"


def each(part: str) -> str:
    """A template that writes `part` for each message."""
    return "{% for m in messages %}" + part + "{% endfor %}"


CHAT = (
    ("system", "  Be brief. "),
    ("user", "Where is Zürich?\nSay it."),
    ("assistant", "In Switzerland 🏔"),
    ("user", "user"),
)


@pytest.mark.parametrize("template", [CHATML, MERGED, DEFAULT], ids=["chatml", "merged", "default"])
@pytest.mark.parametrize("n", [2, 4], ids=["short", "long"])
@pytest.mark.parametrize("first", [0, 1], ids=["system", "no system"])
def test_each_turn_is_what_its_messages_say(
    make_tokenizer: Callable[..., Any], template: str, n: int, first: int
) -> None:
    tokenizer = make_tokenizer(chat_template=template)
    messages = CHAT[first:n]
    found = turns_of(tokenizer, messages)
    plain = [{"role": role, "content": content} for role, content in messages]
    text = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    assert list(found.token_ids) == tokenizer(text, add_special_tokens=False)["input_ids"]
    for role in ("system", "user", "assistant"):
        said = [content for one, content in messages if one == role]
        told = [tokenizer.decode(found.token_ids[start:stop]) for start, stop in found.spans.get(role, ())]
        assert [one.strip() for one in told] == [one.strip() for one in said], role
    if template != MERGED:  # which trims
        assert all(
            tokenizer.decode(found.token_ids[a:b]) == "  Be brief. " for a, b in found.spans.get("system", ())
        )


def test_positions_are_those_of_a_role_and_the_answer_is_the_assistants(make_tokenizer: Any) -> None:
    found = turns_of(make_tokenizer(chat_template=CHATML), CHAT[:3])
    n = len(found.token_ids)
    assert found.positions("system") == found.spans["system"]
    assert found.positions("assistant") == (*found.spans["assistant"], (n, None))
    short = turns_of(make_tokenizer(chat_template=CHATML), [("user", "Hi"), ("system", "")])
    assert short.positions("assistant") == ((len(short.token_ids), None),)
    with pytest.raises(Refused, match="the chat has no system message with a token in it"):
        short.positions("system")


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (each("{{ m.content | upper }}"), [("user", "a")], "message 0 is not there"),
        (each("{{ m.content * 2 }}"), [("user", "a")], "message 0 is not there once"),
        ("{{ messages[-1].content }}", CHAT[:2], "message 0 is not there"),
        ("{{ messages[1].content }}{{ messages[0].content }}", CHAT[:2], "message 1 is not there"),
        (each("{{ m.content.split('x')[-1] }};"), [("user", "axb")], "message 0"),
        (each("{{ m.content[:9] }}"), [("user", "a")], "message 0 is not there"),
        (each("{{ m.content.replace('a', 'b') }}"), [("user", "a")], "message 0"),
        (each(STRICT), CHAT[:2], "the checkpoint's chat template refuses this chat: no system"),
        (None, CHAT[:2], "this checkpoint has no chat template"),
    ],
)
def test_a_template_that_does_not_keep_turns_apart_is_refused(
    make_tokenizer: Any, template: str | None, messages: Sequence[tuple[str, str]], message: str
) -> None:
    with pytest.raises(Refused, match=message) as refused:
        turns_of(make_tokenizer(chat_template=template), messages)
    assert refused.value.status == 422


def test_a_token_that_reaches_over_an_edge_belongs_to_the_message() -> None:
    class Coarse:
        """Tokens of three characters."""

        chat_template = "x"

        def apply_chat_template(self, messages: Any, **_: Any) -> str:
            return "".join(f"<{one['content']}>" for one in messages)

        def __call__(self, text: str, **_: Any) -> dict[str, Any]:
            places = [(start, min(start + 3, len(text))) for start in range(0, len(text), 3)]
            return {"input_ids": list(range(len(places))), "offset_mapping": places}

    found = turns_of(Coarse(), [("user", "abc"), ("assistant", "d"), ("user", "")])
    assert found.spans == {"user": ((0, 2),), "assistant": ((2, 3),)}  # <ab c>< d>< >
