"""New weights in a live engine: bit for bit what an engine started on the merged directory computes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from morfi.checkpoints import Checkpoint, resolve, resolve_unmerged
from morfi.errors import InputError, MorfiError
from morfi.serve import loading, swap
from morfi.serve.engine import Engine, start_engine
from morfi.types import Sampling

LINEAR = "all-linear"
RAW_LOGITS = {"max_logprobs": -1, "logprobs_mode": "raw_logits", "kv_cache_memory_bytes": 1 << 24}
Logits = list[dict[int, float]]


@dataclass(frozen=True)
class Form:
    """A way to train an adapter."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


PLAIN = Form("plain", {"target_modules": LINEAR})
FORMS: dict[str, tuple[Form, ...]] = {
    "llama": (
        PLAIN,
        Form(
            "head, norms, biases",
            {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "norm"], "bias": "all"},
        ),
        Form("embedding and one layer", {"target_modules": ["k_proj", "embed_tokens"]}),
    ),
    "llama-tied": (
        Form(
            "embedding kept tied",
            {"target_modules": ["up_proj", "embed_tokens"], "ensure_weight_tying": True},
        ),
        Form("tokens", {"target_modules": ["q_proj"], "trainable_token_indices": [5, 1]}),
    ),
    "mistral": (
        Form(
            "rslora, patterns",
            {"target_modules": LINEAR, "use_rslora": True, "rank_pattern": {"q_proj": 7}},
        ),
        Form("some layers", {"target_modules": ["o_proj", "down_proj"], "layers_to_transform": [1]}),
    ),
    "gemma2": (
        Form("dora", {"target_modules": LINEAR, "use_dora": True}),
        Form(
            "embedding kept tied", {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}
        ),
    ),
    "gpt2": (Form("transposed", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),),
}


def start(checkpoint: Checkpoint, **overrides: Any) -> Engine:
    return start_engine(checkpoint, context=128, seed=0, overrides={**RAW_LOGITS, **overrides})


@dataclass(frozen=True)
class Trained:
    """A base and adapters on it; `unmerged` as a live engine takes them."""

    base: Checkpoint
    adapters: tuple[Path, ...]

    @property
    def unmerged(self) -> list[Checkpoint]:
        return [resolve_unmerged(str(path), base=self.base) for path in self.adapters]

    @property
    def merged(self) -> list[Checkpoint]:
        return [resolve(str(path), dtype="float32") for path in self.adapters]


@pytest.fixture(scope="module")
def trained(
    isolated: Path, make_base: Callable[[Path, str], Path], train: Callable[..., Path]
) -> Callable[[str], Trained]:
    made: dict[str, Trained] = {}

    def get(family: str) -> Trained:
        if family not in made:
            base = make_base(isolated / family, family)
            adapters = [
                train(isolated / f"{family}, {form.name}", base, seed=number, **form.settings)
                for number, form in enumerate(FORMS[family])
            ]
            made[family] = Trained(resolve(str(base), dtype="float32"), tuple(adapters))
        return made[family]

    return get


@pytest.mark.parametrize("family", list(FORMS))
def test_swapped_weights_give_the_logits_of_an_engine_on_the_merged_directory(
    family: str, trained: Callable[[str], Trained], raw_logits: Callable[[Engine], Logits]
) -> None:
    case = trained(family)
    merged, live = (case.base, *case.merged), (case.base, *case.unmerged)
    expected: list[Logits] = []
    for checkpoint in merged[1:]:
        with start(checkpoint) as engine:
            expected.append(raw_logits(engine))
    with start(case.base) as engine:
        expected.insert(0, raw_logits(engine))
        assert all(a != b for i, a in enumerate(expected) for b in expected[:i])
        for number in (*range(1, len(live)), 0, *range(1, len(live)), 1):
            engine.load_checkpoint(live[number])
            assert engine.checkpoint_sha256 == merged[number].sha256
            assert raw_logits(engine) == expected[number]
