"""The settings of `morfi steer`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from morfi.endpoint.address import check_url
from morfi.engine.operations import ADD, ALPHA, AMOUNTS, OPERATIONS, Amount
from morfi.engine.steering import NAMED_POSITIONS
from morfi.errors import InputError, nearest
from morfi.evaluation.how import HOW, check_limits
from morfi.interventions.verdicts import Answerer
from morfi.runs.options import check_match, check_numbers, option, run_of, sized_here
from morfi.training.mixtures import KNOWN_CATEGORIES, UNKNOWN

ALPHAS = (-0.8, -0.4, -0.2, -0.1, -0.05, 0.05, 0.1, 0.2, 0.4, 0.8)
LEAST_COMPARED = 5  # controls and random directions that are enough for few latents
_NAMES = tuple(OPERATIONS)
MAX_DIRECTIONS = 10_000  # of one kind; all of a run are held at once
_COMPARED = f"as many as latents, {LEAST_COMPARED} or more"
_DEFAULTS: Mapping[Amount, tuple[float, ...]] = {ALPHA: ALPHAS}  # of other amounts there are none
TRENDS = {"any": (1, -1), "rising": (1,), "falling": (-1,)}
QUESTIONS = {"known": KNOWN_CATEGORIES, "all": (*KNOWN_CATEGORIES, UNKNOWN)}


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers) or "empty"


@dataclass(frozen=True, slots=True)
class SteerConfig:
    """Everything that decides what a steer run asks; stored with it."""

    latents: str = run_of("find")
    # See `Series.open_named`.
    ckpt: str = option('What is steered: M_100, "base", or a LoRA adapter\'s folder.')
    reference: str | None = option("Whose answers count as knowledge.", None, unset="the lowest level, M_0")
    epochs: str | None = option("Epoch setting of M_ names.", None, unset="the find run's")
    train_seed: int = option("Replicate training of M_ names.", 0)
    top: int = option("Latents, the selected ones with the highest score.", 20)
    ids: tuple[int, ...] | None = option(
        "These latents instead, between commas.", None, unset="those of --top"
    )
    trend: str = option("any, rising or falling latents.", "any")
    op: str = option(f"{', '.join(_NAMES[:-1])} or {_NAMES[-1]}.", ADD.name)
    alphas: tuple[float, ...] | None = option(
        "Strengths to add, in median residual norms.", None, unset=_listed(ALPHAS)
    )
    values: tuple[float, ...] | None = option(
        "For --op clamp and clamp_firing: values that the latents are set to.", None, unset="none"
    )
    highs: tuple[float, ...] | None = option(
        "For --op clamp_interval: largest values that the latents keep.", None, unset="none"
    )
    low: float = option("For --op clamp_interval: the smallest value that they keep.", 0.0)
    positions: str = option("all, prompt, generated or last_prompt.", "all")
    choose_on: str = option("The split on which strengths are chosen.", "dev")
    report_on: str = option("The split that is reported.", "test")
    questions: str = option("known: to the base model; all; or such as HighlyKnown,MaybeKnown.", "known")
    limit: int | None = option("At most this many questions of each split.", None, unset="all")
    controls: int | None = option("Latents without a trend, for comparison.", None, unset=_COMPARED)
    random: int | None = option("Random directions, for comparison.", None, unset=_COMPARED)
    rivals: bool = option("As many latents by each of two rules without a trend, for comparison.", False)
    combine: bool = option("Also the best 2, 4, ... latents together.", False)
    halving: bool = option("Successive halving over latents and strengths.", False)
    layer_scan: bool = option("First delta_u after every captured layer.", False)
    match: str = "squad"
    max_tokens: int = 16
    seed: int = 0
    dtype: str | None = option("bfloat16, float16 or float32.", None, unset="the capture's")
    engine: Mapping[str, Any] = field(default_factory=dict)
    batch: int = option("Requests answered and stored together.", 2048, gpu=8192)
    server: str | None = option(
        "OpenAI-compatible server that gives unsteered answers.",
        None,
        unset="none",
        name="endpoint",
        metavar="URL",
    )
    models: tuple[str, ...] = option(
        "Whose: base, reference or checkpoint, by its name there.",
        (),
        unset="none",
        name="model",
        metavar="WHO=NAME,...",
    )
    concurrency: int | None = None
    timeout: float | None = None
    retries: int | None = None

    def __post_init__(self) -> None:
        check_match(self.match)
        least = {"limit": 1, "max_tokens": 1, "batch": 1, "seed": 0, "train_seed": 0, "ids": 0}
        few = {"top": self.top, "controls": self.controls, "random": self.random}
        check_numbers({name: (value, 0, MAX_DIRECTIONS) for name, value in few.items()})
        check_numbers({name.replace("_", "-"): (getattr(self, name), low) for name, low in least.items()})
        for name, known in (
            ("op", _NAMES),
            ("trend", tuple(TRENDS)),
            ("positions", NAMED_POSITIONS),
        ):
            _check_one_of(name, getattr(self, name), known)
        if self.questions not in QUESTIONS:
            for category in self.questions.split(","):
                _check_one_of("questions", category, (*QUESTIONS, *QUESTIONS["all"]))
        if self.choose_on == self.report_on:
            raise InputError(
                f'--choose-on and --report-on are both "{self.choose_on}"; strengths that are chosen on the '
                "questions that are reported look better than they are, so give two splits"
            )
        if self.positions == "generated" and self.max_tokens == 1:
            raise InputError(
                "--positions generated steers nothing with --max-tokens 1: the last token of an answer is "
                "never put into the model; give --max-tokens 2 or more"
            )
        _check_amounts(self)
        self._check_server()

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories of the split run whose questions are asked."""
        return QUESTIONS.get(self.questions) or tuple(self.questions.split(","))

    @property
    def names(self) -> Mapping[str, str]:
        """The server's names of those whose unsteered answers it gives, by who they are."""
        return dict(one.split("=", 1) for one in self.models)

    def _check_server(self) -> None:
        """Raises InputError for options of a server without one, or one that gives nobody's answers."""
        given = {"model": self.models or None, **{name: getattr(self, name) for name in HOW}}
        for option_name, value in given.items():
            if self.server is None and value is not None:
                raise InputError(f"--{option_name} without --endpoint; give the URL of a server as well")
        if self.server is not None:
            check_url(self.server)
        check_limits(self.concurrency, self.timeout, self.retries)
        if self.server is not None and not self.models:
            raise InputError(
                "--model is missing: say whose answers the server gives, by its names of them, such as "
                "--model base=NAME,reference=NAME"
            )
        for one in self.models:
            who, _, name = one.partition("=")
            if not name:
                raise InputError(f'--model "{one}" is no WHO=NAME; expected such as {Answerer.BASE}=NAME')
            _check_one_of("model", who, tuple(Answerer))
        if len(self.names) < len(self.models):
            raise InputError(f"--model {','.join(self.models)} names one of {', '.join(Answerer)} twice")

    def n_controls(self, n_latents: int) -> int:
        """How many control latents are wanted beside `n_latents`."""
        return max(n_latents, LEAST_COMPARED) if self.controls is None else self.controls

    def n_random(self, n_latents: int) -> int:
        """How many random directions are wanted beside `n_latents`."""
        return max(n_latents, LEAST_COMPARED) if self.random is None else self.random

    @property
    def amounts(self) -> tuple[float, ...]:
        """The strengths of each latent."""
        return self.amounts_of(self.op)

    def amounts_of(self, operation: str) -> tuple[float, ...]:
        """The strengths at which `operation` is tried: one 0 where it takes none."""
        amount = OPERATIONS[operation].amount
        if amount is None:
            return (0.0,)
        given: tuple[float, ...] | None = getattr(self, amount.option)
        return given or _DEFAULTS.get(amount, ())


