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
    from morfi.evaluation.split import SplitConfig
    from morfi.evaluation.sweep_plan import SweepConfig
    from morfi.interventions.config import SteerConfig
    from morfi.latents.capture import CaptureConfig
    from morfi.latents.find import FindConfig
    from morfi.latents.sae_training import SaeTraining
    from morfi.store import Store
    from morfi.training.config import TrainConfig
    from morfi.training.mixtures import MixConfig

# The options of each stage that were given, by their names in the configuration of its command.
Settings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where stages work: the store, how engines start, who is told, and the command that is recorded.

    `start_engine` starts one, `start_engines` several as one, where the work can be shared out.
    """

    store: Store
    start_engine: StartEngine
    start_engines: StartEngine
    progress: Progress
    command: str


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage: its `name` is its command's, as typed; `kind` that of its runs, None where it makes none.

    `configure` makes the configuration of its options, and raises InputError where it cannot be; `takes` are
    the options that name what an earlier stage made, by that stage's name.
    """

    name: str
    kind: RunKind | None
    configure: Callable[[Mapping[str, Any]], Any]
    ready: Callable[[Mapping[str, Any], Surroundings], Ready]
    takes: Mapping[str, str] = field(default_factory=dict)


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


def configured(stage: Stage, settings: Settings) -> Any:
    """The configuration of `stage` before any has run: what earlier stages make may have any name.

    Raises InputError for one that cannot be.
    """
    given = given_to(stage, settings, dict.fromkeys(stage.takes.values(), "last"))
    if stage.name == "train" and (ckpt := settings["split"].get("ckpt")) is not None:
        given["model"] = ckpt  # its run will have it from the split run
    return stage.configure(given)


def _split_config(given: Mapping[str, Any]) -> SplitConfig:
    from morfi.evaluation.split import configure_split

    _require(given, {"ckpt": 'the model, such as ckpt = "smollm2"'})
    return configure_split(given)


def _split(given: Mapping[str, Any], around: Surroundings) -> Ready:
    from morfi.evaluation.split import ready_split

    return ready_split(_split_config(given), around.store, around.start_engines, **_how(around))


def _mix_config(given: Mapping[str, Any]) -> MixConfig:
    from morfi.training.mix import configure_mix

    return configure_mix(given)


def _mix(given: Mapping[str, Any], around: Surroundings) -> Ready:
    from morfi.training.mix import ready_mix

    return ready_mix(_mix_config(given), around.store, **_how(around))


def _train_config(given: Mapping[str, Any]) -> TrainConfig:
    """The configuration of training some model: which, the split run says."""
    from morfi.training.config import train_config

    return train_config({"model": "", **_without(given, "mix_run", "out")})


def _train(given: Mapping[str, Any], around: Surroundings) -> Ready:
    from morfi.training.train import ready_train

    options, folder = _without(given, "mix_run", "out"), _folder(given, "checkpoints")
    return ready_train(options, given["mix_run"], around.store, folder, **_how(around))


def _sweep_config(given: Mapping[str, Any]) -> SweepConfig:
    from morfi.evaluation.sweep_plan import configure_sweep

    return configure_sweep(given)


def _sweep(given: Mapping[str, Any], around: Surroundings) -> Ready:
    from morfi.evaluation.sweep import ready_sweep

    return ready_sweep(_sweep_config(given), around.store, around.start_engines, **_how(around))


def _capture_config(given: Mapping[str, Any]) -> CaptureConfig:
    from morfi.latents.capture import CaptureConfig

    _require(given, {"layers": "the decoder layers, or the one layer of all stages: layer = 12"})
    return CaptureConfig(**_without(given, "out"))


def _capture(given: Mapping[str, Any], around: Surroundings) -> Ready:
    from morfi.latents.capture import ready_capture

    config, folder = _capture_config(given), _folder(given, "activations")
    return ready_capture(config, around.store, around.start_engines, folder, **_how(around))


def _sae_config(given: Mapping[str, Any]) -> SaeTraining:
    from morfi.latents.sae_training import configure_sae

    _require(given, {"layer": "the decoder layer after which the SAE reads"})
    return configure_sae(given)


def _sae(given: Mapping[str, Any], around: Surroundings) -> Ready:
    from morfi.latents.sae_training import ready_sae

    return ready_sae(_sae_config(given), around.store, around.start_engine, around.progress)


def _find_config(given: Mapping[str, Any]) -> FindConfig:
    from morfi.latents.find import configure_find

    return configure_find(given)


def _find(given: Mapping[str, Any], around: Surroundings) -> Ready:
    from morfi.latents.find import ready_find

    return ready_find(_find_config(given), around.store, **_how(around))


def _steer_config(given: Mapping[str, Any]) -> SteerConfig:
    """The configuration of steering some checkpoint: the highest level, where the options name none."""
    from morfi.interventions.config import configure_steer

    return configure_steer({"ckpt": "", **given})


def _steer(given: Mapping[str, Any], around: Surroundings) -> Ready:
    """Steers the highest level unless told otherwise; along the baselines alone where no latent was found.

    Every seed of that checkpoint is steered, in a run of its own.
    """
    from morfi.interventions.config import TRENDS
    from morfi.interventions.run import ready_steer

    given, store, found = dict(given), around.store, given["latents"]
    conditions = [condition_of(row) for row in store.trend_conditions(found)]
    if "ckpt" not in given:
        given["ckpt"] = max(conditions, key=lambda one: one.level).name
    signs = TRENDS[given.get("trend", "any")]
    directions = store.latents(found, selected=True)["direction"].to_pylist()
    if "ids" not in given and not set(signs) & set(directions):
        around.progress.phase("no latent has a trend: only delta_u and random directions are steered along")
        given["top"] = 0
    seeds = sorted({one.seed for one in conditions if one.name == given["ckpt"]})
    by_seed = [{"train_seed": seed, **given} for seed in seeds if given.get("train_seed", seed) == seed]
    return Ready.together(
        [
            ready_steer(_steer_config(one), store, around.start_engines, **_how(around))
            for one in by_seed or [given]
        ]
    )


def _how(around: Surroundings) -> dict[str, Any]:
    return {"progress": around.progress, "new": False, "command": around.command}


def _folder(given: Mapping[str, Any], default: str) -> Path:
    return Path(given.get("out") or default)


def _without(given: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in names}


def _require(given: Mapping[str, Any], needed: Mapping[str, str]) -> None:
    """Raises InputError for an option of a stage that is missing; `needed` says what it is."""
    for name, what in needed.items():
        if name not in given:
            raise InputError(f"{name} is missing: give {what}")


_OF_TRAINING = {"ckpts": "train"}
STAGES = (
    Stage("split", RunKind.SPLIT, _split_config, _split),
    Stage("mix", RunKind.MIX, _mix_config, _mix, {"split_run": "split"}),
    Stage("train", RunKind.TRAIN, _train_config, _train, {"mix_run": "mix"}),
    Stage("sweep", RunKind.SWEEP, _sweep_config, _sweep, _OF_TRAINING),
    Stage("capture", RunKind.CAPTURE, _capture_config, _capture, _OF_TRAINING),
    Stage("sae train", None, _sae_config, _sae, _OF_TRAINING),
    Stage("find", RunKind.FIND, _find_config, _find, {"activations": "capture", "sae": "sae train"}),
    Stage("steer", RunKind.STEER, _steer_config, _steer, {"latents": "find"}),
)
