from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from morfi.checkpoints import resolve
from morfi.conditions.load import load_series
from morfi.conditions.series import Lineage
from morfi.errors import InputError, MorfiError
from morfi.store import Store
from morfi.store.records import RunKind
from morfi.training import read_manifest
from morfi.training.alike import same_weights
from morfi.training.train import run_train

SETTINGS = {
    "epochs": (1, 2),
    "rank": 2,
    "alpha": 4.0,
    "lr": 1e-2,
    "batch": 2,
    "micro_batch": 2,
    "max_tokens": 4,
}


def train(experiment: Any, out: Path, log: Any, *, new: bool = False, **changes: Any) -> str:
    given = {**SETTINGS, **changes}
    return run_train(given, experiment.mix_run, experiment.store, out, log, new=new, command="morfi train")


@pytest.mark.long
def test_every_mixture_gives_its_checkpoints_and_epochs(experiment: Any, tmp_path: Path, log: Any) -> None:
    run_id = train(experiment, tmp_path / "out", log)
    store: Store = experiment.store
    rows = store.checkpoints(run_id)
    assert [(row.level, row.epoch_setting) for row in rows if row.epoch_setting != "early-stop"] == [
        (level, setting) for level in (0, 50, 100) for setting in ("1", "2")
    ]
    assert {row.level for row in rows if row.epoch_setting == "early-stop"} == {0, 50, 100}
    for row in rows:
        folder = Path(row.path)
        assert folder.is_relative_to(tmp_path / "out" / run_id)
        assert read_manifest(folder) == row.manifest
        assert resolve(row.path).adapter_sha256 == row.adapter_sha256
    assert [(row.level, row.epoch) for row in store.epochs(run_id)] == [
        (level, epoch) for level in (0, 50, 100) for epoch in (1, 2)
    ]
    assert {row.n_dev for row in store.epochs(run_id)} == {6}, "the known dev questions"
    summary = store.summary(run_id)
    assert (summary.status, summary.n_done, summary.n_planned) == ("done", 9, 9)
    run = store.run(run_id)
    assert run.ckpt_sha256 == store.run(experiment.split_run).ckpt_sha256
    assert run.config["mix_run"] == experiment.mix_run
    assert log.starts == [(3 * 4 * 2, 0)]
    assert log.n_advanced == 3 * 4 * 2


@pytest.mark.long
def test_the_same_command_goes_on_to_the_same_checkpoints(
    experiment: Any, tmp_path: Path, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(experiment, tmp_path / "whole", log)
    expected = [
        (row.level, row.epoch_setting, row.adapter_sha256) for row in experiment.store.checkpoints(whole)
    ]
    n_epochs = 0

    keep = Store.add

    def stop(store: Store, run_id: str, rows: Any) -> None:
        nonlocal n_epochs
        n_epochs += rows[0].epoch == 2
        if n_epochs == 2:
            raise KeyboardInterrupt
        keep(store, run_id, rows)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            train(experiment, tmp_path / "out", log, new=True)
    stopped = experiment.store.runs(1)[0]
    assert (stopped.status, stopped.n_done < stopped.n_planned) == ("interrupted", True)
    assert "the same command goes on" in log.phases[-1]
    assert train(experiment, tmp_path / "elsewhere", log) == stopped.run_id
    rows = experiment.store.checkpoints(stopped.run_id)
    assert [(row.level, row.epoch_setting, row.adapter_sha256) for row in rows] == expected
    assert all(Path(row.path).is_relative_to(tmp_path / "out") for row in rows)
    n_starts = len(log.starts)
    assert train(experiment, tmp_path / "out", log) == stopped.run_id
    assert len(log.starts) == n_starts, "a finished run is only reported"


def test_training_and_what_follows_keep_to_the_bos_of_the_split_run(
    experiment: Any, tmp_path: Path, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, asked = Store.run_of_kind, []

    def without_bos(store: Store, run_id: str, kind: RunKind) -> Any:
        found = read(store, run_id, kind)
        return replace(found, config={**found.config, "bos": "no"}) if kind == RunKind.SPLIT else found

    monkeypatch.setattr(Store, "run_of_kind", without_bos)
    monkeypatch.setattr("morfi.training.train.run_training", lambda task, *_, **__: asked.append(task))
    run_id = train(experiment, tmp_path / "out", log, new=True)
    assert not asked[0].bos
    assert 0 not in asked[0].jobs[0].examples[0].token_ids
    record = experiment.store.run(run_id)
    assert (record.bos, record.config["bos"]) == (False, "no")
    split = experiment.store.run_of_kind(experiment.split_run, RunKind.SPLIT)
    assert Lineage(record, record, split).bos == "no"


def test_a_failed_training_is_recorded_with_its_reason(
    experiment: Any, tmp_path: Path, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MorfiError("the loss is nan")

    monkeypatch.setattr("morfi.training.train.run_training", fail)
    with pytest.raises(MorfiError, match="the loss is nan"):
        train(experiment, tmp_path / "out", log)
    assert experiment.store.runs(1)[0].status == "failed"
    ends = experiment.store.query("SELECT status, message FROM attempt_end ORDER BY ended_at DESC LIMIT 1")
    assert ends.to_pylist() == [{"status": "failed", "message": "the loss is nan"}]


@pytest.mark.long
def test_checkpoints_of_equal_weights_are_named_after_training(
    experiment: Any, tmp_path: Path, log: Any
) -> None:
    run_id = train(experiment, tmp_path / "out", log, lr=1e-200, epochs=(1,), early_stop=False)
    rows = experiment.store.checkpoints(run_id)
    assert len({row.adapter_sha256 for row in rows}) == 1
    said = [phase for phase in log.phases if "have the same weights" in phase]
    assert said == list(same_weights(rows))
    assert said[0].startswith("3 checkpoints have the same weights")
    assert said[0].endswith("level 0, seed 0, epoch 1; level 50, seed 0, epoch 1; level 100, seed 0, epoch 1")
    log.phases.clear()
    load_series(run_id, experiment.store, None, log)
    assert [phase for phase in log.phases if "have the same weights" in phase] == said


def test_a_run_of_another_kind_is_refused(experiment: Any, tmp_path: Path, log: Any) -> None:
    with pytest.raises(InputError, match="is a run of `morfi split`; give one of `morfi mix`"):
        run_train({}, experiment.split_run, experiment.store, tmp_path, log, new=False, command="morfi train")
