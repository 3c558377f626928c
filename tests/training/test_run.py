from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from morfi.errors import InputError, MorfiError
from morfi.training import prepare_training, read_manifest, run
from morfi.training.generation import DevAccuracy
from morfi.training.history import TrainingFolder
from morfi.training.trainer import LoraTrainer


@pytest.mark.long
def test_each_setting_gets_a_checkpoint_of_the_one_training(train_tiny: Any, tmp_path: Path) -> None:
    trained = train_tiny(tmp_path / "run", train_tiny.data(levels=(0, 50)), seeds=2, epochs=(1, 3))
    rows, recorded = trained.rows, trained.recorded
    assert len(rows) == 2 * 2 * 3
    assert sorted(rows, key=str) == sorted(recorded.checkpoints, key=str)
    assert [(r.level, r.seed, r.epoch) for r in recorded.epochs] == [
        (level, seed, epoch) for level in (0, 50) for seed in (0, 1) for epoch in (1, 2, 3)
    ]
    for row in rows:
        assert row.epoch_setting in ("early-stop", str(row.epoch))
        assert Path(row.path) == tmp_path / f"run/level-{row.level:03}-seed-{row.seed}/epoch-{row.epoch:02}"
        assert read_manifest(Path(row.path))["adapter_sha256"] == row.adapter_sha256
    plain = [row.adapter_sha256 for row in rows if row.epoch_setting != "early-stop"]
    assert len(set(plain)) == len(plain)
    assert (recorded.n_before, recorded.n_done) == (0, recorded.n_total) == (0, 2 * 2 * 11 * 3)
    assert not list(tmp_path.rglob("state-*"))
    assert not list(tmp_path.rglob(".part-*"))
    losses = [row.loss for row in recorded.epochs if (row.level, row.seed) == (0, 0)]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.long
def test_a_checkpoint_does_not_depend_on_later_epochs_or_other_trainings(
    train_tiny: Any, tmp_path: Path
) -> None:
    short = train_tiny(tmp_path / "short", epochs=(2,), early_stop=False)
    long = train_tiny(tmp_path / "long", train_tiny.data(levels=(0, 10)), seeds=2, epochs=(2, 3))
    second = train_tiny(tmp_path / "second", train_tiny.data(levels=(5, 10)), epochs=(2,), early_stop=False)
    assert long.sha256s[0, 0, "2"] == short.sha256s[0, 0, "2"]
    assert long.sha256s[10, 0, "2"] == second.sha256s[10, 0, "2"]


@pytest.mark.long
def test_four_facts_are_memorised_and_measured_as_right(train_tiny: Any, tmp_path: Path) -> None:
    four = train_tiny.facts[:4]
    trained = train_tiny(
        tmp_path, train_tiny.data(questions=four, n_dev=4), epochs=(40,), rank=8, lr=0.03, batch=4
    )
    accuracies = [row.n_dev_correct for row in trained.recorded.epochs]
    assert accuracies[0] < 4
    assert accuracies[-1] == 4
    [stopped] = [row for row in trained.rows if row.epoch_setting == "early-stop"]
    assert stopped.epoch == accuracies.index(4) + 1
    assert stopped.manifest["dev"][-1] == {"n": 4, "n_correct": 4}
    assert {path.name for path in (tmp_path / "level-000-seed-0").glob("epoch-*")} == {
        f"epoch-{stopped.epoch:02}",
        "epoch-40",
    }


