"""How the stages of an experiment stand, for the terminal and --json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from morfi.experiment import Outcome
from morfi.experiment.run import DONE
from morfi.report.following import command_line
from morfi.report.tables import aligned
from morfi.store import Store


def report_of_experiment(outcomes: Sequence[Outcome], store: Store) -> Path | None:
    """The report of the experiment, beside the database; None where it has not come to its end.

    One that is there already stays as it is unless a stage was done now.
    """
    last = outcomes[-1]
    if last.result is None or (last.stage, last.state) != ("steer", DONE):
        return None
    path = store.path.parent / f"{last.result}.html"
    if path.is_file() and not any(one.is_new for one in outcomes):
        return path
    from morfi.report.document import write_report

    return write_report(store, last.result, path)


def stages_object(outcomes: Sequence[Outcome], report: Path | None) -> dict[str, Any]:
    """The stages in order, each with its state, its run or folder and its seconds; where the report is."""
    return {"stages": [asdict(one) for one in outcomes], "report": report and str(report)}


def stages_text(outcomes: Sequence[Outcome], store: Store, report: Path | None) -> str:
    """A line for each stage, how to see what the last of them made, and at the end where the report is.

    The time of a stage that is not done is what its command took the last time.
    """
    rows = [(one.stage, one.state, _time(one), one.result or "") for one in outcomes]
    lines = aligned([("stage", "state", "time", "run"), *rows], numeric=(2,))
    made = [one.result for one in outcomes if one.state == DONE and one.stage != "sae train" and one.result]
    following = [command_line(store, "show", run_id) for run_id in made[-1:]]
    written = [] if report is None else [f"report: {report}"]
    return "\n".join([*lines, *following, *written])


def _time(one: Outcome) -> str:
    if one.seconds is None:
        return ""
    minutes, seconds = divmod(round(one.seconds), 60)
    about = "" if one.state == DONE else "about "
    return f"{about}{minutes}:{seconds:02} min"
