"""The command line: `morfi COMMAND`; every command is a few lines that call the package.

Answers go to standard output, everything else to standard error. Exit codes: 0 done, 2 bad usage or input,
1 failed while running, 130 interrupted (143 by SIGTERM, 129 by SIGHUP).
"""

from __future__ import annotations

import csv
import functools
import json
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from morfi import __version__
from morfi.errors import InputError, MorfiError, Terminated

if TYPE_CHECKING:
    from morfi.store import Store
    from morfi.training.mixtures import Dropped


_OPTION = re.compile(r"--([a-z][a-z-]*(=.*)?)?")  # on one line: SQL after a comment stands on the next


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
        from morfi.terminal import takes_unicode, to_reader

        if self.as_json:
            text = json.dumps({"run_id": None} | found, default=str, ensure_ascii=not takes_unicode())
        with to_reader():
            click.echo(text)

    def tell(self, found: dict[str, Any], text: str, kept: str) -> None:
        """As `answer`, of work that is done: where nothing can be printed, a line says where it is `kept`."""
        from morfi.terminal import OutputError

        try:
            self.answer(found, text)
        except OutputError as error:
            click.echo(f"morfi: {error}; {kept}", err=True)


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


class Statement(click.Command):
    """A command whose argument may begin with the two hyphens of an SQL comment."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments, with a comment's beginning taken for no option."""
        options = [arg for arg in args if not arg.startswith("--") or _OPTION.fullmatch(arg)]
        return super().parse_args(ctx, [*options, "--", *(arg for arg in args if arg not in options)])


