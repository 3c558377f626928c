from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from morfi.errors import InputError
from morfi.evaluation.split import SplitConfig, configure_split, prepare_split, run_split
from morfi.questions import load_questions
from morfi.questions.question import Question
from morfi.store import Store

pytestmark = pytest.mark.usefixtures("isolated_cache")

N_ANSWERS = 2 * (1 + 3)  # of each question


@pytest.fixture
def config(tiny_model: Path, data_file: Path) -> SplitConfig:
    return SplitConfig(str(tiny_model), data=str(data_file), n_ex=2, shots=2, samples=3, batch=5)


def run(config: SplitConfig, store: Store, serving: Any, log: Any, *, new: bool = False) -> str:
    return run_split(config, store, serving, log, new=new, command="morfi split")


def test_every_question_is_asked_under_each_prompt_and_gets_its_category(
    config: SplitConfig, store: Store, serving: Any, questions: Mapping[str, Sequence[Question]], log: Any
) -> None:
    serving.sampled = {questions["train"][0].text: questions["train"][0].answers[0]}
    run_id = run(config, store, serving, log)
    rows = {row.question_id: row for row in store.knowledge(run_id)}
    every = {question.id: split for split, asked in questions.items() for question in asked}
    assert {question_id: row.split for question_id, row in rows.items()} == every
    known = {question.id for question in questions["test"][::2]}
    expected = {i: "HighlyKnown" if i in known else "Unknown" for i in every}
    expected[questions["train"][0].id] = "WeaklyKnown"
    assert {question_id: row.category for question_id, row in rows.items()} == expected
    assert rows[questions["train"][0].id].p_sampled == pytest.approx(1 / 3)
    summary = store.summary(run_id)
    assert (summary.status, summary.n_done) == ("done", len(every) * N_ANSWERS)
    assert log.starts == [(len(every) * N_ANSWERS, 0)]
    assert log.n_advanced == len(every) * N_ANSWERS


@pytest.mark.long
def test_a_prompt_is_one_greedy_request_and_one_for_all_its_samples(
    config: SplitConfig, store: Store, serving: Any, log: Any
) -> None:
    run(config, store, serving, log)
    asked, wanted = serving.batches[0], serving.samplings[0]
    assert asked[:5] == asked[5:]
    assert [(s.n, s.temperature) for s in wanted] == [(1, 0.0)] * 5 + [(3, 0.5)] * 5
    assert {s.top_k for s in wanted[5:]} == {40}
    seeds = [s.seed for batch in serving.samplings for s in batch if s.temperature]
    assert len(set(seeds)) == len(seeds) == 2 * 42
    assert all(seed is not None and 0 <= seed < 2**32 for seed in seeds)


def test_exemplars_come_from_dev_and_differ_between_prompts(config: SplitConfig, log: Any) -> None:
    task = prepare_split(config, log)
    data = load_questions(config.data)
    texts = {split: {question.text for question in data.splits[split]} for split in data.splits}
    heads: dict[str, set[str]] = {}
    for prompt in task.prompts:
        shown = [part.partition("\n")[0] for part in prompt.text.split("Q: ")[1:-1]]
        source = "train" if task.split_of[prompt.question.id] == "dev" else "dev"
        assert len(shown) == 2
        assert set(shown) <= texts[source]
        heads.setdefault(prompt.question.id, set()).add("".join(shown))
    assert {len(found) for found in heads.values()} == {2}


def test_questions_that_splits_share_are_said(
    config: SplitConfig, tmp_path: Path, write_questions: Callable[..., Path], log: Any
) -> None:
    splits = few_dev_questions(6)
    splits["test"].append(dataclasses.replace(splits["dev"][0], id="again", subject="DEV 0!"))
    path = write_questions(tmp_path / "shared.jsonl", splits)
    prepare_split(dataclasses.replace(config, data=str(path)), log)
    assert "1 of 7 test questions have their subject or text in dev too" in log.phases
    assert not any("in train too" in text for text in log.phases)


def few_dev_questions(n_dev: int) -> dict[str, list[Question]]:
    sizes = {"train": 6, "dev": n_dev, "test": 6}
    return {
        split: [
            Question(f"{split}{i}", "P17", f"{split} {i}", f"Where is {split} {i}?", (f"Land{i}",))
            for i in range(n)
        ]
        for split, n in sizes.items()
    }


@pytest.mark.parametrize(("n_dev", "n_ex", "n_sets"), [(2, 2, 1), (3, 4, 3), (3, 6, 3), (5, 10, 10)])
def test_the_prompts_of_a_question_all_differ(
    config: SplitConfig,
    tmp_path: Path,
    write_questions: Callable[..., Path],
    log: Any,
    *,
    n_dev: int,
    n_ex: int,
    n_sets: int,
) -> None:
    path = write_questions(tmp_path / "few.jsonl", few_dev_questions(n_dev))
    task = prepare_split(dataclasses.replace(config, data=str(path), n_ex=n_ex), log)
    of_one = [prompt.text for prompt in task.prompts if prompt.question.id == "test0"]
    assert len(set(of_one)) == len(of_one) == n_ex
    sets = {frozenset(text.split("\n\n")[:-1]) for text in of_one}
    assert len(sets) == n_sets, "as many sets of exemplars as there are, before any comes again"
    said = [text for text in log.phases if "differ in the order" in text and "for test" in text]
    assert len(said) == (n_sets < n_ex)


