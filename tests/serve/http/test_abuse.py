"""Bad input and abuse: each gets its 4xx, and the server is as before."""

from __future__ import annotations

import asyncio
import json
import math
import pickle
import socket
import time
from collections import Counter
from typing import Any

import httpx
import pytest

BODY = {"prompt": "Q: Who?\nA:", "max_tokens": 4, "temperature": 0}
JSON = {"content-type": "application/json"}


def steered(**latent: Any) -> dict[str, Any]:
    return {**BODY, "steering": {"latents": [{"id": 3, "alpha": 1.0} | latent]}}


def refused(answer: httpx.Response, status: int = 422) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert "steering_applied" not in answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == status
    return error


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400])
@pytest.mark.parametrize("field", ["alpha", "clamp", "temperature"])
def test_numbers_that_are_none_are_refused(clean: Any, number: str, field: str) -> None:
    latent = f'{{"id": 3, "{field}": {number}}}' if field != "temperature" else '{"id": 3, "alpha": 1}'
    temperature = number if field == "temperature" else "0"
    content = f'{{"prompt": "Q", "temperature": {temperature}, "steering": {{"latents": [{latent}]}}}}'
    refused(clean.post("/v1/completions", content=content, headers=JSON))


def test_huge_strengths_are_refused(clean: Any) -> None:
    limit = clean.get("/v1/morfi/capabilities").json()["limits"]["max_alpha"]
    for value in (limit * 1.001, -limit * 1.001, 1e30, -1e308):
        error = refused(clean.post("/v1/completions", steered(alpha=value)))
        assert f"at most {limit:g}" in error["message"]
        latents = [{"id": 3, "clamp": math.copysign(1e300, value)}]
        refused(clean.post("/v1/completions", {**BODY, "steering": {"latents": latents}}))
        compared = {"prompt": "Q", "latents": [{"id": 3}], "strengths": [0, value]}
        refused(clean.post("/v1/morfi/compare", compared))
    body: dict[str, Any] = steered(alpha=limit)
    assert refused(clean.post("/v1/completions", body), 400)["type"] == "large"
    body["steering"]["allow_large"] = True
    assert clean.post("/v1/completions", body).status_code == 200


def test_ids_that_are_no_latents_are_refused(clean: Any) -> None:
    for latent in (96, 1 << 30, 1 << 31, -1, 10**30, 1.5, "3", "../../etc/passwd", None, True, [3]):
        refused(clean.post("/v1/completions", steered(id=latent)))
    assert "0 to 95" in refused(clean.post("/v1/completions", steered(id=96)))["message"]


def test_another_layer_is_refused(clean: Any) -> None:
    for layer in (0, 2, -1, 10**9):
        body = steered()
        body["steering"]["layer"] = layer
        assert "layer" in refused(clean.post("/v1/completions", body))["message"]


def test_steerings_that_mean_nothing_are_refused(clean: Any) -> None:
    cases: list[Any] = [
        {},
        {"latents": []},
        {"latents": [{"id": 1, "alpha": 1}] * 9},
        {"latents": [{"id": 1}]},
        {"latents": [{"id": 1, "alpha": 1, "clamp": 1}]},
        {"latents": [{"id": 1, "op": "ablate", "alpha": 1}]},
        {"latents": [{"id": 1, "op": "clamp", "alpha": 1}]},
        {"latents": [{"id": 1, "op": "explode", "alpha": 1}]},
        {"latents": [{"id": 1, "alpha": "1"}]},
        {"latents": [{"id": 1, "alpha": 1, "vector": [0.0]}]},
        {"latents": [{"id": 1, "alpha": 1}], "positions": "some"},
        {"latents": [{"id": 1, "alpha": 1}], "positions": [0]},
        {"latents": {"id": 1, "alpha": 1}},
        [{"id": 1, "alpha": 1}],
        "latents",
        1,
        True,
    ]
    for steering in cases:
        for stream in (False, True):
            refused(clean.post("/v1/completions", {**BODY, "stream": stream, "steering": steering}))


def test_requests_out_of_all_proportion_are_refused(clean: Any) -> None:
    cases: list[dict[str, Any]] = [
        {"n": 17},
        {"n": 0},
        {"logprobs": 21},
        {"logprobs": -1},
        {"max_tokens": 1 << 40},
        {"max_tokens": 0},
        {"prompt": ["Q"] * 65},
        {"prompt": []},
        {"prompt": ""},
        {"prompt": [[]]},
        {"prompt": [-1]},
        {"stop": ["x"] * 17},
        {"logit_bias": {"../x": 1}},
        {"prompt": ["Q"] * 64, "n": 16},
    ]
    for case in cases:
        refused(clean.post("/v1/completions", {**BODY, **case}))
    refused(clean.post("/v1/completions", {**BODY, "prompt": "Q" * 5000}), 400)
    refused(clean.post("/v1/completions", {**BODY, "prompt": [1 << 30]}), 400)
    refused(clean.post("/v1/completions", {**BODY, "model": "another"}), 404)
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]
    refused(clean.post("/v1/chat/completions", {"messages": messages}))


