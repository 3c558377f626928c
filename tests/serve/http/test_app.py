"""The HTTP app without an engine: its routes, the bodies that it refuses, and how many answers at once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fake_app import GOOD, LOAD, PATHS, FakeModels, FakeServing, Served, error_of


def test_another_model_is_not_there(served: Served) -> None:
    assert (
        "tiny is served" in error_of(served.post("/v1/completions", {**GOOD, "model": "x"}), 404)["message"]
    )
    assert served.post("/v1/completions", {**GOOD, "model": "tiny"}).status_code == 200


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
        (b'{"prompt": []}', 422),
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
    message = error_of(served.post("/v1/completions", content), status)["message"]
    reasons = message.split("; ")
    assert all(reasons)
    assert len(set(reasons)) == len(reasons)
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
        "/v1/morfi/activations",
        "/v1/morfi/vectors",
        "/v1/morfi/vectors/{name}",
    }
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert {"200", "401", "403", "413", "503"} <= set(operation["responses"]), (path, method)
    for path in ("/v1/responses", "/invocations", "/tokenize", "/docs", "/ping", "/load", "/v1/messages"):
        assert error_of(served.post(path, GOOD), 404)["message"] == "Not Found"
    assert served.get("/health").status_code == 200
    assert served.post("/v1/completions", {}).status_code == 422
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


def test_the_list_of_models_names_the_checkpoint_that_is_served(served: Served) -> None:
    served.app.state.openai_serving_models = FakeModels()

    def listed() -> tuple[str, str, str]:
        (model,) = served.get("/v1/models").json()["data"]
        return model["id"], model["checkpoint"], model["checkpoint_sha256"]

    assert listed() == ("tiny", "base", "a")
    served.post(LOAD)
    assert listed() == ("tiny", "level-100-seed-0-epoch-1", "b")


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
