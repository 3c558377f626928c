"""One side of train_throughput.py: morfi's training loop on questions, without dev accuracy and saving."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from pathlib import Path

from morfi.questions.question import Question
from morfi.training import TrainingData, prepare_training, train_config
from morfi.training.lora import attach_lora
from morfi.training.plan import Mixture
from morfi.training.run import load_base
from morfi.training.trainer import LoraTrainer


class Silent:
    """A progress that shows nothing."""

    def phase(self, text: str) -> None:
        """Nothing."""

    def start(self, n_total: int, n_done: int, unit: str) -> None:
        """Nothing."""

    def advance(self, n: int) -> None:
        """Nothing."""


def main() -> None:
    """Reads {"questions", "settings"}, the options of a training; writes seconds a step and the mean loss."""
    job = json.load(sys.stdin)
    questions = tuple(Question(**{**row, "answers": tuple(row["answers"])}) for row in job["questions"])
    settings = {**job["settings"], "epochs": tuple(job["settings"]["epochs"])}
    data = TrainingData("questions", "0" * 64, (Mixture(0, questions),), ())
    task = prepare_training(train_config({**settings, "early_stop": False}), data, Silent())
    model = attach_lora(load_base(task), task.config, seed=0)
    times: list[float] = []
    losses: list[float] = []

    def end_epoch(trainer: LoraTrainer) -> None:
        losses.append(trainer.epoch_loss)
        trainer.clear_epoch()

    with tempfile.TemporaryDirectory() as folder:
        trainer = LoraTrainer(
            model,
            task.jobs[0],
            task.config,
            Path(folder),
            end_epoch=end_epoch,
            end_step=lambda _: times.append(time.perf_counter()),
        )
        times.append(time.perf_counter())
        trainer.train()
    steps = [end - start for start, end in itertools.pairwise(times)]
    print(
        json.dumps({"steps_s": steps, "loss": sum(losses) / len(losses), "settings": {"dtype": task.dtype}})
    )


main()
