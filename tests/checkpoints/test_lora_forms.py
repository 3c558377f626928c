"""Every form in which PEFT saves an adapter is merged to what was trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import VeloraConfig
from tiny_adapters import ATTENTION, CONFIGS, LINEAR, load_merged, logits, merge, train, trained
from transformers import AutoModelForCausalLM

HEADS = {"lm_head.weight", "embed_out.weight"}


@dataclass(frozen=True)
class Form:
    """One way to save an adapter; `tied`: whether the merged model still shares its embedding."""

    name: str
    base: str
    settings: dict[str, Any] = field(default_factory=dict)
    tied: bool = False


FORMS = [
    Form("plain", "llama", {"target_modules": LINEAR}),
    Form("plain mistral", "mistral", {"target_modules": LINEAR}),
    Form("plain gemma2", "gemma2", {"target_modules": LINEAR}, tied=True),
    Form("plain tied", "llama-tied", {"target_modules": ATTENTION}, tied=True),
    Form("alpha of its own", "llama", {"target_modules": ATTENTION, "lora_alpha": 3}),
    Form(
        "rank pattern",
        "llama",
        {"target_modules": ATTENTION, "rank_pattern": {"q_proj": 7, r"layers\.1\..*k_proj": 2}},
    ),
    Form(
        "alpha pattern",
        "llama",
        {"target_modules": ATTENTION, "alpha_pattern": {r"model.layers.0.self_attn.q_proj": 32}},
    ),
    Form("pattern of a part of a name", "llama", {"target_modules": ATTENTION, "rank_pattern": {"proj": 7}}),
    Form("rslora", "llama", {"target_modules": ATTENTION, "use_rslora": True}),
    Form(
        "rslora with patterns",
        "mistral",
        {
            "target_modules": LINEAR,
            "use_rslora": True,
            "rank_pattern": {"q_proj": 9},
            "alpha_pattern": {"v_proj": 5},
        },
    ),
    Form("dora", "llama", {"target_modules": LINEAR, "use_dora": True}),
    Form(
        "dora gemma2", "gemma2", {"target_modules": LINEAR, "use_dora": True, "use_rslora": True}, tied=True
    ),
    Form("dora embedding", "llama", {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}),
    Form("embedding", "llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    Form("embedding and head", "llama", {"target_modules": ["embed_tokens", "lm_head"], "use_rslora": True}),
    Form("embedding tied", "llama-tied", {"target_modules": ["q_proj", "embed_tokens"]}),
    Form("head tied", "llama-tied", {"target_modules": ["q_proj", "lm_head"]}),
    Form("dora head tied", "llama-tied", {"target_modules": ["lm_head"], "use_dora": True}),
    Form(
        "embedding kept tied",
        "llama-tied",
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
        tied=True,
    ),
    Form(
        "embedding kept tied gemma2",
        "gemma2",
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
        tied=True,
    ),
    Form("saved head", "llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    Form("saved head tied", "llama-tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    Form(
        "saved embedding tied",
        "llama-tied",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ),
    Form(
        "saved both tied",
        "llama-tied",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    Form(
        "saved embedding kept tied",
        "llama-tied",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        tied=True,
    ),
    Form("saved norms and mlp", "llama", {"target_modules": ["q_proj"], "modules_to_save": ["norm", "mlp"]}),
    Form("lora bias", "llama-bias", {"target_modules": ATTENTION, "lora_bias": True}),
    Form("all biases", "llama-bias", {"target_modules": ["q_proj"], "bias": "all"}),
    Form("biases of tuned modules", "llama-bias", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    Form("some layers", "llama", {"target_modules": ATTENTION, "layers_to_transform": [1]}),
    Form("tokens", "llama", {"target_modules": ["q_proj"], "trainable_token_indices": [5, 1]}),
    Form(
        "tokens tied",
        "llama-tied",
        {"target_modules": ["q_proj"], "trainable_token_indices": [5, 1]},
        tied=True,
    ),
    Form(
        "tokens of both ends",
        "llama",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 1], "lm_head": [2]}},
    ),
    Form(
        "tokens of both ends tied, differing",
        "llama-tied",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 1], "lm_head": [2]}},
    ),
    Form(
        "tokens of both ends tied, the same",
        "llama-tied",
        {
            "target_modules": ["q_proj"],
            "trainable_token_indices": {"embed_tokens": [5, 1], "lm_head": [5, 1]},
        },
        tied=True,
    ),
    Form(
        "tokens of a tied head",
        "llama-tied",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [2]}},
    ),
    Form(
        "transposed layers",
        "gpt2",
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
        tied=True,
    ),
    Form(
        "transposed dora",
        "gpt2",
        {"target_modules": ["c_proj"], "fan_in_fan_out": True, "use_dora": True},
        tied=True,
    ),
    Form("transposed, not said", "gpt2", {"target_modules": ["c_proj"]}, tied=True),
    Form("gaussian start", "llama", {"target_modules": ATTENTION, "init_lora_weights": "gaussian"}),
    Form("orthogonal start", "llama", {"target_modules": ATTENTION, "init_lora_weights": "orthogonal"}),
    Form("mica start", "llama", {"target_modules": ATTENTION, "init_lora_weights": "mica"}),
    Form("opt embedding", "opt", {"target_modules": ["q_proj", "embed_tokens"]}),
    Form("opt head", "opt", {"target_modules": ["q_proj", "lm_head"]}),
    Form("opt saved embedding", "opt", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    Form("opt plain", "opt", {"target_modules": ["q_proj", "fc1"]}, tied=True),
    Form("bloom embedding", "bloom", {"target_modules": ["query_key_value", "word_embeddings"]}),
    Form("neox", "gpt_neox", {"target_modules": ["query_key_value", "dense_h_to_4h"]}),
    Form("velora", "llama", {"target_modules": ATTENTION, "velora_config": VeloraConfig(num_groups=4)}),
]


@pytest.fixture(scope="module")
def saved_form(
    bases: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Form], Path]:
    """The adapter folder of a form, made once for all tests."""
    root = tmp_path_factory.mktemp("forms")
    made: dict[str, Path] = {}

    def saved(form: Form) -> Path:
        if form.name not in made:
            made[form.name] = train(bases(form.base), root / str(len(made)), **form.settings)
        return made[form.name]

    return saved


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_the_merged_model_computes_what_the_adapted_one_did(
    form: Form, bases: Callable[[str], Path], saved_form: Callable[[Form], Path], tmp_path: Path
) -> None:
    base = bases(form.base)
    adapter = saved_form(form)
    plan, tensors = merge(base, adapter)
    merged = load_merged(base, plan, tensors, tmp_path / "merged")
    expected = trained(base, adapter)
    unadapted = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert not torch.allclose(logits(unadapted), logits(expected), atol=1e-2), "the adapter does nothing"
    torch.testing.assert_close(logits(merged), logits(expected), atol=1e-4, rtol=1e-4)
    assert merged.config.tie_word_embeddings is form.tied
    assert any(name in tensors for name in HEADS) is not form.tied


def pefts_merge_is_exact(form: Form) -> bool:
    """Whether merge_and_unload keeps what the adapter was trained to do.

    In place, in a shared parameter, it adds an update of one end to both, and one of both ends twice.
    """
    ends = {"embed_tokens", "word_embeddings", "lm_head"}.intersection(form.settings["target_modules"])
    return not CONFIGS[form.base].tie_word_embeddings or not (ends or "tokens of" in form.name)


COMPARABLE = [form for form in FORMS if pefts_merge_is_exact(form)]


@pytest.mark.parametrize("form", COMPARABLE, ids=lambda form: form.name)
def test_merged_tensors_are_those_of_pefts_own_merge(
    form: Form, bases: Callable[[str], Path], saved_form: Callable[[Form], Path]
) -> None:
    base = bases(form.base)
    adapter = saved_form(form)
    _, tensors = merge(base, adapter)
    expected = trained(base, adapter).merge_and_unload().state_dict()
    # In files GPT-NeoX calls it otherwise.
    expected |= {"embed_out.weight": expected["lm_head.weight"]}
    assert set(expected) - set(tensors) <= HEADS
    for name, tensor in tensors.items():
        # DoRA divides by a norm whose order of summation may differ.
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-6 if "dora" in form.name else 0)
