"""Settings of a PEFT adapter that matter to a merge; those that would make it wrong are refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from morfi.errors import InputError

# Initialisations that leave the base's weights as they are, so that W + scaling * B A is the trained weight.
_PLAIN_INITS = frozenset({"true", "false", "gaussian", "orthogonal", "eva", "mica"})
# Those that move a part of the base's weights into A and B: on the plain base that part counts twice.
_MUTATING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
_REFUSED = {
    "alora_invocation_tokens": "aLoRA acts only after certain tokens",
    "arrow_config": "Arrow chooses between adapters for each token",
    "kasa_config": "KaSA also changes the base weights",
    "layer_replication": "it changes the number of layers",
    "megatron_config": "Megatron layers are sharded differently",
    "monteclora_config": "MonteCLoRA draws random weights",
    "target_parameters": "adapters on bare parameters are not supported",
    "use_bdlora": "BD-LoRA stores block-diagonal matrices",
    "use_qalora": "QA-LoRA belongs to a quantised base",
}
# What decides the merged weights beside the tensors themselves.
DECISIVE = (
    "alpha_pattern",
    "lora_alpha",
    "lora_bias",
    "modules_to_save",
    "r",
    "rank_pattern",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
)
# What described the training, and is either in the tensors already or checked by a rule of its own.
_DESCRIPTIVE = (
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "target_modules",
    "task_type",
    "velora_config",
)


def check_adapter_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raises InputError where the settings read from `path` are not those of a LoRA that merges exactly."""
    if config.get("peft_type") != "LORA":
        raise InputError(
            f"{path}: peft_type is {config.get('peft_type')!r}; only LORA adapters can be merged"
        )
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise InputError(f"{path}: task_type is {config['task_type']!r}, expected CAUSAL_LM")
    for key, reason in _REFUSED.items():
        if config.get(key):
            raise InputError(f"{path}: {key} is set, which cannot be merged: {reason}")
    for key, value in config.items():
        if value and key not in _REFUSED and key not in DECISIVE and key not in _DESCRIPTIVE:
            raise InputError(
                f"{path}: {key} = {value!r} is unknown to morfi, and a merge could be wrong; "
                "merge the adapter with PEFT's merge_and_unload and give the merged model"
            )
    init = str(config.get("init_lora_weights", True)).lower()
    if init.startswith(_MUTATING_INITS):
        raise InputError(
            f"{path}: init_lora_weights is {init!r}, which changed the base weights before the training; "
            "save the adapter with path_initial_model_for_weight_conversion, which makes it a plain LoRA"
        )
    if init not in _PLAIN_INITS:
        raise InputError(
            f"{path}: init_lora_weights is {init!r}, which morfi does not know; a merge could be wrong"
        )
    _check_values(path, config)


def rank_of(config: Mapping[str, Any], module: str) -> int:
    """The rank that the settings give to the module at this path."""
    return int(_pattern_value(config.get("rank_pattern"), module, config["r"]))


def scaling_of(config: Mapping[str, Any], module: str) -> float:
    """The factor on B A for the module: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732)."""
    alpha = float(_pattern_value(config.get("alpha_pattern"), module, config["lora_alpha"]))
    rank = rank_of(config, module)
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _check_values(path: Path, config: Mapping[str, Any]) -> None:
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    if not isinstance(ranks, dict) or not isinstance(alphas, dict):
        raise InputError(
            f"{path}: rank_pattern and alpha_pattern must be objects from module patterns to numbers"
        )
    for key, rank in {"r": config.get("r"), **ranks}.items():
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise InputError(f"{path}: the rank {key} is {rank!r}, expected a whole number of at least 1")
    for key, alpha in {"lora_alpha": config.get("lora_alpha"), **alphas}.items():
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise InputError(f"{path}: {key} is {alpha!r}, expected a number")
    saved = config.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) and name for name in saved):
        raise InputError(f"{path}: modules_to_save is {saved!r}, expected a list of module names")
    _check_targets(path, config)
    whole = [config.get(key) for key in ("target_modules", "exclude_modules")]
    for pattern in (*ranks, *alphas, *(value for value in whole if isinstance(value, str))):
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(
                f"{path}: the module pattern {pattern!r} is not a regular expression: {error}"
            ) from error


def _check_targets(path: Path, config: Mapping[str, Any]) -> None:
    """Raises InputError where what chooses the modules is of a form that PEFT does not know."""
    for key, kind, name in (
        ("target_modules", str, "names"),
        ("exclude_modules", str, "names"),
        ("layers_pattern", str, "names"),
        ("layers_to_transform", int, "whole numbers"),
    ):
        value = config.get(key)
        listed = value if isinstance(value, list) else [value]
        if value is not None and not all(type(each) is kind for each in listed):
            raise InputError(f"{path}: {key} is {value!r}, expected a list of {name}")


def _pattern_value(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of the module's path, as PEFT looks it up."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
