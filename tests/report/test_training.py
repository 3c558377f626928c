from __future__ import annotations

import random

import pytest

from morfi.report.training import training_object, training_table
from morfi.store.records import CheckpointRow, EpochRow


def epoch(level: int, seed: int, number: int, n_correct: int, n_dev: int = 10) -> EpochRow:
    return EpochRow(level, seed, number, 1 / number, 5, n_dev, n_correct, 2.5, 0.5, 1)


def checkpoint(level: int, seed: int, setting: str, number: int) -> CheckpointRow:
    return CheckpointRow(level, seed, setting, number, f"m/{level}-{setting}", "a" * 64, {}, 1)


EPOCHS = [
    *(epoch(0, 0, number, right) for number, right in ((1, 7), (2, 9), (3, 9))),
    *(epoch(50, 0, number, 0, n_dev=0) for number in (1, 2)),
    epoch(0, 1, 1, 3),
]
CHECKPOINTS = [checkpoint(0, 0, "10", 10), checkpoint(0, 0, "early-stop", 2), checkpoint(0, 0, "2", 2)]


def test_each_training_has_its_losses_its_first_best_epoch_and_its_time() -> None:
    shuffled = list(EPOCHS)
    random.Random(1).shuffle(shuffled)
    found = training_object(shuffled, CHECKPOINTS)["trainings"]
    assert [(row["level"], row["seed"]) for row in found] == [(0, 0), (0, 1), (50, 0)]
    first = found[0]
    assert (first["epochs"], first["loss_first"], first["loss_last"]) == (3, 1.0, pytest.approx(1 / 3))
    assert first["best_dev"] == {"accuracy": 0.9, "n": 10, "epoch": 2}
    assert (first["train_s"], first["dev_s"]) == (7.5, 1.5)
    assert [saved["epoch_setting"] for saved in first["checkpoints"]] == ["2", "early-stop", "10"]


def test_a_training_without_dev_answers_has_no_best_epoch() -> None:
    found = training_object(EPOCHS, [])["trainings"][2]
    assert found["best_dev"] is None
    assert found["loss_last"] == 0.5


def test_a_checkpoint_whose_epochs_are_not_stored_is_still_listed() -> None:
    found = training_object([], CHECKPOINTS[:1])["trainings"][0]
    assert (found["epochs"], found["loss_first"], found["best_dev"]) == (0, None, None)
    assert "D_0" in training_table([], CHECKPOINTS[:1])


def test_the_table_names_the_real_epoch_where_the_setting_does_not() -> None:
    rows = [" ".join(line.split()) for line in training_table(EPOCHS, CHECKPOINTS).splitlines()]
    assert "D_0 0 3 1.0000 0.3333 90.0 % 2 7.5 1.5 2, early-stop (2), 10" in rows
    assert "D_50 0 2 1.0000 0.5000 5.0 1.0" in rows


def test_no_training_gives_the_header_alone() -> None:
    assert training_table([], []).splitlines()[0].split()[0] == "mixture"
    assert training_object([], []) == {"trainings": []}
