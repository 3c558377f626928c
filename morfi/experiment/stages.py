"""The stages of an experiment: each is a command, on what the stages before it made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.conditions.condition import condition_of
from morfi.engine.protocol import StartEngine
from morfi.errors import InputError
from morfi.runs.life import Ready
from morfi.store.records import RunKind
from morfi.terminal import Progress

if TYPE_CHECKING:
    from morfi.store import Store

# The options of each stage that were given, by their names in the configuration of its command.
Settings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where stages work: the store, how an engine starts, who is told, and the command that is recorded."""

    store: Store
    start_engine: StartEngine
    progress: Progress
    command: str


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage: its `name` is its command's, as typed; `kind` that of its runs, None where it makes none.

    `takes` are the options that name what an earlier stage made, by that stage's name; `unit` is what its
    progress counts.
    """

    name: str
    kind: RunKind | None
    ready: Callable[[Mapping[str, Any], Surroundings], Ready]
    takes: Mapping[str, str] = field(default_factory=dict)
    unit: str = "answers"


def stages_of(settings: Settings) -> tuple[Stage, ...]:
    """The stages that `settings` leave something to do, in order.

    Who has checkpoints trains none, who has an SAE needs no other.
    """
    left_out = set()
    if settings["capture"].get("ckpts") is not None:
        left_out |= {"split", "mix", "train"}
    if settings["find"].get("sae") is not None:
        left_out.add("sae train")
    return tuple(stage for stage in STAGES if stage.name not in left_out)


def given_to(stage: Stage, settings: Settings, results: Mapping[str, str]) -> dict[str, Any]:
    """The options of `stage`: those of `settings`, and what earlier stages made."""
    made = {option: results[maker] for option, maker in stage.takes.items() if maker in results}
    return {**made, **{key: value for key, value in settings[stage.name].items() if value is not None}}


def _split(given: Mapping[str, Any], around: Surroundings) -> Ready:
    from morfi.evaluation.split import configure_split, ready_split

    _require("split", given, {"ckpt": 'the model, such as ckpt = "smollm2"'})
    return ready_split(configure_split(given), around.store, around.start_engine, **_how(around))


def _mix(given: Mapping[str, Any], around: Surroundings) -> Ready:
    from morfi.training.mix import configure_mix, ready_mix

    return ready_mix(configure_mix(given), around.store, **_how(around))


def _train(given: Mapping[str, Any], around: Surroundings) -> Ready:
    from morfi.training.train import ready_train

    options = {name: value for name, value in given.items() if name not in ("mix_run", "out")}
    return ready_train(options, given["mix_run"], around.store, _folder(given, "checkpoints"), **_how(around))


def _sweep(given: Mapping[str, Any], around: Surroundings) -> Ready:
    from morfi.evaluation.sweep import ready_sweep
    from morfi.evaluation.sweep_plan import configure_sweep

    return ready_sweep(configure_sweep(given), around.store, around.start_engine, **_how(around))


def _capture(given: Mapping[str, Any], around: Surroundings) -> Ready:
    from morfi.latents.capture import CaptureConfig, ready_capture

    _require("capture", given, {"layers": "the decoder layers, or the one layer of all stages: layer = 12"})
    config = CaptureConfig(**{name: value for name, value in given.items() if name != "out"})
    folder = _folder(given, "activations")
    return ready_capture(config, around.store, around.start_engine, folder, **_how(around))


def _sae(given: Mapping[str, Any], around: Surroundings) -> Ready:
    from morfi.latents.sae_training import configure_sae, ready_sae

    _require("sae.train", given, {"layer": "the decoder layer after which the SAE reads"})
    return ready_sae(configure_sae(given), around.store, around.start_engine, around.progress)


def _find(given: Mapping[str, Any], around: Surroundings) -> Ready:
    from morfi.latents.find import configure_find, ready_find

    return ready_find(configure_find(given), around.store, **_how(around))


def _steer(given: Mapping[str, Any], around: Surroundings) -> Ready:
    """Steers the highest level unless told otherwise; along the baselines alone where no latent was found."""
    from morfi.interventions.config import configure_steer
    from morfi.interventions.run import ready_steer

    given, store, found = dict(given), around.store, given["latents"]
    if "ckpt" not in given:
        conditions = [condition_of(row) for row in store.trend_conditions(found)]
        given["ckpt"] = max(conditions, key=lambda one: one.level).name
    if not {"ids", "top"} & set(given) and not any(one.n_selected for one in store.trend_summaries(found)):
        around.progress.phase("no latent has a trend: only delta_u and random directions are steered along")
        given["top"] = 0
    return ready_steer(configure_steer(given), store, around.start_engine, **_how(around))


def _how(around: Surroundings) -> dict[str, Any]:
    return {"progress": around.progress, "new": False, "command": around.command}


def _folder(given: Mapping[str, Any], default: str) -> Path:
    return Path(given.get("out") or default)


def _require(table: str, given: Mapping[str, Any], needed: Mapping[str, str]) -> None:
    """Raises InputError for an option of a stage that is missing; `needed` says what it is."""
    for name, what in needed.items():
        if name not in given:
            raise InputError(f"[{table}] lacks {name}: give {what}")


_OF_TRAINING = {"ckpts": "train"}
STAGES = (
    Stage("split", RunKind.SPLIT, _split),
    Stage("mix", RunKind.MIX, _mix, {"split_run": "split"}),
    Stage("train", RunKind.TRAIN, _train, {"mix_run": "mix"}, "examples"),
    Stage("sweep", RunKind.SWEEP, _sweep, _OF_TRAINING),
    Stage("capture", RunKind.CAPTURE, _capture, _OF_TRAINING, "prompts"),
    Stage("sae train", None, _sae, _OF_TRAINING, "texts and tokens"),
    Stage("find", RunKind.FIND, _find, {"activations": "capture", "sae": "sae train"}, "latents"),
    Stage("steer", RunKind.STEER, _steer, {"latents": "find"}),
)
