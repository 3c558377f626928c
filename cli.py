"""The command line: `morfi COMMAND`; every command is a few lines that call the package.

Answers go to standard output, everything else to standard error. Exit codes: 0 done, 2 bad usage or input,
1 failed while running, 130 interrupted (143 by SIGTERM, 129 by SIGHUP).
"""

from __future__ import annotations

import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import click

from morfi import __version__, terminal
from morfi.command.common import Common
from morfi.command.settings import (
    Commands,
    Plain,
    Statement,
    common_options,
    engines_option,
    experiment_options,
    figure_option,
    file_option,
    new_option,
    option,
    out_option,
    show_prompts_option,
    store_options,
    write_config_option,
)
from morfi.errors import FaultsError, MorfiError, Terminated


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="morfi")
def cli() -> None:
    """Finds the directions that make a fine-tuned language model hallucinate, and steers them."""


@cli.command("eval", config="morfi.evaluation.config:EvalConfig")
@option(
    "--resume",
    metavar="RUN|auto",
    help="Do only what RUN, or the last run of this command, lacks.",
    unset="a new run",
)
@show_prompts_option
@engines_option
@common_options
def eval_command(
    common: Common, resume: str | None, show_prompts: int | None, engines: int, **given: Any
) -> None:
    """Asks a checkpoint, or a server, closed-book questions and reports its accuracy by relation."""
    from morfi.evaluation.config import EvalConfig, configure
    from morfi.evaluation.evaluate import run_evaluation, shown_prompts
    from morfi.runs.settings import settings_of
    from morfi.store.records import RunKind

    given = common.checked(given)
    named = resume not in (None, "auto")
    earlier = common.store.run_of_kind(str(resume), RunKind.EVAL) if named else None
    stored = None if earlier is None else settings_of(earlier, EvalConfig)
    resume = resume if earlier is None else earlier.run_id
    config = configure(given, stored)
    with terminal.TerminalProgress() as progress:
        if show_prompts is not None:
            common.show(shown_prompts(config, show_prompts, progress))
            return
        start = common.start_engines(engines, config.endpoint)
        run_id = run_evaluation(config, common.store, start, progress, resume=resume, command=common.command)
    common.report(run_id)


@cli.command("verify", config="morfi.verification.verify:VerifyConfig")
@common_options
def verify_command(common: Common, **given: Any) -> None:
    """Checks that a checkpoint is answered, steered, captured and swapped here as transformers does it."""
    from morfi.report.following import after_verify
    from morfi.report.verification import heading, line_text, summary, verification_object
    from morfi.verification.lines import Line
    from morfi.verification.verify import Verified, VerifyConfig, fault_of, verify

    config = VerifyConfig(**{k: v for k, v in common.checked(given).items() if v is not None})
    lines: list[Line] = []

    def found(line: Line) -> None:
        lines.append(line)
        common.say(line_text(line))

    with terminal.TerminalProgress() as progress:
        verified: Verified = verify(
            config,
            common.start_engine,
            common.time_vllm,
            progress.phase,
            on_subject=lambda subject: common.say(heading(subject)),
            on_line=found,
        )
    fault = fault_of(lines)
    text = summary(lines) if fault else f"{summary(lines)}\n{after_verify(common.store, config.ckpt)}"
    common.answer(verification_object(verified, lines, fault, config.ckpt), text)
    if fault is not None:
        raise MorfiError(fault)


@cli.command("split", config="morfi.evaluation.split:SplitConfig")
@show_prompts_option
@new_option
@engines_option
@common_options
def split_command(common: Common, new: bool, show_prompts: int | None, engines: int, **given: Any) -> None:
    """Sorts questions by what a model knows: HighlyKnown, MaybeKnown, WeaklyKnown, Unknown."""
    from morfi.evaluation.split import configure_split, run_split, shown_split_prompts

    config = configure_split(common.checked(given))
    with terminal.TerminalProgress() as progress:
        if show_prompts is not None:
            common.show(shown_split_prompts(config, show_prompts, progress))
            return
        start = common.start_engines(engines, config.endpoint)
        run_id = run_split(config, common.store, start, progress, new=new, command=common.command)
    common.report(run_id)


