"""Shared: `morfi` in a folder of its own, with the fake engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, Ended
from small_experiment import write_experiment

import morfi.serve.engine


@pytest.fixture
def run(
    isolated_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    serving: Any,
) -> CommandLine:
    """Runs a command in this process, in an empty folder, with the fake engine."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(morfi.serve.engine, "start_engine", serving)
    return CommandLine(monkeypatch, capfd)


@pytest.fixture
def ask(run: CommandLine, tiny_model: Path, data_file: Path) -> Callable[..., Ended]:
    """Runs `morfi eval` of the tiny model on the small question file; later options win."""

    def evaluate(*more: object, ckpt: object = tiny_model, data: object = data_file) -> Ended:
        return run("eval", "--ckpt", ckpt, "--data", data, "--shots", 2, *more)

    return evaluate


@pytest.fixture
def experiment(run: CommandLine, half_known: None, tiny_model: Path, data_file: Path) -> Path:
    """The file of a small experiment, in the folder where `run` runs."""
    return write_experiment(Path("my.toml"), tiny_model, data_file)


@pytest.fixture
def half_known(serving: Any, questions: Any) -> None:
    """Lets the engine know two of every four questions."""
    known = [q for asked in questions.values() for i, q in enumerate(asked) if i % 4 < 2]
    serving.known = {question.text: question.answers[0] for question in known}
