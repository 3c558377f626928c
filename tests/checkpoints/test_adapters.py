from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import save_file

from morfi.checkpoints.adapter_config import DECISIVE, check_adapter_config, rank_of, scaling_of
from morfi.checkpoints.adapters import CONFIG, WEIGHTS, load_adapter
from morfi.errors import InputError

MODULE = "model.layers.0.self_attn.q_proj"
KEY = f"base_model.model.{MODULE}"
PAIR = {f"{KEY}.lora_A.weight": torch.ones(4, 8), f"{KEY}.lora_B.weight": torch.ones(6, 4)}
SETTINGS = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "base_model_name_or_path": "b",
}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def write(tensors: dict[str, torch.Tensor] = PAIR, name: str = "adapter", **settings: Any) -> Path:
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        save_file(tensors, directory / WEIGHTS)
        (directory / CONFIG).write_text(json.dumps({**SETTINGS, **settings}))
        return directory

    return write


def test_a_plain_adapter_is_read_with_its_scaling_and_base(save: Callable[..., Path]) -> None:
    adapter = load_adapter(save())
    assert adapter.loras[MODULE].scaling == 2.0
    assert adapter.loras[MODULE].parts == {"a": f"{KEY}.lora_A.weight", "b": f"{KEY}.lora_B.weight"}
    assert adapter.base == "b"
    assert not adapter.replacements
    assert not adapter.token_rows


def test_every_setting_that_peft_saves_by_default_is_accepted(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], task_type="CAUSAL_LM").save_pretrained(tmp_path)
    saved = json.loads((tmp_path / CONFIG).read_text())
    assert MODULE in load_adapter(save(**saved)).loras


@given(st.integers(1, 256), st.floats(0.1, 512), st.booleans())
def test_scaling_is_alpha_over_rank_or_over_its_root(rank: int, alpha: float, rslora: bool) -> None:
    config = {"r": rank, "lora_alpha": alpha, "use_rslora": rslora}
    assert scaling_of(config, MODULE) * (math.sqrt(rank) if rslora else rank) == pytest.approx(alpha)


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("q_proj", True),
        ("self_attn.q_proj", True),
        (MODULE, True),
        (f"^{MODULE}", True),
        (r"layers\.[01]\..*", True),
        ("proj", False),
        ("q_pro", False),
        (r"layers\.1\..*", False),
        (f"x.{MODULE}", False),
    ],
)
def test_a_pattern_matches_the_end_of_a_module_path(pattern: str, matches: bool) -> None:
    assert rank_of({"r": 4, "rank_pattern": {pattern: 16}}, MODULE) == (16 if matches else 4)


