"""Drawing the training mixtures of a split run and storing them: `morfi mix`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from morfi.errors import InputError
from morfi.files import canonical_sha256
from morfi.questions import load_questions, with_splits
from morfi.runs.life import Life, Ready, next_run
from morfi.store.records import KnowledgeRow, RunKind
from morfi.terminal import Progress
from morfi.training.mixtures import Dropped, MixConfig, draw

if TYPE_CHECKING:
    from morfi.store import Store


@dataclass(frozen=True, slots=True)
class MixResult:
    """The run and how many questions were left out of its mixtures."""

    run_id: str
    dropped: Dropped


@dataclass(frozen=True, slots=True)
class ReadyMix(Ready):
    """Mixtures made ready to be stored, and how many questions were left out of them."""

    dropped: Dropped


def configure_mix(given: Mapping[str, Any]) -> MixConfig:
    """The configuration of the options that were given (those not None)."""
    return MixConfig(**{key: value for key, value in given.items() if value is not None})


def run_mix(
    config: MixConfig,
    store: Store,
    progress: Progress,
    *,
    new: bool,
    command: str,
    data_now: str | None = None,
) -> MixResult:
    """Draws the mixtures of `config` and returns the run that holds them.

    `data_now` is where the split run's data is now, None for where it was.
    The same configuration gives the same mixtures, so a run that there is already is returned, unless `new`.
    Raises InputError where they cannot be filled, or where the data has changed since the split run.
    """
    ready = ready_mix(config, store, progress, new=new, command=command, data_now=data_now)
    ready.finish()
    return MixResult(ready.result, ready.dropped)


def ready_mix(
    config: MixConfig,
    store: Store,
    progress: Progress,
    *,
    new: bool,
    command: str,
    data_now: str | None = None,
) -> ReadyMix:
    """The work of `run_mix`: the mixtures are drawn, and nothing is stored."""
    started = time.monotonic()
    split = store.run_of_kind(config.split_run, RunKind.SPLIT)
    if (status := store.summary(split.run_id).status) != "done":
        raise InputError(f"{split.run_id} is {status}; give its `morfi split` command again to finish it")
    config = replace(config, split_run=split.run_id)
    source = data_now or str(split.asked.data)
    data = with_splits(load_questions(source, read_by=split.run_id if data_now is None else None))
    if data.sha256 != split.data_sha256:
        raise InputError(
            f"{source} has changed since {split.run_id}: its sha256 is {data.sha256[:16]}, "
            f"expected {split.data_sha256[:16]}; bring back that data or run `morfi split` again"
        )
    facts = store.knowledge(split.run_id)
    mixtures = draw(facts, config, data.splits, split.asked.match)
    # What the split run found, not its id: a repeated split that finds the same gives the same mixtures, but
    # another GPU or another vLLM may find something else from the same questions and settings.
    origin = {"split_run": split.fingerprint, "knowledge": _sha256(facts)}
    run = next_run(
        split,
        RunKind.MIX,
        config=asdict(config),
        fingerprint=canonical_sha256({**asdict(config), "kind": RunKind.MIX, **origin}),
        seed=config.seed,
        n_planned=len(mixtures.rows),
    )
    life = Life(run, store, progress, command).resumed(None if new else "auto")
    run_id = life.run.run_id

    def work() -> Sequence[str]:
        with life.attempt(started=started, device="no model is run"):
            store.add(run_id, mixtures.rows)
        return ()

    is_whole = len(store.mixtures(run_id)) == len(mixtures.rows)
    return ReadyMix(run_id, None if is_whole else work, mixtures.dropped)


def _sha256(facts: Sequence[KnowledgeRow]) -> str:
    """sha256 over what a split run found of each question."""
    return canonical_sha256([[row.question_id, row.split, row.p_greedy, row.p_sampled] for row in facts])
