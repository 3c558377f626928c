"""The HTTP app without an engine, whose part is played by a fake."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionResponse,
    ChatCompletionResponseChoice,
)
from vllm.entrypoints.openai.chat_completion.protocol import ChatMessage as AnsweredMessage
from vllm.entrypoints.openai.completion.protocol import (
    CompletionResponse,
    CompletionResponseChoice,
)
from vllm.entrypoints.serve.engine.protocol import ModelCard, ModelList, UsageInfo

from morfi.conditions.condition import BASE, Condition
from morfi.engine.directions import Direction
from morfi.errors import InputError, MorfiError
from morfi.serve.http import app as app_module
from morfi.serve.http.gate import Gate, Limits
from morfi.serve.http.keys import Keys
from morfi.serve.http.norms import Norms
from morfi.serve.http.server import Address, frontend_arguments
from morfi.serve.http.state import ServerState
from morfi.serve.http.steerable import ServedSae, Steerable
from morfi.serve.http.unembedding import Unembedding
from morfi.serve.plugin.bank import Registry

GOOD: dict[str, Any] = {"prompt": "Q", "steering": {"latents": [{"id": 3, "alpha": 1.5}]}}
JSON = {"content-type": "application/json"}
LOAD = "/v1/morfi/checkpoints/level-100-seed-0-epoch-1/load"
CHAT = {"messages": [{"role": "user", "content": "Q"}]}
PATHS: dict[str, dict[str, Any]] = {"/v1/completions": {"prompt": "Q"}, "/v1/chat/completions": CHAT}


@dataclass
class FakeEngine:
    """Loads what it is told, or fails; counts loads."""

    failure: Exception | None = None
    loaded: list[str] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)  # names of vectors
    errored: bool = False
    model_config: Any = None
    served: Any = field(default_factory=lambda: SimpleNamespace(sha256="a", answers=True, started_on="a"))

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    async def check_health(self) -> None: ...

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        if method == "morfi_forget":
            self.forgotten += args
            return [None]
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


class FakeModels:
    """Lists the one model that is served."""

    async def show_available_models(self) -> ModelList:
        return ModelList(data=[ModelCard(id="tiny", root="tiny", max_model_len=8)])


class FakeSae(ServedSae):
    """An SAE of 96 latents along one direction, the last of them empty, after layer 1."""

    operations = ("add", "project", "clamp", "clamp_interval")


def make_sae(name: str, layer: int | None = 1, *, norm_rescaled: bool = False) -> FakeSae:
    import torch

    rows = torch.zeros(96, 4)
    rows[:95, 0] = 1.5
    sae = SimpleNamespace(
        W_dec=rows,
        encoder=SimpleNamespace(d_sae=96),
        has_own_latents=False,
        norm_rescaled=norm_rescaled,
        decoder_rows=lambda: name,
    )
    return FakeSae(name, sae, f"sha-{name}", layer)  # type: ignore[arg-type]


class FakeAdmission:
    """Takes every SAE under its own name with a "the-" before it, and directions of four numbers."""

    n_layers, d_model = 2, 4

    def __init__(self) -> None:
        self.registry = Registry()

    def register(self, what: Any) -> str:
        if not isinstance(what, Direction):
            return f"the-{what}"
        if len(what.vector) != self.d_model:
            raise InputError(f"this vector: width {len(what.vector)}")
        return self.registry.add(what)


@dataclass
class Served:
    """The app, its state, and the fakes in it."""

    app: Any
    state: ServerState
    engine: FakeEngine
    serving: FakeServing

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://localhost")

    def ask(self, *requests: tuple[str, str, Any]) -> list[httpx.Response]:
        """The answers to some requests (method, path, JSON body or bytes), sent at the same time."""

        async def run() -> list[httpx.Response]:
            async with self.client() as client:
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


def make_served(monkeypatch: pytest.MonkeyPatch) -> Served:
    """The app with fakes for the engine and vLLM's handlers, over a catalog of M_100 and the base."""

    async def without_engine(*_: Any) -> None: ...

    def opened(name: str) -> Any:
        return SimpleNamespace(sha256={"base": "a", "level-100-seed-0-epoch-1": "b"}[name])

    monkeypatch.setattr(app_module, "init_app_state", without_engine)
    sae = make_sae("sae")
    base = SimpleNamespace(sha256="a")
    catalog = SimpleNamespace(
        run_id="find-1",
        layer=1,
        sae=sae,
        series=SimpleNamespace(base=base),
        checkpoints={one.id: one for one in (BASE, Condition(100, 0, "1", 1))},
        open=opened,
        median_norm=lambda sha256: {"a": 2.0, "b": 3.0}[sha256],
    )
    engine, serving = FakeEngine(), FakeServing([7])

    async def make() -> Served:
        state = ServerState(
            engine=engine,  # type: ignore[arg-type]
            catalogs={"find-1": catalog},  # type: ignore[dict-item]
            steerable=Steerable(FakeAdmission(), [sae]),  # type: ignore[arg-type]
            norms=Norms(engine, [catalog], lambda: ([], "")),  # type: ignore[list-item]
            gate=Gate(Limits(max_requests_in_flight=8, drain_s=0.2)),
            model="tiny",
            served="base",
            served_sha256="a",
            tokenizer=None,
            unembedding=Unembedding(Path(), None),
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