@cli.command("mix", config="morfi.training.mixtures:MixConfig")
@option("--data", help="Where the data of that run is now, if it has moved.", unset="as the run says")
@new_option
@common_options
def mix_command(common: Common, new: bool, data: str | None, **given: Any) -> None:
    """Draws training mixtures of equal size and relations, 0 to 100 % of them Unknown."""
    from morfi.training.mix import configure_mix, run_mix

    config = configure_mix(given)
    with terminal.TerminalProgress() as progress:
        result = run_mix(config, common.store, progress, new=new, command=common.command, data_now=data)
    common.report(result.run_id, dropped=result.dropped)


@cli.command("train", config="morfi.training.config:TrainConfig", without=("model", "bos"))
@option("--mix", "mix_run", metavar="RUN", required=True, help="The run of `morfi mix`.")
@out_option("checkpoints", "Folder of the checkpoints")
@new_option
@common_options
def train_command(common: Common, mix_run: str, out: Path, new: bool, **given: Any) -> None:
    """Fine-tunes LoRA adapters on every mixture and keeps checkpoints at the chosen epochs."""
    from morfi.training.train import run_train

    with terminal.TerminalProgress() as progress:
        run_id = run_train(given, mix_run, common.store, out, progress, new=new, command=common.command)
    common.report(run_id)


@cli.group("conditions")
def conditions_group() -> None:
    """Series of checkpoints of your own, in TOML."""


@conditions_group.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@option("--dtype", help="bfloat16, float16 or float32.", unset="its own; float32 on CPUs without bfloat16")
@common_options
def conditions_check_command(common: Common, file: Path, dtype: str | None) -> None:
    """Says everything that is wrong with a series, or lists its conditions."""
    from morfi.conditions.file import open_series
    from morfi.conditions.listing import files_of
    from morfi.report.conditions import conditions_object, conditions_table
    from morfi.report.following import after_conditions

    with terminal.TerminalProgress() as progress:
        series = open_series(file, dtype, progress.phase)
        rows = files_of(series)
    table, following = conditions_table(series, rows), after_conditions(common.store, str(file))
    common.answer(conditions_object(series, rows), f"{table}\n\n{following}")


@cli.command("sweep", config="morfi.evaluation.sweep_plan:SweepConfig")
@show_prompts_option
@figure_option
@new_option
@engines_option
@common_options
def sweep_command(
    common: Common, new: bool, figure: Path | None, show_prompts: int | None, engines: int, **given: Any
) -> None:
    """Asks every checkpoint of a training the same questions through one live engine."""
    from morfi.evaluation.sweep import run_sweep
    from morfi.evaluation.sweep_plan import configure_sweep, prepare_sweep
    from morfi.questions.prompts import shown

    config = configure_sweep(common.checked(given))
    with terminal.TerminalProgress() as progress:
        if show_prompts is not None:
            common.show(shown(prepare_sweep(config, common.store, progress).asked, show_prompts))
            return
        start = common.start_engines(engines)
        result = run_sweep(config, common.store, start, progress, new=new, command=common.command)
    common.report_drawn(result.run_id, figure)
    common.check(result.failures)


@cli.command("capture", config="morfi.latents.capture:CaptureConfig")
@out_option("activations", "Folder of the residual streams")
@new_option
@engines_option
@common_options
def capture_command(common: Common, out: Path, new: bool, engines: int, **given: Any) -> None:
    """Keeps the residual streams of every checkpoint on the same questions, at the last prompt token."""
    from morfi.latents.capture import CaptureConfig, run_capture

    config = CaptureConfig(**{k: v for k, v in common.checked(given).items() if v is not None})
    with terminal.TerminalProgress() as progress:
        start = common.start_engines(engines)
        result = run_capture(config, common.store, start, out, progress, new=new, command=common.command)
    common.report(result.run_id)
    common.check(result.failures)


