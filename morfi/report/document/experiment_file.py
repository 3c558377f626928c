"""The TOML file with which `morfi run` repeats an experiment, from the settings that its runs have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from morfi.conditions.load import names_file
from morfi.evaluation.split import SplitConfig
from morfi.evaluation.sweep_plan import SweepConfig
from morfi.experiment import STAGES
from morfi.interventions.config import SteerConfig
from morfi.latents.capture import CaptureConfig
from morfi.latents.find import FindConfig
from morfi.latents.sae_training import QUALITY, SaeTraining
from morfi.report.document.html import last_part
from morfi.report.findings.chain import Chain
from morfi.runs.options import name_of
from morfi.training.config import TrainConfig
from morfi.training.mixtures import MixConfig

_CONFIGURED: Mapping[str, type[Any]] = {
    "split": SplitConfig,
    "mix": MixConfig,
    "train": TrainConfig,
    "sweep": SweepConfig,
    "capture": CaptureConfig,
    "sae train": SaeTraining,
    "find": FindConfig,
    "steer": SteerConfig,
}
_NEVER = ("model",)  # of a training: the model of its questions


def experiment_file(chain: Chain) -> str:
    """The file: of each stage what is not by default, with the last part of each path in it."""
    trained = trained_sae(chain)
    found = {str(run.kind): run.config for run in chain.runs}
    if trained is not None:
        found["sae train"] = trained["config"]
    head = _shared(chain)
    left_out = {"split", "mix", "train"} if "ckpts" in head else set()
    tables = [_lines(head)] if head else []
    for stage in STAGES:
        if stage.name not in found or stage.name in left_out:
            continue
        made = {*stage.takes, *head} - (set() if trained is not None else {"sae"})
        own = _given(_CONFIGURED[stage.name], found[stage.name], made)
        tables.append("\n".join([f"[{stage.name.replace(' ', '.')}]", *([_lines(own)] if own else [])]))
    return "\n\n".join(tables) + "\n"


def trained_sae(chain: Chain) -> Mapping[str, Any] | None:
    """What the training of the experiment's SAE left beside it; None of an SAE that came from elsewhere."""
    if chain.find is None:
        return None
    try:
        found: Mapping[str, Any] = json.loads((Path(chain.find.config["sae"]) / QUALITY).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found.get("config"), dict) else None


def _shared(chain: Chain) -> dict[str, Any]:
    """What stands before the tables: checkpoints of one's own, with their questions."""
    run = chain.capture or chain.sweep
    if run is None or not names_file(str(run.config["ckpts"])):
        return {}
    named = ("ckpts", "data", "relations")
    return {name: run.config[name] for name in named if run.config.get(name) not in (None, [], ())}


def _given(configured: type[Any], stored: Mapping[str, Any], made: set[str]) -> dict[str, Any]:
    """The options by name that differ from their defaults, but for those that earlier stages make."""
    return {
        name_of(one): stored[one.name]
        for one in fields(configured)
        if one.name not in (*made, *_NEVER)
        and stored.get(one.name) not in (None, [], {})
        and stored[one.name] != _default(one)
    }


def _default(one: Field[Any]) -> Any:
    """The default as it is stored: JSON has lists only."""
    if one.default is MISSING:
        return None
    return list(one.default) if isinstance(one.default, tuple) else one.default


def _lines(options: Mapping[str, Any]) -> str:
    return "\n".join(f"{key} = {_toml(value)}" for key, value in options.items())


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return _toml([f"{key}={json.dumps(one)}" for key, one in value.items()])
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(last_part(value) if isinstance(value, str) else value, ensure_ascii=False)
