"""Numbers that mean nothing are refused by every command in one line that names the option."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from command_line import CommandLine, Ended, commands_of

from morfi.cli import cli
from morfi.command.settings import Listed
from morfi.errors import InputError
from morfi.runs.options import MAX_WHOLE
from morfi.training import train_config

WHOLE = ("0", "-1", str(MAX_WHOLE + 1), str(2**31), str(2**63), "9" * 30, f"-{'9' * 30}")
NOWHERE = {
    "eval": ["--ckpt=none"],
    "split": ["--ckpt=none"],
    "sae train": ["--ckpt=none"],
}  # lest anything begins
REAL = ("nan", "inf", "-inf", "-1", "1e400")


def kind_of(param: click.Parameter) -> type | None:
    """The kind of number that a parameter takes, if it does."""
    if isinstance(param.type, Listed):
        return param.type.each
    return {"integer": int, "integer range": int, "float": float}.get(param.type.name)


def numbers() -> Iterator[tuple[str, str, str]]:
    """Every option of every command that takes numbers, with values that it may not take."""
    for name, command in commands_of(cli):
        for param in command.get_params(click.Context(command)):
            kind = kind_of(param)
            if kind in (int, float):
                for value in WHOLE if kind is int else REAL:
                    yield name, param.opts[0], value


def required(name: str, option: str) -> list[str]:
    """Words for all else that a command asks for."""
    command = dict(commands_of(cli))[name]
    others = [param for param in command.get_params(click.Context(command)) if param.required]
    return [f"{one.opts[0]}=3" for one in others if one.opts[0] != option]


def refused_in_a_line(ended: Ended) -> str:
    """What a command that exits with 2 says, after click's word of its usage."""
    assert (ended.code, ended.out) == (2, ""), ended.err[-2000:]
    said = [line for line in ended.err.splitlines() if not line.startswith(("[", "Usage: ", "Try ")) and line]
    (line,) = said
    return line


@pytest.mark.long
@pytest.mark.parametrize("name", sorted({name for name, _, _ in numbers()}))
def test_no_number_ends_in_a_traceback(run: CommandLine, name: str) -> None:
    for command, option, value in numbers():
        if command != name:
            continue
        typed = [f"{option}={value}", *required(name, option), *NOWHERE.get(name, ())]
        said = refused_in_a_line(run(*name.split(), *typed))
        # Only `train` needs the database before it has all settings.
        if name != "train" and not abs(float(value)) < 10**13:
            assert option in said, (typed, said)
        file = Path("numbers.toml")
        file.write_text(f"{option.removeprefix('--')} = {value}\n")
        typed = ["--config", str(file), *required(name, option), *NOWHERE.get(name, ())]
        refused_in_a_line(run(*name.split(), *typed))


@pytest.mark.parametrize("value", [10**30, -(10**30), 2**63, True])
@pytest.mark.parametrize(
    "name", ["rank", "batch", "micro_batch", "warmup", "seeds", "dev_limit", "max_tokens"]
)
def test_a_training_has_bounds_for_every_number(name: str, value: int) -> None:
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} is "):
        train_config({"model": "smollm2", "batch": 32, "micro_batch": 32, name: value})
