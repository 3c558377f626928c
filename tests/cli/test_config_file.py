"""--config and --write-config, of every command, and the defaults that --help shows: nothing is run here."""

from __future__ import annotations

import dataclasses
import importlib
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from command_line import commands_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from morfi.cli import cli
from morfi.command.settings import Listed, Plain, Setting
from morfi.errors import InputError
from morfi.runs.options import default_here, listed, option_of

# `morfi run` has a file of its own kind, of many commands.
COMMANDS = {name: one for name, one in commands_of(cli) if not isinstance(one, Plain)}
CONFIGS = {
    "eval": "morfi.evaluation.config:EvalConfig",
    "verify": "morfi.verification.verify:VerifyConfig",
    "split": "morfi.evaluation.split:SplitConfig",
    "mix": "morfi.training.mixtures:MixConfig",
    "train": "morfi.training.config:TrainConfig",
    "sweep": "morfi.evaluation.sweep_plan:SweepConfig",
    "capture": "morfi.latents.capture:CaptureConfig",
    "sae train": "morfi.latents.sae_training:SaeTraining",
    "find": "morfi.latents.find:FindConfig",
    "steer": "morfi.interventions.config:SteerConfig",
    "serve": "morfi.serve.http.launch:ServeConfig",
}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), prog_name="morfi")


def values_of(name: str, arguments: list[str]) -> dict[str, Any]:
    """The values that a command would be called with, but for --write-config."""
    *groups, last = name.split()
    ctx = click.Context(cli, info_name="morfi")
    for word in groups:
        group = cli.commands[word]
        ctx = click.Context(group, parent=ctx, info_name=word)
    found = dict(COMMANDS[name].make_context(last, list(arguments), parent=ctx).params)
    found.pop("write_config")
    return found


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
WHOLE = st.integers(-(10**30), 10**30).map(str)
REAL = st.floats(allow_nan=False).map(str)


def text_of(param: click.Parameter) -> st.SearchStrategy[str]:
    """Text that may be typed for a parameter."""
    kind = param.type
    if isinstance(kind, Listed):
        one = {int: WHOLE, float: REAL, str: TEXT.filter(lambda text: text.isalnum())}[kind.each]
        return st.lists(one, min_size=1, max_size=3).map(",".join)
    if isinstance(kind, click.IntRange):
        return st.integers(kind.min or 0, kind.max or 10**6).map(str)
    if isinstance(kind, click.Choice):
        return st.sampled_from(list(kind.choices))
    if isinstance(kind, click.Path):
        return TEXT.filter(lambda text: text.strip() != "" and "/" not in text)
    return {click.INT: WHOLE, click.FLOAT: REAL}.get(kind, TEXT)


