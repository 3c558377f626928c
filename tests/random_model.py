"""Tiny models of random weights whose answers can be told from one another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from architectures import REQUIRED
from transformers import AutoConfig, AutoModelForCausalLM


def random_model(folder: Path, architecture: str, n_layers: int, make_tokenizer: Callable[..., Any]) -> Path:
    """Saves a model whose answers are of ASCII, and differ from question to question, with its tokenizer."""
    family, sizes = REQUIRED[architecture]
    torch.manual_seed(0)
    sizes = {**sizes, "num_hidden_layers": n_layers, "initializer_range": 0.3}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
    with torch.no_grad():
        rows = model.get_output_embeddings().weight  # the special tokens first, then each byte
        rows[: 3 + ord(" ")] = 0
        rows[3 + ord("~") :] = 0
    model.save_pretrained(folder)
    make_tokenizer(adds_bos=False).save_pretrained(folder)
    return folder
