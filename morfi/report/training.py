"""The trainings of a train run: a line for each mixture and seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from morfi.report.tables import aligned, percent
from morfi.store.records import CheckpointRow, EpochRow


def training_table(epochs: Sequence[EpochRow], checkpoints: Sequence[CheckpointRow]) -> str:
    """The table that `morfi train` ends with: loss, dev accuracy, time and checkpoints of every training."""
    header = (
        "mixture",
        "seed",
        "epochs",
        "loss first",
        "last",
        "best dev",
        "at epoch",
        "train s",
        "dev s",
        "checkpoints",
    )
    body = []
    for row in training_object(epochs, checkpoints)["trainings"]:
        best = row["best_dev"]
        body.append(
            (
                f"D_{row['level']}",
                str(row["seed"]),
                str(row["epochs"]),
                _loss(row["loss_first"]),
                _loss(row["loss_last"]),
                percent(best and best["accuracy"]),
                str(best["epoch"]) if best else "",
                f"{row['train_s']:.1f}",
                f"{row['dev_s']:.1f}",
                ", ".join(_name(saved) for saved in row["checkpoints"]),
            )
        )
    lines = aligned([header, *body], numeric=range(1, 9))
    return "\n".join(
        [*lines, "", "loss: mean over answer tokens. best dev: greedy answers right on dev questions."]
    )


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _name(saved: dict[str, Any]) -> str:
    setting = str(saved["epoch_setting"])
    return setting if setting == str(saved["epoch"]) else f"{setting} ({saved['epoch']})"


def training_object(epochs: Sequence[EpochRow], checkpoints: Sequence[CheckpointRow]) -> dict[str, Any]:
    """The object of `morfi train --json`: trainings by level and seed, each with its checkpoints."""
    keys = sorted({(e.level, e.seed) for e in epochs} | {(c.level, c.seed) for c in checkpoints})
    return {
        "trainings": [
            _training(
                level,
                seed,
                sorted((e for e in epochs if (e.level, e.seed) == (level, seed)), key=lambda e: e.epoch),
                [c for c in checkpoints if (c.level, c.seed) == (level, seed)],
            )
            for level, seed in keys
        ]
    }


def _training(
    level: int, seed: int, epochs: Sequence[EpochRow], checkpoints: Sequence[CheckpointRow]
) -> dict[str, Any]:
    """One training; of epochs that are equally right on dev the first is the best."""
    measured = [row for row in epochs if row.n_dev]
    best = max(measured, key=lambda row: (row.n_dev_correct / row.n_dev, -row.epoch), default=None)
    return {
        "level": level,
        "seed": seed,
        "epochs": len(epochs),
        "loss_first": epochs[0].loss if epochs else None,
        "loss_last": epochs[-1].loss if epochs else None,
        "best_dev": best
        and {"accuracy": best.n_dev_correct / best.n_dev, "n": best.n_dev, "epoch": best.epoch},
        "train_s": sum(row.train_s for row in epochs),
        "dev_s": sum(row.dev_s for row in epochs),
        "checkpoints": [
            {
                "epoch_setting": row.epoch_setting,
                "epoch": row.epoch,
                "adapter_sha256": row.adapter_sha256,
                "path": row.path,
            }
            for row in sorted(checkpoints, key=lambda row: (row.epoch, row.epoch_setting))
        ],
    }
