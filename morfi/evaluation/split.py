"""A model's knowledge: the share of right answers under several few-shot prompts, for `morfi split`.

P_correct of Gekhman et al. (arXiv 2405.05904): `n_ex` prompts per question with exemplars of their own; for
each one greedy answer and `samples` sampled ones. The store's view `knowledge` makes four categories of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from morfi.checkpoints import Checkpoint, resolve
from morfi.checkpoints.tokenizer import check_bos
from morfi.engine.protocol import StartEngine
from morfi.errors import InputError
from morfi.evaluation.config import EvalConfig
from morfi.evaluation.how import (
    HOW,
    SENT_TOGETHER,
    check_asked,
    check_limits,
    check_words,
    endpoint_of,
    limits_of,
    wording_of,
)
from morfi.questions import SPLITS, Families, QuestionSet, load_questions, select, with_splits
from morfi.questions.exemplars import Shots, draw_shots, n_sets
from morfi.questions.prompts import Prompt, Prompted, ShownPrompt, prompted, shown, worded
from morfi.questions.question import Question
from morfi.runs.answering import Answering, Task, fingerprint_of, ready_to_answer
from morfi.runs.baselines import baselines_of
from morfi.runs.life import STARTING, Ready
from morfi.runs.options import check_match, check_numbers, option, sized_here
from morfi.runs.settings import to_store
from morfi.store.records import RunKind

if TYPE_CHECKING:
    from morfi.endpoint.address import Limits
    from morfi.endpoint.engine import Endpoint
    from morfi.store import Store
    from morfi.terminal import Progress

MAX_PROMPTS = 1000  # of a question
MAX_SAMPLES = 1000  # of a prompt
# What they choose is in the prompts and the checkpoint, or changes no answer.
_CHOOSE_ONLY = (
    "ckpt",
    "served",
    "base",
    "relations",
    "limit",
    "bos",
    "endpoint",
    "chat",
    "prompt_template",
    "system",
    *HOW,
)
_SHARES = {"train": 0.6, "dev": 0.15, "test": 0.25}  # of --limit, as world-facts has them


@dataclass(frozen=True, slots=True)
class SplitConfig:
    """Everything that decides what a split run finds; stored with it."""

    ckpt: str | None = option(
        "Preset, model or LoRA adapter folder, or hub id.", None, unset="none, with --endpoint"
    )
    base: str | None = None
    data: str = option("As for eval; without splits, train, dev and test are made by subject.", "world-facts")
    relations: tuple[str, ...] = ()
    limit: int | None = option(
        "At most this many questions: 60 % train, 15 % dev, 25 % test.", None, unset="all"
    )
    n_ex: int = option("Few-shot prompts for each question.", 10, cpu=3)
    shots: int = option("Exemplars in each prompt, from dev.", 4)
    samples: int = option("Sampled answers to each prompt.", 16, cpu=4)
    temperature: float = option("Of the sampled answers.", 0.5)
    top_k: int = option("Tokens that sampling chooses from; 0 for all.", 40)
    match: str = "squad"
    max_tokens: int = 16
    seed: int = 0
    bos: str = "auto"
    dtype: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)
    batch: int = option("Prompts answered and stored together.", 32, unset="by the machine's size")
    endpoint: str | None = None
    served: str | None = None
    concurrency: int | None = None
    timeout: float | None = None
    retries: int | None = None
    chat: bool = False
    prompt_template: str | None = None
    system: str | None = None

    def __post_init__(self) -> None:
        check_asked(self)
        check_words(chat=self.chat, system=self.system, bos=self.bos)
        check_match(self.match)
        check_bos(self.bos)
        check_limits(self.concurrency, self.timeout, self.retries)
        check_numbers(
            {
                "limit": (self.limit, len(SPLITS)),
                "n-ex": (self.n_ex, 1, MAX_PROMPTS),
                "shots": (self.shots, 0),
                "samples": (self.samples, 0, MAX_SAMPLES),
                "top-k": (self.top_k, 0),
                "max-tokens": (self.max_tokens, 1),
                "seed": (self.seed, 0),
                "batch": (self.batch, 1),
            }
        )
        if not 0 < self.temperature <= 10:
            raise InputError(f"--temperature is {self.temperature}; expected more than 0 and at most 10")
        if self.shots == 0 and self.n_ex > 1:
            raise InputError("--shots 0 makes all prompts of a question the same; give --n-ex 1 as well")

    @property
    def limits(self) -> Limits:
        """How the server is asked."""
        return limits_of(self.concurrency, self.timeout, self.retries)


def configure_split(given: Mapping[str, Any]) -> SplitConfig:
    """The configuration of the options that were given (those not None), the rest by the machine's size.

    The paper's 10 prompts and 16 samples take a GPU; a CPU's default is 3 and 4 (both are settings).
    """
    options = {key: value for key, value in given.items() if value is not None}
    config = SplitConfig(**{**sized_here(SplitConfig), **options})
    if "batch" not in options:
        together = sized_here(EvalConfig)["batch"] if config.endpoint is None else SENT_TOGETHER
        config = replace(config, batch=max(32, together // (1 + config.samples)))
    return config


def run_split(
    config: SplitConfig,
    store: Store,
    start_engine: StartEngine,
    progress: Progress,
    *,
    new: bool,
    command: str,
) -> str:
    """Asks what `config` says and returns the id of the run, whose view `knowledge` holds the categories.

    Goes on with the newest run that would give the same rows, unless `new`. `command` is recorded.
    """
    ready = ready_split(config, store, start_engine, progress, new=new, command=command)
    ready.finish()
    return ready.result


def ready_split(
    config: SplitConfig,
    store: Store,
    start_engine: StartEngine,
    progress: Progress,
    *,
    new: bool,
    command: str,
) -> Ready:
    """The work of `run_split`; nothing is asked or stored before."""
    endpoint = endpoint_of(config, progress)
    task = prepare_split(config, progress, endpoint)
    start = start_engine if endpoint is None else endpoint.start
    return ready_to_answer(task, store, start, progress, new=new, command=command)


def shown_split_prompts(config: SplitConfig, n: int, progress: Progress) -> list[ShownPrompt]:
    """The first `n` prompts of `config`; nothing is asked, nor a server whether it is there."""
    endpoint = endpoint_of(config, progress, reached=False)
    return shown(prepare_split(config, progress, endpoint).prompted, n)


def prepare_split(config: SplitConfig, progress: Progress, endpoint: Endpoint | None = None) -> Task:
    """The task of `config`: every question of every split with its `n_ex` prompts.

    They are for the model of `endpoint`, else for the checkpoint, which is resolved.
    """
    progress.phase(f"reading {config.data}")
    data = with_splits(load_questions(config.data))
    for note in (*data.notes, *_shared_between(data)):
        progress.phase(note)
    questions = chosen_questions(data, config)
    split_of = {question.id: split for split, chosen in questions.items() for question in chosen}
    checkpoint, asked = _asked(config, shots_of(data, questions, config, progress), endpoint, progress)
    asked = together(asked, split_of)
    decided = {name: value for name, value in asdict(config).items() if name not in _CHOOSE_ONLY}
    return Task(
        kind=RunKind.SPLIT,
        config=to_store(config),
        answering=Answering(
            max_tokens=config.max_tokens,
            match=config.match,
            batch=config.batch,
            seed=config.seed,
            engine=config.engine,
            samples=config.samples,
            temperature=config.temperature,
            top_k=config.top_k,
        ),
        checkpoint=checkpoint,
        data=data,
        split_of=split_of,
        prompted=asked,
        fingerprint=fingerprint_of(decided, checkpoint, data, asked.prompts),
        again="the same command",
        baselines=baselines_of(chosen_questions(data, replace(config, limit=None)), config.match),
        begins=STARTING if endpoint is None else endpoint.begins,
    )


def _asked(
    config: SplitConfig, shots: Sequence[Shots], endpoint: Endpoint | None, progress: Progress
) -> tuple[Checkpoint, Prompted]:
    """What is asked, a checkpoint or the model of a server, and its prompts."""
    wording = wording_of(chat=config.chat, system=config.system, prompt_template=config.prompt_template)
    if endpoint is not None:
        return endpoint.checkpoint, worded(shots, wording)
    checkpoint = resolve(str(config.ckpt), base=config.base, dtype=config.dtype, say=progress.phase)
    return checkpoint, prompted(
        shots,
        checkpoint,
        config.engine,
        max_tokens=config.max_tokens,
        match=config.match,
        bos=config.bos,
        progress=progress,
        wording=wording,
    )


def chosen_questions(data: QuestionSet, config: SplitConfig) -> dict[str, tuple[Question, ...]]:
    """The questions that a split run asks, by split: its share of `limit` of each, drawn by relation."""
    return {
        split: select(
            data.splits[split],
            relations=config.relations,
            limit=None if config.limit is None else max(1, round(config.limit * _SHARES[split])),
            seed=config.seed,
        )
        for split in SPLITS
        if split in data.splits
    }


def shots_of(
    data: QuestionSet,
    questions: Mapping[str, tuple[Question, ...]],
    config: SplitConfig,
    progress: Progress,
) -> list[Shots]:
    """The `questions` of every split under each of their `n_ex` draws of exemplars."""
    return [
        one
        for split, chosen in questions.items()
        for one in _shots(data, split, chosen, config, progress=progress)
    ]


def _shared_between(data: QuestionSet) -> list[str]:
    """A sentence for each split whose questions another one gives away: the data's own splits may."""
    families = Families(question for split in data.splits.values() for question in split)
    by_split = {split: {families.of(one) for one in asked} for split, asked in data.splits.items()}
    notes = []
    for split, other in (("test", "train"), ("dev", "train"), ("test", "dev")):
        shared = by_split.get(split, set()) & by_split.get(other, set())
        n = sum(families.of(question) in shared for question in data.splits.get(split, ()))
        if n:
            notes.append(
                f"{n} of {len(data.splits[split])} {split} questions have their subject or text in {other} "
                "too" + ("; `morfi mix` leaves these out of training" if other == "train" else "")
            )
    return notes