@st.composite
def typed(draw: st.DrawFn, name: str) -> list[str]:
    """The arguments of a command, as they may be typed."""
    options: list[str] = []
    arguments: list[str] = []
    for param in COMMANDS[name].settings.values():
        if isinstance(param, click.Argument):
            arguments.append(draw(text_of(param)))
        elif param.required or draw(st.booleans()):
            assert isinstance(param, click.Option)
            if param.is_flag:
                options.append(draw(st.sampled_from([*param.opts, *param.secondary_opts])))
            else:
                n = draw(st.integers(1, 2)) if param.multiple else 1
                options += [f"{param.opts[-1]}={draw(text_of(param))}" for _ in range(n)]
    if name == "sql":  # which takes "--" for a comment
        return [*options, *(f"SELECT {text}" for text in arguments)]
    return [*options, "--", *arguments]


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_written_and_read_again_runs_the_same(name: str, tmp_path: Path) -> None:
    file = tmp_path / "written.toml"

    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(typed(name))
    def check(arguments: list[str]) -> None:
        written = run(*name.split(), "--write-config", *arguments)
        assert written.exit_code == 0, written.output
        file.write_text(written.stdout, encoding="utf-8", newline="")
        again = run(*name.split(), "--write-config", f"--config={file}")
        assert (again.exit_code, again.stdout) == (0, written.stdout), again.output
        first, second = values_of(name, arguments), values_of(name, [f"--config={file}"])
        for key, value in first.items():
            field = getattr(COMMANDS[name].settings.get(key.replace("_", "-")), "field", None)
            if value in (None, ()) and field is not None:
                assert second[key] in (None, (), default_here(field)), key
            else:
                assert second[key] == value, key

    check()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_of_defaults_is_that_of_its_own_file(name: str, tmp_path: Path) -> None:
    module, _, class_name = CONFIGS[name].partition(":")
    config = getattr(importlib.import_module(module), class_name)
    required = [p for p in COMMANDS[name].settings.values() if p.required]
    typed_ = [part for p in required for part in (p.opts[0], "3")]
    file = tmp_path / "all.toml"
    file.write_text(run(*name.split(), "--write-config", *typed_).stdout, encoding="utf-8")
    found = values_of(name, ["--config", str(file)])
    for field in dataclasses.fields(config):
        if found.get(field.name) not in (None, ()):
            known = option_of(field)
            if known.required is not True and field.default is not dataclasses.MISSING:
                assert found[field.name] == default_here(field), field.name


@pytest.mark.parametrize("name", CONFIGS)
def test_help_shows_every_default_of_the_configuration(name: str) -> None:
    shown = " ".join(run(*name.split(), "--help").output.split()).replace("- ", "-")
    for param in COMMANDS[name].settings.values():
        if isinstance(param, Setting) and param.shown:
            assert f"(default: {param.shown})".replace("- ", "-") in shown, param.name
    assert "(default: None" not in shown


def test_help_takes_defaults_from_where_they_are_defined() -> None:
    shown = " ".join(run("split", "--help").output.split())
    assert "Few-shot prompts for each question (default: 3; 10 on a GPU)." in shown
    assert "(default: by the machine's size)" in shown
    assert "(default: -0.8,-0.4,-0.2,-0.1,-0.05,0.05,0.1,0.2,0.4,0.8)" in " ".join(
        run("steer", "--help").output.split()
    )


def refused(text: str | bytes, tmp_path: Path, *arguments: str) -> str:
    """Why a file is refused."""
    file = tmp_path / "run.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = run(*arguments, "--config", str(file))
    assert found.stdout == ""
    assert isinstance(found.exception, InputError), found.output
    return str(found.exception).replace(str(file), "run.toml")


