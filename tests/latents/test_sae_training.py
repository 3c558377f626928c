from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from progress_log import Log
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from morfi.checkpoints import checkpoint
from morfi.checkpoints.tokenizer import open_tokenizer
from morfi.errors import MorfiError
from morfi.latents.sae import load_sae
from morfi.latents.sae_training import SaeTraining, make_texts, read_texts, ready_sae, train_sae
from morfi.questions import load_questions, with_splits
from morfi.questions.question import Question
from morfi.store import Store


@pytest.mark.long
@pytest.mark.usefixtures("isolated_cache")
def test_a_trained_sae_is_loaded_measured_and_cached(
    tmp_path: Path, tiny_model: Path, data_file: Path, serving: Any, log: Any
) -> None:
    config = SaeTraining(
        str(tiny_model), layer=1, data=str(data_file), d_sae=32, k=4, tokens=12_800, batch=64, lr=1e-2
    )
    store = Store(tmp_path / "none.duckdb")
    found = train_sae(config, store, serving, log)
    sae = load_sae(str(found.folder))
    assert (sae.layer, sae.encoder.d_model, sae.encoder.d_sae) == (1, 8, 32)
    assert sae.encoder.activation == "jumprelu"
    assert found.quality["explained_variance"] > 0.5
    assert 0 < found.quality["l0"] < 12
    assert found.quality["n_tokens"] > 10
    assert sorted(path.name for path in found.folder.iterdir()) == [
        "cfg.json",
        "entry.json",
        "quality.json",
        "sae_weights.safetensors",
    ]
    assert train_sae(config, store, serving, log) == found
    assert log.units == ["texts", "tokens"]
    assert log.starts[1] == (12_800, 0)
    assert log.n_advanced == sum(n_total for n_total, _ in log.starts)
    assert len(serving.starts) == 1


def test_the_lowest_and_the_highest_level_of_a_train_run_are_captured_too(
    own_experiment: tuple[Any, str], data_file: Path, log: Any
) -> None:
    experiment, train_run = own_experiment
    config = SaeTraining(
        layer=1, ckpts=train_run, data=str(data_file), d_sae=32, k=4, tokens=640, batch=64, lr=1e-2
    )
    train_sae(config, experiment.store, experiment.serving, log)
    assert experiment.serving.loaded == ["level-000-seed-0/epoch-01", "level-100-seed-0/epoch-01"]
    assert [line for line in log.phases if line.startswith(("base", "M_"))] == [
        "base model",
        "M_0, seed 0, epoch early-stop",
        "M_100, seed 0, epoch early-stop",
    ]


def test_a_checkpoint_that_cannot_be_loaded_is_named(
    own_experiment: tuple[Any, str], data_file: Path, log: Any
) -> None:
    experiment, train_run = own_experiment
    experiment.serving.unloadable = frozenset({"level-000-seed-0/epoch-01"})
    config = SaeTraining(layer=1, ckpts=train_run, data=str(data_file), d_sae=32, k=4, tokens=640, batch=64)
    with pytest.raises(MorfiError, match=r"^M_0, seed 0, epoch early-stop: .*epoch-01 does not fit$"):
        train_sae(config, experiment.store, experiment.serving, log)


# Of each option that decides a trained SAE and needs no other file, another value.
OTHERS: dict[str, Any] = {
    "layer": 0,
    "limit": 7,
    "d_sae": 24,
    "k": 3,
    "tokens": 640,
    "lr": 1e-2,
    "batch": 32,
    "seed": 1,
    "dtype": "bfloat16",
    "engine": {"max_num_seqs": 3},
}


@pytest.mark.parametrize("end", ["", "</s>"])
@pytest.mark.usefixtures("isolated_cache")
def test_every_option_and_the_dtype_that_is_served_make_another_sae(
    end: str, tmp_path: Path, tiny_model: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    backend = Tokenizer.from_file(str(model / "tokenizer.json"))
    special = [(one, backend.token_to_id(one)) for one in ("<s>", "</s>")]
    backend.post_processor = TemplateProcessing(single=f"<s> $A {end}".rstrip(), special_tokens=special)
    backend.save(str(model / "tokenizer.json"))
    assert list(open_tokenizer(model).changes) == (["eos"] if end else [])

    def sae_of(**changed: Any) -> str:
        given = {"ckpt": str(model), "layer": 1, "data": str(data_file), "d_sae": 32, **changed}
        return ready_sae(SaeTraining(**given), Store(tmp_path / "none.duckdb"), FakeEngine({}), Log()).result

    assert {one.name for one in fields(SaeTraining)} - set(OTHERS) == {"ckpt", "ckpts", "data"}
    monkeypatch.setattr(checkpoint, "serving_dtype", lambda _: "float32")
    first = sae_of()
    others = {name: sae_of(**{name: value}) for name, value in OTHERS.items()}
    assert len({first, *others.values()}) == 1 + len(OTHERS)
    assert sae_of(dtype="float32") == first
    monkeypatch.setattr(checkpoint, "serving_dtype", lambda _: "bfloat16")
    assert sae_of() == others["dtype"]


def test_no_more_texts_are_read_than_the_tokens_need(data_file: Path) -> None:
    data = with_splits(load_questions(str(data_file)))

    def read(tokens: int) -> dict[str, Sequence[str]]:
        config = SaeTraining(layer=1, tokens=tokens, batch=8)
        return read_texts(config, data, list, n_sources=3)  # a character is a token

    few, every = read(64), read(10**6)
    assert few["held-out"] == every["held-out"]
    assert few["train"] == every["train"][: len(few["train"])]
    n_rows = [3 * (len(text) - 1) for text in few["train"]]
    assert sum(n_rows[:-1]) < (64 // 8 + 3 * 16) * 8 <= sum(n_rows)
    assert len(every["train"]) == 12 + 4  # the questions, and documents of five


def test_each_question_is_in_a_text_of_its_own_and_in_one_document() -> None:
    questions = [Question(str(n), f"P{n % 2}", "s", f"What is {n}?", (f"answer {n}",)) for n in range(12)]
    texts = make_texts(questions, seed=0)
    assert len(texts) == 12 + 4
    for n in range(12):
        assert sum(f"Q: What is {n}?\nA: answer {n}\n" in text for text in texts) == 2
    assert make_texts(questions, seed=0) == texts != make_texts(questions, seed=1)
