"""Adapters that do not fit their base, or lost a part, are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_adapters import DIMENSIONS, LINEAR, N_TOKENS, edited, lose, merge, train
from transformers import AutoModelForCausalLM, LlamaConfig

from morfi.checkpoints.adapters import Adapter, load_adapter
from morfi.checkpoints.lora import merged_tensors
from morfi.checkpoints.merge_plan import plan_merge
from morfi.checkpoints.model_files import open_model
from morfi.errors import InputError


def fitted(adapter: Path, base: Path, dtype: str = "float32") -> Adapter:
    loaded = load_adapter(adapter)
    dict(merged_tensors(open_model(base).weights, plan_merge(open_model(base), loaded, dtype)))
    return loaded


@pytest.fixture
def adapter(bases: Callable[[str], Path], tmp_path: Path) -> Path:
    return train(bases("llama"), tmp_path / "adapter", target_modules=["q_proj"])


def other_base(tmp_path: Path, **changes: Any) -> Path:
    config = LlamaConfig(**{**DIMENSIONS, "tie_word_embeddings": False, **changes})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def test_a_base_of_another_width_is_refused_with_both_shapes(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"q_proj\.lora_A.*\[4, 32\].*\[64, 64\].*needs \[4, 64\]"):
        fitted(adapter, other_base(tmp_path, hidden_size=64, num_attention_heads=8, num_key_value_heads=4))


def test_a_base_with_fewer_layers_is_refused_with_the_tensor(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.q_proj\.weight.*lacks.*--base"):
        fitted(adapter, other_base(tmp_path, num_hidden_layers=1))


def test_a_base_of_another_vocabulary_is_refused(bases: Callable[[str], Path], tmp_path: Path) -> None:
    base = bases("llama")
    saved = train(base, tmp_path / "saved", target_modules=["q_proj"], modules_to_save=["lm_head"])
    other = other_base(tmp_path, vocab_size=80)
    with pytest.raises(InputError, match=r"has 80 tokens.*embedding has 80 rows and the output head 64"):
        fitted(saved, other)


def test_a_lora_on_an_embedding_of_another_vocabulary_is_refused(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    tuned = train(bases("llama"), tmp_path / "tuned", target_modules=["embed_tokens"])
    edited(tuned, lambda tensors: tensors.pop("base_model.model.model.embed_tokens.base_layer.weight"))
    with pytest.raises(InputError, match=r"lora_embedding_A.*\[4, 64\].*\[80, 32\]"):
        fitted(tuned, other_base(tmp_path, vocab_size=80))


def test_a_trained_token_beyond_the_base_is_refused(bases: Callable[[str], Path], tmp_path: Path) -> None:
    tuned = train(bases("llama"), tmp_path / "tuned", target_modules=["q_proj"], trainable_token_indices=[63])
    with pytest.raises(InputError, match=r"token 63 is out of range.*48 tokens"):
        fitted(tuned, other_base(tmp_path, vocab_size=48))


def test_a_tokenizer_with_tokens_that_the_base_lacks_is_refused(
    adapter: Path, bases: Callable[[str], Path]
) -> None:
    vocabulary = {f"t{i}": i for i in range(N_TOKENS)}
    content: dict[str, Any] = {"model": {"vocab": vocabulary}, "added_tokens": []}
    (adapter / "tokenizer.json").write_text(json.dumps(content))
    fitted(adapter, bases("llama"))
    content["added_tokens"] = [{"id": N_TOKENS, "content": "<new>"}]
    (adapter / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r'has 64 tokens.*"<new>" with the id 64'):
        fitted(adapter, bases("llama"))


def test_a_lora_bias_on_a_base_without_biases_is_refused(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    tuned = train(bases("llama-bias"), tmp_path / "tuned", target_modules=["q_proj"], lora_bias=True)
    with pytest.raises(InputError, match=r"lora_B\.bias belongs to .*q_proj\.bias, which the base .* lacks"):
        fitted(tuned, bases("llama"))


def test_untying_is_refused_where_vllm_has_no_head(bases: Callable[[str], Path], tmp_path: Path) -> None:
    tuned = train(bases("gemma2"), tmp_path / "tuned", target_modules=["lm_head"])
    with pytest.raises(InputError, match="vLLM cannot serve for gemma2"):
        fitted(tuned, bases("gemma2"))


def test_fan_in_fan_out_is_refused_on_an_architecture_without_such_layers(
    adapter: Path, bases: Callable[[str], Path]
) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "fan_in_fan_out": True}))
    with pytest.raises(InputError, match=r"fan_in_fan_out.*GPT-2.*llama"):
        fitted(adapter, bases("llama"))


def test_a_quantised_base_is_refused(adapter: Path, bases: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(bases("llama"), tmp_path / "quantised")
    path = tmp_path / "quantised" / "config.json"
    files = open_model(tmp_path / "quantised")
    path.write_text(json.dumps({**files.config, "quantization_config": {"quant_method": "gptq", "bits": 4}}))
    with pytest.raises(InputError, match=r"quantised \(gptq\).*give the model that it was made from"):
        plan_merge(open_model(tmp_path / "quantised"), load_adapter(adapter), "float32")


def test_a_merge_that_overflows_the_serving_dtype_is_refused(
    adapter: Path, bases: Callable[[str], Path]
) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    edited(adapter, lambda tensors: tensors.update({name: tensors[name] * 1e6}))
    fitted(adapter, bases("llama"), "bfloat16")
    with pytest.raises(
        InputError, match=r"layers\.0\.self_attn\.q_proj\.weight holds NaN or infinity in float16"
    ):
        fitted(adapter, bases("llama"), "float16")


@pytest.mark.parametrize(
    ("settings", "lost", "said"),
    [
        ({"target_modules": LINEAR}, "layers.1.", "target_modules"),
        ({"target_modules": LINEAR}, "layers.0.mlp.up_proj", r"layers\.0\.mlp\.up_proj \(LoRA\)"),
        ({"target_modules": ".*(q|v)_proj"}, "layers.0.self_attn.v_proj", r"0\.self_attn\.v_proj \(LoRA\)"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens", r"embed_tokens \(LoRA\)"),
        (
            {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]},
            "layers.1.mlp.up_proj",
            r"modules_to_save .*layers\.1\.mlp\.up_proj\.weight",
        ),
        ({"target_modules": ["q_proj"], "bias": "all"}, "layers.1.self_attn.k_proj.bias", "bias of"),
        ({"target_modules": ["q_proj"], "bias": "lora_only"}, "layers.1.self_attn.q_proj.base", "bias of"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [5]}, "token_adapter", "token rows"),
    ],
)
def test_an_adapter_that_lost_tensors_is_refused(
    settings: Any, lost: str, said: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("llama-bias")
    adapter = train(base, tmp_path / "adapter", **settings)
    assert merge(base, adapter)
    edited(adapter, lose(lost))
    with pytest.raises(InputError, match=rf"lacks tensors that .*{said}") as caught:
        merge(base, adapter)
    assert "\n" not in str(caught.value)


def test_lora_that_the_settings_leave_out_is_refused(bases: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = train(bases("llama"), tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "target_modules": ["q_proj"]}))
    with pytest.raises(InputError, match=r"LoRA tensors of .*v_proj, which target_modules"):
        merge(bases("llama"), adapter)
