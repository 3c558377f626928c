"""Fields of OpenAI's and vLLM's interfaces: taken, passed on, or refused by name."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from fake_app import CHAT, PATHS, Served, error_of
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import chat as openai_types
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params
from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionRequest,
)
from vllm.entrypoints.openai.completion.protocol import (
    CompletionRequest,
)
from vllm.sampling_params import SamplingParams

from morfi.serve.http.bodies import ChatBody, ChatMessage, CompletionBody, StreamOptions
from morfi.serve.http.wire import Comparison, Steering


def fields_of(path: str) -> dict[str, list[Any]]:
    """Every field that clients may know, with the values that mean nothing."""
    chat = path.endswith("chat/completions")
    request = ChatCompletionRequest if chat else CompletionRequest
    known = chat_params if chat else completion_params
    found: dict[str, list[Any]] = {name: [None] for name in known.CompletionCreateParamsBase.__annotations__}
    for name, info in request.model_fields.items():
        default = info.get_default(call_default_factory=True)
        found[name] = [None, default] if name != "request_id" else [None]
    found["stream_options"] = [None]  # vLLM wants `stream` beside it
    for name in ("messages", "prompt", "model"):
        found.pop(name, None)
    return found


ODD: tuple[Any, ...] = (
    0,
    1,
    -1,
    2.5,
    1e300,
    1 << 70,
    True,
    False,
    "",
    "x",
    "none",
    "auto",
    [],
    [1],
    ["x"],
    [[]],
    {},
    {"a": 1},
)


@pytest.mark.parametrize("path", PATHS)
def test_every_field_that_clients_send_by_themselves_is_taken(served: Served, path: str) -> None:
    sent = [(name, value) for name, values in fields_of(path).items() for value in values]
    bodies = [{**PATHS[path], name: value} for name, value in sent]
    answers = [served.post(path, body) for body in bodies]
    refused = [
        (given, answer.text) for given, answer in zip(sent, answers, strict=True) if answer.status_code != 200
    ]
    assert refused == []
    every = {name: values[-1] for name, values in fields_of(path).items()}
    assert served.post(path, {**PATHS[path], **every}).status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_a_field_is_taken_or_refused_by_its_name(served: Served, path: str) -> None:
    """With whatever value; none is the server's fault."""
    sent = [(name, value) for name in fields_of(path) for value in ODD]
    for name, value in sent:
        answer = served.post(path, {**PATHS[path], name: value})
        assert answer.status_code in (200, 400, 422), (name, value, answer.text)
        if answer.status_code != 200:
            error = answer.json()["error"]
            assert name in f"{error['param']} {error['message']}", (name, value, answer.text)


