from __future__ import annotations

import dataclasses
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from progress_log import Log
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM

from morfi.errors import InputError, MorfiError
from morfi.evaluation.config import EvalConfig
from morfi.evaluation.evaluate import prepare, run_evaluation
from morfi.questions.matching import is_correct
from morfi.questions.question import Question
from morfi.store import Store

CHILD = Path(__file__).parent / "eval_child.py"
FACTS = "SELECT * EXCLUDE (run_id, attempt) FROM samples WHERE run_id = '{}' ORDER BY question_id, sample"

pytestmark = pytest.mark.usefixtures("isolated_cache")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "morfi.duckdb", lock_timeout_s=1.0)


@pytest.fixture
def config(tiny_model: Path, data_file: Path) -> EvalConfig:
    """Twenty questions in seven batches, the last of two."""
    return EvalConfig(str(tiny_model), data=str(data_file), shots=2, batch=3)


def run(
    config: EvalConfig, store: Store, serving: Any, resume: str | None = None, log: Log | None = None
) -> str:
    return run_evaluation(config, store, serving, log or Log(), resume=resume, command="morfi eval …")


def facts(store: Store, run_id: str) -> list[dict[str, Any]]:
    """The run's rows without what names the run and the attempt."""
    rows: list[dict[str, Any]] = store.query(FACTS.format(run_id)).to_pylist()
    return rows


def test_the_baseline_does_not_depend_on_the_limit(config: EvalConfig, store: Store, serving: Any) -> None:
    whole, part = (run(dataclasses.replace(config, limit=limit), store, serving) for limit in (None, 4))
    assert store.baselines(part) == store.baselines(whole) != []
    assert {row.n for row in store.baselines(part)} == {10}
    assert {row.split for row in store.baselines(part)} == {"test"}


def test_answers_out_of_reach_are_said(config: EvalConfig) -> None:
    log = Log()
    prepare(dataclasses.replace(config, max_tokens=5), log)
    assert any("have accepted answers of more than 5 tokens only" in text for text in log.phases)


def test_every_question_of_the_split_gets_one_row_with_its_prompt_answer_and_verdict(
    config: EvalConfig, store: Store, serving: Any, questions: Mapping[str, Sequence[Question]]
) -> None:
    run_id = run(config, store, serving)
    rows = {row["question_id"]: row for row in store.samples(run_id).to_pylist()}
    assert set(rows) == {question.id for question in questions["test"]}
    for question in questions["test"]:
        row = rows[question.id]
        answer = serving.known.get(question.text, "no idea")
        assert (
            row["correct"]
            is (question.text in serving.known)
            is is_correct(answer, question.answers, "squad")
        )
        assert (row["text"], row["answer"], row["finish_reason"]) == (f" {answer} ", answer, "stop")
        assert row["prompt"].endswith(f"\n\nQ: {question.text}\nA:")
        assert row["prompt_tokens"] == 1 + len(row["prompt"].encode())  # a token a byte, and BOS
        assert (row["output_tokens"], row["cached_tokens"]) == (min(16, len(answer.encode())), 5)
        assert (row["subject"], row["answers"]) == (question.subject, list(question.answers))
    assert store.summary(run_id).n_correct == 10


def test_the_run_and_its_attempt_record_what_made_them(
    config: EvalConfig, store: Store, serving: Any
) -> None:
    run_id = run(config, store, serving)
    record = store.run(run_id)
    task = prepare(config, Log())
    assert record.fingerprint == task.fingerprint
    assert (record.ckpt, record.ckpt_sha256) == ("tiny", task.checkpoint.sha256)
    assert (record.data, record.data_sha256) == ("facts.jsonl", task.data.sha256)
    assert (record.bos, record.seed, record.n_planned) == (True, 0, 20)
    assert record.config["shots"] == 2
    (attempt,) = store.query("SELECT * FROM attempt JOIN attempt_end USING (run_id, attempt)").to_pylist()
    assert (attempt["command"], attempt["device"], attempt["pid"]) == ("morfi eval …", "fake", os.getpid())
    assert json.loads(attempt["engine"]) == {"block_size": 32}
    assert (attempt["status"], attempt["n_requests"], attempt["message"]) == ("done", 20, None)
    rows = store.samples(run_id).to_pylist()
    assert attempt["prompt_tokens"] == sum(row["prompt_tokens"] for row in rows)
    assert attempt["output_tokens"] == sum(row["output_tokens"] for row in rows)
    assert attempt["wall_s"] >= attempt["generate_s"] > 0


