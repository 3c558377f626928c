"""Tiny random models of the paper's architectures: greedy tokens equal those of transformers in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from morfi.engine.protocol import Sampling
from morfi.serve.engine import Engine

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # far from ties between logits
}
ARCHITECTURES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": False}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {"query_pre_attn_scalar": 32, "sliding_window": 16}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
}


def save_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = special + [f"w{index}" for index in range(SIZES["vocab_size"] - len(special))]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    ).save_pretrained(directory)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
@pytest.mark.usefixtures("starts_vllm")
def test_greedy_tokens_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    model_class, config_class, extra = ARCHITECTURES[name]
    torch.manual_seed(0)
    model: Any = model_class(config_class(**SIZES, **extra)).eval()
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    generator = torch.Generator().manual_seed(1)
    prompts = [
        [1, *torch.randint(4, 128, (length,), generator=generator).tolist()] for length in (3, 17, 40, 70, 41)
    ]
    with torch.inference_mode():
        expected = [
            model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[
                0, len(prompt) :
            ].tolist()
            for prompt in prompts
        ]
    with Engine(tmp_path, dtype="float32", context=128) as engine:
        answers = engine.generate(prompts, Sampling(max_tokens=12))
    assert [list(answer[0].token_ids) for answer in answers] == expected
