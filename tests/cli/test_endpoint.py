"""`morfi eval --endpoint` as a user types it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import RESULT_KEYS, CommandLine, refused
from scripted_server import MODEL, SECRET, Reply, ScriptedServer, scripted


@pytest.fixture
def server(serving: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    monkeypatch.delenv("MORFI_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with scripted(ScriptedServer(serving.known)) as server:
        yield server


def test_eval_asks_a_server_and_goes_on_where_it_was_refused(
    run: CommandLine, server: ScriptedServer, data_file: Path
) -> None:
    asked = ("eval", "--endpoint", server.url, "--model", MODEL, "--data", data_file, "--batch", 5)
    server.fault, server.fault_from = Reply({"error": {"message": f"who is {SECRET}"}}, 401), 5
    ended = run(*asked)
    assert (ended.code, ended.out) == (2, "")
    assert "refuses the key in OPENAI_API_KEY (401: who is ***)" in ended.err.splitlines()[-1]
    server.fault, n_before = None, len(server.asked)
    again = run(*asked, "--resume", "auto", "--json")
    found = again.json
    assert set(found) >= RESULT_KEYS
    assert (found["ckpt"], found["n"], found["accuracy"]) == (MODEL, 20, 0.5)
    assert len(server.asked) - n_before == 15  # the second batch is asked anew
    shown = run("show", found["run_id"])
    assert f"endpoint {server.url}, model {MODEL} " in shown.out
    assert "BOS the server's" in shown.out
    by_id = run("eval", "--resume", found["run_id"], "--concurrency", 1, "--json")
    assert by_id.json["run_id"] == found["run_id"]
    said = "".join(one.out + one.err for one in (ended, again, shown, by_id))
    assert SECRET not in said
    assert SECRET.encode() not in Path("morfi.duckdb").read_bytes()


def test_what_cannot_be_asked_is_refused_in_one_line(run: CommandLine, server: ScriptedServer) -> None:
    here = ("--endpoint", server.url)
    refused(run("eval", *here), "--model is missing")
    refused(run("eval", *here, "--model", "x", "--ckpt", "smollm2"), "--ckpt with --endpoint")
    refused(run("eval", *here, "--model", "x", "--dtype", "float32"), "--dtype with --endpoint")
    refused(run("eval", "--model", "x"), "--ckpt is missing")
    refused(run("eval", "--ckpt", "smollm2", "--model", "x"), "--model without --endpoint")
    refused(run("eval", *here, "--model", "x"), 'has no model "x"; it has: tiny')
    refused(run("eval", "--endpoint", "http://u:hunter2@h/v1", "--model", "x"), "user or password")
    assert not Path("morfi.duckdb").exists()


@pytest.mark.long
def test_the_written_configuration_asks_the_same(
    run: CommandLine, server: ScriptedServer, data_file: Path
) -> None:
    asked = ("--endpoint", server.url, "--model", MODEL, "--data", data_file)
    written = run("eval", *asked, "--write-config").out
    assert f'endpoint = "{server.url}"' in written
    assert "# batch: as endpoint needs it" in written
    Path("asked.toml").write_text(written)
    first = run("eval", *asked, "--json").json["run_id"]
    assert run("eval", "--config", "asked.toml", "--resume", "auto", "--json").json["run_id"] == first
    assert json.loads(run("show", first, "--json").out)["config"]["batch"] == 256


def test_prompts_are_shown_and_nothing_is_asked(
    run: CommandLine, server: ScriptedServer, serving: Any, data_file: Path, tiny_model: Path
) -> None:
    Path("own.j2").write_text("{{ question }} Say where {{ subject }} is.")
    common = ("--data", data_file, "--prompt-template", "own.j2", "--show-prompts", 2)
    shown = run("eval", "--ckpt", tiny_model, *common)
    assert shown.code == 0, shown
    lines = shown.out.splitlines()
    assert len(lines) == 5
    assert lines[1].endswith(" is.")
    assert lines[0].endswith(f", {1 + len(lines[1])} tokens")
    remote = run("eval", "--endpoint", server.url, "--model", MODEL, *common, "--json").json
    assert remote["run_id"] is None
    assert [one["prompt"] for one in remote["prompts"]] == lines[1::3]
    assert {one["n_tokens"] for one in remote["prompts"]} == {None}
    assert (server.received, serving.starts) == ([], [])
    assert not Path("morfi.duckdb").exists()


@pytest.mark.long
def test_prompts_of_split_and_sweep_are_shown_and_nothing_is_asked(
    *,
    run: CommandLine,
    server: ScriptedServer,
    serving: Any,
    data_file: Path,
    tiny_model: Path,
    own_experiment: tuple[Any, str],
) -> None:
    local = run("split", "--ckpt", tiny_model, "--data", data_file, "--n-ex", 1, "--show-prompts", 2)
    assert local.out.count("---") == 2
    asked = ("--endpoint", server.url, "--model", MODEL, "--data", data_file, "--n-ex", 1)
    shown = run("split", *asked, "--show-prompts", 1, "--json").json["prompts"]
    assert shown[0]["prompt"] in local.out
    assert (server.received, serving.starts) == ([], [])
    server.fault = Reply({"error": {"message": f"who is {SECRET}"}}, 401)
    ended = run("split", *asked)
    assert (ended.code, ended.out) == (2, "")
    assert "refuses the key in OPENAI_API_KEY (401: who is ***)" in ended.err.splitlines()[-1]
    made, train_run = own_experiment
    db = ("--db", made.store.path)
    swept = run("sweep", "--ckpts", train_run, *db, "--limit", 2, "--show-prompts", 1)
    assert swept.out.endswith("\nA:\n")
    assert "sweep" not in {one["kind"] for one in run("runs", *db, "--json").json["runs"]}


@pytest.mark.long
def test_a_template_belongs_to_the_run(run: CommandLine, server: ScriptedServer, data_file: Path) -> None:
    own = Path("own.j2")
    own.write_text("{{ question }}\nIn a word:")
    plain = ("--endpoint", server.url, "--model", MODEL, "--data", data_file)
    asked = (*plain, "--chat", "--system", "Be brief.")
    server.fault, server.fault_from = Reply({}, 500), 6
    ended = run("eval", *asked, "--prompt-template", own, "--batch", 5, "--retries", 0)
    assert ended.code == 1
    server.fault = None
    run_id = run("runs", "--json").json["runs"][0]["run_id"]
    sent = server.asked[0].body["messages"]
    assert sent[0] == {"role": "system", "content": "Be brief."}
    assert sent[1]["content"].endswith("?\nIn a word:")
    own.write_text("{{ question }} In a word:")
    refused(run("eval", "--resume", run_id), "its checkpoint, questions or settings have changed")
    own.write_text("{{ question }}\nIn a word:")
    own.rename("moved.j2")
    refused(run("eval", "--resume", run_id), f"--prompt-template {own.absolute()}: No such file")
    again = run("eval", "--resume", run_id, "--prompt-template", "moved.j2", "--json")
    assert (again.json["run_id"], again.json["n"]) == (run_id, 20)
    refused(run("eval", *plain, "--system", "x"), "--system without --chat")
    other = run("eval", *asked, "--prompt-template", "moved.j2", "--max-tokens", 15, "--json")
    said = run("compare", run_id, other.json["run_id"])
    assert said.code == 0, said
