"""A checkpoint that reads images too: its text model computes what the whole does with text."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from morfi.checkpoints import resolve
from morfi.checkpoints.model_files import open_model
from morfi.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEXT: dict[str, Any] = {
    "vocab_size": 262,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@pytest.fixture
def whole(tmp_path: Path, make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> Path:
    """A random Gemma 3 that reads images, with a tokenizer."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    images = {
        "mm_tokens_per_image": 4,
        "image_token_index": 259,
        "boi_token_index": 260,
        "eoi_token_index": 261,
    }
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=TEXT, vision_config=VISION, **images))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "whole")
    make_tokenizer().save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.usefixtures("isolated_cache")
def test_the_text_model_computes_what_the_whole_does_with_text(whole: Path, *, renamed: bool) -> None:
    from transformers import AutoModelForCausalLM, Gemma3ForConditionalGeneration

    reference = Gemma3ForConditionalGeneration.from_pretrained(whole, dtype=torch.float32).eval()
    if renamed:
        tensors = load_file(whole / "model.safetensors")
        newer = {
            name.replace("language_model.model.", "model.language_model."): tensor
            for name, tensor in tensors.items()
        }
        save_file(newer, whole / "model.safetensors", metadata={"format": "pt"})
    checkpoint = resolve(str(whole), dtype="float32")
    assert (checkpoint.name, checkpoint.model_dir.parent.name) == ("whole", "checkpoints")
    assert open_model(checkpoint.model_dir).layout.architecture == "Gemma3ForCausalLM"
    model = AutoModelForCausalLM.from_pretrained(checkpoint.model_dir, dtype=torch.float32).eval()
    ids = torch.tensor([list(range(5, 45))])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, reference(ids).logits)
    assert resolve(str(whole), dtype="float32") == checkpoint  # from the cache


@pytest.mark.usefixtures("isolated_cache")
def test_an_adapter_of_the_whole_is_refused_with_the_way_out_that_works(whole: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Gemma3ForConditionalGeneration

    model = Gemma3ForConditionalGeneration.from_pretrained(whole, dtype=torch.float32)
    target = r".*language_model.*\.q_proj"
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=target, init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"whole model that reads images too.*merge_and_unload"):
        resolve(str(tmp_path / "adapter"), base=str(whole), dtype="float32")
    ids = torch.tensor([list(range(5, 45))])
    with torch.no_grad():
        expected = tuned.eval()(ids).logits
    merged = tuned.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(whole / name, tmp_path / "merged" / name)
    served = resolve(str(tmp_path / "merged"), dtype="float32")
    text = AutoModelForCausalLM.from_pretrained(served.model_dir, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(text(ids).logits, expected, rtol=1e-4, atol=1e-4)
