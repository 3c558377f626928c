"""The work of every stage of an experiment, counted from its settings and its questions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from morfi.engine.operations import ADD, OPERATIONS, PROJECT
from morfi.evaluation.how import wording_of
from morfi.evaluation.split import SplitConfig, chosen_questions, shots_of, together
from morfi.evaluation.sweep_plan import SweepConfig
from morfi.interventions.config import SteerConfig
from morfi.interventions.plan import combined_amounts, combined_sizes
from morfi.interventions.rivals import RIVALS
from morfi.interventions.verdicts import n_surviving, rung_sizes
from morfi.latents.capture import CaptureConfig
from morfi.latents.find import FindConfig
from morfi.latents.sae_training import SaeTraining, read_texts
from morfi.planning.asked import Encoder, TokenIds, mean, n_cached
from morfi.planning.rates import CPU_AT_ONCE
from morfi.planning.shape import Shape
from morfi.planning.work import Answering, Sae, Training, Work
from morfi.questions import QuestionSet, select
from morfi.questions.prompts import worded
from morfi.questions.question import Question
from morfi.terminal import Progress
from morfi.training.config import TrainConfig
from morfi.training.examples import epoch_order
from morfi.training.generation import DEV_BATCH
from morfi.training.mixtures import MixConfig

# Of the questions of a relation, where no split run says it: as SmolLM2 knows countries of places.
CATEGORIES = {"HighlyKnown": 0.24, "MaybeKnown": 0.16, "WeaklyKnown": 0.14, "Unknown": 0.46}
LOOSE = 3  # tokens more than the right answer, of a model that was not taught its form
# As smollm2's full run counts them, in 231,000 steered answers, at most 256 of them at once.
LOOSE_STEERED = 1.6  # tokens more than the right answer
COINCIDING = 0.34  # of the tokens after the first: in its step another of the same question is like it
SHARED = (
    f"of a question's steered answers {100 * COINCIDING:.0f} % of the tokens after the first are another's "
    "as well, and go through the layers up to the steered one together"
)
ROW_BYTES = 4  # of a captured number
ANSWER_BYTES = 400  # of the database, an answer
_PLACE_BYTES = 32  # of a captured row beside its values
_LATENT_BYTES = 150  # of the database, a latent of a find run


@dataclass(frozen=True, slots=True)
class Configs:
    """The configuration of each stage that the experiment has, as its command takes it."""

    split: SplitConfig | None
    mix: MixConfig | None
    train: TrainConfig | None
    sweep: SweepConfig
    capture: CaptureConfig
    sae: SaeTraining | None
    find: FindConfig
    steer: SteerConfig


@dataclass(frozen=True, slots=True)
class Facts:
    """What the stages are asked: questions by split; `category` by question id, where a split run says it."""

    questions: Mapping[str, tuple[Question, ...]]
    category: Mapping[str, str] | None
    n_conditions: int  # checkpoints, with the base model
    n_captured: int  # the same, an early stop counted beside the epoch that it is
    n_compared: int  # conditions of a find run

    def n_in(self, split: str, categories: Sequence[str]) -> int:
        """How many questions of a split are of these categories."""
        asked = self.questions[split]
        if self.category is None:
            return round(len(asked) * sum(CATEGORIES[one] for one in categories))
        return sum(self.category[one.id] in categories for one in asked)


class Counter:
    """Counts the work of one experiment on one kind of machine."""

    def __init__(
        self, configs: Configs, shape: Shape, encoder: Encoder, *, block: int, shares_layers: bool
    ) -> None:
        self._configs, self._shape, self._encoder = configs, shape, encoder
        self._block, self._shares_layers = block, shares_layers

    def split(self, data: QuestionSet, progress: Progress) -> Work:
        """Every question under its prompts, each answered once greedily and several times by sampling."""
        config = _given(self._configs.split)
        questions = chosen_questions(data, config)
        split_of = {one.id: split for split, chosen in questions.items() for one in chosen}
        wording = wording_of(chat=config.chat, system=config.system, prompt_template=config.prompt_template)
        asked = together(worded(shots_of(data, questions, config, progress), wording), split_of)
        ids = self._encoder.encode([prompt.text for prompt in asked.prompts])
        n_answers = 1 + config.samples
        every = [one for chosen in questions.values() for one in chosen]
        answer = min(mean(self._encoder.answers(every)), config.max_tokens)
        n = len(ids) * n_answers
        done = Answering(
            answers=n,
            prompt_tokens=n_answers * sum(map(len, ids)),
            cached=n_cached(ids, config.batch, n_answers, self._block),
            answer_tokens=round(n * answer),
            longest=max(map(len, ids), default=0) + config.max_tokens,
        )
        words = f"{len(every):,} questions x {config.n_ex} prompts x {n_answers} answers"
        return Work("split", words, starts=1, answering=done, disk={"database": n * ANSWER_BYTES})

    def mix(self) -> Work:
        """The drawing of the mixtures."""
        config = _given(self._configs.mix)
        words = f"{len(config.levels)} mixtures of {config.size:,} questions"
        return Work("mix", words, disk={"database": len(config.levels) * config.size * ANSWER_BYTES // 4})

    def train(self, facts: Facts) -> Work:
        """One training for each level and seed, through all epochs, with dev answers after each."""
        config, mix = _given(self._configs.train), _given(self._configs.mix)
        pool = facts.questions["train"]
        drawn = select(pool, limit=min(mix.size, len(pool)), seed=mix.seed)
        known = [name for name in CATEGORIES if name != "Unknown"]
        n_dev = min(config.dev_limit, facts.n_in("dev", known))
        dev = select(facts.questions["dev"], limit=n_dev) if n_dev else ()
        n, kept = len(mix.levels) * config.seeds, n_kept(config)
        training = training_of(config, self._encoder, drawn, dev, size=mix.size, n=n)
        adapter = ROW_BYTES * self._shape.lora_parameters(config.rank, config.targets)
        seeds = f" x {config.seeds} seeds" if config.seeds > 1 else ""
        return Work(
            "train",
            f"{len(mix.levels)} levels{seeds}: {mix.size * config.last_epoch:,} examples each",
            training=training,
            disk={"adapters": n * kept * adapter},
            passing=(3 + config.early_stop) * adapter,
        )

    def sweep(self, facts: Facts) -> Work:
        """The questions of a split, and Unknown ones of each mixture, to every checkpoint and the base."""
        config, mix = self._configs.sweep, self._configs.mix
        tested = self._chosen(facts, config.split or "test", config.limit, config.seed)
        unknown = [0] * facts.n_conditions
        if mix is not None:
            by_level = [round(mix.size * level / 100) for level in sorted(mix.levels)]
            most = max(by_level) if mix.nested else min(sum(by_level), facts.n_in("train", ["Unknown"]))
            each = (facts.n_conditions - 1) // len(by_level)
            unknown = [most, *(n for n in by_level for _ in range(each))]
        if config.limit is not None:
            unknown = [min(n, config.limit) for n in unknown]
        n = facts.n_conditions * len(tested) + sum(unknown)
        base = len(tested) + unknown[0]
        prompt, answer = self._means(tested, config.max_tokens)
        loose = min(config.max_tokens, answer + LOOSE)
        done = Answering(
            answers=n,
            prompt_tokens=round(n * prompt),
            answer_tokens=round(base * loose + (n - base) * answer),
            longest=math.ceil(prompt) + config.max_tokens,
        )
        words = f"{facts.n_conditions} checkpoints: {n:,} answers"
        return Work(
            "sweep",
            words,
            starts=1,
            swaps=facts.n_conditions - 1,
            answering=done,
            disk={"database": n * ANSWER_BYTES},
        )

    def capture(self, facts: Facts) -> Work:
        """The residual stream of every checkpoint at the last token of the same prompts."""
        config = self._configs.capture
        asked = self._chosen(facts, config.split or "dev", config.limit, config.seed)
        n, n_layers = facts.n_captured * len(asked), len(config.layers)
        prompt, _ = self._means(asked, 1)
        row = self._shape.d_model * ROW_BYTES + _PLACE_BYTES
        words = f"{facts.n_captured} checkpoints x {len(asked):,} prompts x {_layers(n_layers)}"
        return Work(
            "capture",
            words,
            starts=1,
            swaps=facts.n_captured - 1,
            answering=_reading(n, round(n * prompt), math.ceil(prompt) + 1),
            rows=n * n_layers,
            disk={"captures": n * n_layers * row},
        )

    def sae_train(self, data: QuestionSet) -> Work:
        """The residual streams of texts under the base and both ends, and an SAE's training on them."""
        config = _given(self._configs.sae)
        n_sources = 3 if config.ckpts is not None else 1
        texts = read_texts(config, data, self._encoder.encode, n_sources=n_sources)
        n_texts, n_tokens = sum(map(len, texts.values())), sum(map(len, _all(texts.values())))
        d_sae = config.d_sae or 8 * self._shape.d_model
        steps = config.n_steps
        longest = max(map(len, _all(texts.values())), default=0)
        row = self._shape.d_model * ROW_BYTES + _PLACE_BYTES
        return Work(
            "sae train",
            f"{n_sources * n_texts:,} texts read; {steps * config.batch:,} tokens x {d_sae:,} latents",
            starts=1,
            swaps=n_sources - 1,
            answering=_reading(n_sources * n_texts, n_sources * n_tokens, longest + 1),
            sae=Sae(tokens=steps * config.batch, steps=steps, d_sae=d_sae),
            rows=n_sources * n_tokens,
            disk={"SAE": ROW_BYTES * (2 * self._shape.d_model * d_sae + d_sae + self._shape.d_model)},
            passing=n_sources * n_tokens * row,
        )

    def find(self, facts: Facts, d_sae: int) -> Work:
        """The residual streams of the compared checkpoints, encoded and resampled."""
        asked = facts.questions[self._configs.capture.split or "dev"]
        n = facts.n_compared
        return Work(
            "find",
            f"{n} checkpoints x {len(asked):,} questions x {d_sae:,} latents",
            sae=Sae(encoded=2 * n * len(asked), d_sae=d_sae),  # measured, then searched
            disk={"database": d_sae * _LATENT_BYTES},
        )

    def steer(self, facts: Facts) -> Work:
        """Directions at their strengths on the questions for choosing, the best of each on the others."""
        config = self._configs.steer
        n_choosing, n_reporting = (
            min(facts.n_in(split, config.categories), config.limit or 10**9)
            for split in (config.choose_on, config.report_on)
        )
        tried = steered(config, len(self._configs.capture.layers), n_choosing, n_reporting)
        train = self._configs.train
        n_runs = 1 if train is None or config.train_seed else train.seeds  # one for each seed
        n_steered = n_runs * tried.answers
        n = n_steered + n_runs * 3 * (n_choosing + n_reporting)
        both = (*facts.questions[config.choose_on], *facts.questions[config.report_on])
        prompt, answer = self._means(both, config.max_tokens)
        loose = min(config.max_tokens, answer + LOOSE_STEERED)
        below = self._below()
        parts = ((n_choosing, tried.chosen), (n_reporting, tried.answers - tried.chosen))
        done = Answering(
            answers=n,
            prompt_tokens=round(n * prompt),
            answer_tokens=round(n_steered * loose + (n - n_steered) * answer),
            steered=n_steered,
            longest=math.ceil(prompt) + config.max_tokens,
            skipped=n_runs * below * prompt * sum(n_repeated(*part, loose) for part in parts),
            skipped_answers=below * COINCIDING * n_steered * max(0.0, loose - 1),
        )
        words = (
            f"{tried.directions} directions, {tried.arms} with strengths, on {n_choosing:,} questions; "
            f"the best on {n_reporting:,}"
        )
        words += f"; {n_runs} seeds" if n_runs > 1 else ""
        return Work(
            "steer",
            words,
            starts=n_runs,
            swaps=2 * n_runs,
            answering=done,
            disk={"database": n * ANSWER_BYTES},
        )

    def _below(self) -> float:
        """The share of the layers that equal requests pass as one, up to the steered one; 0 for none."""
        if not self._shares_layers:
            return 0.0
        layer = self._configs.find.layer or max(self._configs.capture.layers)
        return min(1.0, (layer + 1) / self._shape.n_layers)

    def _chosen(self, facts: Facts, split: str, limit: int | None, seed: int) -> tuple[Question, ...]:
        return select(facts.questions[split], limit=limit, seed=seed)

    def _means(self, questions: Sequence[Question], max_tokens: int) -> tuple[float, float]:
        """The mean tokens of a prompt without exemplars and of its right answer."""
        prompts, answers = self._encoder.zero_shot(questions), self._encoder.answers(questions)
        return mean(prompts), min(mean(answers), max_tokens)