def test_bos_is_left_out_and_put_in_as_asked_and_is_part_of_what_makes_the_run(
    config: EvalConfig, store: Store, serving: Any, questions: Mapping[str, Sequence[Question]]
) -> None:
    log = Log()
    run_id = run(dataclasses.replace(config, bos="no"), store, serving, log=log)
    record = store.run(run_id)
    assert (record.bos, record.config["bos"]) == (False, "no")
    assert sum("BOS (<s>) is left out of every prompt: --bos no" in line for line in log.phases) == 1
    with_bos = prepare(config, Log())
    without = prepare(dataclasses.replace(config, bos="no"), Log())
    assert [one.token_ids[1:] for one in with_bos.prompts] == [one.token_ids for one in without.prompts]
    assert with_bos.fingerprint != without.fingerprint == record.fingerprint
    log = Log()
    assert prepare(dataclasses.replace(config, bos="yes"), log).fingerprint == with_bos.fingerprint
    assert not any("BOS" in line for line in log.phases)
    with pytest.raises(InputError, match=r'--bos is "maybe"; expected one of auto, yes, no'):
        dataclasses.replace(config, bos="maybe")
    with pytest.raises(InputError, match="--bos no with --chat: the chat template writes BOS"):
        dataclasses.replace(config, bos="no", chat=True)


def test_the_engine_gets_the_context_seed_and_settings_and_starts_each_batch_with_an_empty_prefix_cache(
    config: EvalConfig, store: Store, serving: Any
) -> None:
    log = Log()
    run(dataclasses.replace(config, seed=3, engine={"max_model_len": 400}), store, serving, log=log)
    (start,) = serving.starts
    assert (start["context"], start["seed"], start["overrides"]) == (400, 3, {"max_model_len": 400})
    assert [len(batch) for batch in serving.batches] == [3, 3, 3, 3, 3, 3, 2]
    assert serving.n_resets == 7
    assert (log.starts, log.n_advanced) == ([(20, 0)], 20)


def test_two_new_runs_of_one_configuration_have_equal_rows(
    config: EvalConfig, store: Store, serving: Any
) -> None:
    first, second = run(config, store, serving), run(config, store, serving)
    assert first != second
    assert facts(store, first) == facts(store, second)


@pytest.mark.parametrize(
    ("stop_after", "resume", "error", "status", "message"),
    [
        (0, "auto", KeyboardInterrupt(), "interrupted", "Ctrl-C"),
        (1, "by id", KeyboardInterrupt(), "interrupted", "Ctrl-C"),
        (6, "last", KeyboardInterrupt(), "interrupted", "Ctrl-C"),
        (0, "by id", RuntimeError("the engine died"), "failed", "the engine died"),
        (4, "auto", MemoryError(), "failed", "MemoryError"),
    ],
)
def test_a_stopped_run_resumes_to_the_rows_of_an_uninterrupted_one(
    *,
    config: EvalConfig,
    store: Store,
    serving: Any,
    stop_after: int,
    resume: str,
    error: BaseException,
    status: str,
    message: str,
) -> None:
    whole = facts(store, run(config, store, serving))
    all_batches, serving.batches = serving.batches, []
    serving.stop_after, serving.error = stop_after, error
    log = Log()
    with pytest.raises(type(error)):
        run(config, store, serving, log=log)
    stopped = store.runs(1)[0]
    assert (stopped.status, stopped.n_done, stopped.n_attempts) == (status, 3 * stop_after, 1)
    assert log.phases[-1] == f"stopped; go on with: morfi eval --resume {stopped.run_id} --db {store.path}"
    (end,) = store.query(f"FROM attempt_end WHERE run_id = '{stopped.run_id}'").to_pylist()
    assert (end["status"], end["message"], end["n_requests"]) == (status, message, 3 * stop_after)

    serving.stop_after = None
    log = Log()
    resumed = run(config, store, serving, {"by id": stopped.run_id}.get(resume, resume), log)
    assert resumed == stopped.run_id
    assert serving.batches == all_batches
    assert log.starts == [(20, 3 * stop_after)]
    assert facts(store, resumed) == whole
    summary = store.summary(resumed)
    assert (summary.status, summary.n_attempts, summary.n_requests) == ("done", 2, 20)
    attempts = [row["attempt"] for row in store.samples(resumed).to_pylist()]
    assert (attempts.count(1), attempts.count(2)) == (3 * stop_after, 20 - 3 * stop_after)


def test_a_failing_attempt_after_an_interrupted_one_still_loses_nothing(
    config: EvalConfig, store: Store, serving: Any
) -> None:
    whole = facts(store, run(config, store, serving))
    for stop_after in (9, 10, 12):  # counted with the seven batches of the whole run
        serving.stop_after = stop_after
        with pytest.raises(RuntimeError):
            run(config, store, serving, "auto" if stop_after > 9 else None)
    serving.stop_after = None
    run_id = run(config, store, serving, "auto")
    assert facts(store, run_id) == whole
    assert store.summary(run_id).n_attempts == 4
    assert len(serving.batches) == 14


