from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morfi.errors import InputError
from morfi.questions.question import Question
from morfi.training import train_config
from morfi.training.plan import Mixture, TrainingData, check_warmup


def test_every_mixture_is_trained_with_every_seed(train_tiny: Any) -> None:
    task = train_tiny.prepare(train_tiny.data(levels=(0, 25, 100)), seeds=2, epochs=(1, 3))
    assert [job.name for job in task.jobs] == [
        f"level-{level:03}-seed-{seed}" for level in (0, 25, 100) for seed in (0, 1)
    ]
    assert task.n_planned == 3 * 2 * 11 * 3
    assert task.bos


def test_examples_and_dev_prompts_have_bos_alike_and_the_fingerprint_says_so(train_tiny: Any) -> None:
    auto, yes, no = (train_tiny.prepare(bos=bos) for bos in ("auto", "yes", "no"))
    assert auto.fingerprint == yes.fingerprint != no.fingerprint
    assert (auto.bos, no.bos) == (True, False)
    for with_bos, without in zip(auto.jobs[0].examples, no.jobs[0].examples, strict=True):
        assert with_bos.token_ids == (0, *without.token_ids)
        assert with_bos.n_targets == without.n_targets
    assert [one.token_ids[1:] for one in auto.dev] == [one.token_ids for one in no.dev]


def test_each_dev_question_is_asked_without_exemplars(train_tiny: Any) -> None:
    task = train_tiny.prepare(train_tiny.data(n_dev=6), dev_limit=4)
    assert len(task.dev) == 4
    assert {prompt.question.relation for prompt in task.dev} == {"P0", "P1"}
    assert all(prompt.text == f"Q: {prompt.question.text}\nA:" for prompt in task.dev)


def test_a_base_is_named_by_its_whole_path(train_tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(train_tiny.model.parent)
    assert train_tiny.prepare(model=train_tiny.model.name).base_name == str(train_tiny.model)


def test_whatever_decides_a_checkpoint_changes_the_fingerprint(
    train_tiny: Any, tiny_models: dict[str, Path]
) -> None:
    data = train_tiny.data()
    reordered = replace(data, mixtures=(Mixture(0, data.mixtures[0].questions[::-1]),))
    prints = [
        train_tiny.prepare(given, **settings).fingerprint
        for given, settings in (
            (data, {}),
            (reordered, {}),
            (replace(data, sha256="0" * 64), {}),
            (train_tiny.data(levels=(1,)), {}),
            (train_tiny.data(n_dev=2), {}),
            (data, {"lr": 0.02}),
            (data, {"seeds": 2}),
            (data, {"epochs": (1, 3)}),
            (data, {"model": str(tiny_models["mistral"])}),
        )
    ]
    assert len(set(prints)) == len(prints)
    assert train_tiny.prepare(data, epochs=(2, 1)).fingerprint == prints[0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mixtures": ()}, "facts has no mixtures to train on"),
        ({"mixtures": (Mixture(10, ()),)}, "the mixture of level 10 is empty"),
        ({"mixtures": (Mixture(101, (Question("q", "P", "s", "t", ("a",)),)),)}, "level 101 is repeated or"),
        ({"dev": ()}, "early stopping needs dev questions, and facts has none"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(
    train_tiny: Any, changed: dict[str, Any], message: str
) -> None:
    data: TrainingData = replace(train_tiny.data(), **changed)
    with pytest.raises(InputError) as caught:
        train_tiny.prepare(data)
    assert message in str(caught.value)


def test_a_repeated_level_is_refused(train_tiny: Any) -> None:
    with pytest.raises(InputError, match="level 10 is repeated"):
        train_tiny.prepare(train_tiny.data(levels=(10, 10)))


def test_a_prompt_too_long_for_the_model_is_refused(train_tiny: Any) -> None:
    long = Question("long", "P0", "s", "x" * 130, ("y",))
    with pytest.raises(InputError, match="question long: prompt and answer have"):
        train_tiny.prepare(train_tiny.data(questions=(*train_tiny.facts, long)))
    with pytest.raises(InputError, match="question long"):
        train_tiny.prepare(replace(train_tiny.data(), dev=(long,)))


@given(
    batch=st.integers(1, 14),
    warmup=st.integers(0, 3),
    epochs=st.sets(st.integers(1, 3), min_size=1),
    early_stop=st.booleans(),
)
def test_a_checkpoint_before_the_first_real_step_is_refused(
    batch: int, warmup: int, epochs: set[int], early_stop: bool
) -> None:
    settings = {"batch": batch, "micro_batch": 1, "warmup": warmup, "epochs": tuple(epochs)}
    config = train_config({"model": "smollm2", **settings, "early_stop": early_stop})
    first = 1 if early_stop else min(epochs)
    n_steps = first * math.ceil(11 / batch)
    if n_steps > 1 or not warmup:
        check_warmup(config, 50, 11)
    else:
        with pytest.raises(InputError, match=r"level 50 has 11 questions.* give --warmup 0,"):
            check_warmup(config, 50, 11)


def test_a_training_that_would_only_warm_up_is_refused(train_tiny: Any) -> None:
    with pytest.raises(InputError, match="the checkpoint of epoch 1 would be the base model"):
        train_tiny.prepare(warmup=5, batch=16)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (("qproj",), 'no module qproj to put LoRA on; .* gate_proj, k_proj.* Did you mean "q_proj"?'),
        (("q_proj", "c_attn"), "no module c_attn to put LoRA on"),
        (("proj",), "no module proj"),
        (("mlp",), "no module mlp"),
        (("all-linear", "q_proj"), 'no module all-linear to put LoRA on; give "all-linear" alone'),
    ],
)
def test_a_target_that_is_no_module_is_refused_before_anything_is_trained(
    train_tiny: Any, targets: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InputError, match=said) as refused:
        train_tiny.prepare(targets=targets)
    assert "\n" not in str(refused.value)
    assert train_tiny.prepare(targets=("q_proj", "1.mlp.up_proj")).jobs


def test_a_rank_above_every_weights_is_refused(train_tiny: Any) -> None:
    with pytest.raises(
        InputError, match=r"--rank 65536: no weight that LoRA is put on has a rank above (\d+)"
    ) as refused:
        train_tiny.prepare(rank=65_536)
    highest = int(str(refused.value).rpartition("above ")[2].partition(";")[0])
    assert train_tiny.prepare(rank=highest).jobs
    with pytest.raises(InputError, match="no weight that LoRA is put on"):
        train_tiny.prepare(rank=highest + 1)


def test_an_adapter_or_a_quantised_model_is_no_base(train_tiny: Any, tmp_path: Path) -> None:
    [row] = train_tiny(tmp_path / "run", epochs=(1,), early_stop=False).rows
    with pytest.raises(InputError, match="is a LoRA adapter; give a full model"):
        train_tiny.prepare(model=row.path)
    quantised = tmp_path / "quantised"
    shutil.copytree(train_tiny.model, quantised)
    config = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))
    with pytest.raises(InputError, match="is quantised"):
        train_tiny.prepare(model=str(quantised))
