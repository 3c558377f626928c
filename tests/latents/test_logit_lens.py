"""The tokens that directions speak for, against transformers' own norm and unembedding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from morfi.checkpoints import model_here
from morfi.checkpoints.model_files import open_model
from morfi.errors import InputError
from morfi.latents.logit_lens import SHOWN, spoken_for


def saved(kind: str, folder: Path, make_tokenizer: Callable[..., Any]) -> tuple[Any, Any, Any]:
    """A random model in a folder, its final norm, and its tokenizer; the last rows are padding."""
    from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

    tokenizer = make_tokenizer()
    n = len(tokenizer) + 8
    torch.manual_seed(0)
    if kind == "gpt2":
        model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=n, n_embd=16, n_layer=2, n_head=2, n_positions=64))
        norm = model.transformer.ln_f
        torch.nn.init.normal_(norm.bias, std=9.0)
    else:
        sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "head_dim": 8}
        heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
        model = Gemma2ForCausalLM(Gemma2Config(vocab_size=n, **sizes, **heads))
        norm = model.model.norm
    torch.nn.init.normal_(norm.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, norm, tokenizer


@pytest.mark.long
@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_the_tokens_are_those_of_the_models_own_last_steps(
    kind: str, tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    model, norm, tokenizer = saved(kind, tmp_path, make_tokenizer)
    directions = torch.randn(3, 16)
    if kind == "gpt2":
        torch.nn.init.zeros_(norm.bias)  # what every direction would share
    with torch.no_grad():
        logits = model.lm_head(norm(directions))[:, : len(tokenizer)]
    for longer in (1.0, 50.0):
        found = spoken_for(open_model(tmp_path), longer * directions)
        for row, one in zip(logits, found, strict=True):
            for ids, texts in (
                (row.topk(SHOWN).indices, one.promoted),
                ((-row).topk(SHOWN).indices, one.suppressed),
            ):
                expected = [tokenizer.decode([int(token)]) for token in ids]
                shown = [(text, known) for text, known in zip(texts, expected, strict=True)]
                assert all(text == known for text, known in shown if "\ufffd" not in known)
    with pytest.raises(InputError, match="reads 16 numbers, not 9"):
        spoken_for(open_model(tmp_path), torch.randn(1, 9))


def test_a_model_is_here_only_as_it_was(tiny_model: Path) -> None:
    sha256 = open_model(tiny_model).sha256()
    found = model_here(str(tiny_model), sha256)
    assert found is not None
    assert found.path == tiny_model
    assert model_here(str(tiny_model), "0" * 64) is None
    assert model_here(str(tiny_model / "gone"), sha256) is None