def test_the_first_matching_pattern_wins() -> None:
    assert rank_of({"r": 4, "rank_pattern": {"v_proj": 1, "q_proj": 2, MODULE: 3}}, MODULE) == 2


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another method": ({"peft_type": "ADALORA"}, "peft_type is 'ADALORA'"),
    "no method": ({"peft_type": None}, "only LORA"),
    "another task": ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
    "alora": ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
    "arrow": ({"arrow_config": {"top_k": 3}}, "arrow_config"),
    "kasa": ({"kasa_config": {"beta": 1}}, "kasa_config"),
    "monteclora": ({"monteclora_config": {"num_samples": 8}}, "monteclora_config"),
    "bdlora": ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
    "qalora": ({"use_qalora": True}, "use_qalora"),
    "megatron": ({"megatron_config": {"x": 1}}, "megatron_config"),
    "replicated layers": ({"layer_replication": [[0, 2]]}, "layer_replication"),
    "parameters": ({"target_parameters": ["experts.down_proj"]}, "target_parameters"),
    "unknown setting": ({"use_shiny_lora": True}, "use_shiny_lora"),
    "pissa": ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
    "fast pissa": ({"init_lora_weights": "pissa_niter_16"}, "'pissa_niter_16'"),
    "olora": ({"init_lora_weights": "olora"}, "'olora'"),
    "corda": ({"init_lora_weights": "corda"}, "'corda'"),
    "loftq": ({"init_lora_weights": "loftq"}, "'loftq'"),
    "lora-ga": ({"init_lora_weights": "lora_ga"}, "'lora_ga'"),
    "unknown start": ({"init_lora_weights": "novel"}, "'novel'"),
    "no rank": ({"r": None}, "the rank r is None"),
    "rank zero": ({"r": 0}, "at least 1"),
    "rank of text": ({"r": "8"}, "at least 1"),
    "rank true": ({"r": True}, "at least 1"),
    "rank in a pattern": ({"rank_pattern": {"q_proj": -1}}, "the rank q_proj is -1"),
    "patterns of another type": ({"alpha_pattern": [1]}, "alpha_pattern must be objects"),
    "alpha not finite": ({"lora_alpha": math.inf}, "lora_alpha is inf"),
    "alpha missing": ({"lora_alpha": None}, "lora_alpha is None"),
    "broken pattern": ({"alpha_pattern": {"(": 3}}, "not a regular expression"),
    "broken targets": ({"target_modules": "("}, "not a regular expression"),
    "targets of another type": ({"target_modules": 5}, "target_modules is 5, expected a list of names"),
    "layers by name": ({"layers_to_transform": ["a"]}, "expected a list of whole numbers"),
    "saved modules as text": ({"modules_to_save": "lm_head"}, "expected a list"),
    "saved module without tensors": ({"modules_to_save": ["lm_head"]}, "no tensor of lm_head"),
    "dora without magnitudes": ({"use_dora": True}, "lacks the part for use_dora"),
    "bias without biases": ({"lora_bias": True}, "lacks the part for lora_bias"),
    "rank of another file": ({"r": 8}, "the rank 8"),
}


@pytest.mark.parametrize(("settings", "said"), REFUSED.values(), ids=REFUSED)
def test_a_form_that_cannot_be_merged_is_refused_by_name(
    save: Callable[..., Path], settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        load_adapter(save(**settings))
    assert said in str(caught.value)
    assert "adapter" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "eva", "mica", "MiCA"])
def test_starts_that_leave_the_base_alone_are_accepted(save: Callable[..., Path], init: object) -> None:
    assert load_adapter(save(init_lora_weights=init)).loras