def _shots(
    data: QuestionSet,
    split: str,
    questions: tuple[Question, ...],
    config: SplitConfig,
    *,
    progress: Progress,
) -> list[Shots]:
    """The questions of one split under each of their `n_ex` draws of exemplars."""
    draws = draw_shots(
        data,
        questions,
        split,
        shots=config.shots,
        seeds=[f"{config.seed}/{number}" for number in range(config.n_ex)],
        sources=("dev", "train"),  # the exemplars of Gekhman et al. are of the relation's dev split
    )
    for relation in sorted({question.relation for question in questions}):
        if (n := n_sets(draws, relation)) < config.n_ex:
            progress.phase(
                f"{relation} has {n} sets of {config.shots} exemplars for {split}: of the {config.n_ex} "
                "prompts of a question some differ in the order of the exemplars only"
            )
    n_answers = 1 + config.samples
    return [replace(drawn, first_sample=number * n_answers) for number, drawn in enumerate(draws)]


def together(asked: Prompted, split_of: Mapping[str, str]) -> Prompted:
    """The same prompts, those that share a relation's exemplars, so a prefix, side by side in each split."""

    def place(prompt: Prompt) -> tuple[int, str, int]:
        return SPLITS.index(split_of[prompt.question.id]), prompt.question.relation, prompt.sample

    return replace(asked, prompts=tuple(sorted(asked.prompts, key=place)))
