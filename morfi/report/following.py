"""What to type next: after each command that makes something, the one that takes it, with its id."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from morfi.checkpoints.presets import PRESETS
from morfi.conditions.condition import Condition
from morfi.conditions.load import names_file
from morfi.evaluation.sweep_plan import SweepRun
from morfi.interventions.config import SteerRun
from morfi.latents.capture import CaptureRun
from morfi.latents.find import FindRun
from morfi.latents.sae_check import SaeOnRun
from morfi.latents.sae_training import SaeTraining
from morfi.runs.settings import settings_of
from morfi.store import Store
from morfi.store.records import EVERY, RunKind, RunRecord

# What nobody but the user knows stands in capitals.
_LAYER, _SAE, _DATA, _RUN = "LAYER", "SAE", "QUESTIONS", "RUN"


def command_line(store: Store, *words: str) -> str:
    """A line to type: `morfi` with these words, on this store."""
    return f"  {' '.join(map(_quoted, ('morfi', *words, '--db', str(store.path))))}"


def _quoted(word: str) -> str:
    """The word as a shell takes it; SQL, with its own quotes, in double ones."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def ending(store: Store, run: RunRecord) -> list[str]:
    """The last lines of a run's report: its id, how to see it again, and once it is done what takes it."""
    status = store.summary(run.run_id).status
    following = _AFTER[run.kind](store, run) if status == "done" else []
    lines = [command_line(store, *words) for words in (["show", run.run_id], *following)]
    return [f"run {run.run_id} ({status}) in {store.path}", *lines]


def _eval(_: Store, run: RunRecord) -> list[list[str]]:
    query = f"FROM samples SELECT question, answer, correct WHERE run_id = '{run.run_id}' LIMIT 5"
    return [["sql", query]]


def _split(_: Store, run: RunRecord) -> list[list[str]]:
    return [["mix", "--split", run.run_id]]


def _mix(_: Store, run: RunRecord) -> list[list[str]]:
    return [["train", "--mix", run.run_id]]


def _train(_: Store, run: RunRecord) -> list[list[str]]:
    return [["sweep", "--ckpts", run.run_id]]


def _sweep(_: Store, run: RunRecord) -> list[list[str]]:
    config = settings_of(run, SweepRun)
    return [_capturing(config.ckpts, config.data, _layer_of(run.ckpt))]


def _capture(store: Store, run: RunRecord) -> list[list[str]]:
    """`find` with the SAE that the preset of the base has, else the training of one."""
    config = settings_of(run, CaptureRun)
    known = PRESETS.get(run.ckpt)
    finding = ["find", "--activations", run.run_id, "--sae"]
    if known is not None and known.sae is not None and known.sae_layer in config.layers:
        return [[*finding, known.name]]
    asked = store.run(config.split_run).asked.data if config.split_run else config.data
    of_data = ["--data", asked] if asked else []
    training = ["sae", "train", "--ckpts", config.ckpts, *of_data, "--layer", str(config.layers[-1])]
    return [training, [*finding, _SAE]]


def _find(store: Store, run: RunRecord) -> list[list[str]]:
    """`steer` of the checkpoint of the highest level; nothing where no latent was selected."""
    if not store.latents(run.run_id, selected=True).num_rows:
        return []
    last = max(store.trend_conditions(run.run_id), key=lambda row: (row.level, -row.seed))
    seed = ["--train-seed", str(last.seed)] if last.seed else []
    name = Condition(last.level, last.seed, last.epoch_setting, last.epoch).name
    return [["steer", "--ckpt", name, *seed, "--latents", run.run_id]]


def _steer(store: Store, run: RunRecord) -> list[list[str]]:
    """`serve` of what was steered: by its id, where M_100 would be another there."""
    config = settings_of(run, SteerRun)
    found, ckpt = settings_of(store.run(config.latents), FindRun), config.ckpt
    if ckpt.startswith("M_") and (config.epochs, config.train_seed) != (found.epochs, 0):
        ckpt = f"level-{ckpt.removeprefix('M_')}-seed-{config.train_seed}-epoch-{config.epochs}"
    return [["serve", "--ckpt", ckpt, "--latents", config.latents]]


_AFTER: Mapping[str, Callable[[Store, RunRecord], list[list[str]]]] = MappingProxyType(
    {
        RunKind.EVAL: _eval,
        RunKind.SWEEP_EVAL: _eval,
        RunKind.SPLIT: _split,
        RunKind.MIX: _mix,
        RunKind.TRAIN: _train,
        RunKind.SWEEP: _sweep,
        RunKind.CAPTURE: _capture,
        RunKind.FIND: _find,
        RunKind.STEER: _steer,
    }
)


def after_verify(store: Store, ckpt: str) -> str:
    """The line to type after a verification that holds."""
    return command_line(store, "eval", "--ckpt", ckpt)


def after_conditions(store: Store, file: str) -> str:
    """The line to type after a series was found right."""
    return command_line(store, "sweep", "--ckpts", file, "--data", _DATA)


def after_training(store: Store, config: SaeTraining, sae: str) -> str:
    """The line to type after an SAE was trained: `find` on the newest capture of its layer, or a capture."""
    source = _source(store, config.ckpts)
    captured = _captured(
        store,
        lambda run, found: (
            config.layer in found.layers and (found.ckpts == source if source else run.ckpt == config.ckpt)
        ),
    )
    if captured is not None:
        return command_line(store, "find", "--activations", captured, "--sae", sae)
    data = config.data if source is not None and names_file(source) else None
    return command_line(store, *_capturing(source or _RUN, data, str(config.layer)))


def after_fetching(store: Store, sae: str, layer: int | None) -> str:
    """The line to type after an SAE was fetched: `find` on the newest capture of its preset's model."""
    presets = [one.name for one in PRESETS.values() if sae in (one.name, one.sae)]
    captured = _captured(store, lambda run, found: layer in found.layers and run.ckpt in presets)
    if captured is not None or layer is None:
        return command_line(store, "find", "--activations", captured or _RUN, "--sae", sae)
    return command_line(store, *_capturing(_RUN, None, str(layer)))


def after_checking(store: Store, config: SaeOnRun, run_id: str) -> str:
    """The line to type after an SAE was checked on a capture."""
    own = {"--layer": config.layer, "--epochs": config.epochs}
    given = [word for name, value in own.items() if value is not None for word in (name, str(value))]
    return command_line(store, "find", "--activations", run_id, "--sae", config.sae, *given)


def _capturing(ckpts: str, data: str | None, layer: str) -> list[str]:
    return ["capture", "--ckpts", ckpts, *(["--data", data] if data else []), "--layers", layer]


def _layer_of(model: str) -> str:
    """The layer that the SAE of a preset reads."""
    known = PRESETS.get(model)
    return _LAYER if known is None or known.sae_layer is None else str(known.sae_layer)


def _source(store: Store, ckpts: str | None) -> str | None:
    """The series as a capture run names it."""
    if ckpts is None:
        return None
    return (
        str(Path(ckpts).absolute()) if names_file(ckpts) else store.run_of_kind(ckpts, RunKind.TRAIN).run_id
    )


def _captured(store: Store, wanted: Callable[[RunRecord, CaptureRun], bool]) -> str | None:
    """The newest capture run that is `wanted` and done."""
    if not store.path.exists():
        return None
    for one in store.runs(EVERY, (RunKind.CAPTURE,)):
        if one.status == "done":
            run = store.run(one.run_id)
            if wanted(run, settings_of(run, CaptureRun)):
                return run.run_id
    return None
