"""The sizes of a model that decide its costs, from its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morfi.checkpoints.architecture import empty_model
from morfi.checkpoints.checkpoint import folder_here
from morfi.checkpoints.model_files import transformers_config
from morfi.checkpoints.presets import PRESETS
from morfi.errors import InputError
from morfi.terminal import Say
from morfi.training.config import ALL_LINEAR

# As the configurations of the hub say; what is not named here is the architecture's default.
_GEMMA_3 = {"model_type": "gemma3_text", "vocab_size": 262_144, "head_dim": 256}
_PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "smollm2": {
        "model_type": "llama",
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1_536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 4_096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "gemma-2-9b": {
        "model_type": "gemma2",
        "vocab_size": 256_000,
        "hidden_size": 3_584,
        "intermediate_size": 14_336,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
    },
    "mistral-7b-v0.3": {
        "model_type": "mistral",
        "vocab_size": 32_768,
        "hidden_size": 4_096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "qwen-2.5-7b": {
        "model_type": "qwen2",
        "vocab_size": 152_064,
        "hidden_size": 3_584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "gemma-3-270m": {
        **_GEMMA_3,
        "hidden_size": 640,
        "intermediate_size": 2_048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
    },
    "gemma-3-1b": {
        **_GEMMA_3,
        "hidden_size": 1_152,
        "intermediate_size": 6_912,
        "num_hidden_layers": 26,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
    },
    "gemma-3-4b": {
        **_GEMMA_3,
        "vocab_size": 262_208,
        "hidden_size": 2_560,
        "intermediate_size": 10_240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
}


@dataclass(frozen=True, slots=True)
class Linear:
    """A kind of linear layer of a model: its last name, its sizes, and how many there are."""

    name: str
    d_in: int
    d_out: int
    n: int


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model.

    `n_parameters` counts shared ones once; `n_body` are those that every token is multiplied by, the output
    head left out. `kv_per_token` is the number of keys and values that a token leaves in all layers.
    """

    name: str
    n_layers: int
    d_model: int
    d_ff: int
    vocabulary: int
    n_parameters: int
    n_body: int
    linears: tuple[Linear, ...]
    kv_per_token: int

    @property
    def n_head(self) -> int:
        """The parameters of the output head."""
        return self.vocabulary * self.d_model

    def lora_parameters(self, rank: int, targets: tuple[str, ...]) -> int:
        """The parameters of LoRA of this rank on modules called `targets`."""
        return sum(one.n * rank * (one.d_in + one.d_out) for one in self.targeted(targets))

    def targeted(self, targets: tuple[str, ...]) -> list[Linear]:
        """The linear layers called `targets`."""
        return [one for one in self.linears if targets == (ALL_LINEAR,) or _is_named(one.name, targets)]


def _is_named(name: str, targets: tuple[str, ...]) -> bool:
    return any(f".{target}".endswith(f".{name}") for target in targets)


def shape_of(ckpt: str, say: Say | None = None) -> tuple[Shape, Path | None]:
    """The sizes of the model that `ckpt` names, and its folder where it is on this machine.

    Nothing is downloaded. Raises InputError where neither a configuration is here nor a preset says it.
    """
    folder = folder_here(ckpt, say)
    if folder is not None:
        return _shape(ckpt, folder, transformers_config(folder / "config.json")), folder
    if ckpt not in _PUBLISHED:
        raise InputError(
            f'the sizes of "{ckpt}" are not known here: give the folder of its config.json as ckpt, or one '
            f"of {', '.join(_PUBLISHED)}"
        )
    from transformers import AutoConfig

    known = dict(_PUBLISHED[ckpt])
    return _shape(ckpt, Path(PRESETS[ckpt].model_id), AutoConfig.for_model(**known)), None


def _shape(name: str, folder: Path, config: Any) -> Shape:
    import torch
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config = config.get_text_config()
    classes = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    first = classes[0] if isinstance(classes, list | tuple) else classes
    model = empty_model(folder, config, first.__name__)
    head = model.get_output_embeddings()
    every = {id(one): one.numel() for one in model.parameters()}
    ends = {id(one.weight): one.weight.numel() for one in (model.get_input_embeddings(), head)}
    counted: dict[tuple[str, int, int], int] = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            key = (path.rpartition(".")[2], module.in_features, module.out_features)
            counted[key] = counted.get(key, 0) + 1
    n_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        name=name,
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        d_ff=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        vocabulary=config.vocab_size,
        n_parameters=sum(every.values()),
        n_body=sum(every.values()) - sum(ends.values()),
        linears=tuple(Linear(*key, n) for key, n in counted.items()),
        kv_per_token=2 * config.num_hidden_layers * n_heads * d_head,
    )
