"""Options and words that a command does not take, and those that all take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import pytest
from command_line import CommandLine, Ended, commands_of, files_under, refused

from morfi.cli import cli
from morfi.command.settings import Setting


def test_every_command_takes_the_common_options_and_explains_itself() -> None:
    commands = dict(commands_of(cli))
    assert {"eval", "runs", "show", "compare", "sql", "export", "cache ls", "cache rm"} <= set(commands)
    for name, command in commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--db", "-v", "--json"} <= options, name
        assert command.help, name


@pytest.mark.parametrize("name", [name for name, _ in commands_of(cli)])
def test_help_says_of_every_option_what_holds_without_it(name: str) -> None:
    """But for flags, which are off, and for what has to be given."""
    command = dict(commands_of(cli))[name]
    context = click.Context(command, info_name=name)
    for one in command.get_params(context):
        if isinstance(one, click.Option) and not one.required and "--help" not in one.opts:
            assert isinstance(one, Setting), one.name
            assert one.is_flag or "(default: " in str(one.get_help_record(context)), one.opts
            assert one.help, one.opts


@pytest.mark.parametrize(
    "arguments", [(), ("evl",), ("eval", "--limt", "3"), ("eval", "--limit", "x"), ("show",)]
)
def test_bad_usage_exits_with_two(run: CommandLine, arguments: tuple[str, ...]) -> None:
    ended = run(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "Usage: morfi" in ended.err


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--data", "wrld-facts"), ('"wrld-facts"', 'Did you mean "world-facts"?')),
        (("--split", "tst"), ('"tst"', "train, dev, test")),
        (("--relations", "P17,P63"), ('"P63"', "available: P17, P36", 'Did you mean "P36"?')),
        (("--relations", "P17,"), ('--relations is "P17,"',)),
        (("--relations", ""), ('--relations is ""',)),
        (("--shots", "7"), ("relation P17", "6 questions in train", "too few for 7 exemplars")),
        (("--max-tokens", "400"), ("do not fit in the context of 512", "--max-tokens")),
        (("--limit", "0"), ("--limit is 0",)),
        (("--seed", "4294967296"), ("--seed is 4294967296", "at most 4294967295")),
        (("--match", "strct"), ('"strct"', 'Did you mean "strict"?')),
        (("--dtype", "bf16"), ('"bf16"', "bfloat16")),
        (("--chat",), ("no chat template",)),
        (("--base", "x"), ("not an adapter",)),
        (("--engine", "dtype=float16"), ('"dtype"', "use --dtype")),
        (("--engine", "trust-remote-code=true"), ("code from a checkpoint is never run",)),
        (("--engine", "max_num_seqs"), ("key=value", '"max_num_seqs"')),
        (("--engine", "a=1", "--engine", "a=2"), ('"a" is given twice',)),
        (("--engine", "max_model_len=1000000"), ("max_model_len=1000000", "1 to 512")),
        (("--resume", "eval-2026"), ("no such database",)),
        (("--split", ""), ("--split is empty",)),
        (("--data", ""), ("--data is empty",)),
        (("--db", ""), ("--db is empty",)),
        (("--config", ""), ("--config is empty",)),
        (("--base", ""), ("--base is empty",)),
        (("--data", "a\nb\x1b"), ("a\\nb\\x1b",)),
    ],
)
def test_an_option_that_cannot_be_met_is_refused_and_nothing_is_left(
    ask: Callable[..., Ended],
    tmp_path: Path,
    isolated_cache: Path,
    options: tuple[str, ...],
    parts: tuple[str, ...],
) -> None:
    refused(ask(*options), *parts)
    assert files_under(tmp_path / "here", isolated_cache) == {}


def test_sql_asks_for_the_value_of_its_last_option(run: CommandLine) -> None:
    ended = run("sql", "SELECT 1", "--db")
    assert (ended.code, ended.out) == (2, "")
    assert "'--db' requires an argument" in ended.err


def test_an_engine_setting_that_vllm_does_not_know_is_refused_with_the_nearest(
    ask: Callable[..., Ended],
) -> None:
    refused(ask("--engine", "max_num_seq=2"), 'no engine setting "max_num_seq"', '"max_num_seqs"')
    assert not Path("morfi.duckdb").exists()
