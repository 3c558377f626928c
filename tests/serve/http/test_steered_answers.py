"""A steering over HTTP: in raw units to the engine, refused, or told of in the answer."""

from __future__ import annotations

from typing import Any

import pytest
from fake_app import GOOD, PATHS, Served, error_of

from morfi.engine.steering import Latent
from morfi.engine.steering import Steering as Entry


def test_a_steering_reaches_the_engine_in_raw_units_and_comes_back(served: Served) -> None:
    body = {**GOOD, "seed": 3, "user": "me", "steering": {**GOOD["steering"], "positions": "prompt"}}
    found = served.post("/v1/completions", body).json()
    latent = {"id": 3, "sae": "sae", "op": "add", "alpha": 1.5, "strength": 3.0}
    assert found["steering_applied"] == {
        "checkpoint": "base",
        "latents": [{**latent, "layer": 1, "positions": "prompt"}],
        "vectors": [],
        "n_tokens": [7],
    }
    (followed,) = served.serving.requests[0]._followed
    assert followed.steering == (Entry(1, Latent("the-sae", 3), "add", 3.0, "prompt"),)
    specification = served.serving.params[0].extra_args["morfi"]
    assert specification["report"] == "with_end"
    assert specification["steering"][0]["direction"] == {"sae": "the-sae", "latent": 3}
    assert served.serving.requests[0].seed == 3
    assert served.state.gate.n_in_flight == 0


def test_without_steering_nothing_is_added(served: Served) -> None:
    for body in ({"prompt": "Q"}, {"prompt": "Q", "steering": None}):
        assert "steering_applied" not in served.post("/v1/completions", body).json()
    assert [params.extra_args for params in served.serving.params] == [None, None]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_without_its_reports_is_not_given(served: Served, stream: bool) -> None:
    served.serving.n_tokens = None
    answer = served.post("/v1/completions", {**GOOD, "stream": stream})
    assert "steering_applied" not in answer.text
    if stream:
        assert '"code": 500' in answer.text
        assert answer.text.endswith("data: [DONE]\n\n")
    else:
        assert "have not reported" in error_of(answer, 500)["message"]
    assert served.state.gate.n_in_flight == 0


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        ({"id": 96, "alpha": 1}, "there are the latents 0 to 95"),
        ({"id": 95, "alpha": 1}, "leads nowhere"),
        ({"id": 3, "alpha": 8.1}, "at most 8"),
        ({"id": 3, "alpha": -1e308}, "at most 8"),
        ({"id": 3, "clamp": 12}, "by 9 of its median norms; at most 8"),
        ({"id": 3, "clamp": 86.0}, "64.5 of its median norms"),
        ({"id": 3, "op": "ablate"}, "cannot be done with this SAE; add, project, clamp, clamp_interval can"),
        ({"id": 3, "alpha": "1"}, "valid number"),
        ({"id": 3.5, "alpha": 1}, "valid integer"),
        ({"id": True, "alpha": 1}, "valid integer"),
        ({"id": 3}, '"add" needs alpha'),
        ({"id": 3, "op": "project", "alpha": 1}, '"project" takes no alpha'),
        ({"id": 3, "alpha": 1, "clamp": 1}, '"clamp" takes no alpha'),
        ({"id": 3, "alpha": 1, "strength": 1}, "strength: unknown field; leave it out"),
    ],
)
def test_latents_that_cannot_be_steered_are_refused(served: Served, latent: Any, message: str) -> None:
    answer = served.post("/v1/completions", {"prompt": "Q", "steering": {"latents": [latent]}})
    error = error_of(answer, 422)
    assert message in error["message"]
    assert error["param"].startswith("steering.latents")
    assert not served.serving.requests


@pytest.mark.parametrize(
    ("latents", "status"),
    [
        ([{"id": 3, "alpha": 8}] * 8, 422),
        ([{"id": 3, "alpha": 5}, {"id": 4, "alpha": 5}], 422),
        ([{"id": 3, "alpha": 6}, {"id": 3, "clamp": 6}], 422),
        ([{"id": 3, "clamp": 6}] * 2, 200),  # one latent
        ([{"id": 3, "alpha": 9}, {"id": 3, "alpha": -2}], 200),
    ],
)
def test_the_limit_counts_what_is_added_together(served: Served, latents: Any, status: int) -> None:
    steering = {"latents": latents, "allow_large": True}
    answer = served.post("/v1/completions", {"prompt": "Q", "steering": steering})
    assert answer.status_code == status
    assert "together they would move" in answer.text or status == 200


