"""What an evaluation asks, stores and refuses."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from evaluated import facts, run
from progress_log import Log
from transformers import BloomConfig, BloomForCausalLM

from morfi.errors import InputError, MorfiError
from morfi.evaluation.config import EvalConfig
from morfi.evaluation.evaluate import prepare
from morfi.questions.matching import is_correct
from morfi.questions.question import Question
from morfi.store import Store

pytestmark = pytest.mark.usefixtures("isolated_cache")


@pytest.mark.long
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


@pytest.mark.long
def test_two_new_runs_of_one_configuration_have_equal_rows(
    config: EvalConfig, store: Store, serving: Any
) -> None:
    first, second = run(config, store, serving), run(config, store, serving)
    assert first != second
    assert facts(store, first) == facts(store, second)


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
