"""The settings of a training: from the command line, and from the model's preset where nothing is given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from morfi.checkpoints.presets import LARGE, PRESETS, training_preset
from morfi.errors import InputError, nearest
from morfi.runs.options import OWN_DTYPE, check_amount, check_match, check_numbers, option
from morfi.words import together

ALL_LINEAR = "all-linear"
MAX_RANK = 65_536  # wider than any layer
MAX_SEEDS = 1000
SCHEDULES = ("constant", "linear", "cosine")
DTYPES = ("bfloat16", "float32")
# They name the trainings of a run and say nothing about one of them, or (bos) stand there as what they do.
_ELSEWHERE = ("model", "seeds", "bos")


def _of_preset(name: str) -> str:
    """The value of a setting by preset, as --help shows it."""
    by_value: dict[str, list[str]] = {}
    for model, one in PRESETS.items():
        by_value.setdefault(_typed(getattr(one.training, name)), []).append(model)
    else_ = _typed(getattr(LARGE, name))
    own = [f"{value} for {together(models)}" for value, models in by_value.items() if value != else_]
    return ", ".join([*own, f"else {else_}" if own else else_])


def _typed(value: float | bool) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else f"{value:g}"


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything that decides the checkpoints of a run beside its questions; stored with the run.

    `epochs` are the checkpoints to keep; each training goes on to the last of them. With `early_stop` the
    epoch with the best dev accuracy (the earliest of equals) is kept too. `seeds` counts replicate trainings,
    numbered from 0: the seed decides the initial LoRA matrices and the order of the examples, both the same
    for every mixture. `targets` are module names, or "all-linear". After `warmup` steps of linear rise,
    "constant" keeps the learning rate; "linear" and "cosine" let it fall to 0 over max(epochs), so only with
    "constant" is a checkpoint the same whichever later epochs are asked for. `dtype` is that of the frozen
    base, None for what the machine computes fastest; LoRA's own weights are float32.
    """

    model: str
    rank: int = option("LoRA's rank.", unset=_of_preset("rank"))
    alpha: float = option("LoRA's alpha; B A is scaled by alpha / rank.", unset=_of_preset("alpha"))
    lr: float = option("Learning rate.", unset=_of_preset("lr"))
    batch: int = option("Examples per step.", unset=_of_preset("batch"))
    micro_batch: int = option("Examples in memory at once.", unset=_of_preset("micro_batch"))
    warmup: int = option("Steps over which the learning rate rises from 0.", unset=_of_preset("warmup"))
    gradient_checkpointing: bool = option(
        "Compute activations twice.",
        unset=_of_preset("gradient_checkpointing"),
        off="no-gradient-checkpointing",
    )
    epochs: tuple[int, ...] = option("Epochs whose checkpoints are kept.", (1, 2, 5, 10))
    early_stop: bool = option("Keep the epoch with the best dev accuracy.", True, off="no-early-stop")
    seeds: int = option("Replicate trainings of each mixture.", 1)
    targets: tuple[str, ...] = option("Modules that get LoRA, such as q_proj,v_proj.", (ALL_LINEAR,))
    schedule: str = option("constant, linear or cosine.", "constant")
    weight_decay: float = option("AdamW's.", 0.0)
    dtype: str | None = option("bfloat16 or float32, of the base.", None, unset=OWN_DTYPE)
    dev_limit: int = option("Known dev questions asked after every epoch.", 200)
    max_tokens: int = 16  # of an answer to a dev question
    match: str = "squad"
    bos: str = "auto"  # as `morfi split` asked the model: examples and prompts agree

    def __post_init__(self) -> None:
        check_match(self.match)
        least = {"batch": 1, "micro_batch": 1, "warmup": 0, "dev_limit": 1, "max_tokens": 1, "epochs": 1}
        check_numbers({_option(name): (getattr(self, name), value) for name, value in least.items()})
        check_numbers({"rank": (self.rank, 1, MAX_RANK), "seeds": (self.seeds, 1, MAX_SEEDS)})
        for name in ("alpha", "lr"):
            check_amount(name, getattr(self, name), above_zero=True)
        check_amount("weight-decay", self.weight_decay, above_zero=False)
        _check_choice("schedule", self.schedule, SCHEDULES)
        if self.dtype is not None:
            _check_choice("dtype", self.dtype, DTYPES)
        _check_epochs(self.epochs)
        if not self.targets or not all(name.strip() for name in self.targets):
            raise InputError(
                f'--targets is {",".join(self.targets)!r}; expected "{ALL_LINEAR}" or module names'
            )
        if self.batch % self.micro_batch:
            raise InputError(
                f"--batch is {self.batch}, which {self.micro_batch} does not divide; "
                "give a --micro-batch that does"
            )

    @property
    def last_epoch(self) -> int:
        """The number of epochs that are trained."""
        return max(self.epochs)

    @property
    def decisive(self) -> dict[str, Any]:
        """The settings that decide what a training of one mixture and seed computes and keeps, as JSON."""
        settings = {key: value for key, value in asdict(self).items() if key not in _ELSEWHERE}
        return settings | {"epochs": sorted(self.epochs), "targets": list(self.targets)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRun(TrainConfig):
    """The settings that a train run is stored with."""

    mix_run: str
    folder: str  # of its checkpoints


def train_config(given: Mapping[str, Any]) -> TrainConfig:
    """The configuration of the options that were `given` (those not None), the rest from the model's preset.

    Raises InputError where no model is named, and for settings that cannot be.
    """
    options = {key: value for key, value in given.items() if value is not None}
    if "model" not in options:
        raise InputError("no model is named: give a preset (smollm2), a model folder, or a hub id")
    preset = asdict(training_preset(options["model"]))
    smaller = options.get("batch", preset["batch"])
    if "micro_batch" not in options and smaller % preset["micro_batch"]:
        # The batch was chosen, not how it is computed: the largest part that divides it.
        preset["micro_batch"] = math.gcd(smaller, preset["micro_batch"]) or 1
    return TrainConfig(**(preset | options))


def _option(name: str) -> str:
    return name.replace("_", "-")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(
            f'--{name} is "{value}"; expected one of {", ".join(choices)}.{nearest(value, choices)}'
        )


def _check_epochs(epochs: tuple[int, ...]) -> None:
    given = ",".join(map(str, epochs))
    if not epochs:
        raise InputError(f"--epochs is {given!r}; expected numbers of at least 1, such as 1,2,5,10")
    if len(set(epochs)) != len(epochs):
        twice = next(epoch for epoch in epochs if epochs.count(epoch) > 1)
        raise InputError(f"--epochs {given} names {twice} twice; give each epoch once")
