"""A server with keys and small limits."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

USER, ADMIN = "user-key-123", "admin-key-456"
BODY = {"prompt": "Q: Who?\nA:", "max_tokens": 4, "temperature": 0}
LOAD = "/v1/morfi/checkpoints/base/load"


@pytest.fixture(scope="module")
def guarded(serve_made: Any) -> Iterator[Any]:
    limits = {"max_requests_in_flight": 4, "max_vectors": 4, "max_body_bytes": 2000, "read_s": 5.0}
    limits |= {"drain_s": 0.02}
    environment = {"MORFI_API_KEY": USER, "MORFI_ADMIN_KEY": ADMIN}
    with serve_made(environment, limits=limits) as server:
        server.headers = {"authorization": f"Bearer {USER}"}
        yield server


def test_everything_but_health_and_the_page_needs_a_key(guarded: Any) -> None:
    paths = [
        "/metrics",
        "/openapi.json",
        "/v1/models",
        "/version",
        "/v1/morfi/capabilities",
        "/v1/morfi/latents",
    ]
    for key in ("", "Bearer wrong-key-000"):
        headers = {"authorization": key}
        for path in paths:
            assert guarded.get(path, headers=headers).status_code == 401
        for path in ("/v1/completions", "/v1/chat/completions", "/v1/morfi/compare", LOAD):
            assert guarded.post(path, BODY, headers=headers).status_code == 401
        assert guarded.get("/health", headers=headers).status_code == 200
        assert "content-security-policy" in guarded.get("/", headers=headers).headers
    for path in paths:
        assert guarded.get(path).status_code == 200


def test_only_the_admin_loads_and_is_told_so(guarded: Any) -> None:
    answer = guarded.post(LOAD)
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "key")
    assert not guarded.get("/v1/morfi/capabilities").json()["can_load"]
    admin = {"authorization": f"Bearer {ADMIN}"}
    found = guarded.get("/v1/morfi/capabilities", headers=admin).json()
    assert (found["can_load"], found["needs_key"]) == (True, True)
    assert guarded.post(LOAD, headers=admin).json()["served"] == "base"


def test_only_the_admin_changes_vectors(guarded: Any) -> None:
    body, url = {"vectors": {"up": [1.0] * 64}}, "/v1/morfi/vectors"
    assert guarded.post(url, body).status_code == 403
    admin = {"authorization": f"Bearer {ADMIN}"}
    assert guarded.post(url, body, headers=admin).status_code == 200
    assert [one["name"] for one in guarded.get(url).json()["vectors"]] == ["up"]
    with guarded.client() as client:
        assert client.delete(f"{url}/up").status_code == 403
        assert client.delete(f"{url}/up", headers=admin).status_code == 200


def test_more_answers_than_may_be_in_flight_are_told_to_come_again(guarded: Any) -> None:
    long = {**BODY, "n": 4, "max_tokens": 200, "ignore_eos": True, "temperature": 1}
    with ThreadPoolExecutor(1) as pool:
        for _ in range(20):  # on a busy machine the long request may end before it is looked at
            running = pool.submit(guarded.post, "/v1/completions", long)
            while not guarded.metric("morfi_answers_in_flight") and not running.done():
                time.sleep(0.01)
            answer = guarded.post("/v1/completions", BODY)
            assert running.result().status_code == 200
            if answer.status_code != 200:
                break
    assert (answer.status_code, answer.json()["error"]["type"]) == (429, "in_flight")
    assert int(answer.headers["retry-after"]) >= 1
    assert guarded.post("/v1/completions", BODY).status_code == 200
    assert guarded.post("/v1/completions", {**BODY, "n": 5}).status_code == 422


@pytest.mark.parametrize("steering", [None, {"latents": [{"id": 3, "alpha": 1}]}], ids=["plain", "steered"])
@pytest.mark.parametrize("stream", [False, True])
def test_answers_in_the_way_of_a_load_go_on_or_are_ended_with_an_error(
    guarded: Any, stream: bool, steering: Any
) -> None:
    admin = {"authorization": f"Bearer {ADMIN}"}
    long = {**BODY, "n": 4, "max_tokens": 240, "ignore_eos": True, "temperature": 1, "stream": stream}
    for wait_s in (0.05, 0.1, 0.02, 0.2, 0.01, 0.4, 0.05, 0.1):  # the answers may end by themselves before
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(guarded.post, "/v1/completions", {**long, "steering": steering})
            time.sleep(wait_s)
            refused = guarded.post(LOAD, headers=admin)
            loaded = guarded.post(f"{LOAD}?end_running=true", headers=admin)
            ended = running.result()
        if refused.status_code == 409 and "ended" in ended.text:
            break
    assert (refused.status_code, refused.json()["error"]["type"]) == (409, "busy")
    assert loaded.status_code == 200
    words = "this answer was ended because a checkpoint is being loaded"
    if stream:
        assert ended.text.count('"error"') == 1
        assert words in ended.text
        assert ended.text.endswith("data: [DONE]\n\n")
    else:
        assert (ended.status_code, ended.json()["error"]["type"]) == (503, "ended")
        assert words in ended.text
    assert guarded.post("/v1/completions", BODY).json()["checkpoint"] == "base"
    assert guarded.metric("morfi_followed_requests") == 0


def test_more_vectors_than_may_be_in_use_are_refused(guarded: Any) -> None:
    latents = [{"id": number, "alpha": 1} for number in range(5)]
    answer = guarded.post("/v1/completions", {**BODY, "steering": {"latents": latents}})
    assert (answer.status_code, answer.json()["error"]["type"]) == (429, "vectors")
    assert guarded.post("/v1/completions", {**BODY, "steering": {"latents": latents[:4]}}).status_code == 200


def test_large_and_slow_requests_are_given_up(guarded: Any) -> None:
    assert guarded.post("/v1/completions", {**BODY, "prompt": "Q" * 2000}).status_code == 413
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {USER}\r\n"
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=60) as sock:
        sock.sendall(f"{head}content-length: 100\r\n\r\n{{".encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 408")


def test_refusals_are_counted_by_reason_and_keys_are_not_logged(guarded: Any) -> None:
    guarded.get("/v1/models", headers={"authorization": "Bearer wrong-key-000"})
    text = guarded.get("/metrics").text
    for reason in ("key", "in_flight", "vectors", "body", "slow"):
        assert f'morfi_refused_requests_total{{reason="{reason}"}}' in text
    assert "vllm:num_requests_running" in text
    log = guarded.log.read_text()
    assert USER not in log
    assert ADMIN not in log
