"""Completions over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def server(serve_made: Any) -> Iterator[Any]:
    with serve_made() as server:
        yield server


def test_a_steered_completion_says_what_was_applied(server: Any) -> None:
    body = {"prompt": "Q: Who?\nA:", "max_tokens": 8, "temperature": 0}
    steering = {"latents": [{"id": 3, "alpha": 2.0}]}
    plain = server.post("/v1/completions", body)
    steered = server.post("/v1/completions", {**body, "steering": steering})
    assert plain.status_code == steered.status_code == 200, (plain.text, steered.text)
    assert "steering_applied" not in plain.json()
    assert steered.json()["steering_applied"]["n_tokens"] == [18]
