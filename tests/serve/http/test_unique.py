"""A key that stands twice in a body is refused: the second would undo the first without a word."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fake_app import Served, error_of


@pytest.mark.parametrize(
    ("url", "content", "key"),
    [
        ("/v1/completions", '{"prompt": "Q", "steering": {"vectors": []}, "steering": null}', "steering"),
        ("/v1/completions", '{"prompt": "Q", "steering": {"latents": [], "latents": []}}', "latents"),
        (
            "/v1/chat/completions",
            '{"messages": [{"role": "user", "content": "a", "content": "b"}]}',
            "content",
        ),
        ("/v1/morfi/compare", '{"question": "a", "question": "b", "strengths": [1]}', "question"),
        ("/v1/morfi/activations", '{"text": "a", "text": "b"}', "text"),
        ("/v1/morfi/vectors", '{"vectors": {"up": [1, 0, 0, 0], "up": [0, 1, 0, 0]}}', "up"),
    ],
)
def test_it_is_refused_by_name(served: Served, url: str, content: str, key: str) -> None:
    async def post() -> httpx.Response:
        async with served.client() as client:
            return await client.post(url, content=content, headers={"content-type": "application/json"})

    answer = asyncio.run(post())
    assert f'the key "{key}" stands twice in one object; give it once' in error_of(answer, 422)["message"]
