"""LoRA adapters in PEFT's file format: read, checked, and refused by name where a merge would be wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.checkpoints.adapter_config import DECISIVE, check_adapter_config, rank_of, scaling_of
from morfi.checkpoints.model_files import side_file_hashes
from morfi.checkpoints.weights import Weights, open_file, read_json
from morfi.errors import InputError
from morfi.files import canonical_sha256
from morfi.terminal import Say

if TYPE_CHECKING:
    from morfi.cache import Cache

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."

_SUFFIXES = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
    ".lora_B.bias": "bias",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".token_adapter.trainable_tokens_delta": "tokens",
}


@dataclass(frozen=True, slots=True)
class Lora:
    """An adapter's change to one module: tensor names in its file, by role, and the factor on B A.

    Roles: "a" [r, d_in] and "b" [d_out, r], or "embedding_a" [r, n_rows] and "embedding_b" [d_model, r];
    "bias" [d_out], added with the same factor; "magnitude", DoRA's vector.
    """

    parts: Mapping[str, str]
    scaling: float


@dataclass(frozen=True, slots=True)
class Replacement:
    """A tensor the adapter stores whole; an `own_copy` was trained apart from whatever it was tied to."""

    name: str
    own_copy: bool


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows of an embedding that the adapter stores whole: row `indices[i]` becomes row i of tensor `name`."""

    name: str
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Adapter:
    """A checked adapter; modules and tensors are named as in the base model, tensors stay on disk."""

    path: Path
    config: Mapping[str, Any]
    weights: Weights
    loras: Mapping[str, Lora] = field(default_factory=dict)
    replacements: Mapping[str, Replacement] = field(default_factory=dict)
    token_rows: Mapping[str, TokenRows] = field(default_factory=dict)

    @property
    def base(self) -> str | None:
        """The base model that the adapter was trained on, as its configuration names it."""
        return self.config.get("base_model_name_or_path") or None

    def sha256(self, cache: Cache | None = None, say: Say | None = None) -> str:
        """The hash of the tensors, of the settings that decide the merge, and of the tokenizer files."""
        return canonical_sha256(
            {
                "weights": self.weights.sha256(cache, say),
                "config": {key: self.config.get(key) for key in DECISIVE},
                "files": side_file_hashes(self.path),
            }
        )


def load_adapter(directory: Path) -> Adapter:
    """The LoRA adapter in `directory`; raises InputError for every form that could not be merged exactly."""
    path = directory / CONFIG
    config = read_json(path)
    check_adapter_config(path, config)
    file = directory / WEIGHTS
    if not file.is_file():
        pickled = directory / "adapter_model.bin"
        raise InputError(
            f"{pickled} holds pickled weights, which can run code and are never loaded; save the adapter "
            "again with save_pretrained of a current PEFT"
            if pickled.is_file()
            else f"{directory} has {CONFIG} but no {WEIGHTS}; copy the adapter again"
        )
    weights = open_file(file)
    parts: dict[str, dict[str, str]] = {}
    replacements: dict[str, Replacement] = {}
    for name in weights.tensors:
        target, role = _parse(file, name)
        if role == "whole":
            if target in replacements:
                raise InputError(
                    f"{file}: {name} and {replacements[target].name} are the same tensor of the base"
                )
            replacements[target] = Replacement(name, _is_saved_copy(target, config))
        elif role != "unused":
            parts.setdefault(target, {})[role] = name
    if not parts and not replacements:
        raise InputError(f"{file} holds no tensors; save the adapter again")
    token_rows = dict(_token_rows(directory, config, weights, parts))
    loras = {
        module: _lora(directory, config, weights, module, found) for module, found in parts.items() if found
    }
    _check_saved_modules(directory, config, replacements)
    return Adapter(directory, config, weights, loras, replacements, token_rows)


