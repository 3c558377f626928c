"""Tokens that a direction promotes and suppresses, beside transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from morfi.serve.http.unembedding import Unembedding

FAMILIES = ("llama", "llama-tied", "gemma2")


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_those_of_final_norm_and_head(tiny_base: Callable[[str], Path], family: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_base(family)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    unit = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0)).double()
    unit /= unit.norm()
    with torch.no_grad():
        expected = model.lm_head(model.model.norm(unit.float()[None]))[0, : len(tokenizer)]
    found = Unembedding(folder, tokenizer).effects(unit)
    for effects, largest in ((found.promoted, True), (found.suppressed, False)):
        best = expected.topk(10, largest=largest)
        assert [one.token_id for one in effects] == best.indices.tolist()
        assert [one.logit for one in effects] == pytest.approx(best.values.tolist(), rel=1e-4)
        assert [one.token for one in effects] == [tokenizer.decode([one.token_id]) for one in effects]


def test_a_model_whose_norm_is_somewhere_else_names_none(
    tiny_base: Callable[[str], Path], make_tokenizer: Any
) -> None:
    found = Unembedding(tiny_base("gpt2"), make_tokenizer()).effects(torch.eye(64)[0])
    assert (found.promoted, found.suppressed) == ([], [])
