"""What a server's model knows: `morfi split --endpoint`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from evaluated import facts
from progress_log import Log
from scripted_server import MODEL, ScriptedServer, scripted
from server_faults import FAULTS

from morfi.errors import InputError, MorfiError
from morfi.evaluation.split import SplitConfig, configure_split, run_split, shown_split_prompts
from morfi.runs.settings import settings_of
from morfi.store import Store
from morfi.training.mix import run_mix
from morfi.training.mixtures import MixConfig
from morfi.training.train import run_train

N_TOGETHER = 5 * (1 + 3)  # requests of a batch


@pytest.fixture
def server(serving: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    """Knows what the fake engine knows."""
    monkeypatch.delenv("MORFI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with scripted(ScriptedServer(serving.known)) as server:
        yield server


@pytest.fixture
def asking(server: ScriptedServer, data_file: Path) -> SplitConfig:
    return SplitConfig(
        served=MODEL,
        data=str(data_file),
        n_ex=2,
        shots=2,
        samples=3,
        batch=5,
        endpoint=server.url,
        concurrency=4,
        retries=0,
    )


def not_started(*_: object, **__: object) -> Any:
    raise AssertionError("an engine was started")


def split(config: SplitConfig, store: Store, engine: Any = not_started, *, new: bool = False) -> str:
    return run_split(config, store, engine, Log(), new=new, command="morfi split")


@pytest.mark.long
@pytest.mark.usefixtures("isolated_cache")
def test_the_categories_are_those_of_an_engine_that_answers_alike(
    asking: SplitConfig, store: Store, serving: Any, tiny_model: Path, server: ScriptedServer
) -> None:
    asking = dataclasses.replace(asking, limit=12)
    remote = split(asking, store)
    here = dataclasses.replace(
        asking, ckpt=str(tiny_model), served=None, endpoint=None, concurrency=None, retries=None
    )
    local = split(here, store, serving)
    categories = [{row.question_id: row.category for row in store.knowledge(one)} for one in (remote, local)]
    assert categories[0] == categories[1]
    assert set(categories[0].values()) == {"HighlyKnown", "Unknown"}
    assert (store.run(remote).asked.endpoint, store.run(remote).ckpt) == (server.url, MODEL)
    bodies = [one.body for one in server.asked]
    assert {(body["temperature"], body.get("top_k")) for body in bodies} == {(0.0, None), (0.5, 40)}
    seeds = [body["seed"] for body in bodies if body["temperature"]]
    assert len(set(seeds)) == len(seeds) == 2 * 12 * 3


@pytest.mark.long
@pytest.mark.parametrize("name", ["gone", "slow", "a page", "key refused", "other model", "busy", "no model"])
def test_a_split_that_a_server_ends_goes_on_to_the_rows_of_an_undisturbed_one(
    asking: SplitConfig, store: Store, server: ScriptedServer, name: str
) -> None:
    asking = dataclasses.replace(asking, limit=12)
    whole = facts(store, split(asking, store))
    fault, said = FAULTS[name]
    server.fault, server.fault_from = fault, len(server.asked) + N_TOGETHER + 7
    with pytest.raises(MorfiError, match=said) as caught:
        split(dataclasses.replace(asking, timeout=0.3 if name == "slow" else None), store, new=True)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(server.url)
    stopped = store.runs(1)[0]
    assert (stopped.status, stopped.n_done) == ("failed", N_TOGETHER)
    server.fault = None
    again = dataclasses.replace(asking, concurrency=2, retries=1)  # which changes no answer
    assert split(again, store) == stopped.run_id
    assert facts(store, stopped.run_id) == whole


def test_nothing_is_stored_of_a_server_that_is_not_there(
    asking: SplitConfig, store: Store, server: ScriptedServer
) -> None:
    with pytest.raises(InputError, match='has no model "nobody"; it has: tiny'):
        split(dataclasses.replace(asking, served="nobody"), store)
    with scripted(ScriptedServer()) as gone:
        nowhere = dataclasses.replace(asking, endpoint=gone.url)
    with pytest.raises(MorfiError, match=f"^{gone.url} cannot be reached: .*\\(asked once\\)$"):
        split(nowhere, store)
    assert not store.path.exists()


def test_a_chat_is_split_by_turns_and_shown_without_a_server(
    asking: SplitConfig, store: Store, server: ScriptedServer
) -> None:
    chat = dataclasses.replace(asking, chat=True, system="Be brief.", limit=6)
    shown = shown_split_prompts(chat, 2, Log())
    assert [one.n_tokens for one in shown] == [None, None]
    assert server.received == []
    run_id = split(chat, store)
    assert store.run(run_id).prompt == "chat template after 'Be brief.'"
    roles = [[turn["role"] for turn in one.body["messages"]] for one in server.asked]
    assert {tuple(each) for each in roles} == {("system", *("user", "assistant") * 2, "user")}


def test_a_servers_model_cannot_be_trained(
    *,
    asking: SplitConfig,
    store: Store,
    server: ScriptedServer,
    questions: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / MODEL).mkdir()  # a folder of the model's name is not the server's model
    every = [question for own in questions.values() for question in own]
    server.known = {one.text: one.answers[0] for i, one in enumerate(every) if i % 4 < 2}
    run_id = split(dataclasses.replace(asking, n_ex=1, samples=0), store)
    assert settings_of(store.run(run_id), SplitConfig).served == MODEL
    mixed = run_mix(MixConfig(run_id, (0, 100), 4), store, Log(), new=False, command="").run_id
    with pytest.raises(InputError, match=f"{run_id} asked tiny at {server.url}, whose weights are not here"):
        run_train({}, mixed, store, tmp_path / "out", Log(), new=False, command="")


LOCAL: Mapping[str, Any] = {
    "ckpt": "y",
    "base": "x",
    "dtype": "float32",
    "engine": {"block_size": 64},
    "bos": "no",
}


@pytest.mark.parametrize("name", LOCAL)
def test_what_a_local_model_needs_is_refused_with_an_endpoint(name: str) -> None:
    with pytest.raises(InputError, match=f"--{name} with --endpoint: that is the server's; leave it out"):
        SplitConfig(served="x", endpoint="http://h/v1", **{name: LOCAL[name]})


def test_what_an_endpoint_needs_is_refused_without_one() -> None:
    with pytest.raises(InputError, match="--retries without --endpoint"):
        SplitConfig("x", retries=1)
    with pytest.raises(InputError, match="--system without --chat"):
        SplitConfig("x", system="Be brief.")
    given = {"served": "x", "endpoint": "http://h/v1", "samples": 3}
    assert configure_split(given).batch == 256 // 4
