"""The plan of a steer run: checkpoints, directions, strengths and questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from morfi.checkpoints import Checkpoint
from morfi.conditions.asking import Source, source_of
from morfi.conditions.load import load_series
from morfi.conditions.series import Series
from morfi.engine.operations import ADD, OPERATIONS
from morfi.engine.steering import MAX_ENTRIES
from morfi.errors import InputError
from morfi.evaluation.how import HOW, limits_of
from morfi.interventions.config import SteerConfig, SteerRun
from morfi.interventions.directions import Target, find_targets, scan_target
from morfi.interventions.rivals import known_questions
from morfi.interventions.verdicts import Answerer, Arm, n_surviving, rung_sizes
from morfi.latents.activations import load_activations
from morfi.latents.capture import CaptureRun
from morfi.latents.find import Found, load_found
from morfi.questions import UNSPLIT, QuestionSet, select, with_splits
from morfi.questions.exemplars import no_shots
from morfi.questions.prompts import Prompt, Prompted, Wording, prompted, worded
from morfi.questions.question import Question
from morfi.runs.answering import fingerprint_of
from morfi.runs.settings import settings_of
from morfi.store.records import RunKind, RunRecord
from morfi.terminal import Progress

if TYPE_CHECKING:
    from morfi.endpoint.engine import Endpoint
    from morfi.store import Store

SHARES = (0.25, 0.5, 1.0)  # of their own best alphas, at which latents are added together


@dataclass(frozen=True, slots=True)
class Plan:
    """A steer run made ready; `rungs` are nested parts of the questions for choosing, by id."""

    config: SteerConfig
    stored: Mapping[str, Any]
    found: Found
    series: Series
    source: Source
    served: Mapping[str, Checkpoint]  # "checkpoint", "reference" and "base"
    targets: tuple[Target, ...]
    scan: tuple[Target, ...]  # delta_u at the other layers
    questions: Mapping[str, tuple[Question, ...]]  # by split
    rungs: tuple[tuple[str, ...], ...]
    asked: Prompted
    prompts: Mapping[str, Prompt]  # by question id
    servers: Mapping[str, Endpoint]  # that give unsteered answers of the base model, the reference, ...
    texts: Mapping[str, Prompt]  # as servers take them, by question id
    fingerprint: str

    @property
    def data(self) -> QuestionSet:
        """Name and sha256 of the questions."""
        return self.source.data

    @property
    def choosing(self) -> tuple[str, ...]:
        """The ids of the questions on which strengths are chosen."""
        return tuple(question.id for question in self.questions[self.config.choose_on])

    @property
    def reporting(self) -> tuple[str, ...]:
        """The ids of the questions that are reported."""
        return tuple(question.id for question in self.questions[self.config.report_on])

    def arms(self, targets: Sequence[Target]) -> list[Arm]:
        """Every strength of every one of `targets`."""
        return [
            Arm(one.row.direction, alpha)
            for one in targets
            for alpha in self.config.amounts_of(one.row.operation)
        ]

    @property
    def combined_sizes(self) -> list[int]:
        """How many of the latents are steered along together."""
        return combined_sizes(self.config, sum(one.row.kind == "latent" for one in self.targets))

    @property
    def n_answers(self) -> int:
        """The answers that the whole run has."""
        n_choosing, n_reporting = len(self.choosing), len(self.reporting)
        combined = self.combined_sizes
        n_combined = len(combined) * len(combined_amounts(self.config))
        return (
            len(self.served) * (n_choosing + n_reporting)
            + (len(self.arms(self.scan)) + n_combined) * n_choosing
            + n_chosen_answers(self)
            + (len(self.targets) + len(combined)) * n_reporting
        )


def combined_sizes(config: SteerConfig, n_latents: int) -> list[int]:
    """How many latents are steered along together: the best 2, 4, ..., and all; a request takes only so many.

    Directions that are added need no such limit: their sum is one direction.
    """
    n = n_latents if config.combine else 0
    if not OPERATIONS[config.op].is_sum:
        n = min(n, MAX_ENTRIES)
    return sorted({*(2**power for power in range(1, n.bit_length()) if 2**power < n), n} if n > 1 else ())


def combined_amounts(config: SteerConfig) -> tuple[float, ...]:
    """The shares of their own best alphas at which latents are added together; 0 for other operations."""
    return SHARES if OPERATIONS[config.op].is_sum else (0.0,)


def n_chosen_answers(plan: Plan) -> int:
    """The answers from which the strengths of the targets are chosen."""
    n_arms = len(plan.arms(plan.targets))
    if not plan.config.halving:
        return n_arms * len(plan.choosing)
    n, sizes = 0, [0, *map(len, plan.rungs)]
    for before, size in pairwise(sizes):
        n += n_arms * (size - before)
        n_arms = n_surviving(n_arms, len(plan.targets))
    return n


def prepare_steer(config: SteerConfig, store: Store, progress: Progress) -> Plan:
    """The plan of `config`; raises InputError where what it builds on is missing or not as it was."""
    progress.phase("reading the find run")
    found = load_found(store, config.latents)
    capture = found.activations.run
    captured = settings_of(capture, CaptureRun)
    dtype = config.dtype or captured.dtype
    series = load_series(captured.ckpts, store, dtype, progress, sha256=captured.series_sha256)
    source = source_of(series, store, captured.data, captured.relations, progress)
    if captured.prompts is None:
        _check_same_questions(source, capture)
    epochs = config.epochs or found.activations.epochs
    served, names = _served(config, series, epochs)
    median_norm = found.median_norm(served[Answerer.CHECKPOINT].sha256)
    targets, picks = find_targets(found, config, median_norm, known_questions(store, captured.split_run))
    if OPERATIONS[config.op].needs_latent:
        found.sae.directions()  # refused now, not after vLLM has started
    scan = _scan(config, store, found, served[Answerer.CHECKPOINT], len(targets))
    questions = _questions(config, source, progress)
    every = [question for asked in questions.values() for question in asked]
    asked = prompted(
        [no_shots(every)],
        series.base,
        config.engine,
        max_tokens=config.max_tokens,
        match=config.match,
        bos=series.bos,
        progress=progress,
    )
    servers = _servers(config, progress)
    texts = worded([no_shots(every)], Wording()).prompts if servers else ()
    taken = asdict(config) | names | {"latents": found.run.run_id, "epochs": epochs}
    made = SteerRun(
        **taken,
        layer=found.layer,
        median_norm=median_norm,
        train_run=series.source,
        split_run=captured.split_run,
        picks=picks,
    )
    stored = asdict(made)
    return Plan(
        config=config,
        stored=stored,
        found=found,
        series=series,
        source=source,
        served=served,
        targets=tuple(targets),
        scan=tuple(scan),
        questions=questions,
        rungs=tuple(_rungs(questions[config.choose_on], config.seed)),
        asked=asked,
        prompts={prompt.question.id: prompt for prompt in asked.prompts},
        servers=servers,
        texts={prompt.question.id: prompt for prompt in texts},
        fingerprint=fingerprint_of(
            _decided(stored, found, served, servers), series.base, source.data, asked.prompts
        ),
    )


def _servers(config: SteerConfig, progress: Progress) -> dict[str, Endpoint]:
    """The server's models, by whose answers they give; raises InputError for one that it has not."""
    if config.server is None:
        return {}
    from morfi.endpoint.engine import find_endpoint

    limits = limits_of(config.concurrency, config.timeout, config.retries)
    return {
        who: find_endpoint(config.server, name, chat=False, limits=limits, say=progress.phase)
        for who, name in config.names.items()
    }


