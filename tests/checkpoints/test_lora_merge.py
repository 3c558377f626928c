"""What a merge computes: dtypes, untouched tensors, resized embeddings, PiSSA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_adapters import ATTENTION, LINEAR, N_TOKENS, load_merged, logits, merge, train, trained
from transformers import AutoModelForCausalLM

from morfi.checkpoints.adapters import load_adapter
from morfi.checkpoints.lora import merged_tensors
from morfi.checkpoints.merge_plan import plan_merge
from morfi.checkpoints.model_files import open_model


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_lower_dtype_is_the_float32_merge_cast_once(
    dtype: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("llama")
    adapter = train(base, tmp_path / "adapter", target_modules=LINEAR)
    _, tensors = merge(base, adapter, dtype)
    _, exact = merge(base, adapter)
    for name, tensor in tensors.items():
        assert torch.equal(tensor.to(getattr(torch, dtype)), exact[name].to(getattr(torch, dtype)))


def test_a_base_in_bfloat16_is_merged_in_float32(bases: Callable[[str], Path], tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(bases("llama"), dtype=torch.bfloat16).save_pretrained(
        tmp_path / "base"
    )
    adapter = train(tmp_path / "base", tmp_path / "adapter", target_modules=["q_proj"])
    _, tensors = merge(tmp_path / "base", adapter, "bfloat16")
    expected = trained(tmp_path / "base", adapter).merge_and_unload().state_dict()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name].to(torch.bfloat16))


def test_a_tensor_that_no_adapter_touches_keeps_its_bits(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("llama")
    _, tensors = merge(base, train(base, tmp_path / "adapter", target_modules=["q_proj"]))
    original = load_file(base / "model.safetensors")
    changed = {name for name in original if not torch.equal(original[name], tensors[name])}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}


def test_merging_streams_from_tensors_in_memory_in_any_order(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("llama-tied")
    files = open_model(base)
    adapter = train(base, tmp_path / "adapter", target_modules=["q_proj", "embed_tokens"])
    plan = plan_merge(files, load_adapter(adapter), "float32")
    on_disk = dict(merged_tensors(files.weights, plan))
    in_memory = dict(merged_tensors(reversed(list(files.weights)), plan))
    assert set(on_disk) == set(in_memory)
    assert all(torch.equal(on_disk[name], in_memory[name]) for name in on_disk)


SAVED_BOTH = {"modules_to_save": ["embed_tokens", "lm_head"]}
SAVED_ROWS = {"trainable_token_indices": [5, N_TOKENS + 1]}
SAVED_NAMED_ROWS = {"trainable_token_indices": {"embed_tokens": [5, N_TOKENS + 1]}}


@pytest.mark.parametrize(
    "settings", [SAVED_BOTH, SAVED_ROWS, SAVED_NAMED_ROWS], ids=["both", "rows", "named rows"]
)
@pytest.mark.parametrize("base_name", ["llama", "llama-tied"])
def test_resized_embeddings_set_the_vocabulary(
    base_name: str, settings: dict[str, Any], bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases(base_name)
    adapter = train(
        base,
        tmp_path / "adapter",
        prepare=lambda model: model.resize_token_embeddings(N_TOKENS + 3),
        target_modules=["q_proj"],
        **settings,
    )
    plan, tensors = merge(base, adapter)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(N_TOKENS + 3)
    expected = PeftModel.from_pretrained(model, adapter).eval()
    merged = load_merged(base, plan, tensors, tmp_path / "merged")
    assert merged.config.vocab_size == N_TOKENS + 3
    torch.testing.assert_close(logits(merged), logits(expected), atol=1e-4, rtol=1e-4)


def test_resized_embeddings_that_peft_adds_by_itself_stay_tied(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("llama-tied")
    adapter = train(
        base,
        tmp_path / "adapter",
        prepare=lambda model: model.resize_token_embeddings(N_TOKENS + 3),
        target_modules=["q_proj"],
    )
    assert "base_model.model.model.embed_tokens.weight" in load_file(adapter / "adapter_model.safetensors")
    plan, tensors = merge(base, adapter)
    assert plan.vocab_size == N_TOKENS + 3
    assert not plan.untied
    assert tensors["model.embed_tokens.weight"].shape == (N_TOKENS + 3, 32)


def test_a_converted_pissa_adapter_merges_to_the_trained_model(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("llama")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=ATTENTION, init_lora_weights="pissa", task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config)
    tuned.peft_config["default"].init_lora_weights = True
    tuned.save_pretrained(tmp_path / "start")
    tuned.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    expected = logits(tuned.eval())
    tuned.save_pretrained(
        tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    plan, tensors = merge(base, tmp_path / "adapter")
    merged = load_merged(base, plan, tensors, tmp_path / "merged")
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)
