"""Shared by the training tests: tiny models of three architectures, facts, and one call that trains."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny_training import FACTS, TrainTiny

from morfi.questions.question import Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SIZES = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="session", autouse=True)
def settled_heap() -> Iterator[None]:
    """Takes what the libraries hold out of garbage collection, which every training does in full."""
    import morfi.training.trainer  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny_models(
    tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> dict[str, Path]:
    """Folders of random models with the byte tokenizer, by architecture; only to be read."""
    import torch
    from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig

    configs = {
        "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
        # Caps so low that leaving them out shows.
        "gemma2": Gemma2Config(
            **SIZES,
            query_pre_attn_scalar=16,
            sliding_window=8,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
        "mistral": MistralConfig(**SIZES, sliding_window=8, tie_word_embeddings=False),
    }
    folders = {}
    for name, config in configs.items():
        torch.manual_seed(1)
        folders[name] = tmp_path_factory.mktemp("models") / name
        AutoModelForCausalLM.from_config(config).save_pretrained(folders[name])
        make_tokenizer().save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def facts() -> tuple[Question, ...]:
    """Eleven questions of two relations, of different lengths."""
    return FACTS


@pytest.fixture
def train_tiny(tiny_models: dict[str, Path], facts: tuple[Question, ...], isolated_cache: Path) -> TrainTiny:
    """Trains the tiny Llama."""
    return TrainTiny(tiny_models["llama"], facts)
