from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import duckdb
import pytest
import torch
from command_line import CommandLine, Ended
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import morfi.serve.engine
from morfi.cache import Cache, Manifest
from morfi.cli import cli
from morfi.errors import MorfiError
from morfi.store import Store

REPOSITORY = Path(__file__).resolve().parents[2]
RESULT_KEYS = {"run_id", "ckpt", "ckpt_sha256", "data_sha256", "n", "accuracy", "ci", "by_relation"}
RESULT_KEYS |= {"requests_per_s", "output_tokens", "wall_s"}

pytestmark = pytest.mark.usefixtures("isolated_cache")


@pytest.fixture
def morfi_(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], serving: Any
) -> Callable[..., Ended]:
    """Runs a command in this process, in an empty folder, with the fake engine."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(morfi.serve.engine, "start_engine", serving)
    defaults = Store.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "lock_timeout_s", 0.2)

    return CommandLine(monkeypatch, capfd)


@pytest.fixture
def ask(morfi_: Callable[..., Ended], tiny_model: Path, data_file: Path) -> Callable[..., Ended]:
    """Runs `morfi eval` of the tiny model on the small question file; later options win."""

    def run(*more: object, ckpt: object = tiny_model, data: object = data_file) -> Ended:
        return morfi_("eval", "--ckpt", ckpt, "--data", data, "--shots", 2, *more)

    return run


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


def leaf_commands(group: click.Group) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", leaf) for inner, leaf in leaf_commands(command))
        else:
            yield name, command


def test_every_command_takes_the_common_options_and_explains_itself() -> None:
    commands = dict(leaf_commands(cli))
    assert {"eval", "runs", "show", "compare", "sql", "export", "cache ls", "cache rm"} <= set(commands)
    for name, command in commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--db", "-v", "--json"} <= options, name
        assert command.help, name


def test_eval_prints_one_object_for_json_and_all_else_on_standard_error(ask: Callable[..., Ended]) -> None:
    ended = ask("--json")
    assert ended.code == 0
    (line,) = ended.out.splitlines()
    found = json.loads(line)
    assert set(found) >= RESULT_KEYS
    assert (found["n"], found["accuracy"]) == (20, 0.5)
    assert set(found["by_relation"]) == {"P17", "P36"}
    assert Store(Path("morfi.duckdb")).summary(found["run_id"]).n_done == 20
    assert "starting vLLM" in ended.err


def test_eval_ends_with_a_table_whose_commands_work(
    ask: Callable[..., Ended], morfi_: Callable[..., Ended], tmp_path: Path
) -> None:
    (tmp_path / "a folder").mkdir()
    ended = ask("--db", tmp_path / "a folder" / "x.duckdb")
    assert ended.code == 0
    assert [line.split()[0] for line in ended.out.splitlines() if line[:3] in ("P17", "P36", "all")] == [
        "P17",
        "P36",
        "all",
    ]
    lines = [line for line in ended.out.splitlines() if line.startswith("  morfi ")]
    assert len(lines) == 2
    for line in lines:
        assert morfi_(*shlex.split(line)[1:]).code == 0


@pytest.fixture
def run_ids(ask: Callable[..., Ended]) -> list[str]:
    """Two runs that differ in what they accept."""
    asked = [ask("--json"), ask("--json", "--match", "contains", "--seed", 1)]
    return [json.loads(ended.out)["run_id"] for ended in asked]


def test_every_reading_command_answers_with_one_object_that_has_a_run_id(
    run_ids: list[str], morfi_: Callable[..., Ended], tmp_path: Path, isolated_cache: Path
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
        ended = morfi_(*command, "--json")
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


def test_every_reading_command_prints_a_table_without_json(
    run_ids: list[str], morfi_: Callable[..., Ended]
) -> None:
    for command, holds in (
        (("runs",), run_ids[0]),
        (("show", "last"), run_ids[1]),
        (("compare", *run_ids), "McNemar p"),
        (("sql", "SELECT 1 AS a, 2 AS a"), "1  2"),
        (("export", "last", "--format", "csv"), "Testville"),
        (("cache", "ls"), "MB in"),
    ):
        ended = morfi_(*command)
        assert (ended.code, ended.err) == (0, ""), ended
        assert holds in ended.out


def test_export_with_json_needs_a_file(run_ids: list[str], morfi_: Callable[..., Ended]) -> None:
    ended = morfi_("export", "last", "--json")
    assert (ended.code, ended.out) == (2, "")
    assert "--out" in ended.err


def test_the_database_may_come_from_the_environment(
    ask: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MORFI_DB", str(tmp_path / "named.duckdb"))
    assert ask().code == 0
    assert (tmp_path / "named.duckdb").exists()
    assert files_under(tmp_path / "here") == {}


def test_a_run_that_fails_exits_with_one_in_one_line_and_resumes_with_auto(
    ask: Callable[..., Ended], serving: Any
) -> None:
    serving.stop_after, serving.error = 1, MorfiError("vLLM ended a request")
    ended = ask("--batch", 5)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.splitlines()[-1] == "morfi: vLLM ended a request"
    serving.stop_after = None
    found = json.loads(ask("--batch", 5, "--resume", "auto", "--json").out)
    assert (found["n"], found["status"]) == (20, "done")
    assert len(serving.batches) == 4


def test_resume_by_id_needs_no_other_option_and_refuses_one_that_differs(
    ask: Callable[..., Ended], morfi_: Callable[..., Ended], serving: Any
) -> None:
    serving.stop_after, serving.error = 1, KeyboardInterrupt()
    ended = ask("--batch", 5)
    assert ended.code == 130
    run_id = Store(Path("morfi.duckdb")).runs(1)[0].run_id
    assert f"morfi eval --resume {run_id} --db morfi.duckdb" in ended.err
    refused(morfi_("eval", "--resume", run_id, "--limit", 3), "--limit is 3", "without --resume")
    serving.stop_after = None
    assert json.loads(morfi_("eval", "--resume", run_id, "--json").out)["n"] == 20


@pytest.mark.parametrize(
    "arguments", [(), ("evl",), ("eval", "--limt", "3"), ("eval", "--limit", "x"), ("show",)]
)
def test_bad_usage_exits_with_two(morfi_: Callable[..., Ended], arguments: tuple[str, ...]) -> None:
    ended = morfi_(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "Usage: morfi" in ended.err


def remove_folder(model: Path) -> None:
    shutil.rmtree(model)


def empty_folder(model: Path) -> None:
    shutil.rmtree(model)
    model.mkdir()


def a_file(model: Path) -> None:
    shutil.rmtree(model)
    model.touch()


def no_config(model: Path) -> None:
    (model / "config.json").unlink()


def broken_config(model: Path) -> None:
    (model / "config.json").write_text("{")


def no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def truncated_weights(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def truncated_header(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def empty_weights(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"")


def corrupt_header(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"dtype"', b'"dtyqe"', 1))


def with_value(value: float) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        tensors = load_file(model / "model.safetensors")
        tensors["model.norm.weight"][3] = value
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})

    return change


def pickled_weights(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def own_code(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "model.Model"}
    (model / "config.json").write_text(json.dumps(config))


def no_tokenizer(model: Path) -> None:
    for path in model.glob("tokenizer*"):
        path.unlink()


def broken_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text('{"version": ')


@pytest.mark.parametrize(
    ("break_it", "parts"),
    [
        (remove_folder, ("there is no folder",)),
        (empty_folder, ("is an empty folder; expected",)),
        (a_file, ("is a file, expected",)),
        (no_config, ("no config.json",)),
        (broken_config, ("config.json is not valid JSON",)),
        (no_weights, ("holds no weights, expected model.safetensors",)),
        (truncated_weights, ("model.safetensors is not a whole safetensors file",)),
        (truncated_header, ("model.safetensors is not a whole safetensors file",)),
        (empty_weights, ("model.safetensors is not a whole safetensors file",)),
        (corrupt_header, ("model.safetensors is not a whole safetensors file",)),
        (with_value(float("nan")), ("model.norm.weight holds NaN",)),
        (with_value(float("inf")), ("model.norm.weight holds NaN or infinity",)),
        (pickled_weights, ("pytorch_model.bin holds pickled weights",)),
        (own_code, ("auto_map",)),
        (no_tokenizer, ("the tokenizer in",)),
        (broken_tokenizer, ("the tokenizer in",)),
    ],
)
def test_a_checkpoint_that_cannot_be_served_is_refused_and_nothing_is_left(
    *,
    ask: Callable[..., Ended],
    tiny_model: Path,
    tmp_path: Path,
    isolated_cache: Path,
    break_it: Callable[[Path], None],
    parts: tuple[str, ...],
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    break_it(model)
    refused(ask(ckpt=model), str(model), *parts)
    assert files_under(tmp_path / "here", isolated_cache) == {}


@pytest.mark.parametrize(
    ("ckpt", "parts"),
    [
        ("smolm2", ("smolm2", 'Did you mean "smollm2"?')),
        ("", ("unknown checkpoint",)),
        ("./none", ("./none",)),
    ],
)
def test_an_unknown_checkpoint_is_refused(
    ask: Callable[..., Ended], ckpt: str, parts: tuple[str, ...]
) -> None:
    refused(ask(ckpt=ckpt), *parts)
    assert files_under(Path.cwd()) == {}


@pytest.mark.parametrize("change", [{"hidden_size": 32}, {"vocab_size": 300}, {"num_hidden_layers": 2}])
def test_an_adapter_of_another_base_is_refused_and_no_merged_model_is_left(
    ask: Callable[..., Ended],
    tiny_model: Path,
    tmp_path: Path,
    isolated_cache: Path,
    change: dict[str, int],
) -> None:
    size = {**json.loads((tiny_model / "config.json").read_text()), **change, "head_dim": None}
    other = LlamaForCausalLM(LlamaConfig(**size))
    config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    get_peft_model(other, config).save_pretrained(tmp_path / "adapter")
    refused(ask("--base", tiny_model, ckpt=tmp_path / "adapter"), "adapter")
    assert files_under(tmp_path / "here", isolated_cache) == {}


def test_an_adapter_is_merged_once_and_the_run_names_both_parts(
    ask: Callable[..., Ended], tiny_model: Path, tmp_path: Path
) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_model)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    found = [json.loads(ask("--base", tiny_model, "--json", ckpt=tmp_path / "adapter").out) for _ in range(2)]
    (entry,) = Cache().entries()
    assert [run["ckpt_sha256"] for run in found] == [entry.key] * 2
    record = Store(Path("morfi.duckdb")).run("last")
    assert (record.ckpt, record.base) == ("adapter", "tiny")
    assert record.adapter_sha256 is not None


GOOD = {"id": "a", "relation": "P17", "subject": "s", "question": "Where?", "answers": ["x"]}
LINE = json.dumps(GOOD).encode()


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ("holds no questions",)),
        (LINE + b'\n{"id": "b", ', ("line 2", "not valid JSON")),
        (LINE + b"\n" + LINE, ("line 2", "taken by line 1")),
        (json.dumps({**GOOD, "answers": []}).encode(), ("line 1", '"answers" is []')),
        (json.dumps({**GOOD, "answers": "x"}).encode(), ("line 1", '"answers" is "x"')),
        (json.dumps({**GOOD, "question": 7}).encode(), ("line 1", '"question" is 7')),
        (json.dumps({**GOOD, "split": "tset"}).encode(), ("line 1", '"tset"')),
        (LINE + b"\n[1]", ("line 2", "expected a JSON object")),
        (b"[1]", ("entry 1", "expected a JSON object")),
        (LINE.replace(b"Where", b"Wh\xe9re"), ("line 1", "not UTF-8")),
        (gzip.compress(LINE * 99)[:-9], ("gzip data cut short",)),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_a_question_file_with_a_fault_is_refused_with_its_line(
    ask: Callable[..., Ended], tmp_path: Path, isolated_cache: Path, content: bytes, parts: tuple[str, ...]
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    refused(ask(data=path), str(path), *parts)
    assert files_under(tmp_path / "here", isolated_cache) == {}


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


def test_a_refused_command_leaves_a_database_that_is_there_as_it_was(
    ask: Callable[..., Ended], morfi_: Callable[..., Ended]
) -> None:
    assert ask().code == 0
    before = files_under(Path.cwd())
    assert list(before) == [str(Path.cwd() / "morfi.duckdb")]
    for ended, part in (
        (ask("--shots", 7), "too few"),
        (ask(ckpt="smolm2"), "smollm2"),
        (morfi_("show", "eval-x"), 'no run "eval-x"'),
        (morfi_("compare", "last", "eval-x"), 'no run "eval-x"'),
        (morfi_("sql", "DELETE FROM run"), "only reads"),
        (morfi_("sql", "SELECT * FROM rnus"), "rnus"),
        (morfi_("export", "last", "--format", "parquet"), "--out FILE.parquet"),
        (morfi_("cache", "rm", "00"), "fits no entry"),
        (ask("--resume", "eval-x"), 'no run "eval-x"'),
    ):
        refused(ended, part)
    assert files_under(Path.cwd()) == before


def test_an_engine_setting_that_vllm_does_not_know_is_refused_with_the_nearest(
    ask: Callable[..., Ended],
) -> None:
    refused(ask("--engine", "max_num_seq=2"), 'no engine setting "max_num_seq"', '"max_num_seqs"')
    assert not Path("morfi.duckdb").exists()


def not_a_database(path: Path) -> None:
    path.write_text("these are my notes\n" * 1000)


def a_folder(path: Path) -> None:
    path.mkdir()


def another_database(path: Path) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE birds (name VARCHAR)")


def a_newer_schema(path: Path) -> None:
    Store(path).prepare()
    with duckdb.connect(str(path)) as connection:
        connection.execute("INSERT INTO schema_migration VALUES (999, 'later', now()::TIMESTAMP)")


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (not_a_database, ("is not a DuckDB database",)),
        (a_folder, ("is a folder",)),
        (another_database, ("not morfi's", "birds")),
        (a_newer_schema, ("schema 999, newer than this morfi",)),
    ],
)
def test_an_unfit_database_is_refused_by_every_command_and_left_as_it_was(
    ask: Callable[..., Ended],
    morfi_: Callable[..., Ended],
    make: Callable[[Path], None],
    parts: tuple[str, ...],
    serving: Any,
) -> None:
    make(Path("x.duckdb"))
    before = files_under(Path.cwd())
    for ended in (
        ask("--db", "x.duckdb"),
        morfi_("runs", "--db", "x.duckdb"),
        morfi_("sql", "SELECT 1", "--db", "x.duckdb"),
    ):
        refused(ended, "x.duckdb", *parts)
    assert serving.starts == []
    assert files_under(Path.cwd()) == before


@pytest.mark.skipif(sys.platform != "linux", reason="/sys takes no files, not even from root")
def test_a_folder_that_takes_no_file_is_refused_before_the_engine_starts(
    ask: Callable[..., Ended], serving: Any
) -> None:
    refused(ask("--db", "/sys/morfi.duckdb"), "/sys/morfi.duckdb", "cannot be written")
    refused(ask("--db", "none/morfi.duckdb"), "the folder none does not exist")
    assert serving.starts == []


def test_a_locked_database_names_its_holder(ask: Callable[..., Ended], morfi_: Callable[..., Ended]) -> None:
    hold = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    Store(Path("x.duckdb")).prepare()
    with subprocess.Popen(
        [sys.executable, "-P", "-c", hold, "x.duckdb"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for ended in (ask("--db", "x.duckdb"), morfi_("runs", "--db", "x.duckdb")):
            refused(ended, "x.duckdb: locked by", f"PID {holder.pid}")
        assert holder.stdin is not None
        holder.stdin.close()


def in_new_process(code: str, cwd: Path = REPOSITORY) -> str:
    process = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=cwd, capture_output=True, text=True, timeout=60, check=True
    )
    return process.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['morfi', 'eval', '--help']\n"
        "from morfi.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: print(stop.code, *{name.partition('.')[0] for name in sys.modules})\n"
    )
    last = in_new_process(code).splitlines()[-1].split()
    assert last[0] == "0"
    heavy = {"torch", "numpy", "duckdb", "pyarrow", "scipy", "vllm", "transformers", "safetensors", "tqdm"}
    assert heavy.isdisjoint(last[1:])
    assert "click" in last


def test_help_answers_in_under_half_a_second() -> None:
    times_s = []
    for _ in range(5):
        begun = time.perf_counter()
        process = subprocess.run(
            [sys.executable, "-P", "-m", "morfi", "--help"], capture_output=True, text=True, check=True
        )
        times_s.append(time.perf_counter() - begun)
        assert "Usage: morfi" in process.stdout
    assert statistics.median(times_s) < 0.5


@pytest.mark.parametrize("name", ["kernels", "serve", "cli"])
def test_no_part_of_the_repository_is_importable_under_a_bare_name(name: str) -> None:
    places_of = "lambda spec: [spec.origin, *(spec.submodule_search_locations or ())] if spec else []"
    code = f"import importlib.util as u; print(*({places_of})(u.find_spec({name!r})))"
    here = eval(places_of)(importlib.util.find_spec(name))
    for place in (*in_new_process(code).split(), *here):
        assert not Path(str(place)).is_relative_to(REPOSITORY / name), "run Python with PYTHONSAFEPATH=1"
        assert Path(str(place)) != REPOSITORY / f"{name}.py", "run Python with PYTHONSAFEPATH=1"


def test_a_reader_that_leaves_early_is_no_failure(morfi_: Callable[..., Ended]) -> None:
    Store(Path("x.duckdb")).prepare()
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-P", "-m", "morfi", "sql", "FROM range(99)", "--json", "--db", "x.duckdb"],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (process.returncode, process.stderr) == (0, b"")


def test_ctrl_c_in_a_process_of_its_own_exits_with_130(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, morfi.cli\n"
        "sys.argv = ['morfi', 'runs']\n"
        "morfi.cli.Common.store = property(lambda _: os.kill(os.getpid(), signal.SIGINT))\n"
        "morfi.cli.main()"
    )
    process = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (process.returncode, process.stdout) == (130, "")
    assert process.stderr.strip() == "morfi: interrupted"


def test_another_folder_goes_on_with_what_lies_in_the_first(
    ask: Callable[..., Ended],
    morfi_: Callable[..., Ended],
    tiny_model: Path,
    data_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copyfile(data_file, "q.jsonl")
    shutil.copytree(tiny_model, "model")
    asked = ask("--json", ckpt="model", data="q.jsonl")
    run_id = json.loads(asked.out)["run_id"]
    database = Path("morfi.duckdb").absolute()
    split = morfi_("split", "--model", "model", "--data", "q.jsonl", "--n-ex", 1, "--samples", 0, "--json")
    split_run = json.loads(split.out)["run_id"]
    (Path.cwd() / "sub").mkdir()
    monkeypatch.chdir(Path.cwd() / "sub")
    there = ("--db", database)
    for resumed in (("--resume", run_id), ("--resume", run_id, "--data", "../q.jsonl", "--ckpt", "../model")):
        ended = morfi_("eval", *resumed, "--json", *there)
        assert ended.code == 0, ended
        assert json.loads(ended.out)["run_id"] == run_id
    mix = ("mix", "--split", split_run, "--levels", "100", "--size", 2, "--json", *there)
    mixed = morfi_(*mix)
    assert mixed.code == 0, mixed
    # The file moves.
    Path("../q.jsonl").rename("../moved.jsonl")
    refused(morfi_(*mix), str(Path("../q.jsonl").resolve()), f"--data says where that of {split_run} is now")
    again = morfi_(*mix, "--data", "../moved.jsonl")
    assert json.loads(again.out)["run_id"] == json.loads(mixed.out)["run_id"]
    ended = morfi_("eval", "--resume", run_id, "--data", "../moved.jsonl", "--json", *there)
    assert ended.code == 0, ended
    refused(morfi_("eval", "--ckpt", "../model", "--data", "no.jsonl"), f'"no.jsonl" in {Path.cwd()}')
    refused(morfi_("eval", "--resume", split_run, *there), f"{split_run} is a run of `morfi split`")


def test_a_relation_with_a_comma_can_be_chosen(
    ask: Callable[..., Ended], write_questions: Callable[..., Path], questions: Any, tmp_path: Path
) -> None:
    named = {
        split: [replace(q, relation="city, state" if q.relation == "P17" else q.relation) for q in asked]
        for split, asked in questions.items()
    }
    data = write_questions(tmp_path / "comma.jsonl", named)
    for given in ('"city, state"', "city, state"):
        ended = ask("--json", "--relations", given, data=data)
        assert ended.code == 0, ended
        assert set(json.loads(ended.out)["by_relation"]) == {"city, state"}
    both = ask("--json", "--relations", '"city, state",P36', data=data)
    assert set(json.loads(both.out)["by_relation"]) == {"city, state", "P36"}
    refused(ask("--relations", "city", data=data), '"city, state"')
