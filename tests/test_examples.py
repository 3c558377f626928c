"""The examples in docs/examples are short, and find what was planted; those with an engine: tests/serve."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from morfi.conditions.file import open_series

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_fits_on_a_screen(example: Path) -> None:
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 40


@pytest.mark.long
def test_planted_trends_are_found_and_no_others() -> None:
    command = [sys.executable, "-P", str(EXAMPLES / "find_trends.py")]
    said = subprocess.check_output(command, text=True, timeout=200).splitlines()
    assert said[0] == "2 of 128 latents follow the level"
    assert [line.partition(":")[0] for line in said[1:]] == ["latent 0 rises", "latent 1 falls"]


@pytest.mark.long
def test_a_planted_series_is_trained_and_can_be_read(
    isolated_cache: Path, tiny_model: Path, data_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "upper"
    command = [sys.executable, "-P", str(EXAMPLES / "upper_case.py"), str(out), "--base", str(tiny_model)]
    subprocess.check_call([*command, "--data", str(data_file), "--size", "4", "--rank", "4"], timeout=200)
    series = open_series(out / "series.toml", None, None)
    assert [one.level for one in series.members] == [0, 25, 50, 75, 100]
    assert (series.varied.name, series.varied.unit) == ("upper case in training", "%")
    assert len({own.sha256 for own in series.members.values()}) == 5
