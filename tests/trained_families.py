"""Tiny models of several families, each with adapters of its own kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from architectures import VOCABULARY
from gpu_path import AS_ON_A_GPU, EngineElsewhere
from safetensors.torch import load_file, save_file

from morfi.checkpoints import Checkpoint, resolve, resolve_unmerged
from morfi.serve.engine import Engine, start_engine

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
    "mixtral": (Form("attention", {"target_modules": ["q_proj", "o_proj"]}),),
    "gpt2": (Form("transposed", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),),
}


def start(checkpoint: Checkpoint, **overrides: Any) -> Engine:
    return start_engine(checkpoint, context=128, seed=0, overrides={**RAW_LOGITS, **overrides})


def start_as_on_a_gpu(checkpoint: Checkpoint) -> EngineElsewhere:
    """As `start`, in another process; the base or a merged checkpoint."""
    return EngineElsewhere(
        checkpoint.model_dir,
        ways=AS_ON_A_GPU,
        dtype=checkpoint.dtype,
        context=128,
        overrides=RAW_LOGITS,
        sha256=checkpoint.sha256,
    )


def raw_logits(engine: Engine, *, n_top: int = -1) -> Logits:
    """The logits that an engine started with RAW_LOGITS gives at every place of some prompts and answers."""
    from vllm import SamplingParams

    generator = torch.Generator().manual_seed(1)
    prompts = [
        {"prompt_token_ids": torch.randint(3, VOCABULARY, (n,), generator=generator).tolist()}
        for n in (3, 33, 70)
    ]
    engine.reset_prefix_cache()
    params = SamplingParams(
        max_tokens=4, temperature=0, logprobs=n_top, prompt_logprobs=n_top, detokenize=False
    )
    outputs: Sequence[Any] = engine._llm.generate(prompts, params, use_tqdm=False)
    return [
        {token: entry.logprob for token, entry in (place or {}).items()}
        for output in outputs
        for place in (*output.prompt_logprobs, *output.outputs[0].logprobs)
    ]


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


def changed_copy(checkpoint: Checkpoint, directory: Path, change: Callable[[torch.Tensor], object]) -> Path:
    """The adapter of `checkpoint` with its first layer's tensors changed, in a folder of its own."""
    assert checkpoint.adapter_dir is not None
    directory.mkdir()
    for path in checkpoint.adapter_dir.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    tensors = load_file(directory / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        if ".layers.1." in name:
            change(tensor)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    return directory
