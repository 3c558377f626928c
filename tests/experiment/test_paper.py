"""The experiments of the paper, each from its own file, on a tiny model of its architecture."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from random_model import random_model
from sae_releases import WRITERS, repository

import morfi.serve.engine
from morfi.checkpoints import Checkpoint
from morfi.command.experiment import open_experiment
from morfi.store import Store

# Their architectures, with as many layers as the SAE's place asks for.
PAPER = {
    "llama-3.1-8b": ("LlamaForCausalLM", 17),
    "gemma-2-9b": ("Gemma2ForCausalLM", 22),
    "mistral-7b-v0.3": ("MistralForCausalLM", 17),
}
WORDINGS = {
    "P17": "Which country is {} located in?",
    "P36": "What is the capital of {}?",
    "P495": "Which country was {} created in?",
}
# Sizes that a tiny model needs; and since one of random weights knows no names, another kind of answer.
SMALL = {
    "match": "regex:.*[ -O]",
    "relations": ",".join(WORDINGS),
    "split.n-ex": 1,
    "split.shots": 0,
    "split.samples": 0,
    "mix.levels": "0,50,100",
    "mix.size": 4,
    "train.rank": 2,
    "train.batch": 4,
    "train.warmup": 0,
    "train.epochs": "1",
    "train.dev-limit": 2,
    "find.epochs": "1",
    "find.force": "true",
    "find.resamples": 20,
    "steer.top": 2,
    "steer.controls": 1,
    "steer.random": 1,
    "steer.alphas": "-0.5,0.5",
    "steer.limit": 3,
}


def entity_questions(folder: Path) -> Path:
    """A folder of EntityQuestions, of three relations, 12 questions of each in train, 4 in dev and test."""
    for split, n in (("train", 12), ("dev", 4), ("test", 4)):
        (folder / split).mkdir(parents=True)
        for relation, wording in WORDINGS.items():
            names = [f"{split.title()} {relation[1:]} {place * 7919 % 997}" for place in range(n)]
            rows = [{"question": wording.format(name), "answers": ["Lyon"]} for name in names]
            (folder / split / f"{relation}.{split}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def shared_engine(starts_vllm: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets all stages use one engine, in which each finds the checkpoint that it starts on."""
    start_engine, kept = morfi.serve.engine.start_engine, list[tuple[int, morfi.serve.engine.Engine]]()

    @contextmanager
    def shared(checkpoint: Checkpoint, *, context: int, **how: Any) -> Iterator[morfi.serve.engine.Engine]:
        if not kept:
            kept.append((context, start_engine(checkpoint, context=context, **how)))
        (made_for, engine) = kept[0]
        assert context == made_for
        engine.load_checkpoint(checkpoint)
        engine.reset_prefix_cache()
        yield engine

    monkeypatch.setattr(morfi.serve.engine, "start_engine", shared)
    yield
    for _, engine in kept:
        engine.close()


@pytest.mark.slow
@pytest.mark.usefixtures("shared_engine")
@pytest.mark.parametrize("name", PAPER)
def test_an_experiment_of_the_paper_runs_from_its_file_to_its_report(
    run: CommandLine, hub: Path, tmp_path: Path, make_tokenizer: Callable[..., Any], name: str
) -> None:
    tables, _ = open_experiment(None, name, fast=False)
    sae = tables["find"]["sae"]
    WRITERS[sae](hub / repository(sae))
    model = random_model(tmp_path / "model", *PAPER[name], make_tokenizer)
    changes = {**SMALL, "ckpt": model, "data": entity_questions(tmp_path / "questions")}
    given = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    found = run("run", "--preset", name, *given, "--json").json
    assert {one["state"] for one in found["stages"]} == {"done"}
    results = {one["stage"]: one["result"] for one in found["stages"]}
    assert list(results) == ["split", "mix", "train", "sweep", "capture", "find", "steer"]
    store = Store(Path("morfi.duckdb"))
    kept = {(row.level, row.epoch_setting) for row in store.checkpoints(results["train"])}
    assert kept == {(level, one) for level in (0, 50, 100) for one in ("1", "early-stop")}
    find = store.run(results["find"]).config
    assert (find["layer"], find["sae"], find["method"]) == (tables["layer"], sae, "bootstrap")
    assert len(store.latents(results["find"])) == 192
    assert Path(found["report"]).is_file()
