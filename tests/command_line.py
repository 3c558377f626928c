"""Commands of `morfi` as a user types them, run in the tests' own process."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from morfi.cli import main
from morfi.command.settings import Configured

# What `morfi eval --json` says.
RESULT_KEYS = {"run_id", "ckpt", "ckpt_sha256", "data_sha256", "n", "accuracy", "ci", "by_relation"}
RESULT_KEYS |= {"requests_per_s", "output_tokens", "wall_s"}


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on standard output."""
        assert self.code == 0, self.err
        return json.loads(self.out)


@dataclass(frozen=True)
class CommandLine:
    """Runs `morfi` with the arguments that it is called with."""

    monkeypatch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture[str]

    def __call__(self, *arguments: object) -> Ended:
        self.monkeypatch.setattr(sys, "argv", ["morfi", *map(str, arguments)])
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        said = self.capfd.readouterr()
        assert isinstance(stop.value.code, int)
        return Ended(stop.value.code, said.out, said.err)


def refused(ended: Ended, *parts: str) -> None:
    """Asserts one clear line with all of `parts`, exit 2 and no answer."""
    assert (ended.code, ended.out) == (2, ""), ended
    lines = ended.err.splitlines()
    said = [line for line in lines if not line.startswith("[")]  # but for the phases before it
    assert len(said) == 1, ended.err
    assert said[0].startswith("morfi: ")
    for part in parts:
        assert part in said[0]


def files_under(*roots: Path) -> dict[str, str]:
    """The sha256 of each file, except the cache's locks and its memory of hashes."""
    found = [path for root in roots if root.is_dir() for path in sorted(root.rglob("*"))]
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in found
        if path.name not in ("hashes.json", "locks", "hashes", "checkpoints") and path.parent.name != "locks"
    }


def commands_of(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Configured]]:
    """Every command by its words."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands_of(command, (*words, name))
        else:
            assert isinstance(command, Configured)
            command.get_params(click.Context(command))
            yield " ".join((*words, name)), command
