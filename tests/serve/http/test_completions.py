"""Completions and chats over HTTP, with OpenAI's own client: steered as asked, and as through Python."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

PROMPT = "Q: Which country is Testville 3 in?\nA:"
GREEDY: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
STEERING = {"latents": [{"id": 3, "alpha": 1.5}, {"id": 40, "op": "ablate"}], "positions": "all"}
N_PROMPT = 1 + len(PROMPT)


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def applied(answer: Any) -> Any:
    return answer.model_extra["steering_applied"]


def test_a_steered_completion_is_another_and_says_what_was_applied(
    client: openai.OpenAI, server: Any
) -> None:
    plain = client.completions.create(model="tiny", prompt=PROMPT, **GREEDY)
    steered = client.completions.create(
        model="tiny", prompt=PROMPT, **GREEDY, extra_body={"steering": STEERING}
    )
    assert "steering_applied" not in (plain.model_extra or {})
    assert steered.choices[0].text != plain.choices[0].text
    (sae,) = server.get("/v1/morfi/capabilities").json()["saes"]
    unit, own = sae["median_norm"], {"sae": "sae", "layer": 1, "positions": "all"}
    n_computed = N_PROMPT + steered.usage.completion_tokens - 1
    assert applied(steered) == {
        "checkpoint": "level-100-seed-0-epoch-early-stop",
        "latents": [
            {"id": 3, "op": "add", "alpha": 1.5, "strength": pytest.approx(1.5 * unit), **own},
            {"id": 40, "op": "ablate", "strength": 0.0, **own},
        ],
        "vectors": [],
        "n_tokens": [n_computed],
    }


def test_bos_stands_in_front_once_whoever_writes_it(client: openai.OpenAI, server: Any) -> None:
    plain, written = (
        client.completions.create(model="tiny", prompt=prompt, **GREEDY)
        for prompt in (PROMPT, f"<s>{PROMPT}")
    )
    assert plain.usage.prompt_tokens == written.usage.prompt_tokens == N_PROMPT
    assert plain.choices[0].text == written.choices[0].text
    with pytest.raises(openai.UnprocessableEntityError, match=r"some prompts begin with <s>; leave it out"):
        client.completions.create(model="tiny", prompt=[PROMPT, f"<s>{PROMPT}"], **GREEDY)
    compared = [
        server.post(
            "/v1/morfi/compare", {"prompt": prompt, "latents": [{"id": 3}], "strengths": [1.0]}
        ).json()
        for prompt in (PROMPT, f"<s>{PROMPT}")
    ]
    assert compared[0]["steered"] == compared[1]["steered"]


def test_a_stream_gives_the_same_text_and_ends_with_what_was_applied(client: Any) -> None:
    request = {"model": "tiny", "prompt": PROMPT, **GREEDY, "extra_body": {"steering": STEERING}}
    whole = client.completions.create(**request)
    for options in ({}, {"stream_options": {"include_usage": True}}):
        chunks = list(client.completions.create(**request, stream=True, **options))
        assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
        said = [chunk for chunk in chunks if "steering_applied" in (chunk.model_extra or {})]
        assert [applied(chunk) for chunk in said] == [applied(whole)]
        assert said[0] is [chunk for chunk in chunks if chunk.choices][-1]
        assert said[0].choices[0].finish_reason == whole.choices[0].finish_reason


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_and_answers_each_count(client: Any, stream: bool) -> None:
    request = {"model": "tiny", "prompt": [PROMPT, "Q: Why?\nA:"], "n": 2, "max_tokens": 4}
    found = client.completions.create(
        **request, temperature=1, seed=5, stream=stream, extra_body={"steering": STEERING, "ignore_eos": True}
    )
    if stream:
        chunks = list(found)
        (n_tokens,) = (applied(chunk) for chunk in chunks if "steering_applied" in (chunk.model_extra or {}))
    else:
        assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
        n_tokens = applied(found)
    short = len("Q: Why?\nA:") + 1
    assert n_tokens["n_tokens"] == [N_PROMPT + 3] * 2 + [short + 3] * 2


def test_a_seed_gives_the_same_samples_again(client: openai.OpenAI) -> None:
    def draw(seed: int, **steering: Any) -> list[str]:
        found = client.completions.create(
            model="tiny", prompt=PROMPT, max_tokens=8, temperature=1, n=3, seed=seed, extra_body=steering
        )
        return [choice.text for choice in found.choices]

    steered = draw(7, steering=STEERING)
    assert steered == draw(7, steering=STEERING)
    assert steered != draw(8, steering=STEERING)
    assert steered != draw(7)
    assert len(set(steered)) > 1


def test_the_end_of_a_line_found_by_the_engine_core_is_that_found_in_the_text(client: Any) -> None:
    newline, eos = 13, 1
    request = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "n": 8, "seed": 5, "stop": ["\n"]}
    no_text = [eos, *range(3 + 128, 259)]  # bytes that are no text by themselves
    own = {"logit_bias": {str(newline): 2} | {str(token): -100 for token in no_text}, "logprobs": 1}
    body = {"steering": STEERING, "return_token_ids": True}
    in_core = client.completions.create(**request, **own, extra_body=body)
    in_text = client.completions.create(**request, **own, extra_body=body | {"min_tokens": 1})
    n_ended = 0
    for one, other in zip(in_core.choices, in_text.choices, strict=True):
        if one.model_extra["token_ids"] == [newline]:
            continue  # with min_tokens that is no end
        assert one.to_dict() == other.to_dict()
        assert applied(in_core)["n_tokens"][one.index] == applied(in_text)["n_tokens"][one.index]
        assert "\n" not in one.text
        if one.finish_reason == "stop":
            n_ended += 1
            assert one.model_extra["stop_reason"] == "\n"
            assert one.model_extra["token_ids"][-1] == newline
    assert n_ended > 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_stop_string_that_ends_an_answer_is_the_one_that_vllm_finds(client: Any, stream: bool) -> None:
    def ask(**given: Any) -> Any:
        request = {"model": "tiny", "prompt": PROMPT, "max_tokens": 24, "temperature": 1, **given}
        # Bytes that are no text by themselves may hide a newline from vLLM.
        bias = {"13": 3} | {str(token): -100 for token in (1, *range(3 + 128, 259))}
        found = client.completions.create(**request, logit_bias=bias, stream=stream)
        chunks = list(found) if stream else [found]
        text = "".join(chunk.choices[0].text for chunk in chunks)
        return text, chunks[-1].choices[0].finish_reason, chunks[-1].choices[0].model_extra["stop_reason"]

    n_ended = 0
    for seed in range(12):
        full = ask(seed=seed)[0]
        place = full.find("\n")
        if place < 1:
            continue  # in the first token: with `min_tokens` it would not count
        last = full[place - 1 : place + 1]
        for stop in ([last, "\n"], ["\n", last], [full[max(0, place - 3) : place + 1], "\n"]):
            for include in (False, True):
                extra = {"include_stop_str_in_output": include}
                got = ask(seed=seed, stop=stop, extra_body=extra)
                # With `min_tokens` the engine core ends nothing, and vLLM finds the end in the text.
                assert got == ask(seed=seed, stop=stop, extra_body={**extra, "min_tokens": 1})
                n_ended += got[1] == "stop"
    assert n_ended


def test_a_stream_of_several_answers_that_echo_with_log_probabilities(server: Any) -> None:
    body = {"prompt": PROMPT, "max_tokens": 8, "temperature": 1, "n": 3, "echo": True, "logprobs": 2}
    for seed in range(4):
        answer = server.post("/v1/completions", {**body, "seed": seed, "stream": True})
        assert '"error"' not in answer.text
        chunks = [json.loads(part[6:]) for part in answer.text.split("\n\n") if part.startswith("data: {")]
        tokens: dict[int, int] = {}
        for choice in (choice for chunk in chunks for choice in chunk["choices"]):
            tokens[choice["index"]] = tokens.get(choice["index"], 0) + len(choice["logprobs"]["tokens"])
        whole = server.post("/v1/completions", {**body, "seed": seed}).json()["choices"]
        assert tokens == {one["index"]: len(one["logprobs"]["tokens"]) for one in whole}


def test_an_answers_message_goes_back_in_as_it_is(client: Any) -> None:
    request = {"model": "tiny", **GREEDY}
    messages: list[Any] = [{"role": "user", "content": "Hi"}]
    for _ in range(2):
        found = client.chat.completions.create(**request, messages=messages)
        messages += [found.choices[0].message, {"role": "user", "content": "And?"}]
    plain = [{"role": one["role"], "content": one["content"]} for one in map(dict, messages)]
    again = client.chat.completions.create(**request, messages=plain[:3])
    assert again.choices[0].message.content == plain[3]["content"]


def test_a_prompt_can_be_echoed_without_an_answer(client: Any) -> None:
    request = {"model": "tiny", "prompt": PROMPT, "max_tokens": 0, "temperature": 0}
    found = client.completions.create(**request, echo=True, logprobs=1)
    assert found.choices[0].text == PROMPT
    assert len(found.choices[0].logprobs.token_logprobs) == N_PROMPT
    steered = client.completions.create(
        **request, echo=True, logprobs=1, extra_body={"steering": STEERING, "top_k": -1}
    )
    assert steered.choices[0].logprobs.token_logprobs != found.choices[0].logprobs.token_logprobs
    with pytest.raises(openai.UnprocessableEntityError, match="max_tokens"):
        client.completions.create(**request)


def test_logprobs_come_with_steering(client: openai.OpenAI) -> None:
    found = client.completions.create(
        model="tiny", prompt=PROMPT, **GREEDY, logprobs=3, extra_body={"steering": STEERING}
    )
    logprobs = found.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.token_logprobs) == found.usage.completion_tokens
    assert all(len(top) >= 3 for top in logprobs.top_logprobs)


def test_positions_decide_which_tokens_are_steered(client: openai.OpenAI) -> None:
    wanted = {"all": N_PROMPT + 3, "prompt": N_PROMPT, "generated": 3, "last_prompt": 1}
    for positions, n in wanted.items():
        steering = {"latents": [{"id": 3, "alpha": 1.0}], "positions": positions}
        found = client.completions.create(
            model="tiny",
            prompt=PROMPT,
            max_tokens=4,
            temperature=0,
            extra_body={"steering": steering, "ignore_eos": True},
        )
        assert applied(found)["n_tokens"] == [n]


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_is_steered_too(client: Any, stream: bool) -> None:
    request = {"model": "tiny", "messages": [{"role": "user", "content": "Where?"}], **GREEDY}
    plain = client.chat.completions.create(**request)
    found = client.chat.completions.create(**request, stream=stream, extra_body={"steering": STEERING})
    if stream:
        chunks = list(found)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        last = chunks[-1]
    else:
        text, last = found.choices[0].message.content, found
    assert text != plain.choices[0].message.content
    assert applied(last)["n_tokens"][0] >= len("user: Where?\nA:")


def test_http_gives_what_python_gives(
    server: Any, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    from morfi.engine.protocol import Sampling
    from morfi.engine.steering import Latent, Steering
    from morfi.serve.engine import start_engine
    from morfi.serve.http.catalog import load_catalog
    from morfi.store import Store
    from morfi.terminal import TerminalProgress

    monkeypatch.setenv("MORFI_CACHE", str(server.made.cache))
    cases: list[tuple[list[dict[str, Any]], str]] = [
        ([{"id": i, "alpha": a}], positions)
        for i, a, positions in ((3, 1.5, "all"), (9, -2.0, "generated"), (17, 4.0, "last_prompt"))
    ]
    cases += [([{"id": 5, "clamp": 3.0}, {"id": 6, "op": "project"}, {"id": 7, "op": "ablate"}], "prompt")]
    cases += [([{"id": 5, "op": "clamp_interval", "low": 2.0, "high": 3.0}], "all")]
    with TerminalProgress() as progress:
        catalog = load_catalog(Store(server.made.db), server.made.find_run, None, progress)
    checkpoint = catalog.open("level-100-seed-0-epoch-early-stop")
    unit = catalog.median_norm(checkpoint.sha256)
    overrides = {"kv_cache_memory_bytes": 1 << 24}
    with start_engine(checkpoint, context=256, seed=0, overrides=overrides) as engine:
        sae = engine.register(catalog.sae.directions())
        steering = [
            [
                Steering(
                    1,
                    Latent(sae, one["id"]),
                    one.get("op", "clamp" if "clamp" in one else "add"),
                    one.get("clamp", one.get("high", one.get("alpha", 0.0) * unit)),
                    positions,
                    one.get("low", 0.0),
                )
                for one in latents
            ]
            for latents, positions in cases
        ]
        ids = engine._tokenizer(PROMPT)["input_ids"]
        expected = engine.generate([ids] * len(cases), Sampling(max_tokens=8), steering=steering)
    for (latents, positions), (completion,) in zip(cases, expected, strict=True):
        found = client.completions.create(
            model="tiny",
            prompt=PROMPT,
            **GREEDY,
            stop="\n",
            extra_body={
                "steering": {"latents": latents, "positions": positions, "layer": 1, "allow_large": True},
                "return_token_ids": True,
            },
        )
        assert found.choices[0].model_extra["token_ids"] == list(completion.token_ids)
        assert applied(found)["n_tokens"] == [completion.applied[0].n_tokens]


def test_64_clients_with_different_steerings_each_get_what_they_get_alone(server: Any) -> None:
    def steering(i: int) -> dict[str, Any]:
        return {"latents": [{"id": i, "alpha": (-1) ** i * (1 + i % 5)}], "allow_large": True}

    bodies = [
        {
            "prompt": f"Q: Which country is Testville {i} in?\nA:",
            "max_tokens": 8,
            "temperature": 0,
            "return_token_ids": True,
            **({"steering": steering(i)} if i % 8 else {}),
        }
        for i in range(64)
    ]

    def ask(body: dict[str, Any]) -> Any:
        answer = server.post("/v1/completions", body)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        return found["choices"][0]["token_ids"], found.get("steering_applied")

    alone = [ask(body) for body in bodies]
    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(ask, bodies))
    assert together == alone
    assert len({tuple(token_ids) for token_ids, _ in alone}) > 32


def test_of_two_limits_the_one_that_vllm_takes_says_what_is_generated(server: Any) -> None:
    chat = {
        "messages": [{"role": "user", "content": "Where?"}],
        "steering": {"latents": [{"id": 3, "alpha": 1.5}], "positions": "generated"},
        "temperature": 0,
    }
    answer = server.post("/v1/chat/completions", {**chat, "max_tokens": 1, "max_completion_tokens": 4})
    assert answer.json()["usage"]["completion_tokens"] > 1
    answer = server.post("/v1/chat/completions", {**chat, "max_tokens": 4, "max_completion_tokens": 1})
    assert (answer.status_code, answer.json()["error"]["type"]) == (422, "positions")


@pytest.mark.parametrize("stream", [False, True])
def test_a_token_that_does_not_exist_is_refused_before_anything_runs(server: Any, stream: bool) -> None:
    for prompt in ([0, 784055], [[0, 9], [784055]]):
        answer = server.post("/v1/completions", {"prompt": prompt, "stream": stream, **GREEDY})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
        assert "784055 is out of vocabulary" in answer.json()["error"]["message"]
    assert "Traceback" not in server.log.read_text()


def test_fields_that_are_not_known_are_refused_and_not_ignored(server: Any) -> None:
    chat = {"messages": [{"role": "user", "content": "Where?"}], **GREEDY}
    for path, body in (("/v1/completions", {"prompt": PROMPT, **GREEDY}), ("/v1/chat/completions", chat)):
        extras: tuple[dict[str, Any], ...] = (
            {"sterring": STEERING},
            {"Steering": STEERING},
            {"vllm_xargs": {"morfi": json.dumps({"steering": []})}},
            {"extra_args": {"morfi": {}}},
            {"use_beam_search": True},
            {"kv_transfer_params": {"a": 1}},
            {"chat_template": "x"},
            {"prompt_embeds": "gASVAA=="},
        )
        for extra in extras:
            answer = server.post(path, {**body, **extra})
            assert answer.status_code == 422, (extra, answer.text)
            (name,) = extra
            assert name in answer.json()["error"]["param"]


def test_other_ways_to_generate_are_not_there(server: Any) -> None:
    for path in (
        "/v1/responses",
        "/v1/messages",
        "/v1/chat/completions/batch",
        "/v1/completions/render",
        "/inference/v1/generate",
        "/generative_scoring",
        "/invocations",
        "/tokenize",
        "/v1/load_lora_adapter",
        "/sleep",
        "/collective_rpc",
        "/docs",
        "/redoc",
        "/server_info",
    ):
        for answer in (server.post(path, {"prompt": PROMPT, "steering": STEERING}), server.get(path)):
            assert answer.status_code in (404, 405), (path, answer.status_code)


def test_nothing_shows_a_path(server: Any) -> None:
    folder = str(server.made.db.parent)
    for path in (
        "/v1/models",
        "/v1/morfi/capabilities",
        "/v1/morfi/checkpoints",
        "/openapi.json",
        "/metrics",
    ):
        answer = server.get(path)
        assert answer.status_code == 200
        assert folder not in answer.text
    assert [model["id"] for model in server.get("/v1/models").json()["data"]] == ["tiny"]