def training_of(
    config: TrainConfig,
    encoder: Encoder,
    drawn: Sequence[Question],
    dev: Sequence[Question],
    *,
    size: int,
    n: int,
) -> Training:
    """What `n` trainings compute on `size` examples like those `drawn`, each asked the `dev` questions."""
    prompts, answers = encoder.zero_shot(drawn), encoder.answers(drawn)
    lengths = [prompts[one.id] + answers[one.id] for one in drawn] or [1]
    lengths = (lengths * math.ceil(size / len(lengths)))[:size]
    per_epoch, largest = padded_tokens(lengths, config)
    epochs, answer = n * config.last_epoch, mean(answers)
    loose = min(config.max_tokens, mean(encoder.answers(dev)) + LOOSE)
    return Training(
        trainings=n,
        examples=size * epochs,
        tokens=per_epoch * epochs,
        target_tokens=round(size * epochs * answer),
        steps=math.ceil(size / config.batch) * epochs,
        parts=n_parts(size, config) * epochs,
        epochs=epochs,
        dev_answers=len(dev) * epochs,
        dev_tokens=round((sum(encoder.zero_shot(dev).values()) + len(dev) * loose) * epochs),
        dev_passes=math.ceil(len(dev) / DEV_BATCH) * config.max_tokens * epochs,
        checkpoints=n * n_kept(config),
        largest_part=largest,
        largest_targets=math.ceil(config.micro_batch * answer),
    )


