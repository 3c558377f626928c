"""Model directories in the Hugging Face layout: checked before loading, identified by content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.checkpoints.architecture import Layout, empty_model, layout_of
from morfi.checkpoints.weights import Weights, open_model_weights, read_json
from morfi.errors import InputError, nearest, reason_of
from morfi.files import canonical_sha256, read_once
from morfi.terminal import Say

if TYPE_CHECKING:
    from morfi.cache import Cache

DTYPES = ("bfloat16", "float16", "float32")
OUTPUT_HEAD = "lm_head.weight"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
SIDE_FILES = (*TOKENIZER_FILES, "generation_config.json")
# What architectures call the tokens that they take; vLLM goes by the lowest.
_CONTEXT_LIMITS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
# vLLM has no output head of its own for these.
ALWAYS_TIED = frozenset({"gemma2", "cohere", "cohere2"})
# What says nothing about the function that the model computes, and changes when a model is saved again.
_BOOKKEEPING = frozenset({"_name_or_path", "_model_name_or_path", "transformers_version", "use_cache"})
_STORED = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model directory whose configuration and weights were opened and fit each other's form.

    `tied`: the output head is the input embedding; a head that is stored beside it is the same tensor again.
    """

    path: Path
    config: Mapping[str, Any]
    weights: Weights
    layout: Layout
    tied: bool

    @property
    def model_type(self) -> str:
        """The architecture family, such as "llama"."""
        return str(self.config["model_type"])

    @property
    def dtype(self) -> str:
        """The dtype the configuration asks for, else that of the first floating tensor."""
        named = self.config.get("dtype") or self.config.get("torch_dtype")
        stored = [_STORED[e.dtype] for e in self.weights.tensors.values() if e.dtype in _STORED]
        dtype = named or (stored[0] if stored else "float32")
        if dtype not in DTYPES:
            raise InputError(
                f'{self.path / "config.json"} has the dtype "{dtype}", '
                f"expected one of {', '.join(DTYPES)}; give --dtype"
            )
        return dtype

    @property
    def input_embedding(self) -> str | None:
        """The name of the input embedding's tensor, None for an architecture that has none."""
        return None if self.layout.embedding is None else self.layout.tensor_of(self.layout.embedding)

    @property
    def output_head(self) -> str:
        """The name of the output head's tensor, or the one it would have if it is not stored."""
        head = self.layout.head or OUTPUT_HEAD
        return self.layout.tensor_of(head) or head

    @property
    def served_config(self) -> Mapping[str, Any]:
        """The configuration, which ties nothing where the files hold an output head of their own."""
        claimed = self.layout.head is not None and self.layout.head in self.layout.shared
        return {**self.config, "tie_word_embeddings": False} if claimed and not self.tied else self.config

    @property
    def whole_config(self) -> dict[str, Any]:
        """The configuration with the defaults of the architecture, as transformers reads it."""
        found: dict[str, Any] = transformers_config(self.path / "config.json").to_dict()
        return found

    def empty_model(self) -> Any:
        """transformers' model of this configuration, without any weights."""
        config = transformers_config(self.path / "config.json")
        return empty_model(self.path, config, self.layout.architecture)

    def is_conv1d(self, tensor: str) -> bool:
        """Whether the tensor is stored [d_in, d_out], as GPT-2's projections are."""
        module = self.layout.parameters.get(tensor, "").removesuffix(".weight")
        return self.layout.modules.get(module) == "conv1d"

    def sha256(self, cache: Cache | None = None, say: Say | None = None) -> str:
        """The hash of all that decides the model's answers, wherever it lies and however it is sharded.

        sha256 over the weights' hash (`Weights.sha256`), the configuration without bookkeeping as canonical
        JSON, and the bytes of the tokenizer and generation files.
        """
        config = {key: value for key, value in self.served_config.items() if key not in _BOOKKEEPING}
        parts = {
            "weights": self.weights.sha256(cache, say),
            "config": config,
            "files": side_file_hashes(self.path),
        }
        return canonical_sha256(parts)


def open_model(directory: Path) -> ModelFiles:
    """The model in `directory`; raises InputError for what transformers and vLLM could not load safely.

    Refused: no config.json, an architecture that is not a known causal language model, code from the
    checkpoint (`auto_map`), pickled, missing or damaged weights.
    """
    return read_once(directory, "model", partial(_open, directory))