@cli.group("sae")
def sae_group() -> None:
    """Sparse autoencoders: train, fetch and check them."""


@sae_group.command("train", config="morfi.latents.sae_training:SaeTraining")
@common_options
def sae_train_command(common: Common, **given: Any) -> None:
    """Trains an SAE on a model's residual stream with SAELens, once; then it is in the cache."""
    from morfi.latents.sae_training import configure_sae, train_sae
    from morfi.report.following import after_training
    from morfi.report.trends import quality_table

    config = configure_sae(common.checked(given))
    with terminal.TerminalProgress() as progress:
        found = train_sae(config, common.store, common.start_engine, progress)
    quality = found.quality
    row = tuple(quality[name] for name in ("n_tokens", "explained_variance", "l0", "n_dead"))
    table = quality_table([("held-out questions", *row)], quality["d_sae"])
    following = after_training(common.store, config, str(found.folder))
    text = f"{table}\n\nSAE: {found.folder}\n{following}"
    common.tell({"sae": str(found.folder), **quality}, text, f"the SAE is in {found.folder}")


@sae_group.command("get")
@click.argument("source", metavar="PRESET|RELEASE:ID")
@common_options
def sae_get_command(common: Common, source: str) -> None:
    """Downloads a pretrained SAE: of a model preset, such as llama-3.1-8b, or any release of SAELens."""
    from morfi.latents.sae import load_sae
    from morfi.report.following import after_fetching
    from morfi.report.trends import sae_object

    sae = load_sae(source)
    found = sae_object(sae)
    lines = [f"{name:<11}{value}" for name, value in found.items()]
    common.answer(found, "\n".join([*lines, after_fetching(common.store, source, sae.layer)]))


@sae_group.command("check", config="morfi.latents.sae_check:SaeOnRun")
@common_options
def sae_check_command(common: Common, **given: Any) -> None:
    """Shows how much of a model's own activations an SAE explains, its L0 and its dead latents."""
    from morfi.latents.sae_check import SaeOnRun, check
    from morfi.report.following import after_checking
    from morfi.report.trends import check_table, quality_object

    config = SaeOnRun(**given)
    found = check(common.store, config)
    following = after_checking(common.store, config, found.run_id)
    common.answer(quality_object(found), f"{check_table(found)}\n\n{following}")


@cli.command("find", config="morfi.latents.find:FindConfig")
@figure_option
@new_option
@common_options
def find_command(common: Common, new: bool, figure: Path | None, **given: Any) -> None:
    """Finds the latents that rise or fall with the share of Unknown facts in training."""
    from morfi.latents.find import configure_find, run_find

    with terminal.TerminalProgress() as progress:
        run_id = run_find(configure_find(given), common.store, progress, new=new, command=common.command)
    common.report_drawn(run_id, figure)


@cli.command("steer", config="morfi.interventions.config:SteerConfig")
@figure_option
@new_option
@engines_option
@common_options
def steer_command(common: Common, new: bool, figure: Path | None, engines: int, **given: Any) -> None:
    """Steers a checkpoint along latents and baselines: which of them bring known answers back?"""
    from morfi.interventions import configure_steer, run_steer

    config = configure_steer(common.checked(given))
    with terminal.TerminalProgress() as progress:
        start = common.start_engines(engines, config.server)
        run_id = run_steer(config, common.store, start, progress, new=new, command=common.command)
    common.report_drawn(run_id, figure)