def n_kept(config: TrainConfig) -> int:
    """The checkpoints of a training at most: early stopping adds one where it falls between those kept."""
    return len(config.epochs) + (config.early_stop and config.last_epoch > len(config.epochs))


def padded_tokens(lengths: Sequence[int], config: TrainConfig) -> tuple[int, int]:
    """The tokens of an epoch of examples of these lengths with their padding, and of its largest part."""
    total, largest = 0, 0
    for batch in epoch_order(lengths, config.batch, 0, 0):
        for start in range(0, len(batch), config.micro_batch):
            part = batch[start : start + config.micro_batch]
            n = len(part) * (max(lengths[index] for index in part) - 1)
            total, largest = total + n, max(largest, n)
    return total, largest


def n_parts(size: int, config: TrainConfig) -> int:
    """The micro-batches of an epoch of `size` examples."""
    whole, rest = divmod(size, config.batch)
    return whole * (config.batch // config.micro_batch) + math.ceil(rest / config.micro_batch)


@dataclass(frozen=True, slots=True)
class Steered:
    """What a steer run tries: `chosen` answers choose strengths, `answers` are all that are steered."""

    directions: int
    arms: int  # directions with a strength
    chosen: int
    answers: int


def steered(config: SteerConfig, n_layers: int, n_choosing: int, n_reporting: int) -> Steered:
    """What a steer run tries where every latent that `config` asks for is found."""
    n_latents = len(config.ids) if config.ids is not None else config.top
    n_controls = config.n_controls(n_latents) if n_latents else 0
    of_latents = n_latents * (1 + len(RIVALS) * config.rivals) + n_controls
    n_bare = 1 + config.n_random(n_latents)  # delta_u among them
    directions = of_latents + n_bare
    bare = PROJECT.name if OPERATIONS[config.op].needs_latent else config.op
    arms = of_latents * len(config.amounts)
    arms += n_bare * len(config.amounts_of(bare))
    chosen = arms * n_choosing
    if config.halving:
        left, chosen = arms, 0
        for before, size in pairwise([0, *rung_sizes(n_choosing)]):
            chosen += left * (size - before)
            left = n_surviving(left, directions)
    scanned = (n_layers - (config.op == ADD.name)) * len(config.amounts_of(ADD.name))
    chosen += scanned * n_choosing if config.layer_scan else 0
    n_combined = len(combined_sizes(config, n_latents))
    chosen += n_combined * len(combined_amounts(config)) * n_choosing
    return Steered(directions, arms, chosen, chosen + (directions + n_combined) * n_reporting)


def n_repeated(n_questions: int, n_answers: int, tokens: float) -> float:
    """How many of `n_answers` to `n_questions`, of so many tokens each, find their prompt in a step already.

    A question's requests follow each other, and in each step begin as many as come to their end.
    """
    n_begun = max(1.0, CPU_AT_ONCE / tokens)
    return max(0.0, n_answers - max(n_questions, n_answers / n_begun))


def _reading(n: int, tokens: int, longest: int) -> Answering:
    """Prompts that are read, each for one token."""
    return Answering(answers=n, prompt_tokens=tokens, answer_tokens=n, longest=longest)


def _layers(n: int) -> str:
    return "1 layer" if n == 1 else f"{n} layers"


def _all(groups: Any) -> list[TokenIds]:
    return [one for group in groups for one in group]


def _given(config: Any) -> Any:
    assert config is not None
    return config