def _parse(file: Path, name: str) -> tuple[str, str]:
    """The module that an adapter's tensor belongs to, and its role there.

    A module and a role of `_SUFFIXES`; or a tensor of the base and "whole", which replaces it; or
    "unused", for what PEFT saves beside it: further copies of a module, and VeLoRA's statistics.
    """
    inner = name.removeprefix(_PREFIX)
    if inner != name:
        for suffix, role in _SUFFIXES.items():
            if inner.endswith(suffix):
                return inner.removesuffix(suffix), role
        if inner.endswith(".lora_velora_embed") or re.search(r"\.(modules_to_save|original_module)\.", inner):
            return inner, "unused"
        # A tuned module's own weight or bias lies one level down.
        plain = inner.replace(".token_adapter.base_layer.", ".").replace(".base_layer.", ".")
        if plain.endswith((".weight", ".bias")) and not re.search(r"\.(lora_\w+|token_adapter)\.", plain):
            return plain, "whole"
    raise InputError(
        f"{file}: the tensor {name} is of no form that PEFT saves for LoRA; save it again with PEFT"
    )


def _is_saved_copy(tensor: str, config: Mapping[str, Any]) -> bool:
    names = config.get("modules_to_save") or []
    return any(f".{name}." in f".{tensor}" for name in names)


def _lora(
    directory: Path, config: Mapping[str, Any], weights: Weights, module: str, parts: dict[str, str]
) -> Lora:
    roles = set(parts) - {"bias", "magnitude"}
    if roles not in ({"a", "b"}, {"embedding_a", "embedding_b"}):
        raise InputError(
            f"{directory / WEIGHTS}: {module} has the parts {', '.join(sorted(parts))}, expected A "
            "and B; save the adapter again"
        )
    for role, setting in (("magnitude", "use_dora"), ("bias", "lora_bias")):
        if bool(config.get(setting)) != (role in parts):
            state = "has" if role in parts else "lacks"
            raise InputError(
                f"{directory / WEIGHTS}: {module} {state} the part for {setting}, but {CONFIG} says "
                f"{setting} = {config.get(setting)!r}; the two files do not belong together"
            )
    name = parts.get("a") or parts["embedding_a"]
    shape = weights.tensors[name].shape
    rank = rank_of(config, module)
    if len(shape) != 2 or shape[0] != rank:
        raise InputError(
            f"{directory / WEIGHTS}: {name} has the shape {list(shape)}, but {CONFIG} gives {module} "
            f"the rank {rank}; the two files do not belong together"
        )
    return Lora(parts, scaling_of(config, module))


def _token_rows(
    directory: Path, config: Mapping[str, Any], weights: Weights, parts: Mapping[str, dict[str, str]]
) -> Iterator[tuple[str, TokenRows]]:
    """Each module with its trained token rows, taken out of `parts`."""
    setting = config.get("trainable_token_indices")
    for module, found in parts.items():
        if (name := found.pop("tokens", None)) is None:
            continue
        if found:
            raise InputError(
                f"{directory / WEIGHTS}: {module} has both token rows and LoRA; save it again with PEFT"
            )
        indices = setting
        if isinstance(setting, dict):
            named = [rows for key, rows in setting.items() if f".{module}".endswith(f".{key}")]
            # An output head tied to the one embedding that is named has the rows of that one.
            indices = next(iter(named or (setting.values() if len(setting) == 1 else ())), None)
        if not isinstance(indices, list) or not all(type(row) is int for row in indices):
            raise InputError(
                f"{directory / CONFIG}: trainable_token_indices = {setting!r} gives no rows for {module}"
            )
        n_rows = next(iter(weights.tensors[name].shape), 0)
        if n_rows != len(indices) or len(set(indices)) != n_rows:
            raise InputError(
                f"{directory / WEIGHTS}: {name} has {n_rows} rows, but {CONFIG} lists {len(set(indices))} "
                f"different token indices for {module}; the two files do not belong together"
            )
        yield module, TokenRows(name, tuple(indices))


def _check_saved_modules(
    directory: Path, config: Mapping[str, Any], replacements: Mapping[str, Replacement]
) -> None:
    for name in config.get("modules_to_save") or []:
        if not any(f".{name}." in f".{tensor}" for tensor in replacements):
            raise InputError(
                f"{directory / WEIGHTS} has no tensor of {name}, which {CONFIG} lists in modules_to_save; "
                "the two files do not belong together"
            )
