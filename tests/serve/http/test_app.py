"""The HTTP app without an engine: what it takes, refuses and says; the engine's part is played by a fake."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from openai.types import chat as openai_types
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params
from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatCompletionResponseChoice,
)
from vllm.entrypoints.openai.chat_completion.protocol import ChatMessage as AnsweredMessage
from vllm.entrypoints.openai.completion.protocol import (
    CompletionRequest,
    CompletionResponse,
    CompletionResponseChoice,
)
from vllm.entrypoints.serve.engine.protocol import UsageInfo

from morfi.conditions.condition import BASE, Condition
from morfi.engine.steering import Latent
from morfi.engine.steering import Steering as Entry
from morfi.errors import InputError, MorfiError
from morfi.serve.http import app as app_module
from morfi.serve.http.bodies import ChatBody, ChatMessage, CompletionBody, StreamOptions
from morfi.serve.http.gate import Gate, Limits
from morfi.serve.http.keys import Keys
from morfi.serve.http.server import Address, frontend_arguments
from morfi.serve.http.state import ServerState
from morfi.serve.http.wire import Comparison, Steering

GOOD: dict[str, Any] = {"prompt": "Q", "steering": {"latents": [{"id": 3, "alpha": 1.5}]}}
JSON = {"content-type": "application/json"}


@dataclass
class FakeEngine:
    """Loads what it is told, or fails; counts loads."""

    failure: Exception | None = None
    loaded: list[str] = field(default_factory=list)
    errored: bool = False
    model_config: Any = None
    served: Any = field(default_factory=lambda: SimpleNamespace(sha256="a", answers=True, started_on="a"))

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    async def check_health(self) -> None: ...

    async def collective_rpc(self, method: str) -> list[dict[str, int]]:
        assert method == "morfi_slots"
        return [{"n": 8, "used": 3, "followed": 0}]

    async def end_running(self) -> None: ...

    async def load_checkpoint(self, checkpoint: Any) -> None:
        if self.failure is not None:
            self.served.answers = not isinstance(self.failure, MorfiError) or self.failure.exit_code == 2
            raise self.failure
        self.loaded.append(checkpoint.sha256)
        self.served.sha256, self.served.answers = checkpoint.sha256, True


@dataclass
class FakeServing:
    """Answers with as many choices as asked for; `n_tokens` is what workers report of each."""

    n_tokens: list[int] | None
    requests: list[Any] = field(default_factory=list)
    system_fingerprint: str | None = None
    params: list[Any] = field(default_factory=list)

    def _run(self, request: Any) -> None:
        self.requests.append(request)
        self.params.append(request.to_sampling_params(8, {}))
        for followed in request._followed:
            followed.n_tokens = list(self.n_tokens or [])

    async def create_completion(self, request: Any, raw_request: Any) -> Any:
        self._run(request)
        if request.stream:
            return self.stream()
        choices = [CompletionResponseChoice(index=0, text="x", finish_reason="stop")]
        usage = UsageInfo(prompt_tokens=1, completion_tokens=1, total_tokens=2)
        return CompletionResponse(model="tiny", choices=choices, usage=usage)

    async def create_chat_completion(self, request: Any, raw_request: Any) -> Any:
        self._run(request)
        if request.stream:
            return self.stream()
        message = AnsweredMessage(role="assistant", content="x")
        choices = [ChatCompletionResponseChoice(index=0, message=message)]
        usage = UsageInfo(prompt_tokens=1, completion_tokens=1, total_tokens=2)
        return ChatCompletionResponse(model="tiny", choices=choices, usage=usage)

    async def stream(self) -> AsyncGenerator[str, None]:
        yield 'data: {"choices":[{"index":0,"text":"x","finish_reason":"stop"}]}\n\n'
        yield "data: [DONE]\n\n"


@dataclass
class Served:
    """The app, its state, and the fakes in it."""

    app: Any
    state: ServerState
    engine: FakeEngine
    serving: FakeServing

    def ask(self, *requests: tuple[str, str, Any], role: str = "") -> list[httpx.Response]:
        """The answers to some requests (method, path, JSON body or bytes), sent at the same time."""

        async def run() -> list[httpx.Response]:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await asyncio.gather(
                    *(
                        client.request(method, path, content=content_of(body), headers=JSON)
                        for method, path, body in requests
                    )
                )

        return asyncio.run(run())

    def post(self, path: str, body: Any = None) -> httpx.Response:
        return self.ask(("POST", path, body))[0]

    def get(self, path: str) -> httpx.Response:
        return self.ask(("GET", path, None))[0]


def content_of(body: Any) -> bytes | None:
    return body if body is None or isinstance(body, bytes) else json.dumps(body).encode()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    async def without_engine(*_: Any) -> None: ...

    def opened(name: str) -> Any:
        return SimpleNamespace(sha256={"base": "a", "level-100-seed-0-epoch-1": "b"}[name])

    monkeypatch.setattr(app_module, "init_app_state", without_engine)
    catalog = SimpleNamespace(
        layer=1,
        d_sae=96,
        checkpoints={one.id: one for one in (BASE, Condition(100, 0, "1", 1))},
        open=opened,
        median_norm=lambda sha256: {"a": 2.0, "b": 3.0}[sha256],
        moved=lambda amounts: abs(sum(amounts.values())),
        row_norm=lambda latent: 0.0 if latent == 95 else 1.5,
        experiment=SimpleNamespace(base=SimpleNamespace(sha256="a")),
    )
    engine, serving = FakeEngine(), FakeServing([7])

    async def make() -> Served:
        state = ServerState(
            engine=engine,  # type: ignore[arg-type]
            catalog=catalog,  # type: ignore[arg-type]
            gate=Gate(Limits(max_requests_in_flight=8, drain_s=0.2)),
            model="tiny",
            served="base",
            served_sha256="a",
            sae="the-sae",
            operations=("add", "project", "clamp"),
            tokenizer=None,
            needs_key=False,
        )
        arguments = frontend_arguments({"served_model_name": ["tiny"]}, Address())
        app = await app_module.make_app(state, arguments, Keys(), local=True)
        app.state.engine_client = engine
        app.state.openai_serving_completion = app.state.openai_serving_chat = serving
        return Served(app, state, engine, serving)

    return asyncio.run(make())


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == status
    return error


def test_a_steering_reaches_the_engine_in_raw_units_and_comes_back(served: Served) -> None:
    body = {**GOOD, "seed": 3, "user": "me", "steering": {**GOOD["steering"], "positions": "prompt"}}
    found = served.post("/v1/completions", body).json()
    assert found["steering_applied"] == {
        "layer": 1,
        "positions": "prompt",
        "checkpoint": "base",
        "latents": [{"id": 3, "op": "add", "alpha": 1.5, "strength": 3.0}],
        "n_tokens": [7],
    }
    (followed,) = served.serving.requests[0]._followed
    assert followed.steering == (Entry(1, Latent("the-sae", 3), "add", 3.0, "prompt"),)
    specification = served.serving.params[0].extra_args["morfi"]
    assert specification["report"] == "with_end"
    assert specification["steering"][0]["direction"] == {"sae": "the-sae", "latent": 3}
    assert served.serving.requests[0].seed == 3
    assert served.state.gate.n_in_flight == 0


def test_another_model_is_not_there(served: Served) -> None:
    assert (
        "tiny is served" in error_of(served.post("/v1/completions", {**GOOD, "model": "x"}), 404)["message"]
    )
    assert served.post("/v1/completions", {**GOOD, "model": "tiny"}).status_code == 200


def test_without_steering_nothing_is_added(served: Served) -> None:
    for body in ({"prompt": "Q"}, {"prompt": "Q", "steering": None}):
        assert "steering_applied" not in served.post("/v1/completions", body).json()
    assert [params.extra_args for params in served.serving.params] == [None, None]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_without_its_reports_is_not_given(served: Served, stream: bool) -> None:
    served.serving.n_tokens = None
    answer = served.post("/v1/completions", {**GOOD, "stream": stream})
    assert "steering_applied" not in answer.text
    if stream:
        assert '"code": 500' in answer.text
        assert answer.text.endswith("data: [DONE]\n\n")
    else:
        assert "have not reported" in error_of(answer, 500)["message"]
    assert served.state.gate.n_in_flight == 0


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        ({"id": 96, "alpha": 1}, "there are the latents 0 to 95"),
        ({"id": 95, "alpha": 1}, "leads nowhere"),
        ({"id": 3, "alpha": 8.1}, "at most 8"),
        ({"id": 3, "alpha": -1e308}, "at most 8"),
        ({"id": 3, "clamp": 12}, "by 9 median residual norms; at most 8"),
        ({"id": 3, "clamp": 86.0}, "64.5 median residual norms"),
        ({"id": 3, "op": "ablate"}, "cannot be done with this SAE; add, project, clamp can"),
        ({"id": 3, "alpha": "1"}, "valid number"),
        ({"id": 3.5, "alpha": 1}, "valid integer"),
        ({"id": True, "alpha": 1}, "valid integer"),
        ({"id": 3}, '"add" needs alpha'),
        ({"id": 3, "op": "project", "alpha": 1}, '"project" takes no alpha'),
        ({"id": 3, "alpha": 1, "clamp": 1}, '"clamp" takes no alpha'),
        ({"id": 3, "alpha": 1, "strength": 1}, "not permitted"),
    ],
)
def test_latents_that_cannot_be_steered_are_refused(served: Served, latent: Any, message: str) -> None:
    answer = served.post("/v1/completions", {"prompt": "Q", "steering": {"latents": [latent]}})
    error = error_of(answer, 422)
    assert message in error["message"]
    assert error["param"].startswith("steering.latents")
    assert not served.serving.requests


@pytest.mark.parametrize(
    ("latents", "status"),
    [
        ([{"id": 3, "alpha": 8}] * 8, 422),
        ([{"id": 3, "alpha": 5}, {"id": 4, "alpha": 5}], 422),
        ([{"id": 3, "alpha": 6}, {"id": 3, "clamp": 6}], 422),
        ([{"id": 3, "clamp": 6}] * 2, 200),  # one latent
        ([{"id": 3, "alpha": 9}, {"id": 3, "alpha": -2}], 200),
    ],
)
def test_the_limit_counts_what_is_added_together(served: Served, latents: Any, status: int) -> None:
    answer = served.post("/v1/completions", {"prompt": "Q", "steering": {"latents": latents}})
    assert answer.status_code == status
    assert "together they would move" in answer.text or status == 200


def test_an_answer_that_nothing_was_changed_for_says_so(served: Served) -> None:
    served.serving.n_tokens = [0]
    found = served.post("/v1/completions", GOOD).json()["steering_applied"]
    assert found["n_tokens"] == [0]
    assert "unsteered model" in found["note"]


@pytest.mark.parametrize(
    ("path", "limit", "status"),
    [
        ("/v1/completions", {"max_tokens": 1}, 422),
        ("/v1/completions", {"max_tokens": 0, "echo": True}, 422),
        ("/v1/completions", {"max_tokens": 2}, 200),
        ("/v1/completions", {}, 200),
        ("/v1/chat/completions", {"max_tokens": 1}, 422),
        ("/v1/chat/completions", {"max_tokens": 5, "max_completion_tokens": 1}, 422),
        ("/v1/chat/completions", {"max_tokens": 1, "max_completion_tokens": 5}, 200),
    ],
)
def test_steering_of_generated_tokens_needs_a_second_one(
    served: Served, path: str, limit: dict[str, Any], status: int
) -> None:
    body = {**PATHS[path], **limit, "steering": {**GOOD["steering"], "positions": "generated"}}
    found = served.post(path, body)
    assert found.status_code == status, found.text
    assert status == 200 or "never put into the model" in error_of(found, 422)["message"]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"prompt": "Q", "steering": {"latents": [{"id": 3, "alpha": NaN}]}}', 422),
        (b'{"prompt": "Q", "temperature": Infinity}', 422),
        (b'{"prompt": "\\ud800"}', 422),
        (b'{"prompt": "Q", "sterring": {}}', 422),
        (b'{"prompt": "Q", "vllm_xargs": {"morfi": "{}"}}', 422),
        (b'{"prompt": ["Q", 1]}', 422),
        (b'{"prompt": [[]]}', 422),
        (b"[" * 100_000, 400),
        (b'{"prompt": "Q", "seed": ' + b"9" * 5000 + b"}", 400),
        (b"\x80\x04\x95", 400),
        (b"{", 422),
        (b"", 422),
        (b"null", 422),
    ],
)
def test_bodies_that_are_wrong_are_refused_in_openais_words(
    served: Served, content: bytes, status: int
) -> None:
    assert error_of(served.post("/v1/completions", content), status)["message"]
    assert not served.serving.requests


def test_only_known_routes_are_there_and_the_document_names_what_they_refuse(served: Served) -> None:
    document = served.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/health",
        "/version",
        "/metrics",
        "/v1/models",
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/morfi/capabilities",
        "/v1/morfi/latents",
        "/v1/morfi/latents/{latent}",
        "/v1/morfi/questions",
        "/v1/morfi/checkpoints",
        "/v1/morfi/checkpoints/{name}/load",
        "/v1/morfi/compare",
    }
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert {"200", "401", "403", "413", "503"} <= set(operation["responses"]), (path, method)
    for path in ("/v1/responses", "/invocations", "/tokenize", "/docs", "/ping", "/load", "/v1/messages"):
        assert error_of(served.post(path, GOOD), 404)["message"] == "Not Found"
    assert served.get("/health").status_code == 200
    metrics = served.get("/metrics").text
    assert "morfi_vector_slots_used 3.0" in metrics
    assert "morfi_refused_requests_total{reason=" in metrics
    assert "morfi" in served.get("/").text


def test_too_many_answers_at_once_are_told_to_come_again(served: Served) -> None:
    async def slow(request: Any, raw_request: Any) -> Any:
        await asyncio.sleep(0.1)
        return await FakeServing([7]).create_completion(request, raw_request)

    served.serving.create_completion = slow  # type: ignore[method-assign]
    answers = served.ask(*[("POST", "/v1/completions", {"prompt": "Q", "n": 3})] * 3)
    refused = [answer for answer in answers if answer.status_code == 429]
    assert [answer.status_code for answer in answers].count(200) == 2
    assert [int(answer.headers["retry-after"]) for answer in refused] == [1]
    error_of(served.post("/v1/completions", {"prompt": "Q", "n": 9}), 422)


LOAD = "/v1/morfi/checkpoints/level-100-seed-0-epoch-1/load"


def test_a_load_changes_checkpoint_and_unit(served: Served) -> None:
    assert served.post(LOAD).json()["served"] == "level-100-seed-0-epoch-1"
    assert served.engine.loaded == ["b"]
    applied = served.post("/v1/completions", GOOD).json()["steering_applied"]
    assert (applied["checkpoint"], applied["latents"][0]["strength"]) == ("level-100-seed-0-epoch-1", 4.5)
    served.post(LOAD)
    assert served.engine.loaded == ["b"]
    error_of(served.post("/v1/morfi/checkpoints/level-1/load"), 404)


def test_a_load_that_is_refused_leaves_what_was_served(served: Served) -> None:
    served.engine.failure = InputError("/secret/folder holds another checkpoint")
    assert "/secret" not in error_of(served.post(LOAD), 409)["message"]
    assert served.post("/v1/completions", GOOD).json()["steering_applied"]["checkpoint"] == "base"


def test_after_a_load_that_failed_half_way_nothing_is_answered_until_one_succeeds(served: Served) -> None:
    served.engine.failure = MorfiError("the disk /secret died")
    error = served.post(LOAD)
    assert "/secret" not in error_of(error, 503)["message"]
    for path, body in (
        ("/v1/completions", GOOD),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Q"}]}),
        ("/v1/morfi/compare", {"prompt": "Q", "latents": [{"id": 1}], "strengths": [1]}),
    ):
        answer = served.post(path, body)
        assert "failed half way" in error_of(answer, 503)["message"]
        assert answer.headers["retry-after"]
    served.engine.failure = None
    assert served.post("/v1/morfi/checkpoints/base/load").status_code == 200
    assert served.engine.loaded == ["a"]
    assert served.post("/v1/completions", GOOD).status_code == 200


def test_requests_during_a_load_wait_for_it_and_those_before_it_end_first(served: Served) -> None:
    order: list[str] = []
    plain: Callable[..., Any] = served.serving.create_completion
    loaded = served.engine.load_checkpoint

    async def slow(request: Any, raw_request: Any) -> Any:
        await asyncio.sleep(0.05)
        order.append("answered")
        return await plain(request, raw_request)

    async def load(checkpoint: Any) -> None:
        order.append("loaded")
        await asyncio.sleep(0.05)
        await loaded(checkpoint)

    served.serving.create_completion = slow  # type: ignore[method-assign]
    served.engine.load_checkpoint = load  # type: ignore[method-assign]

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(served.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            early = asyncio.create_task(client.post("/v1/completions", json=GOOD))
            await asyncio.sleep(0.02)
            loading = asyncio.create_task(client.post(LOAD))
            await asyncio.sleep(0.01)
            late = await client.post("/v1/completions", json=GOOD)
            return [await early, await loading, late]

    early, loading, late = asyncio.run(run())
    assert [one.json()["checkpoint"] for one in (early, late)] == ["base", "level-100-seed-0-epoch-1"]
    assert loading.status_code == 200
    assert order == ["answered", "loaded", "answered"]


def test_a_load_that_answers_are_in_the_way_of_gives_up_or_ends_them(served: Served) -> None:
    ending = asyncio.Event()

    async def run_on(request: Any, raw_request: Any) -> Any:
        await ending.wait()
        choices = [CompletionResponseChoice(index=0, text="x", finish_reason="abort")]
        usage = UsageInfo(prompt_tokens=1, completion_tokens=1, total_tokens=2)
        return CompletionResponse(model="tiny", choices=choices, usage=usage)

    async def end_running() -> None:
        ending.set()

    served.serving.create_completion = run_on  # type: ignore[method-assign]
    served.engine.end_running = end_running  # type: ignore[method-assign]

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(served.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            running = asyncio.create_task(client.post("/v1/completions", json=GOOD))
            await asyncio.sleep(0.02)
            refused = await client.post(LOAD)
            assert not running.done()
            return [refused, await client.post(LOAD, params={"end_running": "true"}), await running]

    refused, loaded, ended = asyncio.run(run())
    assert "1 answers were still running" in error_of(refused, 409)["message"]
    assert loaded.json()["served"] == "level-100-seed-0-epoch-1"
    assert "a checkpoint is being loaded" in error_of(ended, 503)["message"]


CHAT = {"messages": [{"role": "user", "content": "Q"}]}
PATHS: dict[str, dict[str, Any]] = {"/v1/completions": {"prompt": "Q"}, "/v1/chat/completions": CHAT}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_every_answer_names_its_checkpoint(served: Served, path: str, stream: bool) -> None:
    def ask() -> Any:
        answer = served.post(path, {**PATHS[path], "stream": stream})
        assert answer.status_code == 200, answer.text
        if not stream:
            return answer.json()
        first, *_ = answer.text.split("\n\n")
        return json.loads(first.removeprefix("data: "))

    before, fingerprint = ask(), served.serving.system_fingerprint
    served.post(LOAD)
    assert (before["checkpoint"], ask()["checkpoint"]) == ("base", "level-100-seed-0-epoch-1")
    assert served.serving.system_fingerprint != fingerprint


# Fields of OpenAI's and vLLM's interfaces


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
        "strengths": [1.0],
        "role": "assistant",
    }
    given = {name: value for name, value in required.items() if name in body.model_fields}
    nulls = dict.fromkeys(name for name in (*body.model_fields, *body.NEUTRAL) if name not in given)
    assert body.model_validate({**given, **nulls}) == body.model_validate(given)


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