def _decided(
    stored: Mapping[str, Any],
    found: Found,
    served: Mapping[str, Checkpoint],
    servers: Mapping[str, Endpoint],
) -> dict[str, Any]:
    """The settings that decide the rows of a run, with content in place of names."""
    named = ("latents", "ckpt", "reference", "server", "models", *HOW)
    kept = {key: value for key, value in stored.items() if key not in named}
    by_content = {name: checkpoint.sha256 for name, checkpoint in served.items()}
    by_server = {f"{name} by": server.checkpoint.sha256 for name, server in servers.items()}
    return {**kept, **by_content, **by_server, "kind": RunKind.STEER, "find": found.run.fingerprint}


def _rungs(questions: Sequence[Question], seed: int) -> list[tuple[str, ...]]:
    """The ids that each round of a halving has asked when it ends, in the order of `questions`."""
    found = []
    for size in rung_sizes(len(questions)):
        part = {question.id for question in select(questions, limit=size, seed=seed)}
        found.append(tuple(question.id for question in questions if question.id in part))
    return found


def _served(config: SteerConfig, series: Series, epochs: str) -> tuple[dict[str, Checkpoint], dict[str, str]]:
    """The three checkpoints, and the names of those that the user names."""
    reference = config.reference or series.lowest(epochs, config.train_seed).name
    names = {"ckpt": config.ckpt, "reference": reference}
    opened = {name: series.open_named(name, epochs, config.train_seed) for name in names.values()}
    if opened[config.ckpt].sha256 == opened[reference].sha256:
        if config.ckpt == reference:
            raise InputError(f"{config.ckpt} is steered and is its own reference; give another --reference")
        raise InputError(
            f"{config.ckpt}, which is steered, and its reference {reference} have the same weights, so "
            "neither knows what the other does not; give another --reference or --ckpt"
        )
    served: dict[str, Checkpoint] = {
        Answerer.BASE: series.base,
        Answerer.REFERENCE: opened[reference],
        Answerer.CHECKPOINT: opened[config.ckpt],
    }
    return served, names


