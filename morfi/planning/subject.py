"""What is planned: the configurations of an experiment's stages, its model's sizes and its questions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from morfi.conditions.load import load_series
from morfi.errors import InputError
from morfi.evaluation.config import EvalConfig
from morfi.evaluation.split import SplitConfig, chosen_questions
from morfi.evaluation.sweep_plan import SweepConfig
from morfi.experiment import Settings, stages_of
from morfi.experiment.stages import configured
from morfi.interventions.config import SteerConfig
from morfi.latents.activations import EPOCHS
from morfi.latents.find import BOTH, FindConfig
from morfi.planning.asked import Encoder, encoder_of
from morfi.planning.counts import CATEGORIES, LOOSE, LOOSE_STEERED, Configs, Facts, n_kept
from morfi.planning.shape import Shape, shape_of
from morfi.planning.swaps import UTILIZATION
from morfi.questions import QuestionSet, load_questions, select, with_splits
from morfi.runs.options import sized_here
from morfi.terminal import Progress
from morfi.training.config import TrainConfig

if TYPE_CHECKING:
    from morfi.store import Store

_WIDTH = re.compile(r"(\d+)(k|x)(?![a-z0-9])")  # of an SAE in its name: 16k latents, or 8x d_model


@dataclass(frozen=True, slots=True)
class Subject:
    """An experiment as it is planned; `data` are the questions of its texts, `notes` what is assumed."""

    configs: Configs
    shape: Shape
    is_here: bool  # the model's folder
    encoder: Encoder
    data: QuestionSet
    facts: Facts
    d_sae: int
    notes: tuple[str, ...]


def sized_for(settings: Settings, *, gpu: bool) -> dict[str, dict[str, Any]]:
    """The settings with the defaults that depend on the machine, as on one that has a `gpu` or has not."""
    found = {name: dict(given) for name, given in settings.items()}
    for name, config in (("split", SplitConfig), ("sweep", SweepConfig), ("steer", SteerConfig)):
        for key, value in sized_here(config, gpu=gpu).items():
            if found[name].get(key) is None:
                found[name][key] = value
    if settings["split"].get("batch") is None:
        together = sized_here(EvalConfig, gpu=gpu)["batch"]
        found["split"]["batch"] = max(32, together // (1 + found["split"]["samples"]))
    return found


def subject_of(settings: Settings, split_run: str | None, store: Store, progress: Progress) -> Subject:
    """The experiment of `settings`; `split_run` is its split run where that is done.

    Raises InputError for settings that no stage can have, and for a model whose sizes are not known.
    """
    configs, model = configs_of(settings), settings["split"].get("ckpt")
    if configs.split is not None and configs.split.endpoint is not None:
        raise InputError("how fast a server answers is not known: plan with a model as ckpt, not an endpoint")
    progress.phase("reading the questions")
    category: Mapping[str, str] | None = None
    if configs.split is not None:
        data = with_splits(load_questions(configs.split.data))
        questions = chosen_questions(data, configs.split)
        levels = configs.mix.levels if configs.mix is not None else ()
        train = configs.train
        n_epochs = 1 if train is None else n_kept(train)
        seeds = 1 if train is None else train.seeds
        n_conditions, bos = 1 + len(levels) * seeds * n_epochs, configs.split.bos
        settings_kept = 1 if train is None else len(train.epochs) + train.early_stop
        n_captured = 1 + len(levels) * seeds * settings_kept
        n_levels = len(levels) * seeds
        if split_run is not None:
            category = {row.question_id: row.category for row in store.knowledge(split_run)}
    else:
        series = load_series(configs.capture.ckpts, store, configs.capture.dtype, progress)
        model, bos = str(series.base.model_dir), series.bos
        n_conditions = n_captured = len(series.conditions)
        n_levels = len({(one.level, one.seed) for one in series.members})
        n_epochs = len({one.epoch_setting for one in series.members})
        data = with_splits(load_questions(str(configs.capture.data or configs.sweep.data)))
        relations = configs.capture.relations
        questions = {split: select(own, relations=relations) for split, own in data.splits.items()}
    shape, folder = shape_of(str(model), progress.phase)
    encoder, note = encoder_of(folder, bos)
    along = configs.find.along
    compared = n_epochs if along == EPOCHS else n_levels + (n_epochs if along == BOTH else 0)
    d_sae, width_note = _width(configs, shape)
    notes = [note, width_note, *_assumed(category, configs.train)]
    return Subject(
        configs,
        shape,
        folder is not None,
        encoder,
        data,
        Facts(questions, category, n_conditions, n_captured, compared),
        d_sae,
        tuple(one for one in notes if one is not None),
    )


def configs_of(settings: Settings) -> Configs:
    """The configuration of each stage, as its command takes it; raises InputError for one that cannot be."""
    made: dict[str, Any] = {}
    for stage in stages_of(settings):
        try:
            made[stage.name] = configured(stage, settings)
        except InputError as error:
            raise InputError(f"[{stage.name.replace(' ', '.')}] {error}") from error
    named = ("split", "mix", "train", "sweep", "capture", "sae train", "find", "steer")
    return Configs(*(made.get(name) for name in named))  # type: ignore[arg-type]


def n_gpus_of(configs: Configs) -> int:
    """The GPUs that each engine is spread over; raises InputError where the setting is no such number."""
    given = str(configs.capture.engine.get("tensor_parallel_size", 1))
    if not given.isdecimal() or int(given) < 1:
        raise InputError(f"engine: tensor_parallel_size is {given}; give a number of GPUs, from 1")
    return int(given)


def utilization_of(configs: Configs) -> float:
    """The share of each GPU's memory that engines take; raises InputError where the setting is none."""
    given = configs.capture.engine.get("gpu_memory_utilization", UTILIZATION)
    try:
        share = float(given)
    except (TypeError, ValueError):
        share = 0.0
    if not 0 < share <= 1:
        raise InputError(f"engine: gpu_memory_utilization is {given}; give a share, above 0 and up to 1")
    return share


def _assumed(category: Mapping[str, str] | None, train: TrainConfig | None) -> list[str]:
    found = [
        f"an answer has the tokens of the right one and the end of its line, {LOOSE} more where the model "
        f"was not taught that form, {LOOSE_STEERED} where it is steered",
        "every latent that is asked for is found",
    ]
    if train is not None and train.early_stop:
        found.append("early stopping falls between the epochs that are kept")
    if category is None:
        shares = ", ".join(f"{100 * share:.0f} % {name}" for name, share in CATEGORIES.items())
        found.insert(0, f"what the model knows is not known before the split: {shares}")
    return found


def _width(configs: Configs, shape: Shape) -> tuple[int, str | None]:
    """The latents of the SAE, and a sentence where they are guessed."""
    if configs.sae is not None:
        return configs.sae.d_sae or 8 * shape.d_model, None
    find: FindConfig = configs.find
    found = _WIDTH.search(find.sae)
    if found is None:
        return 8 * shape.d_model, f"{find.sae} is taken to have {8 * shape.d_model:,} latents, 8 x d_model"
    n = int(found[1]) * (1024 if found[2] == "k" else shape.d_model)
    return n, f"{find.sae} is taken to have {n:,} latents, by its name"
