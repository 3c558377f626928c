"""A server as an engine: what it is sent, what is taken from it, and what is refused."""

from __future__ import annotations

import contextlib
import email.utils
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted_server import MODEL, SECRET, Reply, ScriptedServer, scripted

from morfi.endpoint.address import Limits
from morfi.endpoint.engine import Endpoint, find_endpoint
from morfi.engine.protocol import Engine, Sampling, TokenCounts
from morfi.errors import InputError, MorfiError

QUICK = Limits(timeout_s=5.0, retries=2, first_pause_s=0.01)
GREEDY = Sampling(max_tokens=16)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MORFI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted(ScriptedServer({f"Where is {i}?": f"place {i}" for i in range(20)})) as server:
        yield server


def found(
    server: ScriptedServer, *, limits: Limits = QUICK, chat: bool = False, said: list[str] | None = None
) -> Endpoint:
    lines: list[str] = [] if said is None else said
    return find_endpoint(server.url, MODEL, chat=chat, limits=limits, say=lines.append)


@contextlib.contextmanager
def started(endpoint: Endpoint) -> Iterator[Engine]:
    with endpoint.start(endpoint.checkpoint, context=0, seed=0, overrides={}) as engine:
        yield engine


def prompts(n: int) -> list[bytes]:
    return [f"Q: Where is {i}?\nA:".encode() for i in range(n)]


def test_prompts_are_sent_as_text_and_come_back_in_their_order(server: ScriptedServer) -> None:
    ended: list[int] = []
    with started(found(server)) as engine:
        answered = engine.generate(prompts(20), GREEDY, ended.append)
        engine.reset_prefix_cache()
        assert [len(engine.generate(prompts(n), GREEDY)) for n in (1, 0)] == [1, 0]
    assert [one.text for (one,) in answered] == [f" place {i} " for i in range(20)]
    assert sum(ended) == 20
    sent = {one.body["prompt"]: one for one in server.asked}
    assert set(sent) == {prompt.decode() for prompt in prompts(20)}
    first = server.asked[0]
    assert first.path == "/v1/completions"
    assert "Authorization" not in first.headers
    assert {name: value for name, value in first.body.items() if name != "prompt"} == {
        "model": MODEL,
        "max_tokens": 16,
        "temperature": 0.0,
        "stop": ["\n"],
    }
    ((one,), *_) = answered
    assert (one.finish_reason, one.n_cached_tokens) == ("stop", 3)
    assert one.counted == TokenCounts(len(prompts(1)[0]), 2)


def test_a_chat_is_sent_as_its_messages(server: ScriptedServer) -> None:
    messages = [{"role": "user", "content": "Where is 3?"}]
    with started(found(server, chat=True)) as engine:
        ((one,),) = engine.generate([json.dumps(messages).encode()], GREEDY)
    assert one.text == " place 3 "
    assert (server.asked[0].path, server.asked[0].body["messages"]) == ("/v1/chat/completions", messages)


def test_samples_are_requests_of_their_own_with_seeds_of_their_own(server: ScriptedServer) -> None:
    wanted = Sampling(max_tokens=4, temperature=0.5, top_k=40, n=3, seed=7)
    with started(found(server)) as engine:
        answered = engine.generate(prompts(2), [wanted, replace(wanted, n=1, top_k=0, seed=None)])
    assert [len(each) for each in answered] == [3, 1]
    asked = [one.body for one in server.asked]
    of_first = [one for one in asked if "0?" in one["prompt"]]
    assert sorted(one["seed"] for one in of_first) == [7, 8, 9]
    assert {one["top_k"] for one in of_first} == {40}
    (of_second,) = [one for one in asked if "1?" in one["prompt"]]
    assert not {"seed", "top_k"} & set(of_second)


def test_no_more_requests_are_in_flight_than_the_limit(server: ScriptedServer) -> None:
    server.fault = Reply(server.answer({"model": MODEL, "prompt": ""}), pause_s=0.02)
    with started(found(server, limits=replace(QUICK, concurrency=3))) as engine:
        engine.generate(prompts(20), GREEDY)
    assert server.most_at_once == 3


