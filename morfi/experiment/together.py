"""What stages of an experiment say of each other: every name in one must be something that another makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from morfi.errors import InputError
from morfi.latents.activations import EPOCHS
from morfi.questions.sets import SPLITS
from morfi.training.plan import check_warmup

if TYPE_CHECKING:
    from morfi.evaluation.sweep_plan import SweepConfig
    from morfi.interventions.config import SteerConfig
    from morfi.latents.capture import CaptureConfig
    from morfi.latents.find import FindConfig
    from morfi.latents.sae_training import SaeTraining
    from morfi.training.config import TrainConfig
    from morfi.training.mixtures import MixConfig

# The configuration of each stage, by its name; a stage that is left out is missing.
Configs = Mapping[str, Any]
_LEVELS = 3  # that a trend needs at least


def _train(config: TrainConfig, made: Configs) -> None:
    if (mix := made.get("mix")) is not None:
        check_warmup(config, mix.levels[0], mix.size)


def _sweep(config: SweepConfig, made: Configs) -> None:
    _check_split("split", config.split, made)


def _capture(config: CaptureConfig, made: Configs) -> None:
    _check_split("split", config.split, made)


def _sae_train(config: SaeTraining, _: Configs) -> None:
    if config.d_sae is not None and config.k > config.d_sae:
        raise InputError(f"k is {config.k}, more than the {config.d_sae} latents of d-sae")


def _find(config: FindConfig, made: Configs) -> None:
    if config.along == EPOCHS:
        return
    _check_epochs(config.epochs, made)
    mix: MixConfig | None = made.get("mix")
    if mix is not None and len(mix.levels) < _LEVELS:
        raise InputError(
            f"a trend needs {_LEVELS} levels or more; [mix] draws {_listed(_names(mix.levels))}; give "
            "along = epochs, or more levels"
        )


def _steer(config: SteerConfig, made: Configs) -> None:
    _check_epochs(config.epochs, made)
    for key, name in (("ckpt", config.ckpt), ("reference", config.reference)):
        mix: MixConfig | None = made.get("mix")
        if mix is not None and name and name.startswith("M_") and name not in _names(mix.levels):
            raise InputError(f"{key} is {name}; [mix] draws {_listed(_names(mix.levels))}")
    train: TrainConfig | None = made.get("train")
    if train is not None and config.train_seed >= train.seeds:
        raise InputError(
            f"train-seed is {config.train_seed}; [train] trains the seeds {_listed(range(train.seeds))}"
        )
    _check_split("choose-on", config.choose_on, made)
    _check_split("report-on", config.report_on, made)


def _check_epochs(wanted: str | None, made: Configs) -> None:
    """Raises InputError for epochs that are not kept."""
    train: TrainConfig | None = made.get("train")
    if train is None or wanted is None:
        return
    kept = [*map(str, train.epochs), *(["early-stop"] if train.early_stop else [])]
    if wanted not in kept:
        raise InputError(f"epochs is {wanted}; [train] keeps the epochs {_listed(kept)}")


def _check_split(key: str, name: str | None, made: Configs) -> None:
    """Raises InputError for a split that the questions of a split run do not have."""
    if "split" in made and name is not None and name not in SPLITS:
        raise InputError(f'{key} "{name}" is none of {_listed(SPLITS)}')


def _names(levels: Sequence[int]) -> list[str]:
    return [f"M_{level}" for level in levels]


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


TOGETHER: Mapping[str, Callable[[Any, Configs], None]] = {
    "train": _train,
    "sweep": _sweep,
    "capture": _capture,
    "sae train": _sae_train,
    "find": _find,
    "steer": _steer,
}
