"""The commands that read: `morfi runs`, `show`, `compare`, `sql`, `export`, `cache`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import RESULT_KEYS, CommandLine, Ended

from morfi.cache import Cache, Manifest


@pytest.fixture
def run_ids(ask: Callable[..., Ended]) -> list[str]:
    """Two runs that differ in what they accept."""
    asked = [ask("--json"), ask("--json", "--match", "contains", "--seed", 1)]
    return [json.loads(ended.out)["run_id"] for ended in asked]


@pytest.mark.long
def test_every_reading_command_answers_with_one_object_that_has_a_run_id(
    run_ids: list[str], run: CommandLine, tmp_path: Path, isolated_cache: Path
) -> None:
    Cache().get_or_create("abc", lambda path: path.joinpath("f").touch(), Manifest("merged", "m", {}))
    first, second = run_ids
    answers = {}
    for command in (
        ("runs",),
        ("show", first),
        ("compare", first, second),
        ("sql", "SELECT 1 AS a, 'nan'::DOUBLE AS a, [1.5, 'inf'::DOUBLE] AS b"),
        ("export", "last", "--out", tmp_path / "rows.jsonl"),
        ("cache", "ls"),
        ("cache", "rm", "abc"),
    ):
        ended = run(*command, "--json")
        assert ended.code == 0, ended
        (line,) = ended.out.splitlines()
        answers[command[:2]] = json.loads(line, parse_constant=pytest.fail)
        assert "run_id" in answers[command[:2]]
    assert [run["run_id"] for run in answers[("runs",)]["runs"]] == [second, first]
    assert answers["show", first]["run_id"] == first
    assert set(answers["show", first]) >= RESULT_KEYS
    assert [attempt["device"] for attempt in answers["show", first]["attempts"]] == ["fake"]
    assert answers["show", first]["config"]["match"] == "squad"
    assert answers["compare", first]["whole"]["n"] == 20
    (sql,) = (answer for command, answer in answers.items() if command[0] == "sql")
    assert (sql["columns"], sql["rows"]) == (["a", "a_2", "b"], [{"a": 1, "a_2": None, "b": [1.5, None]}])
    assert answers["export", "last"]["run_id"] == second
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 20
    assert Cache().entries() == []


@pytest.mark.long
def test_every_reading_command_prints_a_table_without_json(run_ids: list[str], run: CommandLine) -> None:
    for command, holds in (
        (("runs",), run_ids[0]),
        (("show", "last"), run_ids[1]),
        (("compare", *run_ids), "McNemar p"),
        (("sql", "SELECT 1 AS a, 2 AS a"), "1  2"),
        (("export", "last", "--format", "csv"), "Testville"),
        (("cache", "ls"), "MB in"),
    ):
        ended = run(*command)
        assert (ended.code, ended.err) == (0, ""), ended
        assert holds in ended.out


def test_export_with_json_needs_a_file(run_ids: list[str], run: CommandLine) -> None:
    ended = run("export", "last", "--json")
    assert (ended.code, ended.out) == (2, "")
    assert "--out" in ended.err
