"""A server over a bare model: SAEs and vectors, mixed in one request, without a find run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from morfi.checkpoints import resolve
from morfi.engine.directions import Direction
from morfi.engine.protocol import Sampling
from morfi.engine.steering import Capture, Latent, Steering
from morfi.latents.sae import load_sae
from morfi.questions.load import load_questions
from morfi.serve.engine import start_engine
from morfi.serve.http.norms import N_MEASURED

PROMPT = "Q: Which country is Toulouse in?\nA:"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, make_sae: Any) -> dict[str, Any]:
    """Two SAEs after different layers, and a file of vectors."""
    folder = tmp_path_factory.mktemp("steerable")
    draw = torch.Generator().manual_seed(0)
    vectors = {name: torch.randn(64, generator=draw) for name in ("up", "down")}
    save_file(vectors, folder / "vectors.safetensors")
    saes = [make_sae(folder / "late"), make_sae(folder / "early", layer=0, seed=4)]
    return {"sae": list(map(str, saes)), "vectors": str(folder / "vectors.safetensors"), "of": vectors}


@pytest.fixture(scope="module")
def bare(serve_bare: Any, served_model: Path, files: dict[str, Any], *, starts_vllm: None) -> Iterator[Any]:
    with serve_bare(sae=files["sae"], vectors=files["vectors"], ckpt=str(served_model)) as server:
        yield server


@pytest.fixture(scope="module")
def engine(served_model: Path, *, starts_vllm: None) -> Iterator[Any]:
    """The same model in this process."""
    overrides = {"kv_cache_memory_bytes": 1 << 24}
    with start_engine(resolve(str(served_model)), context=256, seed=0, overrides=overrides) as engine:
        yield engine


def test_capabilities_list_what_can_be_steered_along(bare: Any, files: dict[str, Any]) -> None:
    said = bare.get("/v1/morfi/capabilities").json()
    assert [(one["name"], one["layer"], one["find_runs"]) for one in said["saes"]] == [
        ("late", 1, []),
        ("early", 0, []),
    ]
    assert all("32 questions of world-facts" in one["norm_from"] for one in said["saes"])
    assert [(one["name"], one["length"]) for one in said["vectors"]] == [
        (name, pytest.approx(float(vector.norm()))) for name, vector in sorted(files["of"].items())
    ]
    assert (said["find_runs"], said["can_load"]) == ([], False)
    assert bare.get("/v1/morfi/checkpoints").json()["checkpoints"][0]["id"] == said["checkpoint"]
    assert bare.get("/v1/morfi/questions").json()["questions"] == []
    for path, status in (("latents", 404), ("questions?lost=true", 404), ("latents/3", 422)):
        assert bare.get(f"/v1/morfi/{path}").status_code == status
    details = bare.get("/v1/morfi/latents/3?sae=early").json()
    assert (details["sae"], details["find_run"], len(details["neighbours"])) == ("early", None, 10)
    assert (len(details["promoted"]), details["density"], details["top_questions"]) == (10, None, [])


def test_a_mixed_request_gives_what_python_gives(bare: Any, files: dict[str, Any], engine: Any) -> None:
    steering = {
        "latents": [{"sae": "late", "id": 3, "alpha": 1.5}, {"sae": "early", "id": 4, "clamp": 3.0}],
        "vectors": [{"vector": "up", "layer": 0, "alpha": -1.0, "positions": "generated"}],
        "positions": "prompt",
        "allow_large": True,
    }
    body = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0, "return_token_ids": True}
    found = bare.post("/v1/completions", {**body, "steering": steering}).json()
    units = {one["layer"]: one["median_norm"] for one in bare.get("/v1/morfi/capabilities").json()["saes"]}
    asked = load_questions("world-facts").splits["dev"][:N_MEASURED]
    prompts = [engine._tokenizer(f"Q: {one.text}\nA:")["input_ids"] for one in asked]
    captured = engine.generate(prompts, Sampling(max_tokens=1), capture=Capture((0, 1), "last_prompt"))
    for layer, unit in units.items():
        rows = torch.cat([one.captured[layer].values for (one,) in captured])
        assert unit == pytest.approx(float(rows.norm(dim=1).median()), rel=1e-4)
    late, early = (engine.register(load_sae(source).directions()) for source in files["sae"])
    vector = files["of"]["up"].double()
    up = engine.register(Direction((vector / vector.norm()).float()))
    entries = [
        Steering(1, Latent(late, 3), "add", 1.5 * units[1], "prompt"),
        Steering(0, Latent(early, 4), "clamp", 3.0, "prompt"),
        Steering(0, up, "add", -1.0 * units[0], "generated"),
    ]
    ids = engine._tokenizer(PROMPT)["input_ids"]
    ((expected,),) = engine.generate([ids], Sampling(max_tokens=8), steering=[entries])
    choice, applied = found["choices"][0], found["steering_applied"]
    assert choice["token_ids"][: len(expected.token_ids)] == list(expected.token_ids)
    assert applied["n_tokens"] == [len(ids) + len(choice["token_ids"]) - 1]
    assert [one["layer"] for one in (*applied["latents"], *applied["vectors"])] == [1, 0, 0]


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is it?"}]


@pytest.mark.parametrize("asked", [{"text": PROMPT}, {"messages": CHAT}, {"token_ids": [1, 9, 4, 77]}])
def test_activations_are_the_encoding_of_what_is_captured(
    bare: Any, files: dict[str, Any], engine: Any, asked: dict[str, Any]
) -> None:
    for sae, layer, source in (("late", 1, files["sae"][0]), ("early", 0, files["sae"][1])):
        answer = bare.post("/v1/morfi/activations", {**asked, "sae": sae, "top_k": 3})
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert (found["sae"], found["layer"]) == (sae, layer)
        ids = [one["token_id"] for one in found["tokens"]]
        if "messages" in asked:
            body = {"messages": CHAT, "max_tokens": 1, "return_token_ids": True}
            assert ids == bare.post("/v1/chat/completions", body).json()["prompt_token_ids"]
        elif "text" in asked:
            assert ids == engine._tokenizer(PROMPT)["input_ids"]
        ((completion,),) = engine.generate([ids], Sampling(max_tokens=1), capture=Capture((layer,), "all"))
        expected = load_sae(source).encode(completion.captured[0].values)
        assert len(found["tokens"]) == len(expected)
        for one, row in zip(found["tokens"], expected, strict=True):
            assert one["n_active"] == int((row > 0).sum())
            best = row.topk(3)
            assert [latent["id"] for latent in one["latents"]] == best.indices[best.values > 0].tolist()
            values = [latent["activation"] for latent in one["latents"]]
            assert values == pytest.approx(best.values[best.values > 0].tolist(), rel=1e-4)


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ({"text": "x"}, 422, "name one in sae: late, early"),
        ({"text": "x", "sae": "late", "layer": 0}, 422, "late reads after layer 1"),
        ({"text": "x", "token_ids": [1], "sae": "late"}, 422, "give one of text, messages and token_ids"),
        ({"sae": "late"}, 422, "give one of text"),
        ({"token_ids": [1 << 20], "sae": "late"}, 400, "out of vocabulary"),
        ({"text": "x" * 1100, "sae": "late"}, 422, "at most 1024 at a time"),
        ({"text": "x" * 300, "sae": "late"}, 422, "do not fit in the context"),
        ({"text": "x", "sae": "late", "top_k": 101}, 422, "less than or equal to 100"),
        ({"text": "x", "sae": "late", "steering": {}}, 422, "unknown field; leave it out"),
    ],
)
def test_activations_of_what_cannot_be_looked_at_are_refused(
    bare: Any, asked: dict[str, Any], status: int, message: str
) -> None:
    answer = bare.post("/v1/morfi/activations", asked)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]["message"]


def test_an_error_names_the_field_that_it_is_about(bare: Any) -> None:
    unknown = {"sae": "late", "id": 1 << 20}
    for path, body, param in (
        ("activations", {"token_ids": [1 << 20], "sae": "late"}, "token_ids"),
        ("activations", {"token_ids": [1] * 1025, "sae": "late"}, "token_ids"),
        ("activations", {"text": "x"}, "sae"),
        ("compare", {"prompt": "x", "strengths": [1], "latents": [unknown]}, "latents"),
        ("compare", {"prompt": "x", "strengths": [1], "vectors": [{"vector": "none"}]}, "vectors"),
    ):
        assert bare.post(f"/v1/morfi/{path}", body).json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("role", "said"), [("system", "Be brief."), ("user", "Where is it?"), ("assistant", "")]
)
def test_a_turn_of_a_chat_is_steered_at_its_own_tokens(
    bare: Any, engine: Any, files: dict[str, Any], role: str, said: str
) -> None:
    steering = {"latents": [{"sae": "late", "id": 3, "alpha": 1.5}], "positions": role}
    body = {"messages": CHAT, "max_tokens": 4, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    found = bare.post("/v1/chat/completions", {**body, "steering": steering}).json()
    applied, ids = found["steering_applied"], found["prompt_token_ids"]
    assert applied["n_tokens"] == [len(said.encode()) + 3 * (role == "assistant")]
    assert applied["latents"][0]["positions"] == role
    start = bytes(max(0, one - 3) for one in ids).find(said.encode())
    span = (len(ids), None) if role == "assistant" else (start, start + len(said.encode()))
    late = engine.register(load_sae(files["sae"][0]).directions())
    entry = Steering(1, Latent(late, 3), "add", applied["latents"][0]["strength"], (span,))
    sampling = Sampling(max_tokens=4)
    ((expected,),) = engine.generate([ids], sampling, steering=[[entry]])
    assert found["choices"][0]["token_ids"][: len(expected.token_ids)] == list(expected.token_ids)
    for path, other in (("/v1/completions", {"prompt": "Q"}), ("/v1/morfi/compare", {"prompt": "Q"})):
        amount = {"strengths": [1]} if "compare" in path else {}
        asked = {**other, "steering": steering} if not amount else {**other, **amount, **compared(steering)}
        answer = bare.post(path, asked)
        assert answer.status_code == 422, answer.text
        assert "are a turn of a chat" in answer.json()["error"]["message"]


def compared(steering: dict[str, Any]) -> dict[str, Any]:
    return {**steering, "latents": [{"sae": "late", "id": 3}]}


def test_a_comparison_takes_vectors(bare: Any) -> None:
    vectors = [{"vector": "up", "layer": 1}]
    body = {"question": "Where?", "vectors": vectors, "strengths": [-2, 2], "max_tokens": 4}
    found = bare.post("/v1/morfi/compare", body).json()
    plain = {"prompt": "Q: Where?\nA:", "max_tokens": 4, "temperature": 0, "stop": "\n"}
    for side in found["steered"]:
        steering = {"vectors": [{**vectors[0], "alpha": side["strength"]}]}
        answer = bare.post("/v1/completions", {**plain, "steering": steering}).json()
        assert side["text"] == answer["choices"][0]["text"]
        assert side["steering_applied"] == answer["steering_applied"]


def test_a_request_on_a_released_vector_ends_as_it_began(bare: Any) -> None:
    draw = torch.Generator().manual_seed(7)
    body = {"vectors": {"brief": torch.randn(64, generator=draw).tolist()}}
    url = "/v1/morfi/vectors"
    steering = {"vectors": [{"vector": "brief", "layer": 0, "alpha": 1.0}]}
    asked = {"prompt": PROMPT, "max_tokens": 120, "temperature": 0, "ignore_eos": True, "steering": steering}
    bare.post(url, body)
    before = bare.metric("morfi_vector_slots_used")
    expected = bare.post("/v1/completions", asked).json()["choices"][0]["text"]
    assert bare.metric("morfi_vector_slots_used") == before + 1
    parts: list[str] = []
    with (
        bare.client() as client,
        client.stream("POST", "/v1/completions", json={**asked, "stream": True}) as answer,
    ):
        for line in answer.iter_lines():
            if not parts and line:
                with bare.client() as other:
                    assert other.delete(f"{url}/brief").status_code == 200
            if line.startswith("data: {"):
                parts.append(json.loads(line.removeprefix("data: "))["choices"][0]["text"])
    assert "".join(parts) == expected
    assert bare.post("/v1/completions", asked).status_code == 422
    deadline = time.monotonic() + 10
    while bare.metric("morfi_vector_slots_used") > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert bare.metric("morfi_vector_slots_used") == before


def test_a_latent_of_no_sae_in_particular_is_refused(bare: Any) -> None:
    steering = {"latents": [{"id": 3, "alpha": 1.0}]}
    answer = bare.post("/v1/completions", {"prompt": PROMPT, "steering": steering})
    assert answer.status_code == 422
    assert "name one in sae: late, early" in answer.json()["error"]["message"]
