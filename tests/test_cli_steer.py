"""`morfi steer` as a user types it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import morfi.serve.engine
from morfi.cli import main

SMALL = ("--alphas", "-1,1", "--controls", 2, "--random", 2)


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def steer(
    steerable: tuple[Any, str],
    serving: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[..., Ended]:
    """Runs `morfi COMMAND` on the store of a find run, with the fake engine; RUN stands for the find run."""
    store, find_id = steerable
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(morfi.serve.engine, "start_engine", serving)

    def command(*arguments: object) -> Ended:
        given = [find_id if one == "RUN" else str(one) for one in arguments]
        monkeypatch.setattr(sys, "argv", ["morfi", *given, "--db", str(store.path)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        said = capfd.readouterr()
        assert isinstance(stop.value.code, int)
        return Ended(stop.value.code, said.out, said.err)

    return command


def test_it_prints_one_table_and_writes_the_picture(steer: Callable[..., Ended], tmp_path: Path) -> None:
    ended = steer(
        "steer", "--ckpt", "M_100", "--latents", "RUN", *SMALL, "--combine", "--halving", "--layer-scan"
    )
    assert ended.code == 0, ended.err
    print(ended.out)
    assert 0
