"""A capture's activations, read back: one tensor per checkpoint, the same questions in the same order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from morfi.conditions.condition import Condition, condition_of, in_order
from morfi.engine.residual_stream import ResidualStream
from morfi.engine.shards import read_shards, width_in
from morfi.errors import InputError
from morfi.latents.capture import CaptureRun, file_hashes
from morfi.questions.question import Question
from morfi.runs.settings import settings_of
from morfi.store.records import EARLY_STOP, CapturedRow, RunKind, RunRecord
from morfi.words import counted, together

if TYPE_CHECKING:
    import torch

    from morfi.store import Store

LEVEL, EPOCHS = "level", "epochs"  # what an axis goes along


@dataclass(frozen=True, eq=False, slots=True)
class Residuals:
    """The residual streams of one condition: `values` float32 [n_questions, d_model]."""

    condition: Condition
    row: CapturedRow
    values: torch.Tensor


@dataclass(frozen=True, slots=True)
class Axis:
    """Some checkpoints of a series in an order: all levels of one epoch setting, or all epochs of one level.

    Along "level", `epochs` is the setting: without it early stopping's if there, else the most epochs. Along
    "epochs", `at` is the level: without it the highest.
    """

    along: str = LEVEL
    epochs: str | None = None
    at: float | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A captured checkpoint that has no place on an axis, and why."""

    condition: Condition
    why: str


@dataclass(frozen=True, eq=False, slots=True)
class Activations:
    """Residual streams after `layer`: checkpoints along `axis` in its order, replicates of a place by seed.

    `epochs` is the epoch setting along "level", and that of the last checkpoint along "epochs".
    """

    run: RunRecord
    layer: int
    axis: Axis
    epochs: str
    questions: tuple[Question, ...]
    residuals: tuple[Residuals, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def levels(self) -> list[float]:
        """The number by which each of `residuals` is ordered: its level, or its epochs."""
        if self.axis.along == LEVEL:
            return [one.condition.level for one in self.residuals]
        return [one.condition.epoch for one in self.residuals if one.condition.epoch is not None]


def load_activations(store: Store, run_id: str, layer: int, axis: Axis | None = None) -> Activations:
    """The activations of `layer` in the capture `run_id`, of the checkpoints along `axis`.

    Raises InputError for a layer, epoch setting or level that it does not hold, checkpoints whose epochs are
    not known where they are to be ordered by them, a run that has not ended, and shards that are missing or
    not what was written.
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
    questions = store.asked(run.run_id)
    named = [(condition_of(row), row) for row in rows]
    trained = {condition: row for condition, row in named if isinstance(condition, Condition)}
    axis, chosen = _along(run, list(trained), axis or Axis())
    residuals = [
        Residuals(one, trained[one], _values(trained[one], one.label, layer, questions)) for one in chosen
    ]
    epochs = axis.epochs or chosen[-1].epoch_setting
    left = left_out(axis.along, chosen, trained)
    return Activations(run, layer, axis, epochs, tuple(questions), tuple(residuals), tuple(left))


def left_out(along: str, used: Sequence[Condition], held: Iterable[Condition]) -> list[LeftOut]:
    """The checkpoints of `held` that are not `used` along an axis, each with the reason."""
    first = used[0]
    placed = {(one.epoch, one.seed): one for one in used}
    found = []
    for one in held:
        if one in used:
            continue
        if along == LEVEL:
            why = f"a trend along levels is of one epochs setting, here {first.epoch_setting}; see --epochs"
        elif one.level != first.level:
            why = f"a trend along epochs is of one level, here {first.level}; see --at"
        else:
            why = f"it is {placed[one.epoch, one.seed].label}, which is used"
        found.append(LeftOut(one, why))
    return found


def left_out_lines(left: Sequence[LeftOut]) -> list[str]:
    """A line for each reason: how many checkpoints it leaves out, and which."""
    lines = []
    for why in dict.fromkeys(one.why for one in left):
        own = [one.condition for one in left if one.why == why]
        levels, settings = sorted({one.level for one in own}), in_order(one.epoch_setting for one in own)
        which = f"levels {together(levels)}, epochs {together(settings)}"
        lines.append(f"left out: {counted(len(own), 'checkpoint')} ({which}): {why}")
    return lines


def _along(run: RunRecord, trained: Sequence[Condition], axis: Axis) -> tuple[Axis, list[Condition]]:
    """The axis with what was left open, and its conditions in order."""
    if axis.along == LEVEL:
        chosen = _setting(run, trained, axis.epochs)
        own = [one for one in trained if one.epoch_setting == chosen]
        return Axis(LEVEL, chosen), sorted(own, key=lambda one: (one.level, one.seed))
    held = sorted({one.level for one in trained})
    if axis.at is not None and axis.at not in held:
        raise InputError(
            f"{run.run_id} holds no checkpoints of level {axis.at:g}; it has: {', '.join(map(str, held))}"
        )
    at = held[-1] if axis.at is None else held[held.index(axis.at)]  # as the store has it: 100, not 100.0
    placed: dict[tuple[int, int], Condition] = {}
    for one in sorted((one for one in trained if one.level == at), key=lambda one: one.epoch_setting):
        if one.epoch is None:
            raise InputError(f"{one.label}: its epochs are no number, so it has no place along them")
        # Of two settings that are one checkpoint, such as early stopping's, the number: it sorts first.
        placed.setdefault((one.epoch, one.seed), one)
    return Axis(EPOCHS, at=at), [placed[place] for place in sorted(placed)]


def captured_stream(store: Store, run_id: str) -> ResidualStream:
    """The residual stream whose rows the capture `run_id` holds, as the headers of its files say."""
    run = store.run_of_kind(run_id, RunKind.CAPTURE)
    widths = (width_in(Path(row.path)) for row in store.captured(run.run_id))
    width = next((one for one in widths if one is not None), None)
    return ResidualStream(f"{Path(run.ckpt).name}, which {run.run_id} captured,", None, width)


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


def _setting(run: RunRecord, trained: Sequence[Condition], epochs: str | None) -> str:
    """The epoch setting that is given, else early stopping's, else the most epochs.

    Raises InputError where it is not held, or where none is given and a training lacks the one that would
    be taken.
    """
    held = in_order(one.epoch_setting for one in trained)
    if epochs is not None:
        if epochs not in held:
            raise InputError(
                f'{run.run_id} holds no checkpoints of epoch setting "{epochs}"; it has: {", ".join(held)}'
            )
        return epochs
    numbers = [name for name in held if name.isdecimal()]
    if not numbers and len(held) > 1 and EARLY_STOP not in held:
        raise InputError(
            f"{run.run_id} holds several epoch settings, none of them a number; give --epochs, one of "
            f"{', '.join(held)}"
        )
    chosen = EARLY_STOP if EARLY_STOP in held else numbers[-1] if numbers else held[0]
    has = {(one.level, one.seed) for one in trained if one.epoch_setting == chosen}
    lacking = [one for one in trained if (one.level, one.seed) not in has]
    if lacking:
        raise InputError(
            f"{run.run_id} holds checkpoints of the epochs settings {together(held)}, and of {chosen}, which "
            f"is taken without --epochs, there is none of {lacking[0].name}, seed {lacking[0].seed}; give "
            f"--epochs, and what has no such checkpoint is left out"
        )
    return chosen


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