@cli.command("run", cls=Plain)
@experiment_options
@option("--from", "begin", metavar="STAGE", help="Begin here; what comes before must be done.", unset="split")
@option("--until", metavar="STAGE", help="End after this stage.", unset="steer")
@option("--dry-run", "dry", is_flag=True, help="Say how each stage stands, and run nothing.")
@engines_option
@write_config_option
@store_options
def run_command(common: Common, file: Path | None, write_config: bool, engines: int, **given: Any) -> None:
    """Runs a whole experiment, or what is left of it: FILE has a table of options for each stage."""
    from morfi.command.experiment import asked_for, experiment_text
    from morfi.experiment import run_experiment, stages_of
    from morfi.experiment.check import check_values
    from morfi.files import reading_once
    from morfi.report.experiment import report_of_experiment, stages_object, stages_text
    from morfi.store.file import check_writable

    settings = asked_for(file, given, cli)
    if write_config:
        check_values({name: common.taken(own) for name, own in settings.items()}, stages_of(settings))
        with terminal.to_reader():
            click.echo(experiment_text(settings, cli, ascii_only=not terminal.takes_unicode()), nl=False)
        return
    if given["dry"]:
        check_writable(common.store.path)
    with reading_once():
        outcomes = list(
            run_experiment(
                settings,
                common.store,
                common.start_engine,
                terminal.TerminalProgress,
                start_engines=common.start_engines(engines),
                command=common.command,
                take=common.taken,
                begin=given["begin"],
                until=given["until"],
                dry=given["dry"],
            )
        )
    report = report_of_experiment(outcomes, common.store)
    common.answer(stages_object(outcomes, report), stages_text(outcomes, common.store, report))


@cli.command("plan", cls=Plain)
@experiment_options
@option("--gpu", metavar="NAME", help="Plan for this GPU, such as h100.", unset="this machine")
@option("--calibrate", is_flag=True, help="First measure this machine, about a minute; kept in the cache.")
@store_options
def plan_command(common: Common, file: Path | None, gpu: str | None, calibrate: bool, **given: Any) -> None:
    """Says what `morfi run` would take: the time, memory and disk of each stage, before anything is spent."""
    from morfi.command.experiment import asked_for
    from morfi.planning.outlook import measured_here, outlook
    from morfi.report.planning import calibration_text, plan_object, plan_text

    alone = file is None and given["preset"] is None
    settings = {} if calibrate and alone else asked_for(file, given, cli)
    if calibrate:
        with terminal.TerminalProgress() as progress:
            kept = measured_here(settings, common.start_engine, progress)
        if alone:
            common.answer(asdict(kept), calibration_text(kept))
            return
    with terminal.TerminalProgress() as progress:
        plan = outlook(settings, common.store, common.start_engine, progress, take=common.taken, gpu=gpu)
    common.answer(plan_object(plan), plan_text(plan))
    if plan.faults:
        raise FaultsError("the experiment", plan.faults)


@cli.command("serve", config="morfi.serve.http.launch:ServeConfig")
@option("--host", default="127.0.0.1", help="Others than this machine need a key.")
@option("--port", kind=click.IntRange(0, 65535), default=8000, help="0 takes a free one.")
@file_option("--keys", help='File of "user KEY" and "admin KEY".', unset="MORFI_API_KEY and MORFI_ADMIN_KEY")
@option(
    "--allow-origin",
    multiple=True,
    metavar="ORIGIN",
    help="Whose pages may use the server beside its own, such as a proxy's https://morfi.example.",
    unset="none",
)
@option("--root-path", default="", metavar="PATH", help="Where a proxy shows it, such as /morfi.", unset="/")
@option(
    "--trust-forwarded",
    multiple=True,
    metavar="ADDRESS",
    help="The proxy whose X-Forwarded-Host, -Proto and -For are believed.",
    unset="none",
)
@common_options
def serve_command(common: Common, host: str, port: int, keys: Path | None, **given: Any) -> None:
    """Serves a checkpoint over HTTP, OpenAI-compatible and steerable along latents and vectors."""
    from morfi.serve.engine import engine_overrides
    from morfi.serve.http.launch import ServeConfig, prepare_server
    from morfi.serve.http.server import Address, run_server

    sites = {name: given.pop(name) for name in ("allow_origin", "trust_forwarded", "root_path")}
    address = Address.of(host, port, keys, **sites)
    given["engine"] = engine_overrides(given["engine"], verbose=common.verbose)
    config = ServeConfig(**given)
    with terminal.TerminalProgress() as progress:
        run_server(
            prepare_server(config, common.store, progress),
            address=address,
            on_ready=lambda url: common.tell({"url": url}, f"serving on {url}", f"serving on {url}"),
            verbose=common.verbose,
        )