def test_bodies_that_are_no_json_are_refused(clean: Any) -> None:
    contents = [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b'{"prompt": "\\ud800", "max_tokens": 2}',
        b'{"model": "\\udfff", "prompt": "Q"}',
        b'{"\\ud800": 1, "prompt": "Q"}',
        b"[" * 100_000,
        b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"prompt": "Q", "seed": ' + b"9" * 5000 + b"}",
    ]
    for content in contents:
        answer = clean.post("/v1/completions", content=content, headers=JSON)
        assert answer.status_code in (400, 422), (content[:50], answer.text)
        assert answer.json()["error"]["message"]


def test_pickles_are_refused_unread(clean: Any) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (time.sleep, (60,))

    bomb = pickle.dumps(Bomb())
    for kind in ("application/octet-stream", "application/python-pickle", "application/json"):
        answer = clean.post("/v1/completions", content=bomb, headers={"content-type": kind})
        assert answer.status_code in (400, 415, 422)
    answer = clean.post("/v1/completions", {**BODY, "prompt_embeds": bomb.hex()})
    refused(answer)
    assert answer.elapsed.total_seconds() < 30


def test_a_body_of_10_mb_is_refused(clean: Any) -> None:
    refused(clean.post("/v1/completions", {**BODY, "prompt": "Q" * 10_000_000}), 413)


def test_ids_like_paths_name_nothing(clean: Any) -> None:
    for name in (
        "..",
        "%2e%2e%2fetc",
        "../../etc/passwd",
        "..%2F..%2Fetc%2Fpasswd",
        "base%2F..%2Fbase",
        "%00",
        "base%0a",
    ):
        for path in (f"/v1/morfi/latents/{name}", f"/v1/morfi/checkpoints/{name}/load"):
            answers = [clean.get(path), clean.post(path)]
            for answer in answers:
                assert answer.status_code in (404, 405, 422), (path, answer.status_code)
                assert "root:" not in answer.text
    for path in (
        "/page.html",
        "/static/x",
        "/../serve/page.html",
        "/v1/morfi/latents/96",
        "/v1/morfi/latents/-1",
    ):
        assert clean.get(path).status_code in (404, 422)


def test_a_client_that_hangs_up_in_the_middle_of_a_stream_leaves_nothing(clean: Any) -> None:
    body = {**steered(), "stream": True, "max_tokens": 200, "ignore_eos": True, "temperature": 1, "n": 4}
    for _ in range(5):
        with clean.client() as client, client.stream("POST", "/v1/completions", json=body) as answer:
            assert answer.status_code == 200
            next(answer.iter_lines())
        comparison = {
            "prompt": "Q",
            "latents": [{"id": 2}],
            "strengths": [1, 2],
            "stream": True,
            "max_tokens": 200,
        }
        with clean.client() as client, client.stream("POST", "/v1/morfi/compare", json=comparison) as answer:
            next(answer.iter_lines())
    with socket.create_connection(("127.0.0.1", clean.port)) as sock:
        content = json.dumps({**body, "stream": False}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n"
        sock.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + content)
        time.sleep(0.5)


def test_1000_different_vectors_at_once_are_steered_or_refused(clean: Any) -> None:
    """Of 96 latents, two a request and in every order: hundreds of specifications, all latents in use."""

    async def run() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=clean.url, timeout=300, limits=limits) as client:
            return await asyncio.gather(
                *(
                    client.post(
                        "/v1/completions",
                        json={
                            **BODY,
                            "steering": {
                                "latents": [
                                    {"id": i % 96, "alpha": 1 + i / 1000},
                                    {"id": (i * 7 + 1) % 96, "alpha": -1},
                                ],
                                "allow_large": True,
                            },
                        },
                    )
                    for i in range(1000)
                )
            )

    answers = asyncio.run(run())
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) <= {200, 429}
    assert statuses[200] >= 200
    for answer in answers:
        if answer.status_code == 200:
            assert answer.json()["steering_applied"]["n_tokens"][0] >= len("Q: Who?\nA:") + 1
        else:
            assert int(answer.headers["retry-after"]) >= 1
    assert clean.metric("morfi_vector_slots_used") <= clean.metric("morfi_vector_slots")
