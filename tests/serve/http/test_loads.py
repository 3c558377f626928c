"""Loading a checkpoint over HTTP: what is answered before, during and after it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
from fake_app import GOOD, LOAD, Served, error_of
from vllm.entrypoints.openai.completion.protocol import (
    CompletionResponse,
    CompletionResponseChoice,
)
from vllm.entrypoints.serve.engine.protocol import UsageInfo

from morfi.errors import InputError, MorfiError


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
        async with served.client() as client:
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
        async with served.client() as client:
            running = asyncio.create_task(client.post("/v1/completions", json=GOOD))
            await asyncio.sleep(0.02)
            refused = await client.post(LOAD)
            assert not running.done()
            return [refused, await client.post(LOAD, params={"end_running": "true"}), await running]

    refused, loaded, ended = asyncio.run(run())
    assert "1 answers were still running" in error_of(refused, 409)["message"]
    assert loaded.json()["served"] == "level-100-seed-0-epoch-1"
    assert "a checkpoint is being loaded" in error_of(ended, 503)["message"]
