"""What made the numbers of a report: settings, versions, hashes and seeds; cost; how to repeat them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from morfi.report.document.experiment_file import experiment_file, trained_sae
from morfi.report.document.html import Cell, Section, code, last_part, paragraph, table
from morfi.report.document.material import Material
from morfi.store.records import AttemptRecord, RunKind, RunRecord


def cost(material: Material) -> Section:
    """Time, requests and tokens of every run."""
    rows: list[tuple[str | Cell, ...]] = []

    def prompt_tokens(run: RunRecord) -> int:
        ended = f"SELECT sum(prompt_tokens)::BIGINT AS n FROM attempt_end WHERE run_id = '{run.run_id}'"
        return int(material.store.query(ended).to_pylist()[0]["n"] or 0)

    for run in material.experiment.runs:
        one = material.store.summary(run.run_id)
        rows.append(
            (
                str(run.kind),
                one.run_id,
                one.status,
                Cell(f"{one.wall_s / 60:.1f}", one.wall_s),
                *(Cell(f"{n:,}", n) for n in (one.n_requests, prompt_tokens(run), one.output_tokens)),
            )
        )
        if run.kind == RunKind.FIND and (trained := trained_sae(material.chain)) is not None:
            rows.insert(-1, _training(trained))
    header = ("stage", "run", "status", "minutes", "requests", "prompt tokens", "output tokens")
    return Section("cost", "What it cost", table(header, rows, caption="By stage"))


def _training(trained: Mapping[str, Any]) -> tuple[str | Cell, ...]:
    """The row of an SAE's training, which is no run: its tokens are those that the SAE saw."""
    seconds, none = trained.get("wall_s"), Cell("-", 0)
    minutes = Cell(f"{seconds / 60:.1f}", seconds) if seconds is not None else none
    return "sae train", f"{trained['config']['tokens']:,} tokens seen", "done", minutes, none, none, none


def settings(material: Material) -> Section:
    """Every setting, version, hash and seed, by run."""
    body = ""
    for run in material.experiment.runs:
        attempts = material.store.attempts(run.run_id)
        body += (
            f"<details><summary>{run.kind} {run.run_id}</summary>{code(_settings(run, attempts))}</details>"
        )
    return Section("settings", "Settings, versions and hashes", body)


def _settings(run: RunRecord, attempts: list[AttemptRecord]) -> str:
    hashes = {
        "checkpoint": run.ckpt_sha256,
        "base": run.base_sha256,
        "questions": run.data_sha256,
        "fingerprint": run.fingerprint,
    }
    found: dict[str, Any] = {"settings": _shortened(dict(run.config)), "sha256": hashes, "seed": run.seed}
    if attempts:
        last = attempts[-1]
        found["made by"] = {
            "morfi": last.morfi_version,
            "commit": last.git_commit,
            **last.versions,
            "device": last.device,
        }
        found["engine"] = _shortened(dict(last.engine))
    return json.dumps(found, indent=1, default=str, sort_keys=True, ensure_ascii=False)


def repeat(material: Material) -> Section:
    """The commands that made the runs, and the file that makes them again."""
    commands = []
    for run in material.experiment.runs:
        attempts = material.store.attempts(run.run_id)
        commands += [" ".join(last_part(word) for word in one.command.split()) for one in attempts[:1]]
    said = paragraph(
        "The commands as they were given, with folders left out; the same command goes on or repeats."
    )
    file = paragraph(
        "The same as one file, with every setting that is not by default and folders left out: save it as "
        "experiment.toml, and give morfi run experiment.toml."
    )
    body = said + code("\n".join(dict.fromkeys(commands)), copied=True)
    body += file + code(experiment_file(material.chain), copied=True)
    return Section("repeat", "How to repeat it", body)


def _shortened(value: Any) -> Any:
    """The value with the last part of each path in it."""
    if isinstance(value, dict):
        return {key: _shortened(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(one) for one in value]
    return last_part(value) if isinstance(value, str) else value
