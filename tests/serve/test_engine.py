"""The engine against transformers, on the real SmolLM2 in float32; one engine serves the whole file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hooked_model import state_of

from morfi.checkpoints.tokenizer import load_tokenizer
from morfi.engine.protocol import Sampling
from morfi.errors import InputError
from morfi.questions import load_questions, select
from morfi.questions.exemplars import choose_shots
from morfi.questions.prompts import build_prompts
from morfi.serve.engine import Engine
from morfi.serve.plugin.shared_layers import Plan

CONTEXT = 1024


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> Any:
    return load_tokenizer(smollm2_dir)


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    """Forty 4-shot prompts of two relations."""
    data = load_questions("world-facts")
    scored = select(data.splits["test"], relations=("P17", "P36"), limit=40)
    shots = choose_shots(data, scored, "test", shots=4, seed=0)
    return [list(p.token_ids) for p in build_prompts(scored, shots.exemplars, tokenizer)]


@pytest.fixture(scope="module")
def engine(smollm2_dir: Path, starts_vllm: None) -> Iterator[Engine]:
    with Engine(smollm2_dir, dtype="float32", context=CONTEXT) as engine:
        yield engine


def test_greedy_answers_equal_those_of_transformers(
    engine: Engine,
    prompts: list[list[int]],
    tokenizer: Any,
    smollm2_dir: Path,
    greedy_tokens: Callable[..., list[list[int]]],
) -> None:
    newlines = {i for i in range(len(tokenizer)) if "\n" in tokenizer.decode([i])}
    expected = greedy_tokens(smollm2_dir, prompts, newlines, max_tokens=8)
    answers = engine.generate(prompts, Sampling(max_tokens=8))
    assert [list(answer[0].token_ids) for answer in answers] == expected


@pytest.mark.parametrize("n_tokens", [0, CONTEXT, CONTEXT + 1])
def test_a_prompt_without_tokens_or_without_room_for_an_answer_is_refused(
    engine: Engine, prompts: list[list[int]], n_tokens: int
) -> None:
    with pytest.raises(InputError, match=f"prompt 1 of 2 has {n_tokens} tokens; give it 1 to {CONTEXT - 1}"):
        engine.generate([prompts[0], [5] * n_tokens], Sampling(max_tokens=1))


def test_an_answer_ends_at_a_newline_or_at_max_tokens(engine: Engine, prompts: list[list[int]]) -> None:
    for (answer,) in engine.generate(prompts, Sampling(max_tokens=3)):
        assert "\n" not in answer.text
        assert len(answer.token_ids) <= 3
        assert answer.finish_reason in ("stop", "length")
        assert (answer.finish_reason == "length") <= (len(answer.token_ids) == 3)


def test_a_batch_answered_again_from_an_empty_cache_is_the_same(
    engine: Engine, prompts: list[list[int]]
) -> None:
    runs = []
    for _ in range(2):
        engine.reset_prefix_cache()
        runs.append(engine.generate(prompts, Sampling()))
    assert runs[0] == runs[1]


def test_a_shared_prefix_is_computed_once(engine: Engine, prompts: list[list[int]]) -> None:
    engine.reset_prefix_cache()
    cached = [answer[0].n_cached_tokens for answer in engine.generate(prompts[:20], Sampling())]
    assert cached[0] == 0
    assert min(cached[1:]) >= 32


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=8), Sampling(temperature=1.0, n=4, seed=3)])
def test_rows_that_are_equal_are_computed_once_and_answers_stay(
    engine: Engine, prompts: list[list[int]], sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = state_of(engine).shared_layers
    assert shared is not None
    begin, left_out = shared.begin, []

    def count(plan: Plan | None) -> None:
        left_out.append(0 if plan is None else len(plan.places) - len(plan.rows))
        begin(plan)

    monkeypatch.setattr(shared, "begin", count)
    engine.reset_prefix_cache()
    found = engine.generate(prompts, sampling)
    n_computed = sum(len(p) - a[0].n_cached_tokens for p, a in zip(prompts, found, strict=True))
    assert sum(left_out) > n_computed / 4
    monkeypatch.setattr(shared, "begin", lambda _: begin(None))
    engine.reset_prefix_cache()
    assert engine.generate(prompts, sampling) == found


def test_sampling_gives_n_answers_that_depend_on_the_seed_only(
    engine: Engine, prompts: list[list[int]]
) -> None:
    def draw(seed: int) -> list[list[tuple[int, ...]]]:
        sampling = Sampling(temperature=1.0, top_k=40, n=4, seed=seed)
        return [
            [answer.token_ids for answer in answers] for answers in engine.generate(prompts[:6], sampling)
        ]

    first = draw(1)
    assert [len(answers) for answers in first] == [4] * 6
    assert any(len(set(answers)) > 1 for answers in first)
    assert draw(1) == first
    assert draw(2) != first


def test_an_interrupted_batch_leaves_nothing_running(engine: Engine, prompts: list[list[int]]) -> None:
    expected = engine.generate(prompts[:5], Sampling())

    def interrupt(n: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(prompts, Sampling(), interrupt)
    again = engine.generate(prompts[:5], Sampling())
    assert [a[0].token_ids for a in again] == [a[0].token_ids for a in expected]
    engine.reset_prefix_cache()  # refused while a request holds blocks


def test_progress_counts_every_request_once(engine: Engine, prompts: list[list[int]]) -> None:
    counted: list[int] = []
    engine.generate(prompts, Sampling(max_tokens=2), counted.append)
    assert sum(counted) == len(prompts)


def test_no_prompts_give_no_answers(engine: Engine) -> None:
    assert engine.generate([], Sampling()) == []


def test_the_record_names_the_settings_and_no_path(engine: Engine, smollm2_dir: Path) -> None:
    assert engine.settings["max_model_len"] == CONTEXT
    assert engine.settings["enable_prefix_caching"] is True
    assert str(smollm2_dir) not in str(dict(engine.settings))
    assert engine.device


def test_an_unknown_setting_is_refused_with_the_nearest(smollm2_dir: Path) -> None:
    with pytest.raises(InputError, match=r'no engine setting "max_num_seq".*"max_num_seqs"'):
        Engine(smollm2_dir, dtype="float32", context=CONTEXT, overrides={"max_num_seq": 8})
