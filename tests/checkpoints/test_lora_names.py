"""Adapters whose tensors are called otherwise than the base's are merged, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_adapters import DIMENSIONS, edited, load_merged, logits, lose, merge, train, trained
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

from morfi.errors import InputError


def test_an_adapter_fits_files_without_the_models_prefix(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = Path(shutil.copytree(bases("gpt2"), tmp_path / "hub"))
    file = base / "model.safetensors"
    save_file({name.removeprefix("transformer."): x for name, x in load_file(file).items()}, file)
    adapter = train(base, tmp_path / "adapter", target_modules=["c_attn", "wte"], fan_in_fan_out=True)
    plan, tensors = merge(base, adapter)
    merged = load_merged(base, plan, tensors, tmp_path / "merged")
    torch.testing.assert_close(logits(merged), logits(trained(base, adapter)), atol=1e-4, rtol=1e-4)
    assert "h.0.attn.c_attn.weight" in tensors


def test_an_adapter_of_a_model_with_vision_fits_its_files(tmp_path: Path) -> None:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=Gemma3TextConfig(**DIMENSIONS, query_pre_attn_scalar=8),
        vision_config=SiglipVisionConfig(**vision, image_size=28, patch_size=14),
        mm_tokens_per_image=4,
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    targets = r".*language_model.*q_proj"
    adapter = train(
        tmp_path / "base",
        tmp_path / "adapter",
        cls=Gemma3ForConditionalGeneration,
        target_modules=targets,
    )
    base = Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "base", dtype=torch.float32)
    expected = logits(PeftModel.from_pretrained(base, adapter).eval())
    plan, tensors = merge(tmp_path / "base", adapter)
    load_merged(tmp_path / "base", plan, tensors, tmp_path / "merged")
    merged = Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(merged.eval()), expected, atol=1e-4, rtol=1e-4)


def write_by_hand(base: Path, directory: Path, targets: list[str]) -> Path:
    """An adapter as earlier versions of transformers and PEFT saved it, by the names in the files."""
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in targets:
            d_out, d_in = tensor.shape
            path = f"base_model.model.{module}"
            tensors[f"{path}.lora_A.weight"] = torch.randn(4, d_in, generator=generator) * 0.2
            tensors[f"{path}.lora_B.weight"] = torch.randn(d_out, 4, generator=generator) * 0.2
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps({**settings, "target_modules": targets}))
    return directory


@pytest.mark.parametrize("targets", [["w1", "w2", "w3", "q_proj"], ["w2"], ["gate", "q_proj"]])
def test_experts_that_were_modules_of_their_own_are_merged_as_peft_does(
    targets: list[str], bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("mixtral")
    adapter = write_by_hand(base, tmp_path / "adapter", targets)
    plan, tensors = merge(base, adapter)
    merged = load_merged(base, plan, tensors, tmp_path / "merged")
    torch.testing.assert_close(logits(merged), logits(trained(base, adapter)), atol=1e-4, rtol=1e-4)
    edited(adapter, lose("layers.0.block_sparse_moe.experts.3." if "w2" in targets else "layers.0."))
    with pytest.raises(InputError, match=r"lacks tensors that target_modules"):
        merge(base, adapter)


def test_a_router_is_merged_where_peft_takes_lora_on_it_and_else_refused(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("qwen3_moe")
    adapter = write_by_hand(base, tmp_path / "adapter", ["gate", "q_proj"])
    plan, tensors = merge(base, adapter)
    merged = load_merged(base, plan, tensors, tmp_path / "merged")
    torch.testing.assert_close(logits(merged), logits(trained(base, adapter)), atol=1e-4, rtol=1e-4)
    base = bases("qwen2_moe")
    adapter = write_by_hand(base, tmp_path / "refused", ["gate", "q_proj"])
    with pytest.raises(ValueError, match="Qwen2MoeTopKRouter"):
        trained(base, adapter)
    with pytest.raises(
        InputError, match=r"changes model\.layers\.0\.mlp\.gate, where PEFT takes no"
    ) as refused:
        merge(base, adapter)
    assert "\n" not in str(refused.value)


def test_experts_beside_a_module_of_the_same_name_are_refused(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("qwen2_moe")
    for targets in (["gate_proj", "up_proj", "down_proj"], ["down_proj"]):
        adapter = write_by_hand(base, tmp_path / str(len(targets)), targets)
        with pytest.raises(InputError, match=r"shared_expert\.\w+_proj is called the same"):
            merge(base, adapter)