def test_early_stop_keeps_the_weights_of_its_own_epoch(
    train_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = train_tiny(tmp_path / "every", epochs=(1, 2, 3, 4), early_stop=False)
    right = iter((1, 3, 3, 2))
    monkeypatch.setattr(run, "dev_accuracy", lambda *_: DevAccuracy(3, next(right)))
    stopped = train_tiny(tmp_path / "stopped", epochs=(4,))
    assert stopped.sha256s[0, 0, "early-stop"] == every.sha256s[0, 0, "2"]
    assert stopped.sha256s[0, 0, "4"] == every.sha256s[0, 0, "4"]


def test_without_early_stop_dev_questions_are_not_needed(train_tiny: Any, tmp_path: Path) -> None:
    trained = train_tiny(tmp_path, replace(train_tiny.data(), dev=()), early_stop=False)
    assert [row.epoch_setting for row in trained.rows] == ["1", "2"]
    assert {row.n_dev for row in trained.recorded.epochs} == {0}


def test_a_finished_run_trains_nothing_and_records_the_same(
    train_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train_tiny(tmp_path / "run")
    monkeypatch.setattr(run, "load_base", lambda task: pytest.fail("loaded the base"))
    again = train_tiny(tmp_path / "run")
    assert again.rows == first.rows
    assert again.recorded.epochs == first.recorded.epochs
    assert again.recorded.checkpoints == first.recorded.checkpoints
    assert (again.recorded.n_before, again.recorded.n_done) == (22, 22)


def test_the_base_is_loaded_once(train_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Any] = []
    load = run.load_base

    def counted(task: Any) -> Any:
        loads.append(task)
        return load(task)

    monkeypatch.setattr(run, "load_base", counted)
    train_tiny(tmp_path, train_tiny.data(levels=(0, 50, 100)), epochs=(1,))
    assert len(loads) == 1


def stop_at(monkeypatch: pytest.MonkeyPatch, epoch: int, error: BaseException) -> None:
    """Makes saving the state of `epoch` fail, after its checkpoint was written."""
    save = LoraTrainer.save_state

    def failing(trainer: LoraTrainer, folder: Path, best: Any) -> None:
        save(trainer, folder, best)
        if folder.name.endswith(f"-{epoch:02}"):
            raise error

    monkeypatch.setattr(LoraTrainer, "save_state", failing)


@pytest.mark.long
@pytest.mark.parametrize(("schedule", "at"), [("constant", 1), ("linear", 3), ("cosine", 2)])
def test_an_interrupted_training_goes_on_to_the_same_checkpoints(
    train_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str, at: int
) -> None:
    settings = {"schedule": schedule, "epochs": (1, 3), "warmup": 2, "weight_decay": 0.1}
    expected = train_tiny(tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        stop_at(patch, at, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            train_tiny(tmp_path / "killed", **settings)
    torch.manual_seed(99)  # whatever the process did before
    resumed = train_tiny(tmp_path / "killed", **settings)
    assert resumed.sha256s == expected.sha256s
    assert resumed.recorded.n_before == (at - 1) * 11
    assert resumed.recorded.n_done == resumed.recorded.n_total
    for mine, theirs in zip(resumed.rows, expected.rows, strict=True):
        assert mine.manifest == theirs.manifest
        for file in Path(mine.path).iterdir():
            assert file.read_bytes() == (Path(theirs.path) / file.name).read_bytes()


def test_a_full_disk_stops_with_the_last_state_whole(
    train_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train_tiny(tmp_path / "whole", epochs=(1, 3))
    save = safetensors.torch.save_file

    def half(tensors: Any, path: Path, **options: Any) -> None:
        save(tensors, path, **options)
        if "state-epoch-02" in str(path):
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = tmp_path / "full" / "level-000-seed-0"
    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", half)
        with pytest.raises(MorfiError) as caught:
            train_tiny(tmp_path / "full", epochs=(1, 3))
    message = str(caught.value)
    assert message.startswith(f"{folder} cannot be written: No space left on device; saving needs 0.0 MB")
    assert TrainingFolder(folder).n_epochs == 1
    assert not list(folder.glob(".part-*"))
    assert read_manifest(folder / "epoch-01")
    assert train_tiny(tmp_path / "full", epochs=(1, 3)).sha256s == expected.sha256s


def test_a_disk_that_fills_while_a_checkpoint_is_written_keeps_the_others(
    train_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = safetensors.torch.save_file

    def full(tensors: Any, path: Path, **options: Any) -> None:
        if "epoch-02" in str(path):
            # What the library raises when the system refuses a write.
            raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")
        save(tensors, path, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(
        MorfiError,
        match=re.escape(f"{tmp_path}/level-000-seed-0/epoch-02 cannot be written: No space left on device;"),
    ):
        train_tiny(tmp_path, epochs=(1, 2))
    assert read_manifest(tmp_path / "level-000-seed-0" / "epoch-01")
    assert not (tmp_path / "level-000-seed-0" / "epoch-02").exists()


def test_a_loss_that_is_no_number_stops_with_the_last_state(
    train_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train_tiny(tmp_path / "whole", epochs=(1, 3))
    compute, calls = LoraTrainer.compute_loss, iter(range(1000))

    def poisoned(trainer: LoraTrainer, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        if next(calls) == 6 + 3:  # six micro-batches in an epoch
            for parameter in model.parameters():
                parameter.data = parameter.data * float("nan")
        return compute(trainer, model, inputs, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LoraTrainer, "compute_loss", poisoned)
        with pytest.raises(MorfiError) as caught:
            train_tiny(tmp_path / "nan", train_tiny.data(levels=(0, 50)), epochs=(1, 3))
    assert str(caught.value).startswith(
        "level 0, seed 0: the loss became nan in epoch 2, step 2 of 3, so this training stopped"
    )
    assert "lower --lr than 0.01" in str(caught.value)
    assert TrainingFolder(tmp_path / "nan" / "level-000-seed-0").n_epochs == 1
    resumed = train_tiny(tmp_path / "nan", train_tiny.data(levels=(0, 50)), epochs=(1, 3))
    assert {key: value for key, value in resumed.sha256s.items() if key[0] == 0} == expected.sha256s


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(
    train_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    def spoiled(model: Any, micro_batch: Any) -> Any:
        parameter = next(p for p in model.parameters() if p.requires_grad)
        loss = parameter.sum() * 0.0 + 1.0
        loss.register_hook(lambda gradient: gradient * value)
        return loss

    monkeypatch.setattr("morfi.training.trainer.answer_loss", spoiled)
    with pytest.raises(MorfiError, match="the gradient is no longer finite in epoch 1, step 1 of 3"):
        train_tiny(tmp_path)
    assert not list(tmp_path.rglob("epoch-*"))


def test_another_run_does_not_train_into_the_folder(train_tiny: Any, tmp_path: Path) -> None:
    train_tiny(tmp_path, epochs=(1,))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"holds a training with lr = 0\.01, this one has 0\.02"):
        train_tiny(tmp_path, epochs=(1,), lr=0.02)
    questions = train_tiny.facts[::-1]
    reordered = replace(train_tiny.data(), mixtures=train_tiny.data(questions=questions).mixtures)
    with pytest.raises(InputError, match="holds a training with mixture_sha256"):
        train_tiny(tmp_path, reordered, epochs=(1,))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_more_seeds_and_levels_can_be_added_to_a_folder(train_tiny: Any, tmp_path: Path) -> None:
    first = train_tiny(tmp_path, epochs=(1,))
    more = train_tiny(tmp_path, train_tiny.data(levels=(0, 50)), epochs=(1,), seeds=2)
    assert more.recorded.n_before == 11
    assert first.sha256s.items() <= more.sha256s.items()


def nudge(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"adapter_sha256": "0" * 64}))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [(shutil.rmtree, "epoch-01 is gone"), (nudge, "it was changed since its training")],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_resumed_run_checks_the_checkpoints_that_are_there(  # noqa: PLR0917
    train_tiny: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tamper: Callable[[Path], object],
    message: str,
    finished: bool,
) -> None:
    if finished:
        train_tiny(tmp_path)
    else:
        with monkeypatch.context() as patch:
            stop_at(patch, 2, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                train_tiny(tmp_path)
    tamper(tmp_path / "level-000-seed-0" / "epoch-01")
    with pytest.raises(InputError, match=message):
        train_tiny(tmp_path)


def test_a_folder_that_cannot_be_made_is_an_error_of_one_line(train_tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MorfiError, match=r"file/run cannot be written: Not a directory"):
        train_tiny(tmp_path / "file" / "run")


def test_progress_says_where_the_run_stands(train_tiny: Any, tmp_path: Path) -> None:
    phases = train_tiny(tmp_path, train_tiny.data(levels=(0, 50)), epochs=(1,)).recorded.phases
    assert "level 0, seed 0 (1 of 2)" in phases
    assert any(re.fullmatch(r"level 50, seed 0, epoch 1: loss \d\.\d+, dev 0 of 3 right", p) for p in phases)


def test_bfloat16_trains_on_a_cpu_as_well(train_tiny: Any, tmp_path: Path) -> None:
    trained = train_tiny(tmp_path, dtype="bfloat16", epochs=(2,), early_stop=False)
    losses = [row.loss for row in trained.recorded.epochs]
    assert losses[1] < losses[0]
    tensors = safetensors.torch.load_file(Path(trained.rows[0].path) / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_a_model_without_a_preset_is_said_to_train_as_a_large_one(train_tiny: Any) -> None:
    told: list[str] = []

    class Listening:
        def phase(self, text: str) -> None:
            told.append(text)

    prepare_training(train_tiny.prepare().config, train_tiny.data(), Listening())  # type: ignore[arg-type]
    assert any("has no preset" in text for text in told)