def _scan(
    config: SteerConfig, store: Store, found: Found, checkpoint: Checkpoint, position: int
) -> list[Target]:
    """delta_u at every captured layer but the SAE's, where it is a target anyway when latents are added."""
    if not config.layer_scan:
        return []
    capture, axis = found.activations.run, found.activations.axis
    found_at: list[Target] = []
    for layer in sorted(settings_of(capture, CaptureRun).layers):
        if layer == found.layer and config.op == ADD.name:
            continue
        activations = load_activations(store, capture.run_id, layer, axis)
        there = replace(found, activations=activations)
        norm = there.median_norm(checkpoint.sha256)
        found_at.append(scan_target(activations, position + len(found_at), norm))
    return found_at


def _check_same_questions(source: Source, capture: RunRecord) -> None:
    if source.data.sha256 != capture.data_sha256:
        raise InputError(
            f"{source.data.name} holds other questions than {capture.run_id} was captured on; bring them "
            "back, or capture again"
        )


def _questions(config: SteerConfig, source: Source, progress: Progress) -> dict[str, tuple[Question, ...]]:
    """The questions of the two splits, grouped by relation."""
    if source.facts is None and config.questions != "all":
        progress.phase("no split run says what the base model knows: questions of all kinds are asked")
    if UNSPLIT in source.data.splits:
        progress.phase(f"{source.data.name} has no splits: it is parted by subject, as `morfi split` does")
        source = replace(source, data=with_splits(source.data))
    asked = {}
    for split in (config.choose_on, config.report_on):
        own = source.data.splits[source.split(split, split)]
        facts = source.facts
        kept = [one for one in own if facts is None or facts[one.id].category in config.categories]
        if not kept:
            raise InputError(
                f'no question of "{split}" is {config.questions} to the base model; give --questions all'
            )
        asked[split] = select(kept, relations=source.relations, limit=config.limit, seed=config.seed)
    return asked
