"""Fields of OpenAI's and vLLM's interfaces that have no effect here, in one table.

Clients send many of them by themselves. A value that means nothing, because it asks for what is done anyway,
is taken and goes no further. Any other is refused by name: an answer that ignores what was asked for is not
the one that was asked for. Null means the same as leaving a field out, everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Neutral:
    """The values of a field that mean nothing, or types of which all do; `why` says what to do instead."""

    values: tuple[Any, ...]
    why: str
    types: tuple[type, ...] = ()

    def takes(self, value: Any) -> bool:
        """Whether a value means nothing."""
        return value is None or type(value) in self.types or any(same(value, one) for one in self.values)

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of its values."""
        if not self.types:
            return {"enum": [None, *self.values]}
        return {"anyOf": [{"type": _JSON_TYPES[one]} for one in self.types] + [{"type": "null"}]}


_JSON_TYPES = {str: "string", dict: "object", bool: "boolean"}


def anything(of: type) -> Neutral:
    """A field that never means anything here, of one type."""
    return Neutral((), f"expected {_JSON_TYPES[of]}", (of,))


def same(value: Any, other: Any) -> bool:
    """Whether two values of JSON are one: 1 is 1.0, and neither is true."""
    numbers = (int, float)
    if type(value) in numbers and type(other) in numbers:
        return bool(value == other)
    return type(value) is type(other) and bool(value == other)


_NO_TOOLS = "tools are not served; leave it out"
_NO_MEDIA = "only text is served; leave it out"
_NO_VLLM = "vLLM's field is not served here; leave it out"
_NO_REASONING = "answers are not split into reasoning and content; leave it out"
_TEXT_ONLY = {"type": "text"}

# Of both bodies.
SAMPLED = {
    "user": anything(str),
    "metadata": anything(dict),
    "service_tier": anything(str),
    "safety_identifier": anything(str),
    "prompt_cache_key": anything(str),
    "prompt_cache_options": anything(dict),
    "prompt_cache_retention": anything(str),
    "session_id": anything(str),
    "store": Neutral((False,), "nothing is stored; leave it out"),
    "moderation": Neutral((), "nothing is moderated; leave it out"),
    "use_beam_search": Neutral((False,), "answers are sampled, not searched; leave it out"),
    "length_penalty": Neutral((1,), "it belongs to beam search, which is not served; leave it out"),
    "watermarking": Neutral((False,), _NO_VLLM),
    "spaces_between_special_tokens": Neutral((True,), _NO_VLLM),
    "truncate_prompt_tokens": Neutral((), "prompts are never cut; shorten the prompt"),
    "truncation_side": Neutral(("left", "right"), "prompts are never cut; leave it out"),
    "allowed_token_ids": Neutral(([],), "choose tokens with logit_bias"),
    "bad_words": Neutral(([],), "rule tokens out with logit_bias"),
    "prompt_logprobs": Neutral((), "/v1/completions gives them with echo and logprobs"),
    "logprob_token_ids": Neutral(([],), "ask for logprobs"),
    "structured_outputs": Neutral((), "/v1/chat/completions takes response_format"),
    "priority": Neutral((0,), "all requests have the same priority; leave it out"),
    "request_id": Neutral((), "the server gives requests their ids; leave it out"),
    "return_tokens_as_token_ids": Neutral((False,), "ask for return_token_ids"),
    "routed_experts_prompt_start": Neutral((0,), _NO_VLLM),
    "return_token_offsets": Neutral((False,), _NO_VLLM),
    "mm_payload": Neutral(("tensors", "none"), _NO_MEDIA),
    "return_mm_kwargs": anything(bool),
    "cache_salt": Neutral((), "the server salts its prefix cache by what steers a request; leave it out"),
    "kv_transfer_params": Neutral(({},), _NO_VLLM),
    "ec_transfer_params": Neutral(({},), _NO_VLLM),
    "vllm_xargs": Neutral(({},), "give `steering`; other arguments of vLLM's plugins are not passed on"),
    "repetition_detection": Neutral((), _NO_VLLM),
    "thinking_token_budget": Neutral((-1,), _NO_REASONING),
    "top_a": Neutral((0,), "it is not served; limit tokens with top_p, top_k or min_p"),
    "stream_interval": Neutral((1,), "every token is streamed as it comes; leave it out"),
}

