"""Trainings of tiny models on a few facts, on a CPU in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from morfi.questions.question import Question
from morfi.questions.sets import question_set
from morfi.store.records import CheckpointRow, EpochRow
from morfi.training import TrainingData, prepare_training, run_training, train_config
from morfi.training.plan import Mixture, TrainingTask

TOWNS = ("Aa", "Bebe", "Cici", "Do", "Ee", "Foofoo", "Gi", "Hoho", "Iiiii", "Jo", "Ka")
FACTS = tuple(
    Question(f"q{i}", f"P{i % 2}", town, f"Where is {town}?", (("France", "Peru", "Chad")[i % 3],))
    for i, town in enumerate(TOWNS)
)


@dataclass
class Rows:
    """The rows of a run, kept in memory, and a progress that counts."""

    epochs: list[EpochRow] = field(default_factory=list)
    checkpoints: list[CheckpointRow] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)
    n_total: int = 0
    n_before: int = 0
    n_done: int = 0

    def record(self, row: EpochRow | CheckpointRow) -> None:
        if isinstance(row, EpochRow):
            self.epochs.append(row)
        else:
            self.checkpoints.append(row)

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def start(self, n_total: int, n_done: int, unit: str) -> None:
        self.n_total, self.n_before, self.n_done = n_total, n_done, n_done

    def advance(self, n: int) -> None:
        self.n_done += n


@dataclass
class Trained:
    """The result of a run: its rows by name of setting, and all that was recorded."""

    rows: list[CheckpointRow]
    recorded: Rows

    @property
    def sha256s(self) -> dict[tuple[int, int, str], str]:
        """The adapters' hashes by level, seed and epoch setting."""
        return {(row.level, row.seed, row.epoch_setting): row.adapter_sha256 for row in self.rows}


@dataclass
class TrainTiny:
    """Prepares and runs trainings of a tiny model on a CPU in float32."""

    model: Path
    facts: tuple[Question, ...]

    def data(
        self, levels: Sequence[int] = (0,), questions: Sequence[Question] | None = None, n_dev: int = 3
    ) -> TrainingData:
        """Mixtures of `questions` (the facts), in another order for each level; dev is the first of them."""
        given = tuple(self.facts if questions is None else questions)
        mixtures = tuple(Mixture(level, given[i:] + given[:i]) for i, level in enumerate(levels))
        sha256 = question_set("facts", {"train": given}).sha256
        return TrainingData("facts", sha256, mixtures, given[:n_dev])

    def prepare(self, data: TrainingData | None = None, **given: Any) -> TrainingTask:
        """A task of few steps."""
        small = {"model": str(self.model), "rank": 2, "alpha": 4.0, "lr": 0.01, "batch": 4, "micro_batch": 2}
        small |= {"warmup": 0, "epochs": (1, 2), "gradient_checkpointing": False, "max_tokens": 8}
        return prepare_training(train_config(small | given), data or self.data(), Rows())

    def __call__(self, folder: Path, data: TrainingData | None = None, **given: Any) -> Trained:
        """Trains into `folder`."""
        recorded = Rows()
        rows = run_training(self.prepare(data, **given), folder, recorded.record, recorded, attempt=1)
        return Trained(rows, recorded)
