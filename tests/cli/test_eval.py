"""`morfi eval` as a user types it."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import RESULT_KEYS, CommandLine, Ended, files_under, refused
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from morfi.cache import Cache
from morfi.errors import MorfiError
from morfi.store import Store


def test_eval_prints_one_object_for_json_and_all_else_on_standard_error(ask: Callable[..., Ended]) -> None:
    ended = ask("--json")
    assert ended.code == 0
    (line,) = ended.out.splitlines()
    found = json.loads(line)
    assert set(found) >= RESULT_KEYS
    assert (found["n"], found["accuracy"]) == (20, 0.5)
    assert set(found["by_relation"]) == {"P17", "P36"}
    assert Store(Path("morfi.duckdb")).summary(found["run_id"]).n_done == 20
    assert "starting vLLM" in ended.err


def test_another_property_than_knowledge_is_asked_for_by_a_pattern(
    ask: Callable[..., Ended], run: CommandLine, serving: Any, questions: Any
) -> None:
    serving.known = {one.text: one.answers[0].upper() for one in questions["test"][::4]}
    found = ask("--match", "regex:[^a-z]*[A-Z][^a-z]*", "--json").json
    assert (found["accuracy"], found["accuracy_squad"]) == (0.25, 0.25)
    undone = ask("--match", "regex:.*[a-z].*", "--json").json
    assert undone["accuracy"] == 0.75
    table = run("show", found["run_id"]).out
    assert "regex:[^a-z]*[A-Z][^a-z]* match" in table
    assert run("compare", found["run_id"], undone["run_id"]).code == 0
    refused(ask("--match", "regex:["), '--match "regex:[" holds no regular expression: unterminated')


def test_eval_ends_with_a_table_whose_commands_work(
    ask: Callable[..., Ended], run: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "a folder").mkdir()
    ended = ask("--db", tmp_path / "a folder" / "x.duckdb")
    assert ended.code == 0
    rows = [line for line in ended.out.splitlines() if line.startswith(("country", "capital", "all "))]
    assert [line.split()[0] for line in rows] == ["country", "capital", "all"]
    lines = [line for line in ended.out.splitlines() if line.startswith("  morfi ")]
    assert len(lines) == 2
    for line in lines:
        assert run(*shlex.split(line)[1:]).code == 0


def test_the_database_may_come_from_the_environment(
    ask: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MORFI_DB", str(tmp_path / "named.duckdb"))
    assert ask().code == 0
    assert (tmp_path / "named.duckdb").exists()
    assert files_under(tmp_path / "here") == {}


def test_a_run_that_fails_exits_with_one_in_one_line_and_resumes_with_auto(
    ask: Callable[..., Ended], serving: Any
) -> None:
    serving.stop_after, serving.error = 1, MorfiError("vLLM ended a request")
    ended = ask("--batch", 5)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.splitlines()[-1] == "morfi: vLLM ended a request"
    serving.stop_after = None
    found = json.loads(ask("--batch", 5, "--resume", "auto", "--json").out)
    assert (found["n"], found["status"]) == (20, "done")
    assert len(serving.batches) == 4


@pytest.mark.long
def test_resume_by_id_needs_no_other_option_and_refuses_one_that_differs(
    ask: Callable[..., Ended], run: CommandLine, serving: Any
) -> None:
    serving.stop_after, serving.error = 1, KeyboardInterrupt()
    ended = ask("--batch", 5)
    assert ended.code == 130
    run_id = Store(Path("morfi.duckdb")).runs(1)[0].run_id
    assert f"morfi eval --resume {run_id} --db morfi.duckdb" in ended.err
    refused(run("eval", "--resume", run_id, "--limit", 3), "--limit is 3", "without --resume")
    serving.stop_after = None
    assert json.loads(run("eval", "--resume", run_id, "--json").out)["n"] == 20


@pytest.mark.long
def test_an_adapter_is_merged_once_and_the_run_names_both_parts(
    ask: Callable[..., Ended], tiny_model: Path, tmp_path: Path
) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_model)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    found = [json.loads(ask("--base", tiny_model, "--json", ckpt=tmp_path / "adapter").out) for _ in range(2)]
    (entry,) = Cache().entries()
    assert [run["ckpt_sha256"] for run in found] == [entry.key] * 2
    record = Store(Path("morfi.duckdb")).run("last")
    assert (record.ckpt, record.base) == ("adapter", "tiny")
    assert record.adapter_sha256 is not None


@pytest.mark.long
def test_another_folder_goes_on_with_what_lies_in_the_first(
    ask: Callable[..., Ended],
    run: CommandLine,
    tiny_model: Path,
    data_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copyfile(data_file, "q.jsonl")
    shutil.copytree(tiny_model, "model")
    asked = ask("--json", ckpt="model", data="q.jsonl")
    run_id = json.loads(asked.out)["run_id"]
    database = Path("morfi.duckdb").absolute()
    split = run("split", "--ckpt", "model", "--data", "q.jsonl", "--n-ex", 1, "--samples", 0, "--json")
    split_run = json.loads(split.out)["run_id"]
    (Path.cwd() / "sub").mkdir()
    monkeypatch.chdir(Path.cwd() / "sub")
    there = ("--db", database)
    for resumed in (("--resume", run_id), ("--resume", run_id, "--data", "../q.jsonl", "--ckpt", "../model")):
        ended = run("eval", *resumed, "--json", *there)
        assert ended.code == 0, ended
        assert json.loads(ended.out)["run_id"] == run_id
    mix = ("mix", "--split", split_run, "--levels", "100", "--size", 2, "--json", *there)
    mixed = run(*mix)
    assert mixed.code == 0, mixed
    # The file moves.
    Path("../q.jsonl").rename("../moved.jsonl")
    refused(run(*mix), str(Path("../q.jsonl").resolve()), f"--data says where that of {split_run} is now")
    where = f"--data says where that of {run_id} is now"
    refused(run("eval", "--resume", "last", *there), str(Path("../q.jsonl").resolve()), where)
    again = run(*mix, "--data", "../moved.jsonl")
    assert json.loads(again.out)["run_id"] == json.loads(mixed.out)["run_id"]
    for name in (run_id, "last"):  # the newest run of all is the mix
        ended = run("eval", "--resume", name, "--data", "../moved.jsonl", "--json", *there)
        assert ended.code == 0, ended
        assert json.loads(ended.out)["run_id"] == run_id
    refused(run("eval", "--ckpt", "../model", "--data", "no.jsonl"), f'"no.jsonl" in {Path.cwd()}')
    refused(run("eval", "--resume", split_run, *there), f"{split_run} is a run of `morfi split`")


@pytest.mark.long
def test_a_relation_with_a_comma_can_be_chosen(
    ask: Callable[..., Ended], write_questions: Callable[..., Path], questions: Any, tmp_path: Path
) -> None:
    named = {
        split: [replace(q, relation="city, state" if q.relation == "P17" else q.relation) for q in asked]
        for split, asked in questions.items()
    }
    data = write_questions(tmp_path / "comma.jsonl", named)
    for given in ('"city, state"', "city, state"):
        ended = ask("--json", "--relations", given, data=data)
        assert ended.code == 0, ended
        assert set(json.loads(ended.out)["by_relation"]) == {"city, state"}
    both = ask("--json", "--relations", '"city, state",P36', data=data)
    assert set(json.loads(both.out)["by_relation"]) == {"city, state", "P36"}
    refused(ask("--relations", "city", data=data), '"city, state"')
