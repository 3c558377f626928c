"""The examples in docs/examples are short, and find what was planted; those with an engine: tests/serve."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
