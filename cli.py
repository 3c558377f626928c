"""The command line: `morfi COMMAND`; every command is a few lines that call the package.

Answers go to standard output, everything else to standard error. Exit codes: 0 done, 2 bad usage or input,
1 failed while running, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from morfi import __version__
from morfi.errors import InputError, MorfiError

if TYPE_CHECKING:
    from morfi.store import Store


@dataclass(frozen=True, slots=True)
class Common:
    """The options that every command takes."""

    db: Path
    verbose: bool
    as_json: bool

    @property
    def store(self) -> Store:
        """The store in the file that --db names."""
        from morfi.store import Store

        return Store(self.db)

    def answer(self, found: dict[str, Any], text: str) -> None:
        """Prints the command's answer: one JSON object for --json, else the text."""
        with reader_may_leave():
            if self.as_json:
                click.echo(json.dumps({"run_id": None} | found, default=str, ensure_ascii=False))
            else:
                click.echo(text)


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Ends the block quietly when the reader of standard output has gone, as in `morfi export RUN | head`."""
    try:
        yield
    except BrokenPipeError:
        # What is still buffered would otherwise fail again when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def common_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command --db, -v and --json, which it receives as one `Common`."""

    @click.option(
        "--db",
        type=click.Path(path_type=Path),
        default=Path("morfi.duckdb"),
        envvar="MORFI_DB",
        show_default=True,
        help="The DuckDB file of results.",
    )
    @click.option("-v", "--verbose", is_flag=True, help="Show what vLLM logs.")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
    @functools.wraps(command)
    def wrapped(db: Path, verbose: bool, as_json: bool, **options: Any) -> None:
        command(Common(db, verbose, as_json), **options)

    return wrapped


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="morfi")
def cli() -> None:
    """Finds the directions that make a fine-tuned language model hallucinate, and steers them."""


@cli.command("eval")
@click.option("--ckpt", help="Preset, model or LoRA adapter folder, or hub id.")
@click.option("--base", help="The adapter's base model, when its adapter_config.json is not to be followed.")
@click.option("--data", help='"world-facts" (default), FILE.jsonl[.gz], or a folder of P*.json files.')
@click.option("--split", help="train, dev or test (default: test).")
@click.option("--relations", help="Comma-separated, such as P17,P36 (default: all).")
@click.option("--limit", type=int, help="At most this many questions, the same number of each relation.")
@click.option("--shots", type=int, help="Exemplars before each question (default: 4).")
@click.option("--chat/--no-chat", default=None, help="Use the checkpoint's chat template.")
@click.option("--match", help="How answers are compared: squad (default), strict or contains.")
@click.option("--max-tokens", type=int, help="Longest answer (default: 16).")
@click.option("--seed", type=int, help="Chooses questions and exemplars (default: 0).")
@click.option("--dtype", help="bfloat16, float16 or float32 (default: the fastest for this machine).")
@click.option("--engine", multiple=True, metavar="KEY=VALUE", help="A vLLM engine setting; repeatable.")
@click.option("--batch", type=int, help="Questions stored together (default: 512, or 8192 on a GPU).")
@click.option(
    "--resume", metavar="RUN|auto", help="Do only what RUN, or the last run of this command, lacks."
)
@common_options
def eval_command(common: Common, resume: str | None, **given: Any) -> None:
    """Asks a checkpoint closed-book questions and reports its accuracy by relation."""
    from morfi.eval_config import configure, from_stored
    from morfi.evaluation import run_evaluation
    from morfi.report import run_object, run_report, run_table
    from morfi.serve.engine import engine_overrides, start_engine
    from morfi.terminal import TerminalProgress

    given["engine"] = engine_overrides(given["engine"], verbose=common.verbose) or None
    given["relations"] = _names(given["relations"])
    named = resume not in (None, "auto")
    stored = from_stored(common.store.run(str(resume)).config) if named else None
    with TerminalProgress() as progress:
        run_id = run_evaluation(
            configure(given, stored),
            common.store,
            functools.partial(start_engine, verbose=common.verbose),
            progress,
            resume=resume,
            command=shlex.join(["morfi", *sys.argv[1:]]),
        )
    report = run_report(common.store, run_id)
    common.answer(run_object(report), run_table(report, common.db))


