"""Evaluations through an OpenAI-compatible server: the rows, what is recorded, and going on after a fault."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from evaluated import facts, run
from progress_log import Log
from scripted_server import MODEL, Reply, ScriptedServer, scripted
from server_faults import FAULTS

from morfi.endpoint.engine import find_endpoint
from morfi.errors import InputError, MorfiError
from morfi.evaluation.config import EvalConfig, configure
from morfi.evaluation.evaluate import prepare
from morfi.questions.question import Question
from morfi.store import Store
from morfi.terminal import ended_by_signals


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MORFI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server(serving: Any, answering: ScriptedServer) -> ScriptedServer:
    """Knows what the fake engine knows."""
    answering.known = serving.known
    return answering


@pytest.fixture
def answering() -> Iterator[ScriptedServer]:
    with scripted(ScriptedServer()) as server:
        yield server


@pytest.fixture
def asking(server: ScriptedServer, data_file: Path) -> EvalConfig:
    """Twenty questions in seven batches, the last of two; as `config`, of a server."""
    return EvalConfig(
        data=str(data_file), shots=2, batch=3, endpoint=server.url, served=MODEL, concurrency=4, retries=0
    )


def not_started(*_: object, **__: object) -> Any:
    raise AssertionError("an engine was started")


@pytest.mark.long
@pytest.mark.usefixtures("isolated_cache")
def test_the_rows_are_those_of_an_engine_that_answers_alike(
    asking: EvalConfig, config: EvalConfig, store: Store, serving: Any
) -> None:
    log = Log()
    remote = facts(store, run(asking, store, not_started, log=log))
    local = facts(store, run(config, store, serving))
    differ = {"ckpt_sha256", "prompt_tokens", "cached_tokens", "output_tokens"}
    assert [{k: v for k, v in row.items() if k not in differ} for row in remote] == [
        {k: v for k, v in row.items() if k not in differ} for row in local
    ]
    assert {row["cached_tokens"] for row in remote} == {3}
    assert all(row["prompt_tokens"] == len(row["prompt"]) for row in remote)
    assert (log.starts, log.n_advanced) == ([(20, 0)], 20)
    assert f"asking {MODEL} at {asking.endpoint}" in log.phases


def test_the_run_records_the_server_and_what_it_says_of_the_model(
    asking: EvalConfig, store: Store, server: ScriptedServer
) -> None:
    run_id = run(asking, store, not_started)
    record = store.run(run_id)
    assert (record.ckpt, record.asked.endpoint, record.bos_shown) == (MODEL, server.url, "the server's")
    (attempt,) = store.attempts(run_id)
    assert attempt.engine["listing"] == {"id": MODEL, "root": "r"}
    assert (attempt.engine["endpoint"], attempt.engine["model"]) == (server.url, MODEL)
    assert attempt.device == f"the server at {server.url}"


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "same"),
    [({"concurrency": 1}, True), ({"timeout": 3.0}, True), ({"retries": 9}, True), ({"chat": True}, False)],
    ids=str,
)
def test_how_a_server_is_asked_is_no_part_of_what_makes_the_run(
    asking: EvalConfig, store: Store, server: ScriptedServer, changes: Mapping[str, Any], same: bool
) -> None:
    first = run(asking, store, not_started)
    again = run(dataclasses.replace(asking, **changes), store, not_started, resume="auto")
    assert (again == first) is same


def test_another_listing_makes_another_run(asking: EvalConfig, store: Store, server: ScriptedServer) -> None:
    first = run(asking, store, not_started)
    server.listing = Reply({"data": [{"id": MODEL, "root": "other"}]})
    with pytest.raises(InputError, match="its checkpoint, questions or settings have changed"):
        run(asking, store, not_started, resume=first)


def test_a_chat_is_asked_with_the_exemplars_as_turns(
    asking: EvalConfig, store: Store, server: ScriptedServer, questions: Mapping[str, Sequence[Question]]
) -> None:
    run_id = run(dataclasses.replace(asking, chat=True), store, not_started)
    assert store.summary(run_id).n_correct == 10
    assert {one.path for one in server.asked} == {"/v1/chat/completions"}
    by_text = {question.text: question for split in questions.values() for question in split}
    for row in store.samples(run_id).to_pylist():
        *shown, last = json.loads(row["prompt"])
        assert last == {"role": "user", "content": row["question"]}
        assert [one["role"] for one in shown] == ["user", "assistant"] * 2
        for asked, told in zip(shown[::2], shown[1::2], strict=True):
            assert told["content"] == by_text[asked["content"]].answers[0]


@pytest.mark.long
@pytest.mark.parametrize("name", FAULTS)
def test_a_run_that_a_server_ends_goes_on_to_the_rows_of_an_undisturbed_one(
    asking: EvalConfig, store: Store, server: ScriptedServer, name: str
) -> None:
    asking = dataclasses.replace(asking, timeout=0.3 if name == "slow" else None)
    whole = facts(store, run(asking, store, not_started))
    n_before = len(server.asked)
    fault, said = FAULTS[name]
    server.fault, server.fault_from = fault, n_before + 7  # the second of the third batch
    log = Log()
    with pytest.raises(MorfiError, match=said) as caught:
        run(asking, store, not_started, log=log)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(server.url)
    stopped = store.runs(1)[0]
    assert (stopped.status, stopped.n_done) == ("failed", 6)
    assert log.phases[-1] == f"stopped; go on with: morfi eval --resume {stopped.run_id} --db {store.path}"
    server.fault = None
    n_before = len(server.asked)
    assert run(asking, store, not_started, resume="auto") == stopped.run_id
    assert facts(store, stopped.run_id) == whole
    assert len(server.asked) - n_before == 14


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_a_run_while_the_server_thinks(
    asking: EvalConfig, store: Store, server: ScriptedServer, number: signal.Signals
) -> None:
    server.fault, server.fault_from = Reply({}, pause_s=1.5), 4

    def signal_when_waiting() -> None:
        while len(server.asked) < 6:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=signal_when_waiting, daemon=True).start()
    begun = time.monotonic()
    with ended_by_signals(), pytest.raises(KeyboardInterrupt):
        run(asking, store, not_started)
    assert time.monotonic() - begun < 10
    stopped = store.runs(1)[0]
    assert (stopped.status, stopped.n_done) == ("interrupted", 3)
    server.fault = None
    assert run(asking, store, not_started, resume="auto") == stopped.run_id
    assert store.summary(stopped.run_id).n_done == 20


LOCAL: Mapping[str, Any] = {
    "ckpt": "x",
    "base": "x",
    "dtype": "float32",
    "engine": {"block_size": 64},
    "bos": "no",
}
REMOTE: Mapping[str, Any] = {"served": "x", "concurrency": 3, "timeout": 9.0, "retries": 1}


@pytest.mark.parametrize("name", LOCAL)
def test_what_a_local_model_needs_is_refused_with_an_endpoint(name: str) -> None:
    with pytest.raises(InputError, match=f"--{name} with --endpoint: that is the server's; leave it out"):
        EvalConfig(endpoint="http://h/v1", served="x", **{name: LOCAL[name]})


@pytest.mark.parametrize("name", REMOTE)
def test_what_an_endpoint_needs_is_refused_without_one(name: str) -> None:
    typed = "model" if name == "served" else name
    with pytest.raises(InputError, match=f"--{typed} without --endpoint"):
        EvalConfig("smollm2", **{name: REMOTE[name]})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"served": None}, "--model is missing"),
        ({"endpoint": "host:8000"}, '--endpoint is "host:8000"; expected a URL'),
        ({"concurrency": 0}, "--concurrency is 0; expected at least 1"),
        ({"retries": -1}, "--retries is -1; expected at least 0"),
        ({"timeout": 0.0}, "--timeout is 0.0; expected a number of seconds"),
        ({"timeout": float("inf")}, "--timeout is inf"),
    ],
    ids=str,
)
def test_what_is_no_setting_of_an_endpoint_is_refused(changes: Mapping[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        EvalConfig(**({"endpoint": "http://h/v1", "served": "x"} | dict(changes)))


def test_a_resumed_run_may_be_asked_in_another_way_and_not_of_another_server() -> None:
    stored = configure({"endpoint": "http://h/v1", "served": "x", "retries": 1}, None)
    assert stored.batch == 256
    again = configure({"retries": 4, "concurrency": 2}, stored)
    assert again == dataclasses.replace(stored, retries=4, concurrency=2)
    assert (again.limits.retries, again.limits.concurrency, again.limits.timeout_s) == (4, 2, 120.0)
    with pytest.raises(InputError, match="--model is 'y', but the resumed run has 'x'"):
        configure({"served": "y"}, stored)


def test_nothing_is_stored_of_a_server_that_is_not_there(asking: EvalConfig, store: Store) -> None:
    with pytest.raises(InputError, match='has no model "nobody"; it has: tiny'):
        run(dataclasses.replace(asking, served="nobody"), store, not_started)
    assert not store.path.exists()


def test_a_prompt_is_the_text_that_is_sent(asking: EvalConfig, server: ScriptedServer) -> None:
    endpoint = find_endpoint(server.url, MODEL, chat=False, limits=asking.limits, say=Log().phase)
    task = prepare(asking, Log(), endpoint)
    assert all(bytes(prompt.token_ids).decode() == prompt.text for prompt in task.prompts)
    assert (task.prompted.bos, task.prompted.context) == (False, 0)