def _open(directory: Path) -> ModelFiles:
    if not directory.is_dir() or not any(directory.iterdir()):
        state = "is an empty folder" if directory.is_dir() else "is not a folder"
        raise InputError(
            f"{directory} {state}; expected a model folder with config.json and safetensors weights"
        )
    path = directory / "config.json"
    if not path.is_file():
        raise InputError(
            f"{directory} has no config.json; expected a model folder in the Hugging Face layout"
        )
    config = read_json(path)
    refuse_custom_code(directory)
    _check_architecture(path, config)
    if quantised := config.get("quantization_config") or config.get("compression_config"):
        raise InputError(_quantised(directory, quantised))
    weights = open_model_weights(directory)
    layout = layout_of(directory, transformers_config(path), config["architectures"][0], weights)
    model = ModelFiles(directory, config, weights, layout, _is_tied(layout, weights))
    _check_servable_head(model)
    return model


def _is_tied(layout: Layout, weights: Weights) -> bool:
    """Whether head and input embedding are one: by the configuration, and by value if both are stored."""
    import torch

    if layout.head is None or layout.shared.get(layout.head) != layout.embedding or layout.embedding is None:
        return False
    head, embedding = layout.tensor_of(layout.head), layout.tensor_of(layout.embedding)
    if head is None or embedding is None:
        return True
    return torch.equal(weights.tensor(head).float(), weights.tensor(embedding).float())


def _check_servable_head(model: ModelFiles) -> None:
    if model.model_type in ALWAYS_TIED and not model.tied and model.layout.head is not None:
        raise InputError(
            f"{model.path} has an output head of its own, and vLLM serves a {model.model_type} model with "
            "its input embedding in that place; it cannot be served as it is"
        )


def _quantised(directory: Path, settings: Any) -> str:
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    return (
        f"{directory / 'config.json'} says that the model is quantised ({method or 'unknown method'}), "
        "and only full weights are served: give the model that it was made from, or take quantization_config "
        "out of config.json if the weights were saved in 16 or 32 bits again"
    )


def context_limit(directory: Path) -> int | None:
    """The tokens that the model in `directory` takes: its configuration's lowest limit, None without any."""
    config = transformers_config(directory / "config.json").get_text_config()
    limits = [getattr(config, name, None) for name in _CONTEXT_LIMITS]
    return min((int(limit) for limit in limits if limit), default=None)


def refuse_custom_code(directory: Path) -> None:
    """Raises InputError where the model or tokenizer configuration names code of its own."""
    for name in ("config.json", "tokenizer_config.json"):
        path = directory / name
        if path.is_file() and read_json(path).get("auto_map"):
            raise InputError(
                f"{path} asks to run code from the checkpoint (auto_map), which is never done; "
                "use a model that transformers supports itself"
            )


def side_file_hashes(directory: Path) -> dict[str, str]:
    """The sha256 of each tokenizer and generation file in `directory`, by file name."""
    present = [directory / name for name in SIDE_FILES if (directory / name).is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in present}


def _check_architecture(path: Path, config: Mapping[str, Any]) -> None:
    from transformers.models.auto import modeling_auto

    family = config.get("model_type")
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or [type(name) for name in architectures] != [str]:
        raise InputError(
            f'{path} gives architectures = {architectures!r}, expected one, such as ["LlamaForCausalLM"]'
        )
    # Most families have one class, some a tuple of them.
    classes = {
        known_family: (names,) if isinstance(names, str) else names
        for known_family, names in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
    }
    architecture = architectures[0]
    if architecture not in {name for names in classes.values() for name in names}:
        raise InputError(
            f'{path} gives the architecture "{architecture}", which is not a causal language model that '
            f"transformers knows.{nearest(architecture, (names[0] for names in classes.values()))}"
        )
    if architecture not in classes.get(str(family), ()):
        expected = next(known_family for known_family, names in classes.items() if architecture in names)
        raise InputError(f'{path} gives model_type {family!r} for {architecture}, expected "{expected}"')


def transformers_config(path: Path) -> Any:
    """The configuration as transformers reads it, with the defaults of the architecture."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path.parent, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        reason = reason_of(error)
        raise InputError(f"{path} is not a configuration that transformers accepts: {reason}") from error
