"""What made the numbers of a report: settings, versions, hashes and seeds; cost; how to repeat them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from morfi.report.document.html import Cell, Section, code, paragraph, table
from morfi.report.document.material import Material
from morfi.store.records import AttemptRecord, RunRecord


def cost(material: Material) -> Section:
    """Time, requests and tokens of every run."""
    rows = []
    for run in material.chain.runs:
        one = material.store.summary(run.run_id)
        rows.append(
            (
                str(run.kind),
                one.run_id,
                one.status,
                Cell(f"{one.wall_s / 60:.1f}", one.wall_s),
                Cell(str(one.n_requests), one.n_requests),
                Cell(str(one.output_tokens), one.output_tokens),
            )
        )
    header = ("stage", "run", "status", "minutes", "requests", "output tokens")
    return Section(
        "cost", "What it cost", table(header, rows, caption="By stage; an SAE's training is not counted")
    )


def settings(material: Material) -> Section:
    """Every setting, version, hash and seed, by run."""
    body = ""
    for run in material.chain.runs:
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
    """The commands that made the runs."""
    commands = []
    for run in material.chain.runs:
        attempts = material.store.attempts(run.run_id)
        commands += [" ".join(_name(word) for word in one.command.split()) for one in attempts[:1]]
    said = paragraph(
        "The commands as they were given, with folders left out; the same command goes on or repeats."
    )
    return Section("repeat", "How to repeat it", said + code("\n".join(dict.fromkeys(commands))))


def _shortened(value: Any) -> Any:
    """The value with the last part of each path in it: where files lie is nobody's business."""
    if isinstance(value, dict):
        return {key: _shortened(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(one) for one in value]
    return _name(value) if isinstance(value, str) else value


def _name(word: str) -> str:
    return Path(word).name if word.startswith(("/", "~/")) else word