@pytest.mark.parametrize(
    ("command", "text", "message"),
    [
        ("eval", "limt = 3", 'has no option "limt"; see morfi eval --help. Did you mean "limit"?'),
        ("eval", "max_tokens = 3", 'Did you mean "max-tokens"?'),
        ("eval", "config = 'x'", 'has no option "config"'),
        ("eval", "[evl]\nlimit = 3", 'run.toml: [evl] is not the table of a command. Did you mean "eval"?'),
        ("eval", "[sae.trian]\nk = 3", '"trian", which is not a command. Did you mean "sae train"?'),
        ("sae train", "[sae]\nlayer = 3", '[sae] holds "layer", which is not a command.'),
        ("eval", "limit.x = 7", "run.toml: limit is a table; it is an option, so give it a value"),
        ("eval", "engine = {a = 1}", "run.toml: engine is a table; it is an option"),
        ("eval", "[[eval]]", "run.toml: eval is [{}]; expected one table, [eval]"),
        ("eval", "eval = 3", "run.toml: eval is 3; expected one table, [eval]"),
        ("eval", f"limit = {'9' * 5000}", "not valid TOML: a whole number has thousands of digits"),
        ("eval", "[eval.limit]\nx = 3", "run.toml, limit is a table; expected a whole number"),
        ("eval", 'limit = "3"', 'run.toml, limit is "3"; expected a whole number'),
        ("eval", "limit = 3.5", "run.toml, limit is 3.5; expected a whole number"),
        ("eval", "limit = true", "run.toml, limit is true; expected a whole number"),
        ("eval", "limit = [3]", "run.toml, limit is [3]; expected a whole number"),
        ("eval", "limit = 2026-01-31", 'run.toml, limit is "2026-01-31"; expected a whole number'),
        ("eval", "ckpt = 3", "run.toml, ckpt is 3; expected a string in quotes"),
        ("eval", "chat = 'yes'", 'run.toml, chat is "yes"; expected true or false'),
        ("eval", "relations = [3]", "run.toml, relations is 3; expected a string in quotes"),
        ("eval", "relations = []", "relations is []; expected a string in quotes, or a list of them"),
        ("eval", "relations = 'P17,'", 'run.toml, relations is "P17,"; expected names'),
        ("eval", "engine = 3", "run.toml, engine is 3; expected a string in quotes, or a list of them"),
        ("capture", "layers = [1, 2.5]", "run.toml, layers is 2.5; expected a whole number"),
        ("mix", "levels = '0,ten'", 'run.toml, levels is "0,ten"; expected whole numbers'),
        ("find", f"alpha = 1{'0' * 400}", "expected a number"),
        ("serve", "port = 70000", "run.toml, port: 70000 is not in the range"),
        ("export", "format = 'xml'", "run.toml, format: 'xml' is not one of"),
        ("runs", "limit = 0", "--limit is 0; expected at least 1"),
        ("eval", "limit", "run.toml is not valid TOML"),
        ("eval", "limit = 3\nlimit = 4", "run.toml is not valid TOML"),
        ("eval", b"ckpt = '\xff'", "run.toml is not valid TOML"),
        ("eval", "x = " + "[" * 5000, "run.toml is not valid TOML"),
    ],
)  # fmt: skip
def test_a_file_that_says_something_else_is_refused_by_key(
    command: str, text: str | bytes, message: str, tmp_path: Path
) -> None:
    assert message in refused(text, tmp_path, *command.split())


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        found = run("eval", "--config", str(path))
        assert found.exit_code != 0
        assert str(path) in found.output + str(found.exception)


def test_values_of_the_file_are_defaults_and_options_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        '\ufeffckpt = "a"\nlimit = 3\ndb = "file.duckdb"\n'
        '[eval]\nlimit = 4\nchat = true\nrelations = ["a, b", "c"]\nengine = "x=1"\n[sae.train]\nk = "?"\n',
        encoding="utf-8",
    )
    monkeypatch.setenv("MORFI_DB", "environment.duckdb")
    found = values_of("eval", ["--config", str(file), "--no-chat", "--seed", "5"])
    assert (found["ckpt"], found["limit"], found["chat"], found["seed"]) == ("a", 4, False, 5)
    assert (found["relations"], found["engine"]) == (("a, b", "c"), ("x=1",))
    assert found["db"] == Path("file.duckdb")
    assert values_of("eval", ["--config", str(file), "--limit", "9"])["limit"] == 9
    assert values_of("eval", [])["db"] == Path("environment.duckdb")


