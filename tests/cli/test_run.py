"""`morfi run` as a user types it, on a tiny model with the fake engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, Ended, refused
from small_experiment import changed

from morfi.checkpoints import model_files, tokenizer
from morfi.questions import load
from morfi.report.document.experiment_file import experiment_file
from morfi.report.findings.chain import chain_of
from morfi.store import Store
from morfi.store.records import RunKind

NAMES = ["split", "mix", "train", "sweep", "capture", "sae train", "find", "steer"]
# Runs `morfi`, and says which of the packages that take seconds it has imported.
LIGHT = """
import sys
from morfi.cli import main
try:
    main()
finally:
    for name in {"numpy", "torch", "transformers", "vllm"} & set(sys.modules):
        print(name, "was imported", file=sys.stderr)
"""


def states(ended: Any) -> dict[str, str]:
    return {one["stage"]: one["state"] for one in ended.json["stages"]}


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """What is read, and where, every time that it is."""
    reads: list[tuple[str, Path]] = []

    def counting(name: str, read: Callable[..., Any]) -> Callable[..., Any]:
        def noting(path: Path, *more: object) -> Any:
            reads.append((name, path))
            return read(path, *more)

        return noting

    places = {
        "questions": (load, "_questions_at"),
        "tokenizer": (tokenizer, "_open"),
        "model": (model_files, "_open"),
    }
    for name, (module, function) in places.items():
        monkeypatch.setattr(module, function, counting(name, getattr(module, function)))
    return reads


@pytest.mark.long
def test_an_experiment_runs_to_its_end_once_and_goes_on_where_it_was_left(
    run: CommandLine,
    experiment: Path,
    serving: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads = counted(monkeypatch)
    before = run("run", experiment, "--dry-run", "--json")
    assert list(states(before)) == NAMES
    assert set(states(before).values()) == {"missing", "waits"}
    assert not Path("morfi.duckdb").exists()

    part = run("run", experiment, "--until", "train", "--json")
    assert states(part) == dict.fromkeys(NAMES[:3], "done")
    after = states(run("run", experiment, "--dry-run", "--json"))
    assert [after[name] for name in NAMES] == ["done"] * 3 + ["missing"] * 2 + ["missing", "waits", "waits"]

    reads.clear()
    whole = run("run", experiment, "--json")
    assert states(whole) == dict.fromkeys(NAMES, "done")
    assert set(Counter(reads).values()) == {1}
    assert {name for name, _ in reads} == {"questions", "tokenizer", "model"}
    results = {one["stage"]: one["result"] for one in whole.json["stages"]}
    store = Store(Path("morfi.duckdb"))
    for name in set(NAMES) - {"sae train"}:
        assert store.summary(results[name]).status == "done"
    assert (Path(results["sae train"]) / "cfg.json").is_file()

    report = Path(whole.json["report"])
    assert report.name == f"{results['steer']}.html"
    assert "What steering brings back" in report.read_text(encoding="utf-8")

    text = experiment_file(chain_of(store, results["steer"]))
    given = tomllib.loads(experiment.read_text())
    for path in (given["ckpt"], given["data"]):
        text = text.replace(f'"{Path(path).name}"', f'"{path}"')
    Path("again.toml").write_text(text)
    assert states(run("run", "again.toml", "--dry-run", "--json")) == dict.fromkeys(NAMES, "done")

    n_starts, n_runs = len(serving.starts), len(store.runs(1000))
    again = run("run", experiment)
    assert again.code == 0, again.err
    assert all(results[name] in again.out for name in NAMES)
    assert (len(serving.starts), len(store.runs(1000))) == (n_starts, n_runs)

    written = report.stat().st_mtime_ns
    for more in ((), ("--dry-run",)):
        known = subprocess.run(
            [sys.executable, "-Pc", LIGHT, "run", "my.toml", "--json", *more],
            capture_output=True,
            text=True,
            check=True,
        )
        assert known.stderr == ""  # nothing heavy was imported, and no stage was made ready
        stages = json.loads(known.stdout)["stages"]
        assert {one["stage"]: one["result"] for one in stages} == results
    assert report.stat().st_mtime_ns == written


# Of each stage, a setting that it decides by, and the stages that are done anew where it changes.
CHANGES: Mapping[str, tuple[str, list[str]]] = {
    "split": ("split.samples=1", NAMES),
    "mix": ("mix.size=2", NAMES[1:]),
    "train": ("train.lr=0.02", NAMES[2:]),
    "sweep": ("sweep.limit=3", ["sweep"]),
    "capture": ("capture.layers=[0, 1]", ["capture", "find", "steer"]),
    "sae train": ("sae.train.d-sae=24", ["sae train", "find", "steer"]),
    "find": ("find.resamples=30", ["find", "steer"]),
    "steer": ("steer.limit=3", ["steer"]),
}


@pytest.mark.slow
def test_a_changed_setting_redoes_what_builds_on_it_and_nothing_else(
    run: CommandLine, experiment: Path
) -> None:
    first = {one["stage"]: one["result"] for one in run("run", experiment, "--json").json["stages"]}
    for stage, (change, redone) in CHANGES.items():
        ended = run("run", experiment, "--set", change, "--json").json["stages"]
        changed = {one["stage"] for one in ended if one["result"] != first[one["stage"]]}
        assert changed == set(redone), stage
        assert {one["state"] for one in ended} == {"done"}
    stands = states(run("run", experiment, "--set", "find.resamples=40", "--dry-run", "--json"))
    assert [stands[name] for name in ("sae train", "find", "steer")] == ["done", "changed", "waits"]


@pytest.mark.long
def test_checkpoints_and_an_sae_of_ones_own_leave_stages_out(
    run: CommandLine, experiment: Path, own_experiment: Any, identity_sae: Path, data_file: Path
) -> None:
    made, train_run = own_experiment
    rows = [row for row in made.store.checkpoints(train_run) if row.epoch_setting == "1"]
    listed = "".join(f'\n[[checkpoint]]\npath = "{row.path}"\nlevel = {row.level}\n' for row in rows)
    base = made.store.run(train_run).ckpt
    Path("series.toml").write_text(f'property = "share"\nbase = "{base}"\n{listed}')
    Path("own.toml").write_text(
        f'ckpts = "series.toml"\ndata = "{data_file}"\nlayer = 1\n'
        f'[find]\nsae = "{identity_sae}"\nforce = true\nresamples = 10\n'
        '[steer]\nlimit = 3\nalphas = [1.0]\nquestions = "all"\n'
    )
    ended = run("run", "own.toml", "--json")
    assert list(states(ended)) == ["sweep", "capture", "find", "steer"]
    assert set(states(ended).values()) == {"done"}


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ('ckptt = "x"', (), 'Did you mean "ckpt"?'),
        ("limit = 3", (), '"limit" is none of the options that stages share'),
        ("[split]\nlimt = 3", (), 'no option "limt"'),
        ("[split]\ndb = 'x'", (), '"db" belongs to the command line'),
        ("[mix]\nsplit = 'x'", (), '"split" is given by the stages before it'),
        ("[splt]\nlimit = 3", (), '[splt] is not the table of a stage. Did you mean "split"?'),
        ("[sae.trian]\nk = 3", (), "[sae.trian] is not the table of a stage"),
        ("[sae]\nk = 3\n[sae.train]\nk = 3", (), '[sae] holds "k" beside a table'),
        ("[sae.train]\nk = 3\n['sae train']\nk = 4", (), "[sae.train] stands there twice"),
        ("ckpts = 'a.toml'\nckpt = 'b'", (), "ckpt decides nothing beside ckpts"),
        ("ckpts = 'a.toml'", ("--seeds", "3"), "[train] decides nothing beside ckpts"),
        ("[find]\nsae = 'x'\n[sae.train]\nk = 3", (), "[sae.train] decides nothing beside sae in [find]"),
        ("[find]\nsae = 'x'", ("--set", "sae.train.k=3"), "[sae.train] decides nothing beside sae in [find]"),
        ("[split]\nlimit = 'x'", (), 'split, limit is "x"; expected a whole number'),
        ("x = ", (), "is not valid TOML"),
        ("", ("--set", "split.limit"), "expected STAGE.OPTION=VALUE"),
        ("ckpt = 'x'", ("--set", "ckpt.y=1"), '"ckpt" is an option, and holds no others'),
        ("", ("--until", "find "), '--until "find " is no stage'),
        ("", ("--from", "steer", "--until", "mix"), "--from steer comes after --until mix"),
        ("", ("--preset", "smollm2"), "my.toml and --preset smollm2 are two experiments; give one of them"),
        ("", ("--fast",), "--fast belongs to --preset"),
    ],
)
def test_what_is_wrong_with_an_experiment_is_said_before_it_begins(
    run: CommandLine, text: str, arguments: tuple[str, ...], message: str
) -> None:
    Path("my.toml").write_text(text)
    refused(run("run", "my.toml", *arguments), message)
    assert not Path("morfi.duckdb").exists()


def test_what_no_stage_takes_is_said_of_all_before_the_first_begins(
    run: CommandLine, experiment: Path, serving: Any
) -> None:
    wrong = {
        "mix.levels": "0,0",
        "train.epochs": "0",
        "sae.train.d-sae": "0",
        "find.method": "x",
        "steer.alphas": "nan",
        "sweep.match": "x",
    }
    ended = run("run", experiment, *changed(*(f"{key}={one}" for key, one in wrong.items())))
    assert (ended.code, ended.out) == (2, "")
    first, *faults = [line for line in ended.err.splitlines() if not line.startswith("[")]
    assert first == "morfi: the experiment: 6 faults"
    assert sorted(line.split("]")[0] for line in faults) == sorted(
        f"  [{key.rpartition('.')[0]}" for key in wrong
    )
    assert (serving.starts, Path("morfi.duckdb").exists()) == ([], False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("layer=9", "[capture] layers: layer 9; tiny has the layers 0 to 1"),
        ("sae.train.layer=0", "[sae.train] layer is 0; [capture] takes the layers 1"),
        ("find.epochs=7", "[find] epochs is 7; [train] keeps the epochs 1"),
        ("steer.ckpt=M_30", "[steer] ckpt is M_30; [mix] draws M_0, M_50, M_100"),
        ("find.epochs=early-stop", "[find] epochs is early-stop; [train] keeps the epochs 1"),
        ("mix.levels=0,100", "[find] a trend needs 3 levels or more; [mix] draws M_0, M_100"),
        ("steer.epochs=9", "[steer] epochs is 9; [train] keeps the epochs 1"),
        ("steer.train-seed=7", "[steer] train-seed is 7; [train] trains the seeds 0"),
        ("steer.reference=M_75", "[steer] reference is M_75; [mix] draws M_0, M_50, M_100"),
        ("steer.report-on=nope", '[steer] report-on "nope" is none of train, dev, test'),
        ("capture.split=nope", '[capture] split "nope" is none of train, dev, test'),
        ("sweep.split=nope", '[sweep] split "nope" is none of train, dev, test'),
        ("sae.train.k=99999", "[sae.train] k is 99999, more than the "),
        ("train.warmup=5 mix.size=2", "[train] level 0 has 2 questions"),
        ("find.sae=none/such sae.train={}", "[find] "),
        ("ckpt=none/such", "[split] "),
    ],
)
def test_stages_that_do_not_fit_each_other_are_refused_before_the_first(
    run: CommandLine, experiment: Path, change: str, message: str
) -> None:
    ended = run("run", experiment, *changed(*change.split()), "--dry-run")
    assert (ended.code, ended.out) == (2, "")
    assert f"  {message}" in ended.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("mix.size=0", "[mix] size is 0; expected at least 1"),
        ("split.n-ex=3", "n-ex"),
        ("steer.positions=x", '[steer] positions "x"'),
        ("find.epochs=1", None),
    ],
)
def test_messages_name_keys_and_no_options(
    run: CommandLine, experiment: Path, change: str, message: str | None
) -> None:
    shots = ("--set", "split.shots=0") if change.startswith("split") else ()
    ended = run("run", experiment, "--set", change, *shots, "--dry-run")
    assert ended.code == (0 if message is None else 2)
    assert (message or "") in ended.err
    assert "--" not in ended.err


@pytest.mark.parametrize(
    ("change", "fault"), [("train.rank=0", "[train] rank is 0"), ("find.epochs=7", "[find] epochs is 7")]
)
def test_no_file_is_written_of_values_that_cannot_be(
    run: CommandLine, experiment: Path, change: str, fault: str
) -> None:
    ended = run("run", experiment, "--set", change, "--write-config")
    assert (ended.code, ended.out) == (2, "")
    assert f"  {fault}" in ended.err


def test_a_dry_run_says_where_no_run_could_be_stored(run: CommandLine, experiment: Path) -> None:
    refused(run("run", experiment, "--dry-run", "--db", "none/m.duckdb"), "the folder none does not exist")
    refused(run("run", experiment, "--dry-run", "--db", "."), "is a folder")
    refused(run("run", experiment, "--dry-run", "--db", "/proc/m.duckdb"), "cannot be written")


def test_an_sae_of_another_width_is_refused_before_the_first_stage(
    run: CommandLine, experiment: Path, identity_sae: Path
) -> None:
    ended = run("run", experiment, *changed(f"find.sae={identity_sae}", "sae.train={}"))
    assert ended.code == 2
    assert f"[find] sae {identity_sae}: width 8; the residual stream of tiny has the width" in ended.err


def test_a_table_of_two_words_is_changed_and_not_replaced(run: CommandLine, experiment: Path) -> None:
    written = run("run", experiment, "--set", "sae train.lr=0.01", "--write-config")
    table = tomllib.loads(written.out)["sae"]["train"]
    assert (table["lr"], table["d-sae"], table["tokens"]) == (0.01, 16, 2000)


@pytest.mark.long
def test_where_no_latent_has_a_trend_the_baselines_are_steered_along(
    run: CommandLine, experiment: Path
) -> None:
    few = changed("steer.top=2", "steer.random=1", "find.fdr=0")
    ended = run("run", experiment, *few, "--seeds", "2", "--json")
    assert set(states(ended).values()) == {"done"}
    assert "no latent has a trend: only delta_u and random directions" in ended.err
    report = Path(ended.json["report"]).read_text(encoding="utf-8")
    assert "none was selected" in report
    assert (
        "rho is Spearman&#x27;s rank correlation of the levels, each by the mean of its trainings" in report
    )
    store = Store(Path("morfi.duckdb"))
    steered = [store.run(one.run_id) for one in store.runs(99, (RunKind.STEER,))]
    assert sorted((one.config["ckpt"], one.config["train_seed"]) for one in steered) == [
        ("M_100", 0),
        ("M_100", 1),
    ]
    assert len({one.ckpt_sha256 for one in steered}) == 2
    (result,) = (one for one in ended.json["stages"] if one["stage"] == "steer")
    assert store.run(result["result"]).config["train_seed"] == 0
    assert run("report", result["result"], "--format", "md").code == 0
    markdown = Path(f"{result['result']}.md").read_text(encoding="utf-8")
    assert "rho ranks the levels, each by the mean of its trainings." in markdown
    assert result["seconds"] == pytest.approx(sum(store.summary(one.run_id).wall_s for one in steered))
    assert len(store.trend_conditions(steered[0].config["latents"])) == 6


def test_a_stage_before_the_first_must_be_done(run: CommandLine, experiment: Path) -> None:
    refused(run("run", experiment, "--from", "mix"), "[split] this stage is not done")


def test_the_written_file_is_the_same_experiment(run: CommandLine, experiment: Path) -> None:
    first = run("run", experiment, "--set", "train.epochs=2,3", "--write-config")
    assert first.code == 0, first.err
    Path("written.toml").write_text(first.out)
    assert tomllib.loads(first.out)["train"]["epochs"] == [2, 3]
    assert run("run", "written.toml", "--write-config").out == first.out


@pytest.fixture
def disk(run: CommandLine, experiment: Path, tmp_path: Path) -> Iterator[Path]:
    """A disk of its own that holds the experiment, its database and the cache, and is where `run` runs."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    shutil.copy(experiment, folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("MORFI_CACHE", str(folder / "cache"))
        yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # this process may map files of it