def test_a_latent_alone_is_not_said_to_move_the_stream_together(served: Served) -> None:
    answer = served.post("/v1/completions", {"prompt": "Q", "steering": {"latents": [{"id": 3, "alpha": 9}]}})
    assert "latent 3: it would move the stream after layer 1 by 9 of" in error_of(answer, 422)["message"]


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        (
            "completions",
            {"steering": {"latents": [{"id": 3, "alfa": 1}]}},
            "steering.latents.0.alfa",
            "alpha",
        ),
        ("completions", {"steering": {"latent": [{"id": 3}]}}, "steering.latent", "latents"),
        ("completions", {"stering": {}}, "stering", "steering"),
        ("chat/completions", {"max_token": 3, "messages": []}, "max_token", "max_tokens"),
        ("morfi/compare", {"strength": [1]}, "strength", "strengths"),
        ("morfi/activations", {"topk": 3}, "topk", "top_k"),
        ("morfi/vectors", {"vector": {}}, "vector", "vectors"),
    ],
)
def test_a_misspelt_field_is_answered_with_the_one_that_is_meant(
    served: Served, path: str, body: Any, param: str, message: str
) -> None:
    error = error_of(served.post(f"/v1/{path}", {"prompt": "Q", **body}), 422)
    assert f'{param}: unknown field; leave it out. Did you mean "{message}"?' in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (
            "completions",
            {"prompt": "Q", "steering": {"latents": [{"id": 96, "alpha": 1}]}},
            "steering.latents",
        ),
        (
            "completions",
            {"prompt": "Q", "steering": {"latents": [{"id": 3, "alpha": 9}]}},
            "steering.latents",
        ),
        ("morfi/activations", {"text": "Q", "sae": "none"}, "sae"),
        ("morfi/activations", {"text": "Q", "layer": 0}, "layer"),
        ("morfi/vectors", {"vectors": {"a": [1.0, 2.0, 3.0]}}, "vectors"),
    ],
)
def test_an_error_names_the_field_that_it_is_about(served: Served, path: str, body: Any, param: str) -> None:
    prompt = {"prompt": "Q"} if path == "completions" else {}
    assert error_of(served.post(f"/v1/{path}", prompt | body), 422)["param"] == param


@pytest.mark.parametrize(
    "latents", [[{"id": 3, "alpha": -2.1}], [{"id": 3, "clamp": 3}], [{"id": 3, "alpha": 1.5}] * 2]
)
def test_a_large_strength_must_be_meant(served: Served, latents: Any) -> None:
    steering = {"latents": latents}
    error = error_of(served.post("/v1/completions", {"prompt": "Q", "steering": steering}), 400)
    assert error["type"] == "large"
    for words in (
        "latent 3: ",
        "without allow_large at most 2, a move of 4: the norm is 2 (find-1",
    ):
        assert words in error["message"]
    assert not served.serving.requests
    steering["allow_large"] = True
    assert served.post("/v1/completions", {"prompt": "Q", "steering": steering}).status_code == 200


def test_an_answer_that_nothing_was_changed_for_says_so(served: Served) -> None:
    served.serving.n_tokens = [0]
    found = served.post("/v1/completions", GOOD).json()["steering_applied"]
    assert found["n_tokens"] == [0]
    assert "unsteered model" in found["note"]


@pytest.mark.parametrize(
    ("path", "limit", "status"),
    [
        ("/v1/completions", {"max_tokens": 1}, 422),
        ("/v1/completions", {"max_tokens": 0, "echo": True}, 422),
        ("/v1/completions", {"max_tokens": 2}, 200),
        ("/v1/completions", {}, 200),
        ("/v1/chat/completions", {"max_tokens": 1}, 422),
        ("/v1/chat/completions", {"max_tokens": 5, "max_completion_tokens": 1}, 422),
        ("/v1/chat/completions", {"max_tokens": 1, "max_completion_tokens": 5}, 200),
    ],
)
def test_steering_of_generated_tokens_needs_a_second_one(
    served: Served, path: str, limit: dict[str, Any], status: int
) -> None:
    body = {**PATHS[path], **limit, "steering": {**GOOD["steering"], "positions": "generated"}}
    found = served.post(path, body)
    assert found.status_code == status, found.text
    assert status == 200 or "never put into the model" in error_of(found, 422)["message"]