@pytest.mark.parametrize(
    ("path", "given", "words"),
    [
        ("/v1/completions", {"best_of": 2}, "ask for n answers"),
        ("/v1/completions", {"suffix": "x"}, "continued at its end"),
        ("/v1/completions", {"cache_salt": "x"}, "salts"),
        ("/v1/completions", {"vllm_xargs": {"morfi": "{}"}}, "give `steering`"),
        ("/v1/completions", {"best_of": True}, "ask for n answers"),
        ("/v1/chat/completions", {"tools": [{"type": "function"}]}, "tools are not served"),
        ("/v1/chat/completions", {"tool_choice": "required"}, "tools are not served"),
        ("/v1/chat/completions", {"modalities": ["text", "audio"]}, "only text"),
        ("/v1/chat/completions", {"store": True}, "nothing is stored"),
        ("/v1/chat/completions", {"stream": True, "stream_options": {"include_obfuscation": True}}, "obfusc"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": None}]}, "needs content"),
        ("/v1/chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, "assistant"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
            "tools are not served",
        ),
    ],
)
def test_what_would_mean_something_that_is_not_done_is_refused(
    served: Served, path: str, given: dict[str, Any], words: str
) -> None:
    error = error_of(served.post(path, {**PATHS[path], **given}), 422)
    assert words in error["message"]
    assert str(error["param"]).split(".")[0] in given
    assert not served.serving.requests


@pytest.mark.parametrize(
    ("path", "given", "params"),
    [
        ("/v1/completions", {"best_of": 3, "n": 3}, {"n": 3}),
        ("/v1/completions", {"seed": -1}, {"seed": None}),
        ("/v1/completions", {"seed": -7}, {"seed": -7}),
        ("/v1/completions", {"top_k": -1}, {"top_k": -1}),
        ("/v1/completions", {"top_a": 0}, {}),
        (
            "/v1/completions",
            {"max_tokens": 4.0, "n": 2.0, "seed": -1.0, "stop_token_ids": [3.0]},
            {"n": 2, "seed": None, "stop_token_ids": [3]},
        ),
        (
            "/v1/completions",
            {"max_tokens": 0, "echo": True, "logprobs": 1},
            {"max_tokens": 1, "prompt_logprobs": 1},
        ),
        (
            "/v1/completions",
            {"stop": "x", "include_stop_str_in_output": True},
            {"include_stop_str_in_output": True},
        ),
        ("/v1/chat/completions", {"tool_choice": "none", "tools": []}, {}),
        ("/v1/chat/completions", {"stream": True, "stream_options": {"include_obfuscation": False}}, {}),
    ],
)
def test_what_vllm_understands_is_passed_on(
    served: Served, path: str, given: dict[str, Any], params: dict[str, Any]
) -> None:
    answer = served.post(path, {**PATHS[path], **given})
    assert answer.status_code == 200, answer.text
    (made,) = served.serving.params
    assert {name: getattr(made, name) for name in params} == params


def test_what_clients_say_of_their_caches_means_nothing(served: Served) -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    message = {"role": "user", "content": [{"type": "text", "text": "Q", **mark}], **mark}
    assert served.post("/v1/chat/completions", {"messages": [message]}).status_code == 200
    message = {"role": "user", "content": [{"type": "text", "text": "Q", "cache_control": "x"}]}
    error = error_of(served.post("/v1/chat/completions", {"messages": [message]}), 422)
    assert "cache_control" in f"{error['param']} {error['message']}"
    error = error_of(served.post("/v1/completions", {**PATHS["/v1/completions"], "top_a": 0.2}), 422)
    assert "top_p, top_k or min_p" in error["message"]


@pytest.mark.parametrize(
    ("body", "given", "numbers"),
    [
        (CompletionBody, {"prompt": "Q"}, ["max_tokens", "n", "seed", "top_k", "min_tokens", "logprobs"]),
        (
            ChatBody,
            {"messages": [{"role": "user", "content": "Q"}]},
            ["max_completion_tokens", "top_logprobs"],
        ),
        (Comparison, {"prompt": "Q", "latents": [{"id": 3.0}], "strengths": [1]}, ["max_tokens"]),
        (Steering, {"latents": [{"id": 3.0, "op": "ablate"}]}, ["layer"]),
    ],
)
def test_a_whole_number_may_have_a_point(body: type[Any], given: dict[str, Any], numbers: list[str]) -> None:
    for name in numbers:
        found = getattr(body.model_validate({**given, name: 4.0}), name)
        assert (found, type(found)) == (4, int)
        for value in (1.5, True, "4", float("nan"), float("inf"), [4.0]):
            with pytest.raises(ValidationError):
                body.model_validate({**given, name: value})


@pytest.mark.parametrize("body", [CompletionBody, ChatBody, Comparison, Steering, ChatMessage, StreamOptions])
def test_null_is_as_leaving_a_field_out(body: type[Any]) -> None:
    required = {
        "prompt": "Q",
        "messages": [{"role": "user", "content": "Q"}],
        "latents": [{"id": 3, "op": "ablate"}],
        "strengths": [0.0],
        "role": "assistant",
    }
    given = {name: value for name, value in required.items() if name in body.model_fields}
    nulls = dict.fromkeys(name for name in (*body.model_fields, *body.NEUTRAL) if name not in given)
    assert body.model_validate({**given, **nulls}) == body.model_validate(given)


def test_a_number_of_a_schema_that_the_engines_process_cannot_be_sent_is_refused(served: Served) -> None:
    least, most = -(1 << 63), (1 << 64) - 1
    taken = [True, 0, 1e300, least, most, float(1 << 70)]
    refused: list[tuple[float, str]] = [(least - 1, "64 bits"), (most + 1, "64 bits"), (10**40, "64 bits")]
    refused += [(float(name), "not finite") for name in ("nan", "inf", "-inf")]
    for number, why in [*((one, None) for one in taken), *refused]:
        for schema in ({"maximum": number}, {"properties": {"a": {"enum": ["a", [None, {"b": number}]]}}}):
            given = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
            body = {**CHAT, "response_format": given}
            if why is None:
                found = ChatBody.model_validate(body).model_dump(by_alias=True)
                assert found["response_format"]["json_schema"]["schema"] == schema
                assert msgspec.msgpack.decode(msgspec.msgpack.encode(schema)) == schema
            else:
                with pytest.raises(ValidationError, match=why):
                    ChatBody.model_validate(body)
    answer = served.post(
        "/v1/chat/completions",
        {**CHAT, "response_format": given | {"json_schema": {"name": "n", "schema": {"maximum": 10**40}}}},
    )
    assert "an integer of the schema does not fit into 64 bits" in error_of(answer, 422)["message"]


@pytest.mark.parametrize("kind", ["text", "json_object", "json_schema"])
@pytest.mark.parametrize("schema", [None, {"name": "n", "schema": {"type": "object"}}])
def test_a_schema_is_followed_or_refused(served: Served, kind: str, schema: Any) -> None:
    body = {**CHAT, "response_format": {"type": kind, "json_schema": schema}}
    answer = served.post("/v1/chat/completions", body)
    if (kind == "json_schema") == (schema is not None):
        assert answer.status_code == 200, answer.text
        followed = served.serving.params[-1].structured_outputs
        assert (followed is not None and followed.json == {"type": "object"}) == (schema is not None)
    else:
        assert "json_schema" in error_of(answer, 422)["message"]


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.integers(0, 10**9).map(str)
        | st.sampled_from(["1", "01", "001", "\u0661", "1\n", "-1", "+1", " 1", "1_0", "1e1", ""]),
        st.integers(-100, 100),
        max_size=4,
    )
)
def test_no_bias_is_lost(bias: dict[str, int]) -> None:
    (pattern,) = ChatBody.model_json_schema()["properties"]["logit_bias"]["anyOf"][0]["patternProperties"]
    body = {**CHAT, "logit_bias": bias}
    if not all(re.fullmatch(pattern, key) for key in bias):
        with pytest.raises(ValidationError, match="a token id is written in"):
            ChatBody.model_validate(body)
        return
    params = SamplingParams.from_optional(**ChatBody.model_validate(body).model_dump(include={"logit_bias"}))
    assert sorted((params.logit_bias or {}).items()) == sorted((int(key), one) for key, one in bias.items())