def test_more_prompts_than_exemplars_allow_are_refused(
    config: SplitConfig, tmp_path: Path, write_questions: Callable[..., Path], log: Any
) -> None:
    path = write_questions(tmp_path / "few.jsonl", few_dev_questions(2))
    with pytest.raises(InputError, match=r"makes 2 different prompts, not 3; give --n-ex 2 or less"):
        prepare_split(dataclasses.replace(config, data=str(path), n_ex=3), log)


def test_prompts_that_share_a_prefix_stand_together(config: SplitConfig, log: Any) -> None:
    task = prepare_split(config, log)
    prefixes = [(task.split_of[p.question.id], p.text.rpartition("Q: ")[0]) for p in task.prompts]
    changes = sum(a != b for a, b in itertools.pairwise(prefixes))
    assert changes == len(set(prefixes)) - 1


@pytest.mark.long
def test_the_same_command_goes_on_where_it_stopped_with_the_same_rows(
    config: SplitConfig, store: Store, tmp_path: Path, serving: Any, log: Any
) -> None:
    whole = Store(tmp_path / "whole.duckdb")
    whole_id = run(config, whole, serving, log)
    n_batches = len(serving.batches)
    serving.batches.clear()
    serving.stop_after = 3
    with pytest.raises(RuntimeError):
        run(config, store, serving, log)
    serving.stop_after = None
    run_id = run(config, store, serving, log)
    assert len(serving.batches) == n_batches
    assert log.starts[-1][1] == 3 * 5 * (1 + 3)
    rows, expected = store.samples(run_id).to_pylist(), whole.samples(whole_id).to_pylist()
    for row in rows + expected:
        del row["run_id"], row["attempt"]
    assert rows == expected
    starts = len(serving.starts)
    assert run(config, store, serving, log) == run_id
    assert len(serving.starts) == starts
    assert run(config, store, serving, log, new=True) != run_id


def test_limit_takes_its_share_of_every_split(config: SplitConfig, log: Any) -> None:
    task = prepare_split(dataclasses.replace(config, limit=20), log)
    asked = {prompt.question.id for prompt in task.prompts}
    splits = [task.split_of[question_id] for question_id in asked]
    assert {split: splits.count(split) for split in ("train", "dev", "test")} == {
        "train": 12,
        "dev": 3,
        "test": 5,
    }


def test_data_without_splits_gets_them(
    config: SplitConfig, tmp_path: Path, write_questions: Callable[..., Path], log: Any
) -> None:
    rows = [
        Question(f"q{i}", "P17", f"town {i}", f"Which country is town {i} in?", ("Peru",)) for i in range(60)
    ]
    path = write_questions(tmp_path / "facts.jsonl", {"all": rows})
    task = prepare_split(dataclasses.replace(config, data=str(path)), log)
    assert set(task.split_of.values()) == {"train", "dev", "test"}
    assert len(task.split_of) == 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit": 2}, "--limit is 2; expected at least 3"),
        ({"n_ex": 0}, "--n-ex is 0"),
        ({"shots": -1}, "--shots is -1"),
        ({"shots": 0}, "--shots 0 makes all prompts of a question the same"),
        ({"samples": -1}, "--samples is -1"),
        ({"temperature": 0.0}, "--temperature is 0.0"),
        ({"temperature": float("nan")}, "--temperature is nan"),
        ({"top_k": -1}, "--top-k is -1"),
        ({"match": "Squad"}, 'Did you mean "squad"'),
        ({"seed": 2**32}, "--seed is 4294967296; expected at most"),
        ({"batch": 0}, "--batch is 0"),
        ({"max_tokens": 0}, "--max-tokens is 0"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SplitConfig("smollm2", **changes)


def test_too_few_dev_questions_for_the_exemplars_are_named(config: SplitConfig, log: Any) -> None:
    with pytest.raises(InputError, match=r"P17 of facts\.jsonl has 5 questions in dev"):
        prepare_split(dataclasses.replace(config, shots=6), log)


def test_defaults_follow_the_machine_and_the_number_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morfi.runs.options.is_gpu", lambda: True)
    config = configure_split({"ckpt": "smollm2", "n_ex": None})
    assert (config.n_ex, config.samples, config.temperature, config.top_k) == (10, 16, 0.5, 40)
    monkeypatch.setattr("morfi.runs.options.is_gpu", lambda: False)
    config = configure_split({"ckpt": "smollm2", "n_ex": None})
    assert (config.n_ex, config.samples) == (3, 4)
    assert configure_split({"ckpt": "smollm2", "batch": 7, "samples": 0}).batch == 7