def test_the_text_is_cut_at_a_newline_that_a_server_lets_through(server: ScriptedServer) -> None:
    def change(answer: dict[str, Any]) -> object:
        answer["choices"][0]["text"] = " Paris\nQ: more"
        return answer

    server.change = change
    with started(found(server)) as engine:
        assert engine.generate(prompts(1), GREEDY)[0][0].text == " Paris"


def test_a_server_that_counts_no_tokens_is_said_once(server: ScriptedServer) -> None:
    server.change = lambda answer: {name: value for name, value in answer.items() if name != "usage"}
    said: list[str] = []
    with started(found(server, said=said)) as engine:
        answered = engine.generate(prompts(5), GREEDY)
    assert {one.counted for (one,) in answered} == {TokenCounts(0, 0)}
    assert sum("usage" in line for line in said) == 1


def test_what_is_known_of_a_server_is_its_url_the_name_and_the_lasting_part_of_its_listing(
    server: ScriptedServer,
) -> None:
    endpoint, again = found(server), found(server)
    assert endpoint.listing == {"id": MODEL, "root": "r"}
    assert endpoint.checkpoint == again.checkpoint
    assert endpoint.checkpoint.name == MODEL
    server.listing = Reply({"data": [{"id": MODEL, "root": "other"}, {"id": "more"}]})
    other = found(server)
    with scripted(ScriptedServer()) as elsewhere:
        assert len({one.checkpoint.sha256 for one in (endpoint, other, found(elsewhere))}) == 3
    with started(endpoint) as engine:
        assert engine.settings["endpoint"] == server.url
        assert engine.settings["listing"] == endpoint.listing
        assert engine.device == f"the server at {server.url}"
        with pytest.raises(InputError, match="is a server, which can be asked only"):
            engine.load_checkpoint(endpoint.checkpoint)
        with pytest.raises(InputError, match="is a server"):
            engine.shards(Path("x"))
        with pytest.raises(InputError, match="is a server"):
            engine.generate(prompts(1), GREEDY, steering=[[]])


def answering_by(server: ScriptedServer, checkpoint: object, fingerprint: object) -> None:
    """Has the answers from now on, and the listing, say what morfi's server says of itself."""
    listed = {"checkpoint": checkpoint, "checkpoint_sha256": f"sha of {checkpoint}"}
    server.listing = Reply({"data": [{"id": MODEL, **listed}]})
    server.change = lambda found: {**found, "checkpoint": checkpoint, "system_fingerprint": fingerprint}


@pytest.mark.parametrize("then", [("M_100", "v-b"), ("base", "v-b"), ("M_100", "v-a"), (None, "v-a")])
@pytest.mark.parametrize("n_before", [0, 1, 3])
def test_a_run_has_the_answers_of_one_checkpoint_of_morfis_server(
    server: ScriptedServer, n_before: int, then: tuple[object, str]
) -> None:
    answering_by(server, "base", "v-a")
    endpoint = found(server)
    with started(endpoint) as engine:
        for _ in range(n_before):
            engine.generate(prompts(8), GREEDY)
        answering_by(server, *then)
        if n_before == 0 and then[0] == "base":  # nothing was answered yet
            assert engine.generate(prompts(8), GREEDY)
            return
        with pytest.raises(MorfiError, match=r"where (base|v-a) was served before.*nothing of it is scored$"):
            engine.generate(prompts(8), GREEDY)
        answering_by(server, "base", "v-a")
        assert engine.generate(prompts(8), GREEDY)
    assert found(server).checkpoint == endpoint.checkpoint


def test_another_checkpoint_of_morfis_server_is_another_model(server: ScriptedServer) -> None:
    answering_by(server, "base", "v-a")
    endpoint = found(server)
    answering_by(server, "M_100", "v-b")
    assert found(server).checkpoint != endpoint.checkpoint


def test_another_fingerprint_of_any_other_server_is_no_fault(server: ScriptedServer) -> None:
    server.change = lambda found: {**found, "system_fingerprint": str(time.monotonic_ns())}
    with started(found(server)) as engine:
        assert len([engine.generate(prompts(8), GREEDY) for _ in range(2)]) == 2


