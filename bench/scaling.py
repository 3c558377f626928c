"""What the paper's grid takes by one engine and by several: `docs/scaling.md` rests on it.

The three presets of the paper (35 checkpoints of each model: 7 levels, 5 epochs) as `morfi plan` counts them
for H100s, on made-up questions of EntityQuestions' number and length, and the same with 100 seeds. Nothing is
measured here: the rates are those of docs/planning.md. Writes bench/results/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morfi.checkpoints import Checkpoint
from morfi.cli import cli
from morfi.command.experiment import open_experiment, settings_of, with_changes
from morfi.engine.protocol import Engine
from morfi.planning.outlook import outlook
from morfi.planning.plan import Plan, Planned
from morfi.report.planning import duration
from morfi.store import Store
from morfi.terminal import TerminalProgress

RESULTS = Path(__file__).resolve().parent / "results" / "scaling.md"
PRESETS = ("llama-3.1-8b", "gemma-2-9b", "mistral-7b-v0.3")
RELATIONS = ("P17", "P36", "P495", "P19", "P26", "P40", "P69", "P131", "P136", "P264", "P740", "P800")
N_QUESTIONS = 24000
ENGINES = (1, 8, 64)
SHARED = ("split", "sweep", "capture", "steer")  # that --engines shares out
STARTS = ("start and end", "engine start")  # which takes as long for several
DRIVER = ("judging and storing", "writing")  # by the one process that has the store, and the one disk


@dataclass(frozen=True, slots=True)
class Needed:
    """The seconds of a stage: until its engines are there, theirs together, and the driver's."""

    start: float
    engines: float
    driver: float
    is_shared: bool

    @classmethod
    def of(cls, stage: Planned) -> Needed:
        """The seconds of a planned stage."""
        seconds = stage.cost.seconds or {}
        start, driver = (sum(seconds.get(name, 0.0) for name in names) for names in (STARTS, DRIVER))
        whole = sum(seconds.values())
        return cls(start, whole - start - driver, driver, stage.work.stage in SHARED)

    def by(self, n: int) -> float:
        """The seconds that `n` engines take; while they answer the driver judges and stores."""
        if n == 1 or not self.is_shared:
            return self.start + self.engines + self.driver
        return self.start + max(self.engines / n, self.driver)

    @property
    def most(self) -> str:
        """The engines that one process and one disk keep busy."""
        return f"{max(1, round(self.engines / self.driver))}" if self.is_shared and self.driver else "1"


def made_up(path: Path) -> None:
    """Questions of the number and length of the paper's, in a file."""
    lines = []
    for number in range(N_QUESTIONS):
        subject = f"Someone called {number:05}"
        row: dict[str, Any] = {"id": f"q{number}", "relation": RELATIONS[number % len(RELATIONS)]}
        row |= {"subject": subject, "question": f"Which place is {subject} from?"}
        row |= {"answers": [f"Place {number % 400}"]}
        row |= {"split": ("train", "train", "train", "dev", "test")[number // len(RELATIONS) % 5]}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines), encoding="utf-8")


def planned(preset: str, data: Path, seeds: int) -> Plan:
    """The plan of a preset for H100s."""
    tables, where = open_experiment(None, preset, fast=False)
    tables = with_changes(tables, [f"data={data}", f"train.seeds={seeds}"])
    with TerminalProgress() as progress:
        return outlook(
            settings_of(tables, cli, where),
            Store(data.with_name("none.duckdb")),
            _never,
            progress,
            take=lambda given: {**given, "engine": None} if "engine" in given else given,
            gpu="h100",
        )


def _never(
    checkpoint: Checkpoint, *, context: int, seed: int, overrides: Mapping[str, Any]
) -> AbstractContextManager[Engine]:
    raise AssertionError("a plan starts no engine")


def table(plans: Sequence[Plan]) -> list[str]:
    """A line for each stage, of all models together, and their sum."""
    heads = [f"{n} engine{'s' * (n > 1)}" for n in ENGINES]
    lines = [
        f"| stage | {' | '.join(heads)} | engines kept busy | disk |",
        f"|---|{'---|' * (len(ENGINES) + 2)}",
    ]
    sums = [0.0] * len(ENGINES)
    for stages in zip(*(plan.stages for plan in plans), strict=True):
        needed = [Needed.of(one) for one in stages]
        times = [sum(one.by(n) for one in needed) for n in ENGINES]
        sums = [whole + one for whole, one in zip(sums, times, strict=True)]
        disk = sum(one.cost.disk for one in stages) / 1e9
        most = min((one.most for one in needed), key=int)
        lines.append(
            f"| {stages[0].work.stage} | {' | '.join(map(duration, times))} | {most} | {disk:,.1f} GB |"
        )
    return [*lines, f"| together | {' | '.join(map(duration, sums))} | | |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.parse_args()
    lines = ["# The paper's grid by several engines", "", "Computed by `bench/scaling.py`, not measured.", ""]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "made-up.jsonl"
        made_up(data)
        for seeds in (1, 100):
            plans = [planned(preset, data, seeds) for preset in PRESETS]
            lines += [f"## {seeds} seed{'s' * (seeds > 1)}, {', '.join(PRESETS)}", "", *table(plans), ""]
    RESULTS.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