@cli.command("runs")
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="The newest so many."
)
@common_options
def runs_command(common: Common, limit: int) -> None:
    """Lists the runs, newest first."""
    from morfi.report import runs_table

    runs = common.store.runs(limit)
    common.answer({"runs": [asdict(run) for run in runs]}, runs_table(runs))


@cli.command("show")
@click.argument("run")
@common_options
def show_command(common: Common, run: str) -> None:
    """Shows one run: its accuracies and what made it. RUN is an id, the start of one, or "last"."""
    from morfi.report import details_object, run_details, run_object, run_report, run_table

    report = run_report(common.store, run)
    attempts = common.store.attempts(report.run.run_id)
    common.answer(
        run_object(report) | details_object(report.run, attempts),
        f"{run_table(report, common.db)}\n\n{run_details(report.run, attempts)}",
    )


@cli.command("compare")
@click.argument("run_a")
@click.argument("run_b")
@common_options
def compare_command(common: Common, run_a: str, run_b: str) -> None:
    """Compares two runs on the questions both answered: who flipped, and is the difference real?"""
    from morfi.compare import compare
    from morfi.report import comparison_table

    comparison = compare(common.store, run_a, run_b)
    common.answer(asdict(comparison), comparison_table(comparison))


@cli.command("sql")
@click.argument("statement")
@common_options
def sql_command(common: Common, statement: str) -> None:
    """Runs one reading SQL statement, such as "SELECT * FROM accuracy"."""
    from morfi.report import arrow_object, arrow_table

    rows = common.store.query(statement)
    common.answer(arrow_object(rows), arrow_table(rows))


@cli.command("export")
@click.argument("run")
@click.option(
    "--format", "fmt", type=click.Choice(["jsonl", "parquet", "csv"]), default="jsonl", show_default=True
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write (default: standard output).",
)
@common_options
def export_command(common: Common, run: str, fmt: str, out: Path | None) -> None:
    """Writes a run's questions, prompts, answers and verdicts as rows."""
    from morfi.export import export

    if common.as_json and out is None:
        raise click.UsageError("--json describes the file written; give --out, or leave --json out for rows")
    with reader_may_leave():
        export(common.store, run, fmt, out)
    if out is not None:
        full_id = common.store.run(run).run_id
        common.answer({"run_id": full_id, "format": fmt, "out": str(out)}, f"wrote {out}")


@cli.group("cache")
def cache_group() -> None:
    """The cache of converted and merged checkpoints."""


@cache_group.command("ls")
@common_options
def cache_ls_command(common: Common) -> None:
    """Lists the cached checkpoints."""
    from morfi.cache import Cache
    from morfi.report import cache_table

    cache = Cache()
    entries = cache.entries()
    common.answer(
        {"root": str(cache.root), "entries": [asdict(e) for e in entries]}, cache_table(cache.root, entries)
    )


@cache_group.command("rm")
@click.argument("key")
@common_options
def cache_rm_command(common: Common, key: str) -> None:
    """Removes the cached checkpoint whose key starts with KEY."""
    from morfi.cache import Cache

    entry = Cache().remove(key)
    common.answer({"removed": asdict(entry)}, f"removed {entry.key} ({entry.name})")


def _names(listed: str | None) -> tuple[str, ...] | None:
    """The parts of a comma-separated option, None where it is not given."""
    if listed is None:
        return None
    names = tuple(part.strip() for part in listed.split(","))
    if "" in names:
        raise InputError(f'--relations is "{listed}"; expected names between commas, such as P17,P36')
    return names


def main() -> NoReturn:
    """Runs the command line and exits with the documented code; the console script `morfi`."""
    code = 0
    try:
        cli.main(prog_name="morfi", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = 2
    except MorfiError as error:
        click.echo(f"morfi: {error}", err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("morfi: interrupted", err=True)
        code = 130
    sys.exit(code)
