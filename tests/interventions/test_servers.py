"""A steer run whose unsteered answers a server gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scripted_server import MODEL, Reply, ScriptedServer, scripted

from morfi.errors import InputError, MorfiError
from morfi.interventions.config import SteerConfig
from morfi.interventions.outcome import steered
from morfi.report.runs import report_of

ROWS = (
    "SELECT served, direction, alpha, question_id, answer, correct FROM steered_answer "
    "WHERE run_id = '{}' ORDER BY ALL"
)
TWO = (f"base={MODEL}", f"reference={MODEL}")


pytestmark = pytest.mark.long


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, knowing: Any) -> Iterator[ScriptedServer]:
    """Knows what the base model knows."""
    monkeypatch.delenv("MORFI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with scripted(ScriptedServer(known=knowing.known)) as found:
        yield found


@pytest.fixture
def by_server(steer: Callable[..., str], server: ScriptedServer) -> Callable[..., str]:
    """Steers with the base's and the reference's answers from the server."""

    def run(**options: Any) -> str:
        asked: dict[str, Any] = {"server": server.url, "models": TWO, "retries": 0, "concurrency": 4}
        return steer(**{**asked, **options})

    return run


def test_unsteered_answers_come_from_the_server_and_steered_ones_from_the_engine(
    by_server: Callable[..., str], steer: Callable[..., str], steerable: Any, server: Any, knowing: Any
) -> None:
    store = steerable[0]
    local = steer()
    knowing.loaded.clear()
    knowing.steerings.clear()
    run_id = by_server()
    assert run_id != local
    assert store.query(ROWS.format(run_id)).to_pylist() == store.query(ROWS.format(local)).to_pylist()
    assert knowing.loaded == ["M_100"]
    found = steered(store, store.run(run_id))
    assert found is not None
    n_asked = sum(share.n for share in found.accuracies["base"].values())
    assert len(server.asked) == 2 * n_asked
    assert sum(map(len, knowing.steerings)) == found.n_answers - 2 * n_asked
    assert {one.body["prompt"][:3] for one in server.asked} == {"Q: "}
    assert {one.body["temperature"] for one in server.asked} == {0}
    assert f"base model ({MODEL} at {server.url}), unsteered" in report_of(store, run_id).text


def test_the_checkpoints_own_unsteered_answers_may_come_from_it_beside_steered_ones_in_a_batch(
    by_server: Callable[..., str], steerable: Any, server: ScriptedServer
) -> None:
    store = steerable[0]
    server.known = {}
    run_id = by_server(models=(f"checkpoint={MODEL}",))
    found = steered(store, store.run(run_id))
    assert found is not None
    assert {share.n_right for share in found.accuracies["checkpoint"].values()} == {0}
    assert len(server.asked) == sum(share.n for share in found.accuracies["checkpoint"].values())
    assert found.outcomes[0].best.gain == 1.0


def test_a_run_goes_on_where_the_server_failed_and_is_another_for_another_model(
    by_server: Callable[..., str], steerable: Any, server: ScriptedServer
) -> None:
    store = steerable[0]
    server.fault, server.fault_from = Reply({"error": {"message": "no"}}, 500), 20
    with pytest.raises(MorfiError, match="500"):
        by_server()
    n_before = len(server.asked)
    server.fault = None
    run_id = by_server(concurrency=1, timeout=9.0)
    assert len(store.attempts(run_id)) == 2
    assert len(server.asked) - n_before == 2 * 16 - 16  # the first batch of 16 was whole
    assert by_server() == run_id
    server.listing = Reply({"data": [{"id": MODEL, "root": "other"}]})
    assert by_server() != run_id
    with pytest.raises(InputError, match='has no model "large"; it has: tiny'):
        by_server(models=("base=large",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"server": "http://h/v1"}, "--model is missing: say whose answers the server gives"),
        ({"models": ("base=x",)}, "--model without --endpoint"),
        ({"retries": 3}, "--retries without --endpoint"),
        (
            {"server": "http://h/v1", "models": ("x",)},
            '"x" is no WHO=NAME; expected such as base=NAME',
        ),
        (
            {"server": "http://h/v1", "models": ("bas=x",)},
            'reference, base. Did you mean "base"',
        ),
        (
            {"server": "http://h/v1", "models": ("base=x", "base=y")},
            "reference, base twice",
        ),
        ({"server": "h/v1", "models": ("base=x",)}, "h/v1"),
    ],
)
def test_a_server_that_gives_nobodys_answers_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SteerConfig("run", "M_100", **options)
