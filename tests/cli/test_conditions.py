"""A series as a user brings it: checked, then swept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine


@pytest.fixture
def file(trained_once: tuple[Any, str], tiny_model: Path, tmp_path: Path) -> Path:
    """A series of the adapters that a train run made, its levels fractions."""
    made, run_id = trained_once
    rows = [row for row in made.store.checkpoints(run_id) if row.epoch_setting == "1"]
    tables = [f"[[checkpoint]]\npath = '{row.path}'\nlevel = {row.level / 8}" for row in rows]
    file = tmp_path / "my-series.toml"
    file.write_text("\n".join([f"property = 'dose'\nbase = '{tiny_model}'", *tables]))
    return file


def test_a_series_is_listed_or_refused_with_every_fault(run: CommandLine, file: Path) -> None:
    found = run("conditions", "check", file, "--json").json
    assert (found["property"], found["unit"]) == ("dose", None)
    assert [(one["level"], one["seed"], one["epochs"], one["kind"]) for one in found["conditions"]] == [
        (level, 0, "final", "adapter") for level in (0, 6.25, 12.5)
    ]
    shown = run("conditions", "check", file)
    assert "3 conditions of 3 levels of dose, on tiny in" in shown.out
    assert f"{found['conditions'][0]['n_bytes']:,}" in shown.out
    file.write_text(file.read_text().replace("level = 6.25", "level = nan").replace("dose", ""))
    ended = run("conditions", "check", file)
    assert (ended.code, ended.out) == (2, "")
    assert "my-series.toml: 2 faults\n" in ended.err
    assert "level is nan; expected a finite number" in ended.err
    assert "Traceback" not in ended.err


def test_a_sweep_takes_a_series_from_any_folder(run: CommandLine, file: Path, data_file: Path) -> None:
    swept = run("sweep", "--ckpts", file, "--data", data_file, "--limit", 4, "--json").json
    assert (swept["status"], swept["n_done"]) == ("done", 4)
    assert [one["level"] for one in swept["groups"]["test"]["checkpoints"]] == [0, 6.25, 12.5]
    assert all(Path(path).stat().st_size > 0 for path in swept["pictures"])
    ended = run("sweep", "--ckpts", file)
    assert (ended.code, "--data is missing" in ended.err) == (2, True)
    assert run("sweep", "--ckpts", file.parent / "gone.toml").code == 2