@pytest.mark.parametrize("by_id", [True, False])
def test_resuming_a_finished_run_starts_no_engine_and_adds_nothing(
    config: EvalConfig, store: Store, serving: Any, by_id: bool
) -> None:
    run_id = run(config, store, serving)
    before = store.query("SELECT * FROM runs").to_pylist()
    assert run(config, store, serving, run_id if by_id else "auto") == run_id
    assert len(serving.starts) == 1
    assert store.query("SELECT * FROM runs").to_pylist() == before


def test_resume_auto_begins_a_new_run_where_none_has_the_same_fingerprint(
    config: EvalConfig, store: Store, serving: Any
) -> None:
    first = run(config, store, serving, "auto")
    assert run(dataclasses.replace(config, seed=1), store, serving, "auto") != first
    assert run(config, store, serving, "auto") == first


def test_a_run_with_another_fingerprint_is_not_resumed(
    config: EvalConfig, store: Store, serving: Any
) -> None:
    run_id = run(config, store, serving)
    with pytest.raises(InputError, match=rf"run {run_id} cannot be resumed: .* without --resume"):
        run(dataclasses.replace(config, max_tokens=8), store, serving, run_id)
    assert len(serving.starts) == 1


@pytest.mark.parametrize("n_lost", [1, 3])
def test_a_batch_with_too_few_completions_scores_nothing(
    config: EvalConfig, store: Store, serving: Any, n_lost: int
) -> None:
    serving.n_lost = n_lost
    with pytest.raises(MorfiError, match=f"{3 - n_lost} answers where 3"):
        run(config, store, serving)
    assert (store.runs(1)[0].status, store.runs(1)[0].n_done) == ("failed", 0)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MorfiError("vLLM could not start")])