def test_an_answers_message_comes_back_as_it_is(served: Served) -> None:
    message = served.post("/v1/chat/completions", CHAT).json()["choices"][0]["message"]
    assert {"refusal", "annotations", "audio", "function_call", "reasoning"} <= set(message)
    parsed = openai_types.ChatCompletionMessage.model_validate(message).model_dump()
    streamed = {"role": "assistant", "content": None, "tool_calls": None, "parsed": None}
    for back in (message, parsed, streamed):
        turns = [*CHAT["messages"], back, {"role": "user", "content": "And?"}]
        answer = served.post("/v1/chat/completions", {"messages": turns})
        assert answer.status_code == 200, (back, answer.text)
        _, own, _ = served.serving.requests[-1].messages
        assert own == {"role": "assistant", "content": back["content"] or ""}


@pytest.mark.parametrize(
    ("value", "is_taken"), [(1e-160, False), (0, False), (11, False), (0.01, True), (1, True)]
)
def test_a_repetition_penalty_cannot_make_logits_infinite(value: float, is_taken: bool) -> None:
    body = {"prompt": "a", "repetition_penalty": value}
    if is_taken:
        assert CompletionBody.model_validate(body).repetition_penalty == value
    else:
        with pytest.raises(ValidationError, match="repetition_penalty"):
            CompletionBody.model_validate(body)


@pytest.mark.parametrize(
    "entry",
    [
        {"latents": [{"id": 1, "low": 0, "high": 0.1}]},
        {"latents": [{"id": 1, "clamp": 2}, {"id": 2, "op": "ablate"}]},
        {"vectors": [{"vector": "up", "op": "project"}]},
    ],
)
def test_a_comparison_without_an_addition_has_no_strengths(served: Served, entry: dict[str, Any]) -> None:
    for strengths in ([0.5], [-1, 0.5], [0, 0]):
        answer = served.post("/v1/morfi/compare", {"prompt": "Q", **entry, "strengths": strengths})
        assert "no strength acts on " in error_of(answer, 422)["message"]
        added = {**entry, "latents": [*entry.get("latents", []), {"id": 7}]}
        assert Comparison.model_validate({"prompt": "Q", **added, "strengths": strengths})
    for zero in (0, 0.0, -0.0):
        assert Comparison.model_validate({"prompt": "Q", **entry, "strengths": [zero]})
