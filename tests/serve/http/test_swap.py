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
    fingerprint = clean.post("/v1/completions", BODY).json()["system_fingerprint"]
    for name in (M_100, BASE, M_0):
        assert load(clean, name)["served"] == name
        capabilities = clean.get("/v1/morfi/capabilities").json()
        assert capabilities["checkpoint"] == name
        texts[name] = (text(clean, BODY), text(clean, STEERED), capabilities["saes"][0]["median_norm"])
    assert len(set(texts.values())) == 3
    assert clean.metric("morfi_checkpoint_swaps_total") == n_swaps + 2
    other = clean.post("/v1/completions", STEERED).json()
    assert other["system_fingerprint"] != fingerprint
    load(clean, M_100)
    found = clean.post("/v1/completions", STEERED).json()
    assert found["steering_applied"]["checkpoint"] == found["checkpoint"] == M_100
    assert found["system_fingerprint"] == fingerprint


def test_requests_during_a_load_wait_and_each_answer_is_of_the_checkpoint_that_it_names(clean: Any) -> None:
    expected = {}
    for name in (BASE, M_100):
        load(clean, name)
        expected[name] = {str(body): text(clean, body) for body in (BODY, STEERED)}
    assert expected[BASE] != expected[M_100]
    stop = threading.Event()

    def ask(body: dict[str, Any]) -> list[str]:
        named = []
        while not stop.is_set():
            answer = clean.post("/v1/completions", body)
            assert answer.status_code == 200, answer.text
            found = answer.json()
            assert found["choices"][0]["text"] == expected[found["checkpoint"]][str(body)]
            if "steering" in body:
                assert found["steering_applied"]["checkpoint"] == found["checkpoint"]
            named.append(found["checkpoint"])
        return named

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(ask, body) for body in [BODY, STEERED] * 4]
        try:
            for name in (BASE, M_100, BASE, M_100):
                load(clean, name)
        finally:
            stop.set()
        named = [name for client in clients for name in client.result()]
    assert set(named) == {BASE, M_100}


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