def test_an_engine_that_does_not_start_leaves_no_run_and_no_hint_to_resume_one(
    config: EvalConfig, store: Store, error: BaseException
) -> None:
    def start(*_: object, **__: object) -> Any:
        raise error

    log = Log()
    with pytest.raises(type(error)):
        run(config, store, start, log=log)
    assert store.runs(9) == []
    assert not any("--resume" in phase for phase in log.phases)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "tst"}, r'has no split "tst"; it has: '),
        ({"relations": ("P18",)}, r'the relation "P18"; available: P17, P36\. Did you mean'),
        ({"shots": 7}, "too few for 7 exemplars"),
        ({"max_tokens": 500}, "do not fit in the context of 512"),
        ({"engine": {"max_model_len": 100}}, "do not fit in the context of 100"),
        ({"engine": {"max_model_len": 513}}, "max_model_len=513: the model takes 1 to 512"),
        ({"engine": {"max_model_len": 0}}, "max_model_len=0"),
        ({"engine": {"max_model_len": "many"}}, "max_model_len=many"),
        ({"chat": True}, "no chat template"),
        ({"dtype": "int8"}, 'unknown dtype "int8"'),
        ({"base": "x"}, "is not an adapter"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_a_database_is_made(
    config: EvalConfig, store: Store, serving: Any, changes: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(dataclasses.replace(config, **changes), store, serving)
    assert not store.path.exists()
    assert serving.starts == []


def test_a_database_that_cannot_be_made_is_refused_before_the_engine_starts(
    config: EvalConfig, tmp_path: Path, serving: Any
) -> None:
    with pytest.raises(InputError, match="does not exist"):
        run(config, Store(tmp_path / "none" / "morfi.duckdb"), serving)
    assert serving.starts == []


def test_an_architecture_without_a_context_limit_gets_the_default(
    config: EvalConfig, tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    size = BloomConfig(vocab_size=259, hidden_size=16, n_layer=1, n_head=2)
    BloomForCausalLM(size).save_pretrained(tmp_path / "bloom")
    make_tokenizer().save_pretrained(tmp_path / "bloom")
    assert prepare(dataclasses.replace(config, ckpt=str(tmp_path / "bloom")), Log()).prompted.context == 4096


def _changed_weights(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] += 0.5
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def _changed_tokenizer(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(model)


@pytest.mark.parametrize("change", [_changed_weights, _changed_tokenizer])
def test_other_weights_or_another_tokenizer_change_the_fingerprint(
    config: EvalConfig, tiny_model: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    shutil.copytree(tiny_model, tmp_path / "other")
    other = dataclasses.replace(config, ckpt=str(tmp_path / "other"))
    before = prepare(config, Log()).fingerprint
    assert prepare(other, Log()).fingerprint == before
    change(tmp_path / "other")
    assert prepare(other, Log()).fingerprint != before


@pytest.mark.parametrize(
    "changes",
    [
        {"max_tokens": 15},
        {"match": "strict"},
        {"shots": 1},
        {"seed": 1},
        {"batch": 4},
        {"limit": 19},
        {"relations": ("P17",)},
        {"split": "dev"},
        {"dtype": "float16"},
        {"engine": {"block_size": 64}},
    ],
    ids=str,
)
def test_what_decides_the_rows_changes_the_fingerprint(
    config: EvalConfig, changes: Mapping[str, Any]
) -> None:
    changed = prepare(dataclasses.replace(config, **changes), Log()).fingerprint
    assert changed != prepare(config, Log()).fingerprint


@pytest.mark.parametrize(
    "changes",
    [{"limit": 20}, {"limit": 999}, {"relations": ("P36", "P17")}, {"split": "test"}],
    ids=str,
)
def test_another_way_to_ask_the_same_keeps_the_fingerprint(
    config: EvalConfig, changes: Mapping[str, Any]
) -> None:
    same = prepare(dataclasses.replace(config, **changes), Log()).fingerprint
    assert same == prepare(config, Log()).fingerprint


def test_the_serving_dtype_counts_whether_given_or_chosen(config: EvalConfig) -> None:
    task = prepare(config, Log())
    given = dataclasses.replace(config, dtype=task.checkpoint.dtype)
    assert prepare(given, Log()).fingerprint == task.fingerprint


def test_the_questions_count_and_their_file_does_not(
    config: EvalConfig, data_file: Path, tmp_path: Path
) -> None:
    before = prepare(config, Log()).fingerprint
    lines = data_file.read_text().splitlines()
    random.Random(0).shuffle(lines)
    with gzip.open(tmp_path / "other.jsonl.gz", "wt") as file:
        file.write("\n\n".join(lines))
    moved = dataclasses.replace(config, data=str(tmp_path / "other.jsonl.gz"))
    assert prepare(moved, Log()).fingerprint == before
    row = next(json.loads(line) for line in lines if '"test-P17-0"' in line)
    for key, value in {"answers": [*row["answers"], "more"], "relation": "P18", "subject": "x"}.items():
        changed = json.dumps({**row, key: value})
        others = [line for line in lines if '"test-P17-0"' not in line]
        (tmp_path / "changed.jsonl").write_text("\n".join([*others, changed]))
        edited = dataclasses.replace(config, data=str(tmp_path / "changed.jsonl"), shots=0)
        assert (
            prepare(edited, Log()).fingerprint
            != prepare(dataclasses.replace(config, shots=0), Log()).fingerprint
        )


def child(database: Path, pause_s: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", str(CHILD), str(pause_s), "eval", "--ckpt", "slow", "--batch", "12"]
    return subprocess.Popen(
        [*command, "--db", str(database), "--resume", "auto", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.long
def test_five_kills_at_random_moments_and_a_resume_give_the_rows_of_an_uninterrupted_run(
    tmp_path: Path,
) -> None:
    database = tmp_path / "killed.duckdb"
    for _ in range(5):
        process = child(database, 0.1)
        assert process.stderr is not None
        assert "starting vLLM" in process.stderr.readline()
        time.sleep(random.uniform(0, 0.6))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        if store_runs := Store(database).runs(9):
            assert len(store_runs) == 1
            assert store_runs[0].status == "interrupted"
            assert store_runs[0].n_done % 12 == 0
    found = {}
    for path, pause_s in ((database, 0.0), (tmp_path / "whole.duckdb", 0.0)):
        answer, said = child(path, pause_s).communicate(timeout=60)
        assert json.loads(answer)["n"] == 240, said
        found[path] = facts(Store(path), json.loads(answer)["run_id"])
        assert Store(path).query("SELECT count(*) AS n FROM completion").to_pylist() == [{"n": 240}]
    assert found[database] == found[tmp_path / "whole.duckdb"]


@pytest.mark.long
def test_ctrl_c_exits_with_130_keeps_whole_batches_and_says_how_to_go_on(tmp_path: Path) -> None:
    database = tmp_path / "a b.duckdb"
    process = child(database, 0.2)
    assert process.stderr is not None
    assert "starting vLLM" in process.stderr.readline()
    deadline = time.monotonic() + 60  # a busy machine takes long to the first batch
    while not (database.exists() and any(run.n_done for run in Store(database).runs(1))):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    answer, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert answer == ""
    (summary,) = Store(database).runs(9)
    assert summary.status == "interrupted"
    assert summary.n_done % 12 == 0
    assert f"go on with: morfi eval --resume {summary.run_id} --db '{database}'" in said
    assert "Traceback" not in said
    answer, said = child(database, 0.0).communicate(timeout=60)
    assert json.loads(answer)["run_id"] == summary.run_id
    assert Store(database).summary(summary.run_id).n_attempts == 2
