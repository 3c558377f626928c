"""Vectors that an admin adds and releases while the server runs."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
import torch
from fake_app import JSON, FakeServing, Served, error_of
from safetensors.torch import save

from morfi.engine.directions import Direction
from morfi.serve.http.vector_routes import BYTES

URL = "/v1/morfi/vectors"
UP = {"vectors": {"up": [0, 3.0, 4.0, 0]}}
STEERED = {"prompt": "Q", "steering": {"vectors": [{"vector": "up", "layer": 1, "alpha": 1.0}]}}


def send(served: Served, content: bytes, kind: str) -> httpx.Response:
    async def run() -> httpx.Response:
        async with served.client() as client:
            return await client.post(URL, content=content, headers={"content-type": kind})

    return asyncio.run(run())


def release(served: Served, name: str) -> httpx.Response:
    return served.ask(("DELETE", f"{URL}/{name}", None))[0]


def test_a_vector_is_added_listed_used_and_released(served: Served) -> None:
    made = served.post(URL, UP).json()["vectors"]
    assert made == [{"name": "up", "sha256": Direction(torch.tensor([0, 3.0, 4.0, 0])).sha256, "length": 5.0}]
    assert served.get(URL).json()["vectors"] == made
    found = served.post("/v1/completions", STEERED).json()["steering_applied"]["vectors"]
    assert (found[0]["vector"], found[0]["strength"]) == ("up", 2.0)
    unit = served.state.steerable.vectors["up"].direction.sha256
    assert release(served, "up").json() == made[0]
    assert served.engine.forgotten == [unit]
    assert served.get(URL).json() == {"vectors": []}
    assert "no such vector" in error_of(served.post("/v1/completions", STEERED), 422)["message"]
    error_of(release(served, "up"), 404)
    assert len(served.state.steerable._admission.registry) == 0


@pytest.mark.parametrize("kind", [*BYTES, "Application/Safetensors; charset=x"])
def test_the_bytes_of_a_file_are_taken_as_well(served: Served, kind: str) -> None:
    content = save({"a": torch.ones(4), "b": torch.tensor([1.0, 0, 0, 0], dtype=torch.float16)})
    made = send(served, content, kind).json()["vectors"]
    assert [(one["name"], one["length"]) for one in made] == [("a", 2.0), ("b", 1.0)]


def test_a_request_keeps_the_vector_that_it_runs_along(served: Served) -> None:
    seen: list[Any] = []

    async def slow(request: Any, raw_request: Any) -> Any:
        await asyncio.sleep(0.2)
        seen.append((list(served.engine.forgotten), len(served.state.steerable._admission.registry)))
        return await FakeServing([7]).create_completion(request, raw_request)

    served.serving.create_completion = slow  # type: ignore[method-assign]
    gone: list[str] = []
    served.state.steerable.on_gone = gone.append
    served.post(URL, UP)
    unit = served.state.steerable.vectors["up"].direction.sha256

    async def run() -> list[httpx.Response]:
        async with served.client() as client:
            asked = asyncio.ensure_future(client.post("/v1/completions", json=STEERED))
            await asyncio.sleep(0.05)
            return [await client.delete(f"{URL}/up"), await asked]

    assert [answer.status_code for answer in asyncio.run(run())] == [200, 200]
    assert seen == [([], 1)]
    assert gone == [unit]
    assert len(served.state.steerable._admission.registry) == 0


@pytest.mark.parametrize(
    ("content", "kind", "status", "message"),
    [
        (b'{"vectors": {"up": [1, 2, 3]}}', JSON["content-type"], 422, 'vector "up": this vector: width 3'),
        (b'{"vectors": {"up": [0, 0, 0, 0]}}', JSON["content-type"], 422, "leads nowhere"),
        (b'{"vectors": {"up": [NaN, 0, 0, 0]}}', JSON["content-type"], 422, "vectors.up.0"),
        (b'{"vectors": {"up": [1e999, 0, 0, 0]}}', JSON["content-type"], 422, "vectors.up.0"),
        (b'{"vectors": {"up": ["1", 0, 0, 0]}}', JSON["content-type"], 422, "vectors.up.0"),
        (b'{"vectors": {"up": []}}', JSON["content-type"], 422, "vectors.up"),
        (b'{"vectors": {}}', JSON["content-type"], 422, "vectors"),
        (b'{"vectors": {"../up": [1, 0, 0, 0]}}', JSON["content-type"], 422, "cannot be a vector's name"),
        (b'{"vectors": {"up": "/etc/passwd"}}', JSON["content-type"], 422, "vectors.up"),
        (b'{"vectors": "/etc/passwd"}', JSON["content-type"], 422, "vectors"),
        (b'{"file": "/etc/passwd"}', JSON["content-type"], 422, "vectors"),
        (b"{", JSON["content-type"], 400, "not JSON"),
        (b"[" * 100_000, JSON["content-type"], 400, "not JSON"),
        (b"\x80\x04\x95", BYTES[0], 422, "not the bytes of a safetensors file"),
        (save({"up": torch.ones(2, 2)}), BYTES[0], 422, r"the shape (2, 2)"),
        (save({"up": torch.tensor([float("inf"), 0, 0, 0])}), BYTES[0], 422, "NaN or infinity"),
        (b"x=1", "application/x-www-form-urlencoded", 422, "expected one of application/json"),
    ],
    ids=range(17),
)
def test_what_is_no_vector_is_refused_and_leaves_nothing(
    served: Served, content: bytes, kind: str, status: int, message: str
) -> None:
    assert message in error_of(send(served, content, kind), status)["message"]
    assert served.get(URL).json() == {"vectors": []}


def test_a_name_is_taken_once_and_there_is_an_end_to_vectors(served: Served) -> None:
    served.post(URL, UP)
    error = error_of(served.post(URL, {"vectors": {"new": [1, 0, 0, 0], "up": [1, 0, 0, 0]}}), 409)
    assert 'vector "up": the name is taken' in error["message"]
    many = {"vectors": {f"v{number}": [1, 0, 0, number] for number in range(256)}}
    assert (
        "1 vectors are held and 256 more are given; at most 256"
        in error_of(served.post(URL, many), 409)["message"]
    )
    del many["vectors"]["v0"]
    assert len(served.post(URL, many).json()["vectors"]) == 255


def test_a_vector_under_two_names_stays_until_the_last_is_released(served: Served) -> None:
    served.post(URL, {"vectors": {"a": [1, 0, 0, 0], "b": [2, 0, 0, 0]}})
    release(served, "a")
    assert served.engine.forgotten == []
    release(served, "b")
    assert len(served.engine.forgotten) == 1