@cli.command("runs")
@option("--limit", kind=int, default=20, help="How many to list, the newest first.")
@option("--all", "every", is_flag=True, help="Also the evaluations that sweeps have made.")
@common_options
def runs_command(common: Common, limit: int, every: bool) -> None:
    """Lists the runs that were started, newest first."""
    from morfi.report.listing import runs_table
    from morfi.runs.options import check_numbers
    from morfi.store.records import STARTED, RunKind

    check_numbers({"limit": (limit, 1)})
    runs = common.store.runs(limit, tuple(RunKind) if every else STARTED)
    common.answer({"runs": [asdict(run) for run in runs]}, runs_table(runs))


@cli.command("show")
@click.argument("run")
@common_options
def show_command(common: Common, run: str) -> None:
    """Shows one run: its accuracies and what made it. RUN is an id, the start of one, or "last"."""
    from morfi.report.runs import details_of

    report = details_of(common.store, run)
    common.answer(dict(report.object), report.text)


@cli.command("report")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@option("--format", "form", default="html", metavar="html|md", help="A page of HTML, or Markdown.")
@file_option("-o", "--out", help="The file to write.", unset="RUN.html or RUN.md beside the database")
@option(
    "--pictures",
    kind=click.Path(path_type=Path, file_okay=False),
    help="A folder for its pictures, each as PNG and SVG; of HTML.",
    unset="none",
)
@option("--open", "opened", is_flag=True, help="Show it in the browser.")
@common_options
def report_command(common: Common, runs: tuple[str, ...], *, opened: bool, **given: Any) -> None:
    """Writes the experiment that ends with RUN as one file, to be read by anybody; of several, Markdown."""
    from morfi.report.document import write_as

    path = write_as(given["form"], common.store, runs, given["out"], given["pictures"])
    if opened:
        click.launch(str(path))
    common.tell({"out": str(path)}, f"wrote {path}", f"wrote {path}")


@cli.command("compare")
@click.argument("run_a")
@click.argument("run_b")
@common_options
def compare_command(common: Common, run_a: str, run_b: str) -> None:
    """Compares two runs on the questions both answered: who flipped, and is the difference real?"""
    from morfi.report.comparison import comparison_table
    from morfi.runs.compare import compare

    comparison = compare(common.store, run_a, run_b)
    common.answer(asdict(comparison), comparison_table(comparison))


@cli.command("sql", cls=Statement)
@click.argument("statement")
@common_options
def sql_command(common: Common, statement: str) -> None:
    """Runs one reading SQL statement, such as "SELECT * FROM accuracy"."""
    from morfi.report.listing import SHOWN_ROWS, rows_table, write_rows

    if common.as_json:
        with terminal.spooled() as file, common.store.query_rows(statement, as_text=True) as rows:
            write_rows(rows, file, ascii_only=not terminal.takes_unicode())
        return
    with common.store.query_rows(statement, as_text=True) as rows:
        found = rows.first(SHOWN_ROWS + 1)
    common.answer({}, rows_table(found))