def leave(disk: Path, n_bytes: int) -> None:
    """Fills the disk but for so many bytes."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    n_surplus = shutil.disk_usage(disk).free - n_bytes
    if n_surplus > 0:
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, n_surplus)


def remounted(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


def stopped(ended: Ended, code: int, *, by: str) -> None:
    """Asserts one line that says why, and no answer."""
    said = [line for line in ended.err.splitlines() if line.startswith("morfi: ")]
    assert (ended.code, ended.out, len(said)) == (code, "", 1), ended
    assert re.search(by, said[0])
    assert "Traceback" not in ended.err


FULL = "No space left on device|the disk is full"


@pytest.mark.slow
def test_a_disk_that_takes_nothing_stops_a_stage_in_one_line_and_the_same_command_goes_on(
    run: CommandLine, disk: Path
) -> None:
    for stage in NAMES:
        command = ("run", "my.toml", "--until", stage, "--json")
        remounted(disk, "ro")
        stopped(run(*command), 2, by="(?i)read-only")
        remounted(disk, "rw")
        for n_kilobytes in (0, 16, 64, 256, 1024):
            leave(disk, n_kilobytes << 10)
            ended = run(*command)
            if ended.code == 0:
                break
            stopped(ended, 1, by=FULL)
        assert n_kilobytes > 0, stage
        leave(disk, 64 << 20)
        assert set(states(run(*command)).values()) == {"done"}
    report = Path(run("run", "my.toml", "--json").json["report"])
    whole = report.read_bytes()
    report.unlink()
    leave(disk, 0)
    stopped(run("run", "my.toml", "--json"), 1, by=FULL)
    assert not report.exists()
    leave(disk, 64 << 20)
    assert run("run", "my.toml", "--json").json["report"] == str(report)
    assert report.read_bytes() == whole
