from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morfi.checkpoints.presets import PRESETS, training_preset
from morfi.errors import InputError
from morfi.training import TrainConfig, train_config


def test_what_is_not_given_comes_from_the_models_preset() -> None:
    config = train_config({"model": "smollm2", "lr": None, "rank": 4})
    assert (config.rank, config.lr, config.batch) == (4, 1e-3, 32)
    assert config.epochs == (1, 2, 5, 10)


@pytest.mark.parametrize("model", ["llama-3.1-8b", "gemma-2-9b", "mistral-7b-v0.3", "/some/other/model"])
def test_large_and_unknown_models_train_within_24_gb(model: str) -> None:
    config = train_config({"model": model})
    assert config.gradient_checkpointing
    assert config.micro_batch == 8


def test_every_preset_can_be_trained_with_its_own_settings() -> None:
    for model in PRESETS:
        config = train_config({"model": model})
        assert config.rank == training_preset(model).rank


@given(batch=st.integers(1, 200))
def test_a_batch_alone_gets_micro_batches_that_divide_it(batch: int) -> None:
    config = train_config({"model": "smollm2", "batch": batch})
    assert batch % config.micro_batch == 0
    assert config.micro_batch <= training_preset("smollm2").micro_batch


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": ()}, "--epochs is ''; expected numbers of at least 1"),
        ({"epochs": (0, 1)}, "--epochs is 0; expected at least 1"),
        ({"epochs": (-1,)}, "--epochs is -1; expected at least 1"),
        ({"epochs": (1, 2, 1)}, "names 1 twice"),
        ({"seeds": 0}, "--seeds is 0; expected at least 1"),
        ({"lr": 0.0}, "--lr is 0; expected a number above 0"),
        ({"lr": -1e-3}, "--lr is -0.001"),
        ({"lr": float("nan")}, "--lr is nan"),
        ({"lr": float("inf")}, "--lr is inf"),
        ({"alpha": 0.0}, "--alpha is 0; expected"),
        ({"rank": 0}, "--rank is 0"),
        ({"batch": 0}, "--batch is 0"),
        ({"micro_batch": 0}, "--micro-batch is 0"),
        ({"batch": 8, "micro_batch": 3}, "--batch is 8, which 3 does not divide"),
        ({"warmup": -1}, "--warmup is -1"),
        ({"dev_limit": 0}, "--dev-limit is 0"),
        ({"max_tokens": 0}, "--max-tokens is 0"),
        ({"weight_decay": -0.1}, "--weight_decay is -0.1".replace("_", "-")),
        ({"schedule": "constan"}, 'Did you mean "constant"'),
        ({"dtype": "float16"}, "expected one of bfloat16, float32"),
        ({"match": "squat"}, "--match is"),
        ({"targets": ()}, "--targets is ''"),
        ({"targets": ("q_proj", " ")}, "--targets is"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_its_option(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        train_config({"model": "smollm2"} | wrong)
    assert message in str(caught.value)


def test_a_model_must_be_named() -> None:
    with pytest.raises(InputError, match="no model is named"):
        train_config({"model": None})


def test_the_name_of_the_model_and_the_number_of_seeds_decide_no_single_training() -> None:
    def decisive(**given: Any) -> dict[str, Any]:
        config: TrainConfig = train_config({"model": "smollm2"} | given)
        return config.decisive

    assert decisive(seeds=1) == decisive(seeds=3)
    assert decisive(epochs=(2, 1)) == decisive(epochs=(1, 2))
    assert decisive(lr=1e-4) != decisive(lr=1e-3)
