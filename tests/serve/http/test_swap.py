"""Checkpoints loaded while requests come: those that run end on the old weights, none on a mixture."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

M_100, M_0, BASE = "level-100-seed-0-epoch-early-stop", "level-0-seed-0-epoch-early-stop", "base"
BODY = {
    "prompt": "Q: Which country is Testville 3 in?\nA:",
    "max_tokens": 24,
    "temperature": 0,
    "ignore_eos": True,
}
STEERED = {**BODY, "steering": {"latents": [{"id": 3, "alpha": 1.0}]}}


def load(server: Any, name: str) -> Any:
    answer = server.post(f"/v1/morfi/checkpoints/{name}/load")
    assert answer.status_code == 200, answer.text
    return answer.json()


def text(server: Any, body: dict[str, Any]) -> str:
    answer = server.post("/v1/completions", body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def test_checkpoints_are_listed_and_loaded(clean: Any) -> None:
    found = clean.get("/v1/morfi/checkpoints").json()
    assert found["served"] == M_100
    assert [one["id"] for one in found["checkpoints"]][:3] == [BASE, "level-0-seed-0-epoch-1", M_0]
    assert all(0 <= one["accuracy"] <= 1 for one in found["checkpoints"])
    texts = {}
    n_swaps = clean.metric("morfi_checkpoint_swaps_total")
    for name in (BASE, M_0, M_100):
        assert load(clean, name)["served"] == name
        capabilities = clean.get("/v1/morfi/capabilities").json()
        assert capabilities["checkpoint"] == name
        texts[name] = (text(clean, BODY), text(clean, STEERED), capabilities["median_norm"])
    assert len(set(texts.values())) == 3
    assert clean.metric("morfi_checkpoint_swaps_total") == n_swaps + 3
    applied = clean.post("/v1/completions", STEERED).json()["steering_applied"]
    assert applied["checkpoint"] == M_100


def test_requests_during_a_load_are_of_one_checkpoint_or_told_to_come_again(clean: Any) -> None:
    expected = {}
    for name in (BASE, M_100):
        load(clean, name)
        expected[name] = {str(body): text(clean, body) for body in (BODY, STEERED)}
    assert expected[BASE] != expected[M_100]
    stop = threading.Event()
    refused: list[Any] = []
    n_answered = 0

    def ask(body: dict[str, Any]) -> int:
        n = 0
        while not stop.is_set():
            answer = clean.post("/v1/completions", body)
            if answer.status_code == 503:
                assert int(answer.headers["retry-after"]) >= 1
                refused.append(answer)
                stop.wait(0.05)
                continue
            found = answer.json()
            served = [name for name in expected if expected[name][str(body)] == found["choices"][0]["text"]]
            assert served, found
            if "steering" in body:
                assert found["steering_applied"]["checkpoint"] in served
            n += 1
        return n

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(ask, body) for body in [BODY, STEERED] * 4]
        try:
            for name in (BASE, M_100, BASE, M_100):
                load(clean, name)
        finally:
            stop.set()
        n_answered = sum(client.result() for client in clients)
    assert n_answered >= 8
    assert refused


def test_a_checkpoint_whose_files_are_gone_is_refused_and_the_old_one_served(clean: Any) -> None:
    from pathlib import Path

    from morfi.store import Store

    store = Store(clean.made.db)
    row = next(
        row for row in store.checkpoints(clean.made.train_run) if (row.level, row.epoch_setting) == (50, "1")
    )
    weights = Path(row.path) / "adapter_model.safetensors"
    content = weights.read_bytes()
    before = text(clean, BODY)
    try:
        weights.write_bytes(content[:-4] + b"\x00\x00\x00\x01")
        answer = clean.post("/v1/morfi/checkpoints/level-50-seed-0-epoch-1/load")
    finally:
        weights.write_bytes(content)
    assert answer.status_code == 409
    assert row.path not in answer.text
    assert text(clean, BODY) == before
    assert clean.get("/v1/morfi/checkpoints").json()["served"] == M_100
