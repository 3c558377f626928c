"""Adapters that PEFT makes on tiny random models of many architectures, and their merge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from morfi.checkpoints.adapters import load_adapter
from morfi.checkpoints.lora import Merge, merged_tensors
from morfi.checkpoints.merge_plan import plan_merge
from morfi.checkpoints.model_files import open_model
from morfi.checkpoints.weights import write_weights

N_TOKENS = 64
TOKENS = torch.tensor([[3, 1, 4, 15, 9, 2, 6, 5]])
DIMENSIONS = {
    "vocab_size": N_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "llama": LlamaConfig(**DIMENSIONS, tie_word_embeddings=False),
    "llama-tied": LlamaConfig(**DIMENSIONS, tie_word_embeddings=True),
    "llama-bias": LlamaConfig(**DIMENSIONS, tie_word_embeddings=False, attention_bias=True),
    "mistral": MistralConfig(**DIMENSIONS, tie_word_embeddings=False, sliding_window=None),
    "gemma2": Gemma2Config(**DIMENSIONS, query_pre_attn_scalar=8),
    "opt": OPTConfig(
        vocab_size=N_TOKENS,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    ),
    "bloom": BloomConfig(vocab_size=N_TOKENS, hidden_size=32, n_layer=2, n_head=4),
    "gpt_neox": GPTNeoXConfig(
        vocab_size=N_TOKENS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    ),
    "mixtral": MixtralConfig(**DIMENSIONS, num_local_experts=4, tie_word_embeddings=False),
    "qwen2_moe": Qwen2MoeConfig(
        **{name: value for name, value in DIMENSIONS.items() if name != "head_dim"},
        num_experts=4,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=24,
    ),
    "qwen3_moe": Qwen3MoeConfig(**DIMENSIONS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24),
    "gpt2": GPT2Config(vocab_size=N_TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=64),
}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


def train(
    base: Path,
    directory: Path,
    *,
    prepare: Callable[[PreTrainedModel], Any] = lambda m: m,
    cls: Any = AutoModelForCausalLM,
    **settings: Any,
) -> Path:
    """Saves an adapter on `base` whose every trainable number has moved at random."""
    model = cls.from_pretrained(base, dtype=torch.float32)
    prepare(model)
    torch.manual_seed(1)
    tuned = get_peft_model(
        model, LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **settings})
    )
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    tuned.save_pretrained(directory)
    return directory


def trained(base: Path, adapter: Path) -> PeftModel:
    """The model with its adapter, as PEFT loads it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).eval()


def logits(model: Any) -> torch.Tensor:
    """What the model computes of TOKENS."""
    with torch.no_grad():
        found: torch.Tensor = model(TOKENS).logits
    return found


def merge(base: Path, adapter: Path, dtype: str = "float32") -> tuple[Merge, dict[str, torch.Tensor]]:
    """The plan of a merge, and the tensors that it gives."""
    files = open_model(base)
    plan = plan_merge(files, load_adapter(adapter), dtype)
    return plan, dict(merged_tensors(files.weights, plan))


def load_merged(
    base: Path, plan: Merge, tensors: dict[str, torch.Tensor], directory: Path
) -> PreTrainedModel:
    """The model of merged tensors, saved in `directory` and loaded from there."""
    directory.mkdir()
    write_weights(directory, tensors.items())
    config = plan.config(json.loads((base / "config.json").read_text()))
    (directory / "config.json").write_text(json.dumps(config))
    return AutoModelForCausalLM.from_pretrained(directory).eval()


def edited(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """The adapter folder, after `change` of its tensors."""
    tensors = load_file(directory / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def lose(*names: str) -> Callable[[dict[str, torch.Tensor]], None]:
    """A change that takes the tensors away whose names hold one of `names`."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if any(part in name for part in names)]:
            del tensors[name]

    return change
