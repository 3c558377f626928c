"""Tiny random models of the paper's architectures: greedy tokens equal those of transformers in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from morfi.engine.protocol import Sampling
from morfi.serve.engine import Engine


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
@pytest.mark.usefixtures("starts_vllm")
def test_greedy_tokens_equal_those_of_transformers(
    family: str, tiny_base: Callable[[str], Path], greedy_tokens: Callable[..., list[list[int]]]
) -> None:
    base = tiny_base(family)
    draw = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 259, (length,), generator=draw).tolist() for length in (3, 17, 40, 70, 41)]
    with Engine(base, dtype="float32", context=128) as engine:
        answers = engine.generate(prompts, Sampling(max_tokens=12))
        expected = greedy_tokens(base, prompts, engine._newline_ids, max_tokens=12)
    assert [list(answer[0].token_ids) for answer in answers] == expected
