"""schemathesis against the OpenAPI document: no 5xx, no undocumented answer, no unsteered one where steered.

A few hundred cases, and 5,000 and more where slow tests run; the seed is fixed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def brief(serve_made: Any) -> Iterator[Any]:
    """A server whose answers are short, because the context is."""
    with serve_made(engine={"max_model_len": 64}) as server:
        yield server


@pytest.mark.parametrize(
    ("many", "few", "at_least"),  # cases of each operation and mode: those that generate take most
    [(25, 5, 100), pytest.param(850, 50, 5000, marks=pytest.mark.slow)],
    ids=["hundreds", "thousands"],
)
def test_the_document_is_true(
    brief: Any, subtests: pytest.Subtests, many: int, few: int, at_least: int
) -> None:
    document = brief.get("/openapi.json").json()
    assert {"/v1/completions", "/v1/chat/completions", "/v1/morfi/compare"} <= set(document["paths"])
    schema = schemathesis.openapi.from_dict(document)
    schema.config.max_stream_events = 100_000  # it would hang up after a hundred
    n_cases = 0
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()
        # Loading would take the weights from under the other cases; it has tests of its own.
        if operation.path.endswith("/load"):
            continue
        n = many if operation.method.upper() == "POST" else few
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            if mode is GenerationMode.NEGATIVE and not (
                operation.body or operation.query or operation.path_parameters
            ):
                continue
            with subtests.test(operation=f"{operation.method} {operation.path}", mode=mode.value):
                n_cases += try_all(operation, mode, n, brief.url)
    assert n_cases >= at_least
    assert brief.get("/health").status_code == 200
    assert brief.metric("morfi_answers_in_flight") == 0
    assert "Traceback" not in brief.log.read_text()


def try_all(operation: Any, mode: Any, n: int, url: str) -> int:
    """Sends cases of one operation; returns how many."""
    n_sent = 0

    @hypothesis.seed(1)
    @settings(
        max_examples=n,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        nonlocal n_sent
        n_sent += 1
        response = case.call(base_url=url, timeout=120)
        assert response.status_code < 500, (response.status_code, response.text[:500], case.as_curl_command())
        case.validate_response(response, checks=CHECKS)
        body = case.body if isinstance(case.body, dict) else {}
        if response.status_code == 200 and (body.get("steering") is not None or "strengths" in body):
            assert "steering_applied" in response.text, (response.text[-2000:], case.as_curl_command())

    send()
    return n_sent


def test_every_route_says_what_it_may_refuse(brief: Any) -> None:
    document = brief.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            codes = set(operation["responses"])
            assert {"200", "401", "403", "413"} <= codes, (path, method, codes)
            assert operation["security"], (path, method)
    assert json.dumps(document).count("steering_applied") >= 3