TENSORS: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any], str]] = {
    "no tensors": ({}, {}, "holds no tensors"),
    "A without B": ({f"{KEY}.lora_A.weight": torch.ones(4, 8)}, {}, "expected A and B"),
    "B without A": ({f"{KEY}.lora_B.weight": torch.ones(6, 4)}, {}, "expected A and B"),
    "mixed kinds": ({**PAIR, f"{KEY}.lora_embedding_A": torch.ones(4, 8)}, {}, "expected A and B"),
    "magnitude alone": (
        {f"{KEY}.lora_magnitude_vector": torch.ones(6)},
        {"use_dora": True},
        "expected A and B",
    ),
    "magnitude, no dora": (
        {**PAIR, f"{KEY}.lora_magnitude_vector": torch.ones(6)},
        {},
        "has the part for use_dora",
    ),
    "bias, no lora_bias": ({**PAIR, f"{KEY}.lora_B.bias": torch.ones(6)}, {}, "has the part for lora_bias"),
    "unsharded A": ({**PAIR, f"{KEY}.lora_A.weight": torch.ones(0)}, {}, "[0]"),
    "another prefix": ({"model.x.lora_A.weight": torch.ones(4, 8)}, {}, "of no form that PEFT saves"),
    "an adapter's name": (
        {f"{KEY}.lora_A.default.weight": torch.ones(4, 8)},
        {},
        "of no form that PEFT saves",
    ),
    "another method": ({f"{KEY}.lora_E": torch.ones(4)}, {}, "of no form that PEFT saves"),
    "tokens, no indices": (
        {f"{KEY}.token_adapter.trainable_tokens_delta": torch.ones(2, 8)},
        {},
        "gives no rows",
    ),
    "tokens of text": (
        {f"{KEY}.token_adapter.trainable_tokens_delta": torch.ones(2, 8)},
        {"trainable_token_indices": ["a", "b"]},
        "gives no rows",
    ),
    "tokens of another module": (
        {f"{KEY}.token_adapter.trainable_tokens_delta": torch.ones(2, 8)},
        {"trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [1, 2]}},
        "gives no rows",
    ),
    "fewer tokens": (
        {f"{KEY}.token_adapter.trainable_tokens_delta": torch.ones(2, 8)},
        {"trainable_token_indices": [1]},
        "has 2 rows",
    ),
    "a token twice": (
        {f"{KEY}.token_adapter.trainable_tokens_delta": torch.ones(2, 8)},
        {"trainable_token_indices": [1, 1]},
        "1 different",
    ),
    "a tensor twice": (
        {f"{KEY}.weight": torch.ones(6, 8), f"{KEY}.base_layer.weight": torch.zeros(6, 8)},
        {},
        "are the same tensor",
    ),
}


@pytest.mark.parametrize(("tensors", "settings", "said"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_do_not_make_an_adapter_are_refused(
    save: Callable[..., Path], tensors: dict[str, torch.Tensor], settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        load_adapter(save(tensors, **settings))
    assert said in str(caught.value)
    assert WEIGHTS in str(caught.value) or CONFIG in str(caught.value)


def test_pickled_adapter_weights_are_refused_and_not_read(save: Callable[..., Path]) -> None:
    directory = save()
    (directory / WEIGHTS).rename(directory / "adapter_model.bin")
    with pytest.raises(InputError, match=r"adapter_model\.bin holds pickled weights.*never loaded"):
        load_adapter(directory)


def test_an_adapter_without_weights_or_with_a_truncated_file_is_refused(save: Callable[..., Path]) -> None:
    directory = save()
    whole = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(whole[:-4])
    with pytest.raises(InputError, match="truncated or corrupt"):
        load_adapter(directory)
    (directory / WEIGHTS).unlink()
    with pytest.raises(InputError, match=rf"no {WEIGHTS}"):
        load_adapter(directory)


@pytest.mark.parametrize("content", ["", "[]", "{", '"LORA"'])
def test_a_broken_configuration_is_refused(save: Callable[..., Path], content: str) -> None:
    directory = save()
    (directory / CONFIG).write_text(content)
    with pytest.raises(InputError, match=CONFIG):
        load_adapter(directory)


def test_numbers_that_are_not_finite_are_refused_when_hashed(save: Callable[..., Path]) -> None:
    bad = {**PAIR, f"{KEY}.lora_A.weight": torch.full((4, 8), torch.nan)}
    with pytest.raises(InputError, match=r"q_proj\.lora_A\.weight holds NaN"):
        load_adapter(save(bad)).sha256()


def test_the_hash_sees_what_decides_the_merge_and_nothing_else(save: Callable[..., Path]) -> None:
    one = load_adapter(save()).sha256()
    described = {
        "base_model_name_or_path": "c",
        "lora_dropout": 0.5,
        "inference_mode": True,
        "peft_version": "9",
    }
    assert load_adapter(save(name="moved", **described)).sha256() == one
    changes: list[dict[str, Any]] = [
        {"lora_alpha": 9},
        {"use_rslora": True},
        {"alpha_pattern": {"q_proj": 1}},
    ]
    hashes = {load_adapter(save(name=f"changed{i}", **change)).sha256() for i, change in enumerate(changes)}
    assert len(hashes - {one}) == len(changes)
    tensors = {**PAIR, f"{KEY}.lora_A.weight": torch.zeros(4, 8)}
    assert load_adapter(save(tensors, name="trained on")).sha256() != one


def test_the_hash_sees_the_tokenizer(save: Callable[..., Path]) -> None:
    directory = save()
    one = load_adapter(directory).sha256()
    (directory / "tokenizer.json").write_text("{}")
    assert load_adapter(directory).sha256() != one


def test_every_decisive_setting_is_one_that_peft_has() -> None:
    assert set(DECISIVE) <= set(LoraConfig().to_dict())


def test_a_null_for_an_unknown_setting_is_no_setting() -> None:
    check_adapter_config(Path(CONFIG), {**SETTINGS, "some_future_setting": None, "another": False})