@dataclass(frozen=True, slots=True, kw_only=True)
class SteerRun(SteerConfig):
    """The settings that a steer run is stored with: `reference` and `epochs` are those that were taken.

    `picks` are the latents that each rival rule selected.
    """

    reference: str
    epochs: str
    layer: int
    median_norm: float
    train_run: str
    split_run: str | None
    picks: Mapping[str, Sequence[int]] = field(default_factory=dict)


def configure_steer(given: Mapping[str, Any]) -> SteerConfig:
    """The configuration of the options that were given (those not None)."""
    options = {key: value for key, value in given.items() if value is not None}
    return SteerConfig(**{**sized_here(SteerConfig), **options})


def _check_one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f'--{name} "{value}" is none of {", ".join(known)}.{nearest(value, known)}')


def _check_amounts(config: SteerConfig) -> None:
    """Raises InputError for strengths that mean nothing, or that the operation does not take."""
    taken = OPERATIONS[config.op].amount
    for amount in AMOUNTS:
        name = amount.option
        given: tuple[float, ...] | None = getattr(config, name)
        if given is None:
            continue
        if amount != taken:
            owners = " or ".join(one.name for one in OPERATIONS.values() if one.amount == amount)
            raise InputError(f"--{name} belongs to --op {owners}, not to {config.op}; leave it out")
        if not given or not all(math.isfinite(value) for value in given):
            raise InputError(f"--{name} is {_listed(given)}; expected finite numbers")
        if len(set(given)) < len(given):
            raise InputError(f"--{name} is {_listed(given)}; expected each number once")
    if taken is not None and not config.amounts:
        raise InputError(f"--op {config.op} needs --{taken.option}, each a {taken.says}, such as 0,5,10")
    _check_low(config)
    if config.alphas is not None and 0 in config.alphas:
        raise InputError(
            f"--alphas is {_listed(config.alphas)}; 0 changes nothing, and unsteered answers are asked for "
            "anyway; leave it out"
        )


def _check_low(config: SteerConfig) -> None:
    """Raises InputError for a lower bound of what has none, or one above an upper bound."""
    if not math.isfinite(config.low):
        raise InputError(f"--low is {config.low:g}; expected a finite number")
    if config.low and not OPERATIONS[config.op].has_low:
        owners = " or ".join(one.name for one in OPERATIONS.values() if one.has_low)
        raise InputError(f"--low belongs to --op {owners}, not to {config.op}; leave it out")
    if OPERATIONS[config.op].has_low and config.low > min(config.amounts):
        raise InputError(
            f"--low is {config.low:g} and --highs is {_listed(config.amounts)}; expected no low above a high"
        )
