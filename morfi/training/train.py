"""Fine-tuning on every mixture of a mix run, its rows in the store: `morfi train`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.device import device_name
from morfi.errors import InputError
from morfi.files import canonical_sha256
from morfi.questions.prompts import ASKED
from morfi.questions.question import Question
from morfi.runs.attempts import attempting
from morfi.runs.provenance import attempt_record, new_run_id, now
from morfi.store.records import RunRecord
from morfi.training import TrainingData, TrainingTask, prepare_training, run_training, train_config
from morfi.training.mixtures import given_away
from morfi.training.plan import Mixture

if TYPE_CHECKING:
    from morfi.store import Store
    from morfi.terminal import Progress

KIND = "train"


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
    mix = store.run_of_kind(mix_run, "mix")
    task = _prepare(given, mix, store, progress)
    # The mix run's as well: after another split run the same trainings are judged by what that one found.
    decided = {"kind": KIND, "trainings": task.fingerprint}
    fingerprint = canonical_sha256({**decided, "mix": mix.fingerprint})
    run = (None if new else _earlier(store, mix, fingerprint, canonical_sha256(decided))) or _record(
        task, mix, fingerprint, out
    )
    if len(store.checkpoints(run.run_id)) == run.n_planned:
        return run.run_id
    started = time.monotonic()
    begin = partial(store.begin_run, run, {})  # preparing took long enough that it is not given up lightly
    settings = {"dtype": task.dtype, "threads": _n_threads()}
    record = attempt_record(command, settings, device_name())
    again = "the same command goes on after the last epoch that was finished"
    with attempting(
        store, run.run_id, record, progress, started=started, again=again, begin=begin
    ) as attempt:
        run_training(
            task,
            Path(run.config["folder"]),
            lambda row: store.add(run.run_id, [row]),
            progress,
            attempt=attempt.number,
        )
    return run.run_id


def _earlier(store: Store, mix: RunRecord, fingerprint: str, former: str) -> RunRecord | None:
    """The newest run of these trainings; `former` is how an earlier morfi named those of any mix run."""
    if found := store.latest_run(fingerprint):
        return found
    found = store.latest_run(former)
    return found if found and found.config["mix_run"] == mix.run_id else None


def _prepare(given: Mapping[str, Any], mix: RunRecord, store: Store, progress: Progress) -> TrainingTask:
    """The trainings of the mix run on the model whose knowledge was measured."""
    split = store.run_of_kind(mix.config["split_run"], "split")
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
    asked = {**given, "model": split.config["model"], "bos": split.config.get("bos")}
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
    run_id, config = new_run_id(KIND), task.config
    folder = {"folder": str((out / run_id).absolute()), "mix_run": mix.run_id}
    return RunRecord(
        run_id=run_id,
        kind=KIND,
        created_at=now(),
        fingerprint=fingerprint,
        config={**asdict(config), **folder},
        ckpt=config.model,
        ckpt_sha256=task.base.sha256,
        base=task.base.base,
        base_sha256=task.base.base_sha256,
        adapter_sha256=None,
        data=mix.data,
        data_sha256=mix.data_sha256,
        prompt=ASKED,
        bos=task.bos,
        seed=0,
        n_planned=len(task.jobs) * (len(config.epochs) + config.early_stop),
    )


def _n_threads() -> int:
    import torch

    return torch.get_num_threads()
