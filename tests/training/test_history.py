from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morfi.errors import InputError
from morfi.training.history import EpochResult, TrainingFolder, best_epoch

SETTINGS = {"lr": 0.001, "epochs": [1, 2], "mixture_sha256": "a" * 64}


def results(n_correct: list[int]) -> list[EpochResult]:
    return [EpochResult(e, 1.0 / e, 3, 50, n, 2.0, 0.5) for e, n in enumerate(n_correct, 1)]


def write_state(folder: TrainingFolder, history: list[EpochResult]) -> None:
    state = folder.state_of(len(history))
    state.mkdir()
    rows = [{key: getattr(r, key) for key in EpochResult.__slots__} for r in history]
    (state / "history.json").write_text(json.dumps({"epochs": rows}))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12))
def test_early_stop_is_the_earliest_of_the_best(n_correct: list[int]) -> None:
    assert best_epoch(results(n_correct)) == n_correct.index(max(n_correct)) + 1


def test_the_newest_whole_state_counts(tmp_path: Path) -> None:
    folder = TrainingFolder(tmp_path / "a")
    folder.open(SETTINGS)
    assert folder.state is None
    assert folder.history() == []
    for epoch in (1, 2, 10):
        write_state(folder, results([5] * epoch))
    (folder.path / ".part-state-epoch-11").mkdir()
    (folder.path / "state-epoch-99-copy").mkdir()
    assert folder.state == folder.path / "state-epoch-10"
    assert folder.n_epochs == 10
    folder.drop_states(keep=10)
    assert sorted(p.name for p in folder.path.glob("state*")) == ["state-epoch-10", "state-epoch-99-copy"]


def test_a_finished_training_keeps_its_history_and_no_state(tmp_path: Path) -> None:
    folder = TrainingFolder(tmp_path / "a")
    folder.open(SETTINGS)
    history = results([3, 4])
    write_state(folder, history)
    folder.finish(history)
    assert folder.finished
    assert folder.state is None
    assert folder.history() == history


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": 0.002}, "holds a training with lr = 0.001, this one has 0.002"),
        ({"mixture_sha256": "b" * 64}, "mixture_sha256 = 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa..."),
        ({"new": 1}, "holds a training with new = None, this one has 1"),
    ],
)
def test_a_folder_of_other_settings_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    folder = TrainingFolder(tmp_path / "a")
    folder.open(SETTINGS)
    folder.open(SETTINGS)
    with pytest.raises(InputError) as caught:
        folder.open(SETTINGS | changed)
    assert message in str(caught.value)
    assert json.loads((folder.path / "training.json").read_text()) == SETTINGS


def test_a_folder_that_lost_its_settings_is_refused(tmp_path: Path) -> None:
    folder = TrainingFolder(tmp_path / "a")
    folder.open(SETTINGS)
    folder.finish(results([1]))
    (folder.path / "training.json").unlink()
    with pytest.raises(InputError, match=r"training\.json is gone"):
        folder.open(SETTINGS)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"epochs": 3}', '{"epochs": [{"epoch": 1}]}', '{"epochs": [1]}', '{"epochs": "x"}'],
)
def test_a_damaged_history_is_refused(tmp_path: Path, content: str) -> None:
    folder = TrainingFolder(tmp_path)
    (tmp_path / "finished.json").write_text(content)
    with pytest.raises(InputError, match=r"finished\.json"):
        folder.history()


def test_a_history_with_a_gap_is_refused(tmp_path: Path) -> None:
    folder = TrainingFolder(tmp_path)
    folder.finish([results([1, 2])[1]])
    with pytest.raises(InputError, match="does not list the epochs from 1 on"):
        folder.history()
