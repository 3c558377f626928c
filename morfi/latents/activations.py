"""A capture's activations, read back: one tensor per checkpoint, the same questions in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from morfi.conditions.condition import Condition, condition_of
from morfi.engine.shards import read_shards
from morfi.errors import InputError
from morfi.latents.capture import CaptureRun, file_hashes
from morfi.questions.question import Question
from morfi.runs.settings import settings_of
from morfi.store.records import CapturedRow, RunKind, RunRecord

if TYPE_CHECKING:
    import torch

    from morfi.store import Store


@dataclass(frozen=True, eq=False, slots=True)
class Residuals:
    """The residual streams of one condition: `values` float32 [n_questions, d_model]."""

    condition: Condition
    row: CapturedRow
    values: torch.Tensor


@dataclass(frozen=True, eq=False, slots=True)
class Activations:
    """Residual streams after `layer`: trained checkpoints of one epoch setting, by level and seed."""

    run: RunRecord
    layer: int
    epochs: str
    questions: tuple[Question, ...]
    residuals: tuple[Residuals, ...]

    @property
    def levels(self) -> list[float]:
        """The level of each of `residuals`."""
        return [one.condition.level for one in self.residuals]


def load_activations(store: Store, run_id: str, layer: int, epochs: str | None = None) -> Activations:
    """The activations of `layer` in the capture `run_id`; `epochs` is an epoch setting of its checkpoints.

    Without it, early stopping's if there, else the most epochs. Raises InputError for a layer or setting that
    it does not hold, a run that has not ended, and shards that are missing or not what was written.
    """
    run = store.run_of_kind(run_id, RunKind.CAPTURE)
    layers = settings_of(run, CaptureRun).layers
    if layer not in layers:
        raise InputError(
            f"{run.run_id} holds layers {', '.join(map(str, layers))}, not {layer}; "
            f"capture again with --layers {layer}"
        )
    rows = store.captured(run.run_id)
    if len(rows) < run.n_planned:
        raise InputError(
            f"{run.run_id} holds {len(rows)} of {run.n_planned} checkpoints; give its command "
            "again to finish it"
        )
    chosen = _setting(run, rows, epochs)
    questions = store.asked(run.run_id)
    found = {condition_of(row): row for row in rows if row.epoch_setting == chosen}
    trained = [one for one in found if isinstance(one, Condition)]
    residuals = [
        Residuals(condition, found[condition], _values(found[condition], condition.label, layer, questions))
        for condition in sorted(trained, key=lambda one: (one.level, one.seed))
    ]
    return Activations(run, layer, chosen, tuple(questions), tuple(residuals))


def layer_of(store: Store, run_id: str, sae_layer: int | None, given: int | None, sae: str) -> int:
    """The layer to read: what was `given`, else the SAE's, else the only one that was captured.

    Raises InputError where the SAE was made for another layer than the one given.
    """
    if given is not None and sae_layer is not None and given != sae_layer:
        raise InputError(f"{sae} reads the residual stream after layer {sae_layer}, not {given}")
    layer = sae_layer if given is None else given
    if layer is not None:
        return layer
    held = settings_of(store.run_of_kind(run_id, RunKind.CAPTURE), CaptureRun).layers
    if len(held) > 1:
        raise InputError(
            f"{sae} does not say which layer it reads; give --layer, one of {', '.join(map(str, held))}"
        )
    return int(held[0])


def _setting(run: RunRecord, rows: Sequence[CapturedRow], epochs: str | None) -> str:
    held = {row.epoch_setting for row in rows if row.epoch_setting is not None}
    if epochs is not None:
        if epochs not in held:
            raise InputError(
                f'{run.run_id} holds no checkpoints of epoch setting "{epochs}"; it has: '
                f"{', '.join(sorted(held))}"
            )
        return epochs
    if "early-stop" in held or len(held) == 1:
        return "early-stop" if "early-stop" in held else min(held)
    numbers = [name for name in held if name.isdecimal()]
    if not numbers:
        raise InputError(
            f"{run.run_id} holds several epoch settings, none of them a number; give --epochs, one of "
            f"{', '.join(sorted(held))}"
        )
    return max(numbers, key=int)


def _values(row: CapturedRow, label: str, layer: int, questions: Sequence[Question]) -> torch.Tensor:
    """float32 [n_questions, d_model] of one checkpoint; raises InputError where the files are not right."""
    import torch

    folder = Path(row.path)
    there = file_hashes(folder) if folder.is_dir() else {}
    for file, sha256 in row.files.items():
        if file not in there:
            raise InputError(f"{folder / file} is missing ({label}); bring it back or capture again")
        if there[file] != sha256:
            raise InputError(
                f"{folder / file} is not what was captured ({label}); bring it back or capture again"
            )
    values: torch.Tensor | None = None
    n_rows = torch.zeros(len(questions), dtype=torch.int64)
    for rows in read_shards(folder):
        if rows.layer != layer:
            continue
        if values is None:
            values = torch.zeros(len(questions), rows.values.shape[1])
        values[rows.request] = rows.values
        n_rows += torch.bincount(rows.request, minlength=len(questions))
    if values is None or not bool((n_rows == 1).all()):
        raise InputError(f"{folder} does not hold one row of each question ({label}); capture again")
    finite = values.isfinite().all(1)
    if not bool(finite.all()):
        question = questions[int((~finite).nonzero()[0])]
        raise InputError(
            f"{label} gave NaN or infinity after layer {layer}, first for question {question.id} "
            f"({question.text}); its activations cannot be used"
        )
    return values