def test_a_server_without_a_list_of_models_is_known_by_its_url_and_the_name(server: ScriptedServer) -> None:
    server.listing = Reply({"detail": "Not Found"}, 404)
    said: list[str] = []
    endpoint = found(server, said=said)
    assert endpoint.listing == {}
    assert any("does not list its models" in line for line in said)


def test_a_model_that_is_not_listed_is_refused_with_those_that_are(server: ScriptedServer) -> None:
    with pytest.raises(InputError, match=r'has no model "tine"; it has: tiny\. Did you mean "tiny"\?'):
        find_endpoint(server.url, "tine", chat=False, limits=QUICK, say=print)
    assert server.asked == []


@pytest.mark.parametrize(
    ("listing", "said"),
    [
        (Reply(b"<html>Hello</html>"), "answered with no JSON: <html>Hello</html>"),
        (Reply([]), "JSON that is no object"),
        (Reply({"models": []}), "lists no models: data: Field required"),
        (Reply({"data": [{"name": "tiny"}]}), "lists no models: data.0.id: Field required"),
        (Reply({"error": "no"}, 500), r"answered with 500: no \(asked 3 times\)"),
    ],
)
def test_a_listing_that_is_none_is_refused(server: ScriptedServer, listing: Reply, said: str) -> None:
    server.listing = listing
    with pytest.raises(MorfiError, match=said):
        found(server)


def test_a_server_that_is_not_there_is_named() -> None:
    with scripted(ScriptedServer()) as gone:
        pass
    with pytest.raises(MorfiError, match=rf"{gone.url} cannot be reached: .*\(asked 3 times\)"):
        found(gone)


