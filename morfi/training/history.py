"""How far a training has come: its folder, its settings, and the results of its finished epochs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from morfi.checkpoints.weights import read_json
from morfi.errors import InputError
from morfi.files import sweep, write_json

SETTINGS = "training.json"
FINISHED = "finished.json"
HISTORY = "history.json"
_STATE = re.compile(r"state-epoch-(\d+)")


@dataclass(frozen=True, slots=True)
class EpochResult:
    """One finished epoch: mean loss an answer token, and greedy answers right on dev questions."""

    epoch: int
    loss: float
    n_steps: int
    n_dev: int
    n_dev_correct: int
    train_s: float
    dev_s: float


@dataclass(frozen=True, slots=True)
class TrainingFolder:
    """The folder of one training; checkpoints stay, the state goes when the last epoch is done.

    Holds training.json (its settings), epoch-NN (checkpoints), state-epoch-NN (what a killed training goes
    on from, only the newest) and at the end finished.json.
    """

    path: Path

    def open(self, settings: Mapping[str, Any]) -> None:
        """Makes the folder one for a training with `settings` and clears what a killed process left.

        Raises InputError where it holds a training with others.
        """
        file = self.path / SETTINGS
        self.path.mkdir(parents=True, exist_ok=True)
        sweep(self.path)
        if not file.is_file():
            if self.finished or self.state is not None:
                raise InputError(f"{file} is gone; copy the folder again, or train in another one")
            write_json(file, settings)
            return
        found = read_json(file)
        differing = [key for key in {**found, **settings} if found.get(key) != settings.get(key)]
        if differing:
            key = differing[0]
            raise InputError(
                f"{self.path} holds a training with {key} = {_shown(found.get(key))}, this one has "
                f"{_shown(settings.get(key))}; train in another folder, or with the same settings"
            )

    def checkpoint(self, epoch: int) -> Path:
        """Where the checkpoint of `epoch` lies."""
        return self.path / f"epoch-{epoch:02d}"

    def state_of(self, epoch: int) -> Path:
        """Where the state after `epoch` lies."""
        return self.path / f"state-epoch-{epoch:02d}"

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done and all checkpoints were written."""
        return (self.path / FINISHED).is_file()

    @property
    def state(self) -> Path | None:
        """The newest whole state, None before the first epoch is done."""
        epochs = [int(m[1]) for path in self.path.glob("state-epoch-*") if (m := _STATE.fullmatch(path.name))]
        return self.state_of(max(epochs)) if epochs else None

    @property
    def n_epochs(self) -> int:
        """The number of epochs that are done."""
        return len(self.history())

    def history(self) -> list[EpochResult]:
        """The results of the epochs that are done, in order."""
        if self.finished:
            return _read_history(self.path / FINISHED)
        return [] if self.state is None else _read_history(self.state / HISTORY)

    def drop_states(self, keep: int | None) -> None:
        """Deletes the states but that after the epoch `keep`."""
        kept = None if keep is None else self.state_of(keep)
        for path in self.path.glob("state-epoch-*"):
            if path != kept and _STATE.fullmatch(path.name):
                # Renamed first: a state must vanish whole.
                doomed = path.rename(path.with_name(f".part-{path.name}"))
                shutil.rmtree(doomed)

    def finish(self, history: Sequence[EpochResult]) -> None:
        """Marks the training as done and deletes its state."""
        write_json(self.path / FINISHED, {"epochs": [asdict(result) for result in history]})
        self.drop_states(keep=None)


def best_epoch(history: Sequence[EpochResult]) -> int:
    """The epoch with the best dev accuracy, the earliest of equals."""
    return max(history, key=lambda result: (result.n_dev_correct, -result.epoch)).epoch


def _read_history(path: Path) -> list[EpochResult]:
    try:
        history = [EpochResult(**row) for row in read_json(path)["epochs"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not a record of a training's epochs ({error}); copy it again") from error
    if [result.epoch for result in history] != list(range(1, len(history) + 1)):
        raise InputError(f"{path} does not list the epochs from 1 on; copy it again")
    return history


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