@cli.command("export")
@click.argument("run")
@option(
    "--format",
    "fmt",
    kind=click.Choice(["jsonl", "parquet", "csv", "eee", "lm-eval", "tables", "steer-vectors"]),
    default="jsonl",
    help="Of the rows; a folder as Every Eval Ever or lm-evaluation-harness has it, or of all tables as "
    "Parquet; or a steer run's directions, as safetensors with a JSON file beside it.",
)
@file_option("--out", help="The file, or new folder, to write.", unset="standard output")
@common_options
def export_command(common: Common, run: str, fmt: str, out: Path | None) -> None:
    """Writes a run's questions, prompts, answers and verdicts as rows, or what it steered along."""
    from morfi.interventions.vectors import export_vectors
    from morfi.runs.export import export
    from morfi.runs.folders import FOLDERS, export_folder

    if fmt in FOLDERS:
        run_id = export_folder(common.store, run, fmt, out)
        common.tell({"run_id": run_id, "format": fmt, "out": str(out)}, f"wrote {out}", f"wrote {out}")
        return
    if fmt == "steer-vectors":
        if out is None:
            raise click.UsageError("steer-vectors are binary and need a file; give --out FILE.safetensors")
        run_id, files = export_vectors(common.store, run, out)
        wrote = f"wrote {' and '.join(map(str, files))}"
        common.tell({"run_id": run_id, "format": fmt, "out": list(map(str, files))}, wrote, wrote)
        return
    if common.as_json and out is None:
        raise click.UsageError("--json describes the file written; give --out, or leave --json out for rows")
    export(common.store, run, fmt, out)
    if out is not None:
        full_id = common.store.run(run).run_id
        common.tell({"run_id": full_id, "format": fmt, "out": str(out)}, f"wrote {out}", f"wrote {out}")


@cli.group("cache")
def cache_group() -> None:
    """The cache: converted and merged checkpoints, their tokenizers, and SAEs."""


@cache_group.command("ls")
@common_options
def cache_ls_command(common: Common) -> None:
    """Lists what is in the cache: its key, kind, name and size."""
    from morfi.cache import Cache
    from morfi.report.listing import cache_table

    root, entries = Cache().root, Cache().entries()
    found = {"root": str(root), "entries": [asdict(entry) for entry in entries]}
    common.answer(found, cache_table(root, entries))


@cache_group.command("rm")
@click.argument("key")
@common_options
def cache_rm_command(common: Common, key: str) -> None:
    """Removes the entry whose key starts with KEY; it is made again when it is needed."""
    from morfi.cache import Cache

    entry = Cache().remove(key)
    common.answer({"removed": asdict(entry)}, f"removed {entry.key} ({entry.name})")


def main() -> NoReturn:
    """Runs the command line and exits with the documented code; the console script `morfi`."""

    with terminal.steady_streams():
        try:
            with terminal.ended_by_signals():
                code = _run()
        except (click.Abort, KeyboardInterrupt) as error:
            cause = error.__cause__ if isinstance(error, click.Abort) else error
            terminated = cause if isinstance(cause, Terminated) else None
            how = "interrupted" if terminated is None else f"ended by {terminated.name}"
            click.echo(f"morfi: {how}", err=True)
            code = 130 if terminated is None else terminated.exit_code
    sys.exit(code)


def _run() -> int:

    try:
        cli.main(prog_name="morfi", standalone_mode=False)
    except click.ClickException as error:
        vars(error)["message"] = terminal.in_a_line(error.message)
        error.show()
        return 2
    except MorfiError as error:
        lines = error.lines if isinstance(error, FaultsError) else (str(error),)
        click.echo("\n  ".join(map(terminal.in_a_line, (f"morfi: {lines[0]}", *lines[1:]))), err=True)
        return error.exit_code
    except OSError as error:  # a disk, a mount, a folder: nothing that a traceback would explain
        if "-v" in sys.argv or "--verbose" in sys.argv:
            traceback.print_exc()
        named = f"{error.filename}: " if error.filename is not None else ""
        click.echo(terminal.in_a_line(f"morfi: {named}{error.strerror or error}"), err=True)
        terminal.to_nowhere(
            sys.stdout
        )  # lest Python tries again at its end, and exits with a code of its own
        return 1
    return 0