COMPLETION = SAMPLED | {
    "suffix": Neutral(("",), "text is continued at its end only; leave it out"),
    "best_of": Neutral((1,), "every answer that is made is given; ask for n answers"),
    "prompt_embeds": Neutral(([],), "give the prompt as text or token ids"),
    "response_format": Neutral((_TEXT_ONLY,), "/v1/chat/completions takes it"),
}

CHAT = SAMPLED | {
    "tools": Neutral(([],), _NO_TOOLS),
    "functions": Neutral(([],), _NO_TOOLS),
    "tool_choice": Neutral(("none", "auto"), _NO_TOOLS),
    "function_call": Neutral(("none", "auto"), _NO_TOOLS),
    "parallel_tool_calls": anything(bool),
    "modalities": Neutral((["text"],), _NO_MEDIA),
    "audio": Neutral((), _NO_MEDIA),
    "media_io_kwargs": Neutral(({},), _NO_MEDIA),
    "mm_processor_kwargs": Neutral(({},), _NO_MEDIA),
    "prediction": Neutral((), "answers are not predicted; leave it out"),
    "web_search_options": Neutral((), "nothing is searched; leave it out"),
    "verbosity": Neutral(("medium",), "say in a message how long the answer shall be"),
    "include_reasoning": anything(bool),
    "echo": Neutral((False,), "/v1/completions takes it"),
    "add_generation_prompt": Neutral((True,), _NO_VLLM),
    "continue_final_message": Neutral((False,), "/v1/completions continues a text"),
    "add_special_tokens": Neutral((False,), "the chat template writes the special tokens; leave it out"),
    "documents": Neutral(([],), "put them into a message"),
    "chat_template": Neutral((), "the checkpoint's own is used; /v1/completions takes any prompt"),
    "chat_template_kwargs": Neutral(({},), "the checkpoint's template is used as it is; leave it out"),
    "return_prompt_text": Neutral((False,), "ask for return_token_ids"),
}

STREAM_OPTIONS = {
    "include_obfuscation": Neutral((False,), "streams are not obfuscated; leave it out or give false"),
}

# Of an assistant's message in an answer of this server, or of another one, that comes back.
MESSAGE = {
    "refusal": Neutral(("",), "only content is taken; leave it out"),
    "annotations": Neutral(([],), "only content is taken; leave it out"),
    "audio": Neutral(({},), _NO_MEDIA),
    "function_call": Neutral((), _NO_TOOLS),
    "tool_calls": Neutral(([],), _NO_TOOLS),
    "reasoning": Neutral(("",), _NO_REASONING),
    "reasoning_content": Neutral(("",), _NO_REASONING),
    "parsed": Neutral((), "only content is taken; leave it out"),
    "cache_control": anything(dict),
}

TEXT_PART = {"prompt_cache_breakpoint": anything(dict), "cache_control": anything(dict)}


def _by_name(*tables: Mapping[str, Neutral]) -> dict[str, str]:
    """Why a field is refused, by its name alone; a name has one reason in all of `tables`."""
    found: dict[str, str] = {}
    for table in tables:
        for name, neutral in table.items():
            if found.setdefault(name, neutral.why) != neutral.why:
                raise RuntimeError(f"two reasons why {name} is not taken: {found[name]}; {neutral.why}")
    return found


WHY = _by_name(MESSAGE, TEXT_PART, STREAM_OPTIONS, CHAT, COMPLETION)


def without_neutral(data: Any, table: Mapping[str, Neutral]) -> Any:
    """`data` without those fields of `table` that mean nothing; what is left of them will be refused."""
    if not isinstance(data, dict):
        return data
    return {name: value for name, value in data.items() if not _is_neutral(name, value, data, table)}


def _is_neutral(name: str, value: Any, data: Mapping[str, Any], table: Mapping[str, Neutral]) -> bool:
    if name not in table:
        return False
    # Of as many answers as are given, all are the best.
    return table[name].takes(value) or (name == "best_of" and same(value, data.get("n")))