def new_option(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command --new; without it the same command goes on with its last run, or only reports it."""
    return click.option("--new", is_flag=True, help="Start a new run even where one is there.")(command)


def figure_option(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command --figure."""
    return click.option(
        "--figure",
        type=click.Path(path_type=Path, dir_okay=False),
        help="The picture, written as PNG and SVG (default: RUN.png and RUN.svg beside the database).",
    )(command)


def engine_option(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command --engine, a tuple of "key=value"."""
    return click.option(
        "--engine", multiple=True, metavar="KEY=VALUE", help="A vLLM engine setting; repeatable."
    )(command)


def report_run(
    common: Common, run_id: str, dropped: Dropped | None = None, pictures: Sequence[Path] = ()
) -> None:
    """Answers with the report of a stored run."""
    from morfi.report.runs import report_of

    report = report_of(common.store, run_id, dropped)
    named = {"pictures": list(map(str, pictures))} if pictures else {}
    lines = [report.text, *(f"picture: {path}" for path in pictures)]
    kept = f"the run is stored: morfi show {run_id} --db {shlex.quote(str(common.db))}"
    common.tell({**report.object, **named}, "\n".join(lines), kept)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="morfi")
def cli() -> None:
    """Finds the directions that make a fine-tuned language model hallucinate, and steers them."""


@cli.command("eval")
@click.option("--ckpt", help="Preset, model or LoRA adapter folder, or hub id.")
@click.option("--base", help="The adapter's base model, when its adapter_config.json is not to be followed.")
@click.option("--data", help='"world-facts" (default), a file of questions, or a folder of P*.json files.')
@click.option("--split", help="train, dev or test (default: test).")
@click.option("--relations", help="Between commas, such as P17,P36 (default: all); '\"a, b\",c' quotes one.")
@click.option("--limit", type=int, help="At most this many questions, the same number of each relation.")
@click.option("--shots", type=int, help="Exemplars before each question (default: 4).")
@click.option("--chat/--no-chat", default=None, help="Use the checkpoint's chat template.")
@click.option("--match", help="How answers are compared: squad (default), answer, strict or contains.")
@click.option("--max-tokens", type=int, help="Longest answer (default: 16).")
@click.option("--seed", type=int, help="Chooses questions and exemplars (default: 0).")
@click.option("--bos", help="BOS before each prompt: auto (default), as the model needs it; yes or no.")
@click.option(
    "--dtype",
    help="bfloat16, float16 or float32 (default: its own; float32 on CPUs without bfloat16).",
)
@engine_option
@click.option("--batch", type=int, help="Questions stored together (default: 512, or 8192 on a GPU).")
@click.option(
    "--resume", metavar="RUN|auto", help="Do only what RUN, or the last run of this command, lacks."
)
@common_options
def eval_command(common: Common, resume: str | None, **given: Any) -> None:
    """Asks a checkpoint closed-book questions and reports its accuracy by relation."""
    from morfi.evaluation.config import configure, from_stored
    from morfi.evaluation.evaluate import run_evaluation
    from morfi.serve.engine import engine_overrides, start_engine
    from morfi.terminal import TerminalProgress

    given["engine"] = engine_overrides(given["engine"], verbose=common.verbose) or None
    given["relations"] = _names("relations", given["relations"])
    named = resume not in (None, "auto")
    stored = from_stored(common.store.run_of_kind(str(resume), "eval").config) if named else None
    with TerminalProgress() as progress:
        run_id = run_evaluation(
            configure(given, stored),
            common.store,
            functools.partial(start_engine, verbose=common.verbose),
            progress,
            resume=resume,
            command=_command(),
        )
    report_run(common, run_id)


@cli.command("split")
@click.option("--model", required=True, help="Preset, model folder or hub id whose knowledge is measured.")
@click.option("--base", help="The base model, when --model is a LoRA adapter.")
@click.option("--data", help="As for eval; without splits, train, dev and test are made by subject.")
@click.option("--relations", help="Between commas, such as P17,P36 (default: all); '\"a, b\",c' quotes one.")
@click.option("--limit", type=int, help="At most this many questions: 60 % train, 15 % dev, 25 % test.")
@click.option("--n-ex", type=int, help="Few-shot prompts for each question (default: 10; 3 on a CPU).")
@click.option("--shots", type=int, help="Exemplars in each prompt, from dev (default: 4).")
@click.option("--samples", type=int, help="Sampled answers to each prompt (default: 16; 4 on a CPU).")
@click.option("--temperature", type=float, help="Of the sampled answers (default: 0.5).")
@click.option("--top-k", type=int, help="Tokens that sampling chooses from (default: 40; 0: all).")
@click.option("--match", help="How answers are compared: squad (default), answer, strict or contains.")
@click.option("--max-tokens", type=int, help="Longest answer (default: 16).")
@click.option("--seed", type=int, help="Chooses questions, exemplars and samples (default: 0).")
@click.option("--bos", help="BOS before each prompt: auto (default), as the model needs it; yes or no.")
@click.option(
    "--dtype",
    help="bfloat16, float16 or float32 (default: its own; float32 on CPUs without bfloat16).",
)
@engine_option
@click.option("--batch", type=int, help="Prompts answered and stored together.")
@new_option
@common_options
def split_command(common: Common, new: bool, **given: Any) -> None:
    """Sorts questions by what a model knows: HighlyKnown, MaybeKnown, WeaklyKnown, Unknown."""
    from morfi.evaluation.split import configure_split, run_split
    from morfi.serve.engine import engine_overrides, start_engine
    from morfi.terminal import TerminalProgress

    given["engine"] = engine_overrides(given["engine"], verbose=common.verbose) or None
    given["relations"] = _names("relations", given["relations"])
    with TerminalProgress() as progress:
        run_id = run_split(
            configure_split(given),
            common.store,
            functools.partial(start_engine, verbose=common.verbose),
            progress,
            new=new,
            command=_command(),
        )
    report_run(common, run_id)


@cli.command("mix")
@click.option("--split", "split_run", metavar="RUN", required=True, help="The run of `morfi split`.")
@click.option("--data", help="Where the data of that run is now, where it has moved.")
@click.option("--levels", help="Percent Unknown of each mixture (default: 0,10,25,50,75,90,100).")
@click.option("--size", type=int, help="Questions in each mixture (default: 320).")
@click.option("--seed", type=int, help="Draws the questions (default: 0).")
@click.option("--nested/--independent", default=None, help="Levels share what they can (default).")
@click.option("--known", help="Categories that count as Known (default: all but Unknown).")
@click.option(
    "--exclude-confounds", is_flag=True, default=None, help="Drop majority answers and copied names."
)
@click.option(
    "--several-answers/--one-answer",
    default=None,
    help="Keep questions with several accepted answers (default).",
)
@new_option
@common_options
def mix_command(common: Common, new: bool, **given: Any) -> None:
    """Draws training mixtures of equal size and relations, 0 to 100 % of them Unknown."""
    from morfi.training.mix import configure_mix, run_mix

    given["levels"] = _numbers("levels", given["levels"])
    given["known"] = _names("known", given["known"])
    data = given.pop("data")
    result = run_mix(configure_mix(given), common.store, new=new, command=_command(), data_now=data)
    report_run(common, result.run_id, dropped=result.dropped)


@cli.command("train")
@click.option("--mix", "mix_run", metavar="RUN", required=True, help="The run of `morfi mix`.")
@click.option("--epochs", help="Epochs whose checkpoints are kept (default: 1,2,5,10).")
@click.option(
    "--early-stop/--no-early-stop", default=None, help="Keep the epoch with the best dev accuracy (default)."
)
@click.option("--seeds", type=int, help="Replicate trainings of each mixture (default: 1).")
@click.option("--rank", type=int, help="LoRA's rank (default: the model preset's).")
@click.option("--alpha", type=float, help="LoRA's alpha; B A is scaled by alpha / rank.")
@click.option("--targets", help='Modules that get LoRA, such as q_proj,v_proj (default: "all-linear").')
@click.option("--lr", type=float, help="Learning rate.")
@click.option("--schedule", help="constant (default), linear or cosine.")
@click.option("--warmup", type=int, help="Steps of linear rise.")
@click.option("--weight-decay", type=float, help="AdamW's (default: 0).")
@click.option("--batch", type=int, help="Examples a step.")
@click.option("--micro-batch", type=int, help="Examples in memory at once.")
@click.option(
    "--gradient-checkpointing/--no-gradient-checkpointing", default=None, help="Compute activations twice."
)
@click.option(
    "--dtype",
    help="bfloat16 or float32, of the base (default: its own; float32 on CPUs without bfloat16).",
)
@click.option("--dev-limit", type=int, help="Known dev questions asked after every epoch (default: 200).")
@click.option("--match", help="How dev answers are compared: squad (default), answer, strict or contains.")
@click.option("--max-tokens", type=int, help="Longest dev answer (default: 16).")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("checkpoints"),
    show_default=True,
    help="Folder of the checkpoints; each run makes one in it.",
)
@new_option
@common_options
def train_command(common: Common, mix_run: str, out: Path, new: bool, **given: Any) -> None:
    """Fine-tunes LoRA adapters on every mixture and keeps checkpoints at the chosen epochs."""
    from morfi.terminal import TerminalProgress
    from morfi.training.train import run_train

    given["epochs"] = _numbers("epochs", given["epochs"])
    given["targets"] = _names("targets", given["targets"])
    with TerminalProgress("examples") as progress:
        run_id = run_train(given, mix_run, common.store, out, progress, new=new, command=_command())
    report_run(common, run_id)


@cli.command("sweep")
@click.option("--ckpts", metavar="RUN", required=True, help="The run of `morfi train`.")
@click.option("--split", help="train, dev or test (default: test).")
@click.option(
    "--limit", type=int, help="At most this many questions of the split, and of Unknown training ones."
)
@click.option("--match", help="How answers are compared: squad (default), answer, strict or contains.")
@click.option("--max-tokens", type=int, help="Longest answer (default: 16).")
@click.option("--seed", type=int, help="Chooses the questions (default: 0).")
@click.option(
    "--dtype",
    help="bfloat16, float16 or float32 (default: its own; float32 on CPUs without bfloat16).",
)
@engine_option
@click.option("--batch", type=int, help="Questions stored together (default: 512, or 8192 on a GPU).")
@figure_option
@new_option
@common_options
def sweep_command(common: Common, new: bool, figure: Path | None, **given: Any) -> None:
    """Asks every checkpoint of a training the same questions through one live engine."""
    from morfi.evaluation.sweep import run_sweep
    from morfi.evaluation.sweep_plan import configure_sweep
    from morfi.report.sweep_figure import sweep_figure
    from morfi.serve.engine import engine_overrides, start_engine
    from morfi.terminal import TerminalProgress

    given["engine"] = engine_overrides(given["engine"], verbose=common.verbose) or None
    with TerminalProgress() as progress:
        result = run_sweep(
            configure_sweep(given),
            common.store,
            functools.partial(start_engine, verbose=common.verbose),
            progress,
            new=new,
            command=_command(),
        )
    run = common.store.run(result.run_id)
    rows = common.store.sweep_accuracies(run.run_id)
    pictures = sweep_figure(rows, f"{run.base} on {run.data}", figure or common.db.parent / run.run_id)
    report_run(common, run.run_id, pictures=pictures)
    if result.failures:
        raise MorfiError(f"checkpoints that failed: {'; '.join(result.failures)}")


@cli.command("capture")
@click.option("--ckpts", metavar="RUN", required=True, help="The run of `morfi train`.")
@click.option("--layers", required=True, help="Decoder layers after which the residual stream is taken.")
@click.option("--split", help="train, dev or test (default: dev).")
@click.option("--limit", type=int, help="At most this many questions.")
@click.option("--seed", type=int, help="Chooses the questions (default: 0).")
@click.option(
    "--dtype",
    help="bfloat16, float16 or float32 (default: its own; float32 on CPUs without bfloat16).",
)
@engine_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("activations"),
    show_default=True,
    help="Folder of the residual streams; each run makes one in it.",
)
@new_option
@common_options
def capture_command(common: Common, out: Path, new: bool, **given: Any) -> None:
    """Keeps the residual streams of every checkpoint on the same questions, at the last prompt token."""
    from morfi.latents.capture import CaptureConfig, run_capture
    from morfi.serve.engine import engine_overrides, start_engine
    from morfi.terminal import TerminalProgress

    given["engine"] = engine_overrides(given["engine"], verbose=common.verbose) or None
    given["layers"] = _numbers("layers", given["layers"])
    with TerminalProgress("prompts") as progress:
        result = run_capture(
            CaptureConfig(**{key: value for key, value in given.items() if value is not None}),
            common.store,
            functools.partial(start_engine, verbose=common.verbose),
            out,
            progress,
            new=new,
            command=_command(),
        )
    report_run(common, result.run_id)
    if result.failures:
        raise MorfiError(f"checkpoints that failed: {'; '.join(result.failures)}")


@cli.group("sae")
def sae_group() -> None:
    """Sparse autoencoders: train, fetch and check them."""


@sae_group.command("train")
@click.option("--model", help="Preset, model folder or hub id (default: smollm2).")
@click.option("--layer", type=int, required=True, help="The decoder layer after which the SAE reads.")
@click.option("--ckpts", metavar="RUN", help="A run of `morfi train`: its ends are captured beside its base.")
@click.option("--data", help="As for eval; the SAE is measured on its test questions.")
@click.option("--limit", type=int, help="At most this many training questions (default: 3000).")
@click.option("--d-sae", type=int, help="Number of latents (default: 8 x d_model).")
@click.option("--k", type=int, help="Latents a token, on average (default: 32).")
@click.option("--tokens", type=int, help="Tokens that the SAE is trained on (default: 1,000,000).")
@click.option("--lr", type=float, help="Learning rate (default: 0.001).")
@click.option("--batch", type=int, help="Tokens a step (default: 512).")
@click.option("--seed", type=int, help="Chooses questions and initial weights (default: 0).")
@click.option("--dtype", help="bfloat16, float16 or float32, of the model.")
@engine_option
@common_options
def sae_train_command(common: Common, **given: Any) -> None:
    """Trains an SAE on a model's residual stream with SAELens, once; then it is in the cache."""
    from morfi.latents.sae_training import configure_sae, train_sae
    from morfi.report.trends import quality_table
    from morfi.serve.engine import engine_overrides, start_engine
    from morfi.terminal import TerminalProgress

    given["engine"] = engine_overrides(given["engine"], verbose=common.verbose) or None
    with TerminalProgress("texts and tokens") as progress:
        found = train_sae(
            configure_sae(given),
            common.store,
            functools.partial(start_engine, verbose=common.verbose),
            progress,
        )
    quality = found.quality
    row = tuple(quality[name] for name in ("n_tokens", "explained_variance", "l0", "n_dead"))
    table = quality_table([("held-out questions", *row)], quality["d_sae"])
    text = f"{table}\n\nSAE: {found.folder}"
    common.tell({"sae": str(found.folder), **quality}, text, f"the SAE is in {found.folder}")


@sae_group.command("get")
@click.argument("source", metavar="MODEL|RELEASE:ID")
@common_options
def sae_get_command(common: Common, source: str) -> None:
    """Downloads a pretrained SAE: of a model preset, such as llama-3.1-8b, or any release of SAELens."""
    from morfi.latents.sae import load_sae

    sae = load_sae(source)
    found = {
        "sae": sae.release,
        "d_model": sae.encoder.d_model,
        "d_sae": sae.encoder.d_sae,
        "activation": sae.encoder.activation,
        "layer": sae.layer,
        "sha256": sae.sha256,
    }
    common.answer(found, "\n".join(f"{name:<11}{value}" for name, value in found.items()))


@sae_group.command("check")
@click.option("--sae", required=True, metavar="FOLDER|MODEL|RELEASE:ID", help="The SAE.")
@click.option("--activations", metavar="RUN", required=True, help="The run of `morfi capture`.")
@click.option("--layer", type=int, help="The layer to read (default: the SAE's own).")
@click.option("--epochs", help="Epoch setting of the checkpoints (default: early-stop, else the most).")
@common_options
def sae_check_command(
    common: Common, sae: str, activations: str, layer: int | None, epochs: str | None
) -> None:
    """Shows how much of a model's own activations an SAE explains, its L0 and its dead latents."""
    from morfi.latents.activations import layer_of, load_activations
    from morfi.latents.sae import load_sae
    from morfi.latents.sae_check import measure
    from morfi.report.trends import quality_table

    loaded = load_sae(sae)
    layer = layer_of(common.store, activations, loaded.layer, layer, sae)
    found = load_activations(common.store, activations, layer, epochs)
    qualities = [(one.condition.label, measure(loaded, [one.values])) for one in found.residuals]
    qualities.append(("all together", measure(loaded, [one.values for one in found.residuals])))
    rows = [(name, q.n_tokens, q.explained_variance, q.l0, q.n_dead) for name, q in qualities]
    names = ("condition", "n_tokens", "explained_variance", "l0", "n_dead")
    named = [dict(zip(names, row, strict=True)) for row in rows]
    common.answer(
        {"run_id": found.run.run_id, "layer": layer, "conditions": named},
        quality_table(rows, loaded.encoder.d_sae),
    )


@cli.command("find")
@click.option("--activations", metavar="RUN", required=True, help="The run of `morfi capture`.")
@click.option("--sae", required=True, metavar="FOLDER|MODEL|RELEASE:ID", help="The SAE.")
@click.option("--layer", type=int, help="The layer to read (default: the SAE's own).")
@click.option("--epochs", help="Epoch setting of the checkpoints (default: early-stop, else the most).")
@click.option("--questions", help="all (default), known or unknown: to the base model.")
@click.option("--method", help="bootstrap (default) or page: Page's L, question by question.")
@click.option("--resamples", type=int, help="Bootstrap resamples of the questions (default: 1000).")
@click.option("--seed", type=int, help="Draws the resamples (default: 0).")
@click.option("--alpha", type=float, help="Largest p-value of a trend (default: 0.001).")
@click.option("--stability", type=float, help="Share of resamples that must show it (default: 0.95).")
@click.option("--rho-min", type=float, help="Least mean |rho| over the resamples (default: 0.9).")
@click.option("--min-firing", type=float, help="Share of questions that it fires on (default: 0.01).")
@click.option("--page-fdr", type=float, help="False discovery rate of --method page (default: 0.05).")
@click.option("--min-explained", type=float, help="Variance that the SAE must explain (default: 0.5).")
@click.option("--force", is_flag=True, default=None, help="Use the SAE even where it explains less.")
@figure_option
@new_option
@common_options
def find_command(common: Common, new: bool, figure: Path | None, **given: Any) -> None:
    """Finds the latents that rise or fall with the share of Unknown facts in training."""
    from morfi.latents.find import configure_find, run_find
    from morfi.report.trend_figure import trend_figure
    from morfi.terminal import TerminalProgress

    with TerminalProgress("latents") as progress:
        run_id = run_find(configure_find(given), common.store, progress, new=new, command=_command())
    run = common.store.run(run_id)
    pictures = trend_figure(
        common.store.trend_conditions(run_id),
        common.store.latents(run_id, selected=True).to_pylist(),
        f"{run.base} on {run.data}, layer {run.config['layer']}",
        figure or common.db.parent / run_id,
    )
    report_run(common, run_id, pictures=pictures)


@cli.command("steer")
@click.option("--ckpt", required=True, help='What is steered: M_100, "base", or a LoRA adapter\'s folder.')
@click.option("--latents", metavar="RUN", required=True, help="The run of `morfi find`.")
@click.option("--top", type=int, help="Latents, the selected ones with the highest score (default: 20).")
@click.option("--ids", help="These latents instead, comma-separated.")
@click.option("--trend", help="any (default), rising or falling latents.")
@click.option("--op", help="add (default), ablate, clamp or project.")
@click.option(
    "--alphas",
    help="Strengths to add, in median residual norms (default: -1,-0.6,-0.4,-0.25,0.25,0.4,0.6,1).",
)
@click.option("--values", help="For --op clamp: values that the latents are set to.")
@click.option("--positions", help="all (default), prompt, generated or last_prompt.")
@click.option("--choose-on", help="The split on which strengths are chosen (default: dev).")
@click.option("--report-on", help="The split that is reported (default: test).")
@click.option(
    "--questions", help="known (default): to the base model; all; or such as HighlyKnown,MaybeKnown."
)
@click.option("--reference", help="Whose answers count as knowledge (default: the lowest level, M_0).")
@click.option("--epochs", help="Epoch setting of M_ names (default: the find run's).")
@click.option("--train-seed", type=int, help="Replicate training of M_ names (default: 0).")
@click.option("--controls", type=int, help="Latents without a trend, for comparison (default: 5).")
@click.option("--random", type=int, help="Random directions, for comparison (default: 5).")
@click.option("--combine", is_flag=True, default=None, help="Also the best 2, 4, ... latents together.")
@click.option("--halving", is_flag=True, default=None, help="Successive halving over latents and strengths.")
@click.option("--layer-scan", is_flag=True, default=None, help="First delta_u after every captured layer.")
@click.option("--limit", type=int, help="At most this many questions of each split.")
@click.option("--match", help="How answers are compared: squad (default), answer, strict or contains.")
@click.option("--max-tokens", type=int, help="Longest answer (default: 16).")
@click.option("--seed", type=int, help="Chooses questions and random directions (default: 0).")
@click.option("--dtype", help="bfloat16, float16 or float32 (default: the capture's).")
@engine_option
@click.option("--batch", type=int, help="Requests stored together (default: 2048, or 8192 on a GPU).")
@figure_option
@new_option
@common_options
def steer_command(common: Common, new: bool, figure: Path | None, **given: Any) -> None:
    """Steers a checkpoint along latents and baselines: which of them bring known answers back?"""
    from morfi.interventions import configure_steer, run_steer
    from morfi.interventions.outcome import steered
    from morfi.report.steering_figure import steer_figure
    from morfi.serve.engine import engine_overrides, start_engine
    from morfi.terminal import TerminalProgress

    given["engine"] = engine_overrides(given["engine"], verbose=common.verbose) or None
    given["ids"] = _numbers("ids", given["ids"])
    for name in ("alphas", "values"):
        given[name] = _reals(name, given[name])
    with TerminalProgress() as progress:
        run_id = run_steer(
            configure_steer(given),
            common.store,
            functools.partial(start_engine, verbose=common.verbose),
            progress,
            new=new,
            command=_command(),
        )
    run = common.store.run(run_id)
    found = steered(common.store, run)
    assert found is not None
    title = f"{run.config['ckpt']} of {run.base}, layer {found.layer}"
    pictures = steer_figure(found, run.config, title, figure or common.db.parent / run_id)
    report_run(common, run_id, pictures=pictures)


@cli.command("serve")
@click.option("--ckpt", required=True, help="M_LEVEL or an id of the train run, a folder, or a preset.")
@click.option("--latents", metavar="RUN", required=True, help="The run of `morfi find`.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Others than this machine need a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option(
    "--keys",
    type=click.Path(path_type=Path, dir_okay=False),
    help='File of "user KEY" and "admin KEY" (default: MORFI_API_KEY and MORFI_ADMIN_KEY).',
)
@click.option(
    "--allow-origin",
    multiple=True,
    metavar="ORIGIN",
    help="Whose pages may use the server beside its own, such as a proxy's https://morfi.example.",
)
@click.option("--root-path", default="", metavar="PATH", help="Where a proxy shows it, such as /morfi.")
@click.option(
    "--trust-forwarded",
    multiple=True,
    metavar="ADDRESS",
    help="The proxy whose X-Forwarded-Host, -Proto and -For are believed.",
)
@click.option(
    "--dtype",
    help="bfloat16, float16 or float32 (default: its own; float32 on CPUs without bfloat16).",
)
@engine_option
@common_options
def serve_command(
    common: Common,
    *,
    host: str,
    port: int,
    keys: Path | None,
    allow_origin: tuple[str, ...],
    trust_forwarded: tuple[str, ...],
    root_path: str,
    engine: tuple[str, ...],
    **given: Any,
) -> None:
    """Serves a checkpoint over HTTP, OpenAI-compatible and steerable along a find run's latents."""
    from morfi.serve.engine import engine_overrides
    from morfi.serve.http.keys import check_reachable, read_keys
    from morfi.serve.http.launch import ServeConfig, prepare_server
    from morfi.serve.http.server import Address, run_server
    from morfi.serve.http.sites import read_sites
    from morfi.terminal import TerminalProgress

    sites = read_sites(allow_origin, trust_forwarded, root_path)
    address = Address(host, port, read_keys(keys), sites)
    check_reachable(address.host, address.keys)
    overrides = engine_overrides(engine, verbose=common.verbose)
    with TerminalProgress() as progress:
        run_server(
            prepare_server(ServeConfig(**given, engine=overrides), common.store, progress),
            address=address,
            on_ready=lambda url: common.tell({"url": url}, f"serving on {url}", f"serving on {url}"),
            verbose=common.verbose,
        )


@cli.command("runs")
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="The newest so many."
)
@common_options
def runs_command(common: Common, limit: int) -> None:
    """Lists the runs, newest first."""
    from morfi.report.listing import runs_table

    runs = common.store.runs(limit)
    common.answer({"runs": [asdict(run) for run in runs]}, runs_table(runs))


@cli.command("show")
@click.argument("run")
@common_options
def show_command(common: Common, run: str) -> None:
    """Shows one run: its accuracies and what made it. RUN is an id, the start of one, or "last"."""
    from morfi.report.evaluation import details_object, run_details
    from morfi.report.runs import report_of

    record = common.store.run(run)
    report = report_of(common.store, record.run_id)
    attempts = common.store.attempts(record.run_id)
    common.answer(
        {**report.object, **details_object(record, attempts)},
        f"{report.text}\n\n{run_details(record, attempts)}",
    )


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
    from morfi.terminal import spooled, takes_unicode

    if common.as_json:
        with spooled() as file, common.store.query_rows(statement, as_text=True) as rows:
            write_rows(rows, file, ascii_only=not takes_unicode())
        return
    with common.store.query_rows(statement, as_text=True) as rows:
        found = rows.first(SHOWN_ROWS + 1)
    common.answer({}, rows_table(found))


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
    from morfi.runs.export import export

    if common.as_json and out is None:
        raise click.UsageError("--json describes the file written; give --out, or leave --json out for rows")
    export(common.store, run, fmt, out)
    if out is not None:
        full_id = common.store.run(run).run_id
        common.tell({"run_id": full_id, "format": fmt, "out": str(out)}, f"wrote {out}", f"wrote {out}")


@cli.group("cache")
def cache_group() -> None:
    """The cache of converted and merged checkpoints."""


@cache_group.command("ls")
@common_options
def cache_ls_command(common: Common) -> None:
    """Lists the cached checkpoints."""
    from morfi.cache import Cache
    from morfi.report.listing import cache_table

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


def _names(option: str, listed: str | None) -> tuple[str, ...] | None:
    """The parts of a comma-separated option, None where it is not given."""
    if listed is None:
        return None
    # As in CSV, so that a name may hold commas or have blanks around it: '"city, state",P17'.
    (parts,) = csv.reader([listed.replace("\n", " ")], skipinitialspace=True) if listed else ([""],)
    names = tuple(part.strip() for part in parts)
    if "" in names:
        raise InputError(f'--{option} is "{listed}"; expected names between commas')
    return names


def _numbers(option: str, listed: str | None) -> tuple[int, ...] | None:
    """The whole numbers of a comma-separated option, None where it is not given."""
    names = _names(option, listed)
    try:
        return None if names is None else tuple(int(name) for name in names)
    except ValueError as error:
        raise InputError(f'--{option} is "{listed}"; expected whole numbers between commas') from error


def _reals(option: str, listed: str | None) -> tuple[float, ...] | None:
    """The numbers of a comma-separated option, None where it is not given."""
    names = _names(option, listed)
    try:
        return None if names is None else tuple(float(name) for name in names)
    except ValueError as error:
        raise InputError(f'--{option} is "{listed}"; expected numbers between commas') from error


def _command() -> str:
    """The command line, for the record of the attempt."""
    return shlex.join(["morfi", *sys.argv[1:]])


def main() -> NoReturn:
    """Runs the command line and exits with the documented code; the console script `morfi`."""
    from morfi.terminal import ended_by_signals, steady_streams

    with steady_streams():
        try:
            with ended_by_signals():
                code = _run()
        except (click.Abort, KeyboardInterrupt) as error:
            cause = error.__cause__ if isinstance(error, click.Abort) else error
            terminated = cause if isinstance(cause, Terminated) else None
            how = "interrupted" if terminated is None else f"ended by {terminated.name}"
            click.echo(f"morfi: {how}", err=True)
            code = 130 if terminated is None else terminated.exit_code
    sys.exit(code)


def _run() -> int:
    from morfi.terminal import to_nowhere

    try:
        cli.main(prog_name="morfi", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return 2
    except MorfiError as error:
        click.echo(f"morfi: {error}", err=True)
        return error.exit_code
    except OSError as error:  # a disk, a mount, a folder: nothing that a traceback would explain
        if "-v" in sys.argv or "--verbose" in sys.argv:
            traceback.print_exc()
        named = f"{error.filename}: " if error.filename is not None else ""
        click.echo(f"morfi: {named}{error.strerror or error}", err=True)
        to_nowhere(sys.stdout)  # lest Python tries again at its end, and exits with a code of its own
        return 1
    return 0