def test_the_key_is_sent_and_never_said(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    said: list[str] = []
    with started(found(server, said=said)) as engine:
        engine.generate(prompts(1), GREEDY)
        assert {one.headers["Authorization"] for one in server.received} == {f"Bearer {SECRET}"}
        assert SECRET not in json.dumps(dict(engine.settings))
        for status, kind in ((401, InputError), (403, InputError), (400, InputError), (500, MorfiError)):
            server.fault = Reply({"error": {"message": f"Incorrect key: {SECRET}\n"}}, status)
            with pytest.raises(kind, match=r"\*\*\*") as caught:
                engine.generate(prompts(1), GREEDY)
            assert SECRET not in str(caught.value)
            assert "\n" not in str(caught.value)
            assert ("in OPENAI_API_KEY" in str(caught.value)) is (status in (401, 403))
    assert said == ["asking with the key in OPENAI_API_KEY"]


def test_a_key_that_is_needed_is_asked_for(server: ScriptedServer) -> None:
    server.listing = Reply({"error": {"message": "who are you"}}, 401)
    with pytest.raises(InputError, match=r"asks for a key \(401: who are you\); set MORFI_API_KEY or OPENAI"):
        found(server)


def test_a_redirect_is_not_followed(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with scripted(ScriptedServer()) as other, started(found(server)) as engine:
        for status in (301, 302, 307, 308):
            to = f"{other.url}/completions"
            server.fault = Reply({}, status, {"Location": to})
            with pytest.raises(InputError, match=r"sends requests on to http://127.0.0.1 \(30\d\), which"):
                engine.generate(prompts(1), GREEDY)
        assert other.received == []


@pytest.mark.long
@pytest.mark.parametrize(
    "fault",
    [
        Reply({"error": "busy"}, 429),
        Reply({"error": "busy"}, 429, {"Retry-After": "0.05"}),
        Reply({"error": "busy"}, 503, {"Retry-After": email.utils.formatdate(usegmt=True)}),
        Reply(b"<html>Bad gateway</html>", 502, {"Retry-After": "soon"}),
        Reply({"error": "broken"}, 500),
        Reply({"choices": []}, n_sent=5),
        Reply({}, n_sent=0),
        Reply(b'{"choices": [', headers={"Content-Type": "application/json"}),
    ],
    ids=["429", "429 with seconds", "503 with a date", "502", "500", "cut", "closed", "broken JSON"],
)
def test_what_may_pass_is_tried_again(server: ScriptedServer, fault: Reply) -> None:
    server.fault, server.fault_from, server.n_faults = fault, 3, 2
    with started(found(server)) as engine:
        answered = engine.generate(prompts(20), GREEDY)
    assert [one.text for (one,) in answered] == [f" place {i} " for i in range(20)]
    assert len(server.asked) == 22


def test_retry_after_holds_all_requests_back(server: ScriptedServer) -> None:
    server.fault, server.n_faults = Reply({}, 429, {"Retry-After": "0.4"}), 1
    begun = time.monotonic()
    with started(found(server, limits=replace(QUICK, concurrency=1))) as engine:
        engine.generate(prompts(2), GREEDY)
    assert time.monotonic() - begun > 0.4


def test_a_wait_that_is_too_long_ends_it_at_once(server: ScriptedServer) -> None:
    server.fault = Reply({"error": "quota"}, 429, {"Retry-After": "9999"})
    with started(found(server)) as engine, pytest.raises(MorfiError, match="it asks to wait for 9999 s"):
        engine.generate(prompts(1), GREEDY)
    assert len(server.asked) == 1


def test_an_answer_that_takes_too_long_is_given_up(server: ScriptedServer) -> None:
    server.fault = Reply({}, pause_s=1.0)
    limits = replace(QUICK, timeout_s=0.2, retries=0)
    with (
        started(replace(found(server), limits=limits)) as engine,
        pytest.raises(MorfiError, match=r"did not answer within 0.2 s \(asked once\)"),
    ):
        engine.generate(prompts(4), GREEDY)


def choice(**changes: object) -> Any:
    def change(answer: dict[str, Any]) -> object:
        answer["choices"][0] |= changes
        return answer

    return change


def usage(**changes: object) -> Any:
    def change(answer: dict[str, Any]) -> object:
        answer["usage"] = {"prompt_tokens": 3, "completion_tokens": 2} | changes
        return answer

    return change


def test_an_empty_text_is_an_answer(server: ScriptedServer) -> None:
    server.change = choice(text="")
    with started(found(server)) as engine:
        assert engine.generate(prompts(1), GREEDY)[0][0].text == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda answer: {}, "none of OpenAI's API: model: Field required"),
        (lambda answer: {"model": MODEL}, "none of OpenAI's API: choices: Field required"),
        (lambda answer: {**answer, "choices": {}}, "none of OpenAI's API: choices: Input should be"),
        (lambda answer: {**answer, "choices": []}, "0 choices where 1 was asked for"),
        (lambda answer: {**answer, "choices": answer["choices"] * 2}, "2 choices where 1 was asked for"),
        (lambda answer: {**answer, "model": "tiny-2"}, '"tiny-2" answered, where "tiny" was.*--model tiny-2'),
        (lambda answer: [answer], "JSON that is no object"),
        (choice(text=None), "choice holds no text"),
        (choice(text=3), r"none of OpenAI's API: choices.0.text: Input should be a valid string"),
        (choice(text="\ud800"), "half of a surrogate pair"),
        (usage(prompt_tokens=2**40), r"none of OpenAI's API: usage.prompt_tokens: Input should be less than"),
        (
            usage(completion_tokens=-5),
            r"none of OpenAI's API: usage.completion_tokens: Input should be greater",
        ),
        (choice(finish_reason=None), "has no finish_reason"),
        (choice(finish_reason="content_filter"), 'was ended by "content_filter"'),
        (choice(finish_reason="length"), "cut after 2 of 16 tokens: the model's context is full"),
    ],
)
def test_an_answer_that_is_none_ends_it_with_nothing_scored(
    server: ScriptedServer, change: Any, said: str
) -> None:
    server.change = change
    with started(found(server)) as engine, pytest.raises(MorfiError, match=said) as caught:
        engine.generate(prompts(8), GREEDY)
    assert str(caught.value).startswith(server.url)
