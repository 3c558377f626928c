"""Fine-tuning on every mixture of a mix run, its rows in the store: `morfi train`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.device import device_name
from morfi.errors import InputError
from morfi.files import canonical_sha256
from morfi.questions import QuestionSet
from morfi.questions.prompts import ASKED
from morfi.questions.question import Question
from morfi.runs.life import Life, Ready, new_run
from morfi.runs.settings import settings_of
from morfi.store.records import RunKind, RunRecord
from morfi.training import TrainingData, TrainingTask, prepare_training, run_training, train_config
from morfi.training.alike import same_weights
from morfi.training.config import TrainRun
from morfi.training.mixtures import MixConfig, given_away
from morfi.training.plan import Mixture

if TYPE_CHECKING:
    from morfi.store import Store
    from morfi.terminal import Progress


def run_train(
    given: Mapping[str, Any],
    mix_run: str,
    store: Store,
    out: Path,
    progress: Progress,
    *,
    new: bool,
    command: str,
) -> str:
    """Trains on every mixture of `mix_run` and returns the id of the run, whose checkpoints lie in `out`/id.

    `given` are the options of a training, None where not given. Goes on with the newest run that would give
    the same checkpoints, in that run's own folder, unless `new`.
    """
    ready = ready_train(given, mix_run, store, out, progress, new=new, command=command)
    ready.finish()
    for line in same_weights(store.checkpoints(ready.result)):
        progress.phase(line)
    return ready.result


def ready_train(
    given: Mapping[str, Any],
    mix_run: str,
    store: Store,
    out: Path,
    progress: Progress,
    *,
    new: bool,
    command: str,
) -> Ready:
    """The work of `run_train`; nothing is trained before."""
    mix = store.run_of_kind(mix_run, RunKind.MIX)
    task = _prepare(given, mix, store, progress)
    # The mix run's as well: after another split run the same trainings are judged by what that one found.
    decided = {"kind": RunKind.TRAIN, "trainings": task.fingerprint, "mix": mix.fingerprint}
    life = Life(
        _record(task, mix, canonical_sha256(decided), out),
        store,
        progress,
        command,
        again="the same command goes on after the last epoch that was finished",
    ).resumed(None if new else "auto")
    run = life.run

    def work() -> Sequence[str]:
        _train(task, life, store, progress)
        return ()

    is_whole = len(store.checkpoints(run.run_id)) == run.n_planned
    return Ready(run.run_id, None if is_whole else work)


def _train(task: TrainingTask, life: Life, store: Store, progress: Progress) -> None:
    """Trains what the run lacks."""
    run = life.run
    started = time.monotonic()
    settings = {"dtype": task.dtype, "threads": _n_threads()}
    with life.attempt(started=started, device=device_name(), settings=settings) as attempt:
        run_training(
            task,
            Path(settings_of(run, TrainRun).folder),
            lambda row: store.add(run.run_id, [row]),
            progress,
            attempt=attempt.number,
        )


def _prepare(given: Mapping[str, Any], mix: RunRecord, store: Store, progress: Progress) -> TrainingTask:
    """The trainings of the mix run on the model whose knowledge was measured."""
    split = store.run_of_kind(settings_of(mix, MixConfig).split_run, RunKind.SPLIT)
    if split.asked.endpoint is not None:
        raise InputError(
            f"{split.run_id} asked {split.ckpt} at {split.asked.endpoint}, whose weights are not here to be "
            "trained; run `morfi split --ckpt` with a preset, a folder or a hub id"
        )
    if split.prompt != ASKED:
        progress.phase(f"{split.run_id} asked its questions in other words than training does: {ASKED!r}")
    facts = {row.question_id: row for row in store.knowledge(split.run_id)}
    places: dict[int, list[Question]] = {}
    mixed = store.mixtures(mix.run_id)
    if leaks := given_away(mixed, list(facts.values())):
        raise InputError(
            f"{mix.run_id} trains on {len(leaks)} questions that dev or test asks too, such as "
            f'"{leaks[0].question}" ({leaks[0].question_id}); run `morfi mix` again'
        )
    for row in mixed:
        places.setdefault(row.level, []).append(facts[row.question_id].asked)
    # Early stopping is by what fine-tuning may cost: answers that the model had before.
    dev = tuple(row.asked for row in facts.values() if row.split == "dev" and row.known)
    mixtures = tuple(Mixture(level, tuple(questions)) for level, questions in places.items())
    asked = {**given, "model": split.asked.ckpt, "bos": split.asked.bos}
    data = TrainingData(mix.data, mix.data_sha256, mixtures, dev)
    task = prepare_training(train_config(asked), data, progress)
    if task.base.sha256 != split.ckpt_sha256:
        raise InputError(
            f"{split.ckpt} is not the model that {split.run_id} measured: its sha256 is "
            f"{task.base.sha256[:16]}, expected {split.ckpt_sha256[:16]}; run `morfi split` again"
        )
    return task


def _record(task: TrainingTask, mix: RunRecord, fingerprint: str, out: Path) -> RunRecord:
    """The record of a train run that begins now."""
    return new_run(
        RunKind.TRAIN,
        task.base,
        QuestionSet(mix.data, mix.data_sha256, {}),
        config={**asdict(task.config), "mix_run": mix.run_id},
        fingerprint=fingerprint,
        bos=task.bos,
        seed=0,
        n_planned=len(task.jobs) * (len(task.config.epochs) + task.config.early_stop),
        ckpt=task.config.model,
        out=out,
    )


def _n_threads() -> int:
    import torch

    return torch.get_num_threads()
