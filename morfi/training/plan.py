"""A training run made ready: base resolved, examples encoded, settings checked; nothing is trained yet."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morfi.checkpoints import Checkpoint, resolve
from morfi.checkpoints.model_files import context_limit, open_model
from morfi.checkpoints.presets import PRESETS
from morfi.checkpoints.tokenizer import open_tokenizer
from morfi.errors import InputError, nearest
from morfi.files import canonical_sha256
from morfi.questions import select
from morfi.questions.prompts import Prompt, check_lengths, starts_with_bos, zero_shot
from morfi.questions.question import Question
from morfi.terminal import Progress
from morfi.training.config import ALL_LINEAR, TrainConfig
from morfi.training.examples import Example, encode_examples

_FORMAT = 1  # of a training's folder
_CONTEXT = 4096  # tokens, of an architecture that names no limit


@dataclass(frozen=True, slots=True)
class Mixture:
    """The training questions of D_level, in order; `level` is the percentage of Unknown ones."""

    level: int
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The data of a training: mixtures and dev questions of the data set `name`."""

    name: str
    sha256: str
    mixtures: tuple[Mixture, ...]
    dev: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """One training: a mixture and a seed; `settings` is all that decides its checkpoints, as JSON."""

    level: int
    seed: int
    examples: tuple[Example, ...]
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"level-{self.level:03d}-seed-{self.seed}"


@dataclass(frozen=True, slots=True)
class TrainingTask:
    """All trainings of a run, in order; `dtype` is that of the frozen base."""

    config: TrainConfig
    base: Checkpoint
    dtype: str
    tokenizer: Any
    data: TrainingData
    jobs: tuple[TrainingJob, ...]
    dev: tuple[Prompt, ...]
    bos: bool

    @property
    def base_name(self) -> str:
        """The base that a checkpoint names: a preset or hub id as it was given, else the whole path."""
        path = Path(self.config.model).expanduser()
        is_path = self.config.model not in PRESETS and path.is_dir()
        return str(path.absolute()) if is_path else self.config.model

    @property
    def fingerprint(self) -> str:
        """sha256 over all that decides the checkpoints of the run."""
        return canonical_sha256([job.settings for job in self.jobs])

    @property
    def n_planned(self) -> int:
        """Examples that the run goes through: those of every training times its epochs."""
        return sum(len(job.examples) for job in self.jobs) * self.config.last_epoch


def prepare_training(config: TrainConfig, data: TrainingData, progress: Progress) -> TrainingTask:
    """The trainings of every mixture of `data` with every seed; raises InputError for what cannot be trained.

    `config.dev_limit` of the dev questions are used, spread over their relations.
    """
    _check_mixtures(config, data)
    base = resolve(config.model, dtype=config.dtype, say=progress.phase)
    if base.adapter_sha256 is not None:
        raise InputError(f"{config.model} is a LoRA adapter; give a full model to train on")
    context = context_limit(base.model_dir) or _CONTEXT
    _check_lora(config, base)
    if config.model not in PRESETS:
        progress.phase(
            f"{config.model} has no preset: what was not given is as for models of 8 billion parameters"
        )
    found = open_tokenizer(base.model_dir, config.bos)
    for line in found.changes.values():
        progress.phase(line)
    tokenizer = found.tokenizer
    asked = select(data.dev, limit=config.dev_limit) if data.dev else ()
    dev = tuple(zero_shot(asked, tokenizer))
    check_lengths(dev, config.max_tokens, context)
    # float16 has too small a range to train in.
    dtype = "bfloat16" if base.dtype == "float16" else base.dtype
    common = {
        "format": _FORMAT,
        **config.decisive,
        "base_sha256": base.base_sha256,
        "dtype": dtype,
        "data_sha256": data.sha256,
        "dev_sha256": ids_sha256([prompt.question.id for prompt in dev]),
    }
    if found.changes:
        # Other tokens than those that a folder of this sha256 was trained on before.
        common["tokens"] = [*found.changes, starts_with_bos(dev, tokenizer)]
    jobs = []
    for mixture in data.mixtures:
        check_warmup(config, mixture.level, len(mixture.questions))
        examples = encode_examples(mixture.questions, tokenizer, context)
        mixed = {"level": mixture.level, "mixture_sha256": ids_sha256([e.question_id for e in examples])}
        jobs += [
            TrainingJob(mixture.level, seed, examples, {**common, **mixed, "seed": seed})
            for seed in range(config.seeds)
        ]
    return TrainingTask(
        config, base, dtype, tokenizer, data, tuple(jobs), dev, starts_with_bos(dev, tokenizer)
    )


def ids_sha256(question_ids: Sequence[str]) -> str:
    """The sha256 of the ids, in order, a line each."""
    return hashlib.sha256("".join(f"{each}\n" for each in question_ids).encode()).hexdigest()


def _check_mixtures(config: TrainConfig, data: TrainingData) -> None:
    if not data.mixtures:
        raise InputError(f"{data.name} has no mixtures to train on; make them with `morfi mix`")
    levels = [mixture.level for mixture in data.mixtures]
    for mixture in data.mixtures:
        if not mixture.questions:
            raise InputError(f"the mixture of level {mixture.level} is empty; make it with `morfi mix`")
        if not 0 <= mixture.level <= 100 or levels.count(mixture.level) > 1:
            raise InputError(f"level {mixture.level} is repeated or outside 0 to 100; give each level once")
    if config.early_stop and not data.dev:
        raise InputError(
            f"early stopping needs dev questions, and {data.name} has none; give data with a dev split, or "
            "leave --early-stop out"
        )


def check_warmup(config: TrainConfig, level: int, n: int) -> None:
    """Raises InputError where the first checkpoint of `n` questions comes after one step of warm-up.

    Such a step changes nothing.
    """
    if not config.warmup or n > config.batch or (min(config.epochs) > 1 and not config.early_stop):
        return
    later = "--no-early-stop with --epochs from 2 on" if config.early_stop else "--epochs from 2 on"
    raise InputError(
        f"level {level} has {n} questions, so epoch 1 is one step of --batch {config.batch}, and the "
        f"first of --warmup {config.warmup} steps has a learning rate of 0: the checkpoint of epoch 1 would "
        f"be the base model; give --warmup 0, a smaller --batch or {later}"
    )


def _check_lora(config: TrainConfig, base: Checkpoint) -> None:
    """Raises InputError for a target that names no module, and for a rank above every target's.

    PEFT passes over such a target beside others, and allocates whatever it is asked for.
    """
    layout = open_model(base.model_dir).layout
    chosen = set(layout.modules)
    if config.targets != (ALL_LINEAR,):
        chosen = {each for name in config.targets for each in _modules(name, layout.modules, config, base)}
    shapes = [layout.shapes.get(f"{module}.weight", ()) for module in chosen]
    if (highest := max((min(shape) for shape in shapes if shape), default=config.rank)) < config.rank:
        raise InputError(
            f"--rank {config.rank}: no weight that LoRA is put on has a rank above {highest}; give less"
        )


def _modules(name: str, modules: Collection[str], config: TrainConfig, base: Checkpoint) -> list[str]:
    found = [module for module in modules if f".{module}".endswith(f".{name}")]
    if not found:
        leaves = sorted({module.rpartition(".")[2] for module in modules})
        raise InputError(
            f"--targets {','.join(config.targets)}: {base.name} has no module {name} to put LoRA on; "
            f'give "{ALL_LINEAR}" alone, or some of {", ".join(leaves)}.{nearest(name, leaves)}'
        )
    return found
