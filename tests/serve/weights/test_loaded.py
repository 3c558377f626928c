"""A model that vLLM has loaded is the checkpoint's, whatever vLLM itself makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from morfi.errors import InputError
from morfi.serve.engine import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

OLMOE = {
    "vocab_size": 259,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "tie_word_embeddings": True,
}


@pytest.mark.usefixtures("starts_vllm")
def test_a_matrix_that_was_loaded_in_part_is_refused(
    make_base: Callable[[Path, str], Path], tmp_path: Path
) -> None:
    file = make_base(tmp_path, "mistral") / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.self_attn.v_proj.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"not all, into model\.layers\.1\.self_attn\.qkv_proj\.weight"):
        Engine(tmp_path, dtype="float32", context=128)


@pytest.mark.usefixtures("starts_vllm")
def test_a_shared_head_that_vllm_keeps_apart_is_refused(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    AutoModelForCausalLM.from_config(AutoConfig.for_model("olmoe", **OLMOE)).save_pretrained(tmp_path)
    make_tokenizer(adds_bos=False).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"into lm_head\.weight of its OlmoeForCausalLM"):
        Engine(tmp_path, dtype="float32", context=128)
