"""Random models that are large enough for vLLM's attention on a CPU, in any dtype."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def make_random(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> Callable[[Path, int], Path]:
    """Saves a random Llama of so many layers, with its tokenizer, in a folder."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    def make(folder: Path, n_layers: int) -> Path:
        torch.manual_seed(0)
        sizes: dict[str, Any] = {
            "vocab_size": 259,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": n_layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "max_position_embeddings": 256,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }
        model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(folder)
        make_tokenizer(adds_bos=False).save_pretrained(folder)
        return folder

    return make
