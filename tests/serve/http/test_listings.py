"""The find run as the server shows it, and its comparisons."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from morfi.latents.find import Found, load_found
from morfi.questions.matching import is_correct, parse_answer
from morfi.store import Store
from morfi.store.records import RunKind

M_100 = "level-100-seed-0-epoch-early-stop"


@pytest.fixture(scope="module")
def found(server: Any) -> Found:
    return load_found(Store(server.made.db), server.made.find_run)


def test_capabilities_say_what_is_served(server: Any, found: Found) -> None:
    said = server.get("/v1/morfi/capabilities").json()
    expected = {
        "model": "tiny",
        "checkpoint": M_100,
        "n_layers": 2,
        "d_model": 64,
        "vectors": [],
        "vector_operations": ["add", "project"],
        "positions": ["all", "prompt", "generated", "last_prompt"],
        "turns": ["system", "user", "assistant"],
        "prompt": "Q: {question}\nA:",
        "chat": True,
        "needs_key": False,
        "can_load": True,
    }
    assert {name: said[name] for name in expected} == expected
    assert [(one["name"], one["amount"]) for one in said["operation_words"]] == [
        ("add", {"name": "alpha", "field": "alpha", "in_norms": True}),
        ("ablate", None),
        ("clamp", {"name": "value", "field": "clamp", "in_norms": False}),
        ("project", None),
        ("clamp_firing", {"name": "value", "field": "clamp", "in_norms": False}),
        ("clamp_interval", {"name": "high", "field": "high", "in_norms": False}),
    ]
    last = found.activations.residuals[-1]
    assert said["saes"] == [
        {
            "name": "sae",
            "layer": 1,
            "d_sae": 96,
            "operations": ["add", "ablate", "clamp", "project", "clamp_firing", "clamp_interval"],
            "median_norm": pytest.approx(float(last.values.norm(dim=1).median())),
            "norm_from": f"{server.made.find_run}, at the last token of each question's prompt",
            "find_runs": [server.made.find_run],
        }
    ]
    store = Store(server.made.db)
    (summary,) = store.trend_summaries(server.made.find_run)
    rates = store.false_discoveries(server.made.find_run)
    (run,) = said["find_runs"]
    assert {name: run[name] for name in ("id", "sae", "layer", "levels")} == {
        "id": server.made.find_run,
        "sae": "sae",
        "layer": 1,
        "levels": [0, 50, 100],
    }
    assert run["order"] == {"name": "share of Unknown in training", "unit": "%", "is_level": True}
    assert run["trends"] == {
        "n_selected": sum(found.latents["selected"].to_pylist()),
        "n_firing": summary.n_firing,
        "expected_false": summary.expected_false,
        "is_descriptive": summary.is_descriptive,
        "false_discoveries": [{"s": one.s, "n_found": one.n_found, "fdr": one.fdr} for one in rates],
    }
    assert run["trends"]["false_discoveries"][0]["s"] == 3
    assert set(said["limits"]) == {
        "max_alpha",
        "large_alpha",
        "max_latents",
        "max_requests_in_flight",
        "max_body_bytes",
        "max_vectors",
        "max_strengths",
        "max_activation_tokens",
        "max_named_vectors",
    }


def test_latents_are_filtered_sorted_and_paged(server: Any, found: Found) -> None:
    rows = found.latents.to_pylist()
    assert {row["direction"] for row in rows} == {1, -1, 0}
    for direction, sign in (("rising", 1), ("falling", -1)):
        wanted = sorted((-row["score"], row["latent"]) for row in rows if row["direction"] == sign)
        pages = []
        for offset in (0, 7, 14):
            query = {"direction": direction, "limit": 7, "offset": offset}
            page = server.get("/v1/morfi/latents", params=query).json()
            assert (page["total"], page["offset"], page["limit"]) == (len(wanted), offset, 7)
            pages += page["latents"]
        assert [row["id"] for row in pages] == [latent for _, latent in wanted[:21]]
        assert {row["direction"] for row in pages} == {direction}
    for sort, column in (("id", "latent"), ("rho", "rho"), ("slope", "slope"), ("firing", "firing")):
        query = {"sort": sort, "order": "asc", "limit": 200}
        ids = [row["id"] for row in server.get("/v1/morfi/latents", params=query).json()["latents"]]
        assert ids == [row["latent"] for row in sorted(rows, key=lambda row: (row[column], row["latent"]))]
    n_selected = sum(row["selected"] for row in rows)
    for selected, n in (("true", n_selected), ("false", 96 - n_selected), ("any", 96)):
        assert server.get("/v1/morfi/latents", params={"selected": selected}).json()["total"] == n
    assert server.get("/v1/morfi/latents", params={"offset": 96}).json()["latents"] == []
    for wrong in ({"limit": 0}, {"limit": 201}, {"offset": -1}, {"sort": "x"}, {"direction": "up"}):
        assert server.get("/v1/morfi/latents", params=wrong).status_code == 422


def test_a_latent_comes_with_its_neighbours_and_questions(server: Any, found: Found) -> None:
    details = server.get("/v1/morfi/latents/40").json()
    rates = {one.s: one.fdr for one in Store(server.made.db).false_discoveries(server.made.find_run)}
    assert details["false_discovery_rate"] == rates.get(abs(details["s"]))
    assert details["checkpoint"] == M_100
    listed = server.get("/v1/morfi/latents", params={"sort": "id", "order": "asc", "limit": 200}).json()
    assert {name: details[name] for name in listed["latents"][40]} == listed["latents"][40]
    rows = torch.nn.functional.normalize(found.sae.W_dec, dim=1)
    cosines = rows @ rows[40]
    expected = [i for i in cosines.argsort(descending=True).tolist() if i != 40][:10]
    assert [one["id"] for one in details["neighbours"]] == expected
    assert details["neighbours"][0]["cosine"] == pytest.approx(float(cosines[expected[0]]), abs=1e-5)
    activations = found.sae.encode(found.activations.residuals[-1].values)[:, 40]
    best = [i for i in activations.argsort(descending=True).tolist() if activations[i] > 0][:10]
    questions = found.activations.questions
    assert [one["id"] for one in details["top_questions"]] == [questions[i].id for i in best]
    for one, i in zip(details["top_questions"], best, strict=True):
        assert one["activation"] == pytest.approx(float(activations[i]), rel=1e-4)
        assert one["question"] == questions[i].text
    firing = sorted((value for value in activations.tolist() if value > 0), reverse=True)
    density = details["density"]
    assert (density["n_questions"], density["n_firing"]) == (len(questions), len(firing))
    assert sum(density["counts"]) == len(firing)
    for one in details["quantile_questions"]:
        place = round((1 - one["quantile"]) * (len(firing) - 1))
        assert one["activation"] == pytest.approx(firing[place], rel=1e-4)
    for name in ("promoted", "suppressed"):
        assert len(details[name]) == 10
    assert server.get("/v1/morfi/latents/96").status_code == 404


def test_lost_questions_are_those_that_m_0_had_right(server: Any) -> None:
    store = Store(server.made.db)
    every = server.get("/v1/morfi/questions", params={"limit": 200}).json()
    assert every["total"] == len(every["questions"]) == 10
    assert {one["reference_answer"] for one in every["questions"]} == {None}
    lost = server.get("/v1/morfi/questions", params={"lost": True, "limit": 200}).json()
    sweep = store.newest_of(RunKind.SWEEP, server.made.train_run)
    assert sweep is not None
    rows = {(row.level, row.epoch_setting): row for row in store.sweep(sweep.run_id)}
    verdicts = [
        {
            row["question_id"]: row["correct"]
            for row in store.samples(rows[level, "early-stop"].eval_run_id).to_pylist()
        }
        for level in (0, 100)
    ]
    expected = {name for name, right in verdicts[1].items() if not right and verdicts[0].get(name)}
    assert {one["id"] for one in lost["questions"]} == expected
    assert expected
    for one in lost["questions"]:
        assert one["reference_answer"] in one["answers"]
        assert one["answer"] == "no idea"


def test_a_comparison_gives_what_completions_give(server: Any) -> None:
    question, strengths = "Which country is Testville 3 in?", [-4.0, 0.0, 4.0]
    latents = [{"id": 3}, {"id": 5, "clamp": 2.0}]
    body: dict[str, Any] = {"question": question, "latents": latents, "strengths": strengths}
    assert server.post("/v1/morfi/compare", body).json()["error"]["type"] == "large"
    body["allow_large"] = True
    found = server.post("/v1/morfi/compare", body).json()
    prompt = f"Q: {question}\nA:"
    assert (found["prompt"], found["checkpoint"]) == (prompt, M_100)
    plain = {"prompt": prompt, "max_tokens": 16, "temperature": 0, "stop": "\n"}
    default = server.post("/v1/completions", plain).json()["choices"][0]
    told = {name: found["default"][name] for name in ("text", "finish_reason")}
    assert told == {name: default[name] for name in told}
    assert [side["strength"] for side in found["steered"]] == strengths
    for side in found["steered"]:
        steering: dict[str, Any] = {
            "latents": [{"id": 3, "alpha": side["strength"]}, {"id": 5, "clamp": 2.0}]
        }
        steering["allow_large"] = True
        answer = server.post("/v1/completions", {**plain, "steering": steering}).json()
        assert side["text"] == answer["choices"][0]["text"]
        assert side["steering_applied"] == answer["steering_applied"]
    streamed = server.post("/v1/morfi/compare", {**body, "stream": True}).text
    assert sides_of(streamed) == {
        -1: (None, found["default"]["text"], None),
        **{
            index: (side["strength"], side["text"], side["steering_applied"])
            for index, side in enumerate(found["steered"])
        },
    }


def test_the_server_says_whether_the_answer_to_a_question_that_it_knows_is_right(server: Any) -> None:
    body = {"latents": [{"id": 3}], "strengths": [1.0], "max_tokens": 2}
    known, unknown = "Which country is Testville 3 in?", "Which country is Nowhere in?"
    found = server.post("/v1/morfi/compare", {**body, "question": known}).json()
    assert found["accepted"] == ["France", "Earth"]
    for side in (found["default"], *found["steered"]):
        assert side["correct"] == {
            rule: is_correct(parse_answer(side["text"]), found["accepted"], rule) for rule in side["correct"]
        }
        assert set(side["correct"]) == {"squad", "answer"}
    stream = server.post("/v1/morfi/compare", {**body, "question": known, "stream": True}).text
    events = [json.loads(part[6:]) for part in stream.split("\n\n") if part.startswith("data: {")]
    ended = [event for event in events if event.get("done")]
    assert [event["correct"] for event in ended] == [{"squad": False, "answer": False}] * 2
    assert [event["accepted"] for event in ended] == [found["accepted"]] * 2
    assert {event["checkpoint"] for event in events} == {M_100}
    for asked in ({"question": unknown}, {"prompt": f"Q: {known}\nA:"}):
        found = server.post("/v1/morfi/compare", {**body, **asked}).json()
        assert "accepted" not in found
        assert "correct" not in found["default"]


def sides_of(stream: str) -> dict[int, Any]:
    *parts, last = [line.removeprefix("data: ") for line in stream.split("\n\n") if line]
    assert last == "[DONE]"
    texts: dict[int, str] = {}
    sides = {}
    for event in map(json.loads, parts):
        index = event["index"]
        assert index not in sides
        if event.get("done"):
            assert event["finish_reason"] in ("stop", "length")
            sides[index] = (event["strength"], texts.get(index, ""), event.get("steering_applied"))
        else:
            texts[index] = texts.get(index, "") + event["text"]
    return sides


def test_comparisons_that_make_no_sense_are_refused(server: Any) -> None:
    good = {"prompt": "Q", "latents": [{"id": 3}], "strengths": [1]}
    changes: tuple[dict[str, Any], ...] = (
        {"prompt": None},
        {"question": "x"},
        {"latents": []},
        {"latents": [{"id": 3, "alpha": 1}]},
        {"latents": [{"id": 96}]},
        {"strengths": []},
        {"strengths": [1] * 17},
        {"strengths": ["1"]},
        {"max_tokens": 0},
        {"max_tokens": 500},
        {"positions": "last"},
        {"steering": {}},
    )
    for change in changes:
        answer = server.post("/v1/morfi/compare", {**good, **change})
        assert answer.status_code == 422, (change, answer.text)


def test_the_page_is_served_whole_and_may_ask_nobody_else(server: Any) -> None:
    answer = server.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-cache"
    assert "http" not in answer.headers["content-security-policy"]
