"""The examples of docs/examples that start an engine, on a tiny random model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture(scope="module")
def model(tiny_base: Callable[[str], Path], isolated: Path, starts_vllm: None) -> Path:
    return tiny_base("llama")


def said_by(example: str, *arguments: object) -> list[str]:
    """The lines that an example prints."""
    command = [sys.executable, "-P", str(EXAMPLES / example), *map(str, arguments)]
    return subprocess.check_output(command, text=True, timeout=400).splitlines()


def test_an_answer_is_given_without_and_with_steering(model: Path) -> None:
    prompt = "Q: Where is it?"  # a token per letter
    said = said_by("steer.py", "--ckpt", model, "--layer", 0, "--prompt", prompt)
    assert said[0].startswith("plain:")
    (n_steered,) = (line.partition(": ")[2] for line in said if line.startswith("tokens steered: "))
    assert len(prompt) <= int(n_steered) < len(prompt) + 16


def test_residual_streams_are_captured_into_a_tensor(model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("Q: Where?\nQ: Why?\nQ: Where?\n")
    out = tmp_path / "out.safetensors"
    said = said_by("capture.py", tmp_path / "prompts.txt", "--ckpt", model, "--layer", 1, "--out", out)
    assert said == [f"{out}: (3, 64)"]
    first, second, third = load_file(out)["residuals"]
    assert first.allclose(third, rtol=1e-4, atol=1e-5)
    assert not first.allclose(second, rtol=1e-2, atol=1e-2)


def test_own_questions_are_asked_and_read_from_the_store(model: Path, tmp_path: Path) -> None:
    rows = [
        {
            "id": f"q{i}",
            "relation": "P17",
            "subject": f"S{i}",
            "question": f"Where is S{i}?",
            "answers": ["X"],
        }
        for i in range(3)
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    db = tmp_path / "own.duckdb"
    said = said_by("eval_questions.py", tmp_path / "questions.jsonl", "--ckpt", model, "--db", db)
    assert [line.split("\t")[:2] for line in said[:-1]] == [["wrong", row["question"]] for row in rows]
    assert said[-1].startswith("0 of 3 are right; run ")