def test_lists_may_be_arrays_single_values_or_text(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    for text, expected in (("[1, 5.0]", (1, 5)), ("5.0", (5,)), ("'1,5'", (1, 5))):
        file.write_text(f"layers = {text}\nckpts = 'train-1'", encoding="utf-8")
        assert values_of("capture", ["--config", str(file)])["layers"] == expected
    file.write_text("alphas = [-1, 0.5]\nckpt = 'M_100'\nlatents = 'find-1'", encoding="utf-8")
    found = values_of("steer", ["--config", str(file)])["alphas"]
    assert [type(alpha) for alpha in found] == [float, float]


def test_a_missing_option_is_missing_in_the_file_too(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("limit = 3", encoding="utf-8")
    found = run("steer", "--config", str(tmp_path / "run.toml"))
    assert (found.exit_code, found.stdout) == (2, "")
    assert "Missing option '--latents'" in found.stderr


def test_what_means_nothing_to_the_method_is_not_written() -> None:
    arguments = ("find", "--write-config", "--activations", "a", "--sae", "s")
    plain = tomllib.loads(run(*arguments).stdout)["find"]
    assert {"fdr", "stability", "resamples"} <= set(plain)
    assert not {"alpha", "page-fdr"} & set(plain)
    assert "# alpha: only with method bootstrap" in run(*arguments).stdout
    assert "# stability: only with method fdr or bootstrap" in run(*arguments, "--method", "page").stdout
    page = tomllib.loads(run(*arguments, "--method", "page").stdout)["find"]
    assert page["page-fdr"] == 0.05
    assert not {"alpha", "stability", "resamples"} & set(page)


def test_a_run_that_is_resumed_by_name_has_its_own_configuration() -> None:
    found = tomllib.loads(run("eval", "--write-config", "--resume", "eval-1", "--shots", "2").stdout)["eval"]
    assert {key: found[key] for key in found if key not in ("db", "json", "verbose", "engines")} == {
        "resume": "eval-1",
        "shots": 2,
    }
    assert "batch" in tomllib.loads(run("eval", "--write-config", "--resume", "auto").stdout)["eval"]


@pytest.mark.parametrize(
    ("text", "each", "expected"),
    [
        ("P17, P36", str, ("P17", "P36")),
        ('"a, b",c', str, ("a, b", "c")),
        ("1,-2", int, (1, -2)),
        ("1,0.5", float, (1.0, 0.5)),
    ],
)
def test_lists_between_commas(text: str, each: type[Any], expected: tuple[Any, ...]) -> None:
    assert listed("--x", text, each) == expected


@pytest.mark.parametrize(
    "text", ["", ",", "1,", " ", "\r", "\n", '"', '"a', '"a"b', '"",a', "x" * 140_000 + ","]
)
@pytest.mark.parametrize(("each", "expected"), [(str, "names"), (int, "whole numbers"), (float, "numbers")])
def test_text_that_is_no_list_is_refused(text: str, each: type[Any], expected: str) -> None:
    with pytest.raises(InputError, match=f"(?s)--x is .*; expected {expected} between commas") as refusal:
        listed("--x", text, each)
    assert len(str(refusal.value)) < 300


@given(st.text(alphabet='ab1 ,"\r\n\0', max_size=8) | st.text(max_size=8), st.sampled_from((str, int, float)))
def test_any_text_is_a_list_without_empty_places_or_refused(text: str, each: type[Any]) -> None:
    try:
        found = listed("--x", text, each)
    except InputError:
        return
    assert found
    assert "" not in found


@given(st.lists(st.text(alphabet='ab ,"', min_size=1).map(str.strip).filter(bool), min_size=1))
def test_quoted_names_are_taken_as_they_are(names: list[str]) -> None:
    assert listed("--x", ",".join('"' + name.replace('"', '""') + '"' for name in names), str) == tuple(names)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_get_their_completion(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("click.shell_completion.BashComplete._check_version", lambda *_: None)
    found = CliRunner().invoke(cli, [], prog_name="morfi", env={"_MORFI_COMPLETE": f"{shell}_source"})
    assert "_MORFI_COMPLETE" in found.output
    words = {"COMP_WORDS": "morfi eval --max", "COMP_CWORD": "--max" if shell == "fish" else "2"}
    words["_MORFI_COMPLETE"] = f"{shell}_complete"
    assert "--max-tokens" in CliRunner().invoke(cli, [], prog_name="morfi", env=words).output


def test_of_sql_an_option_may_hold_a_line_break_and_a_comment_is_none() -> None:
    for db, statement in (("a\n", "SELECT 1"), ("a", "-- all runs\nSELECT 1")):
        found = values_of("sql", [f"--db={db}", statement])
        assert (found["db"], found["statement"]) == (Path(db), statement)
