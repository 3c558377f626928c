"""The commands of the experiment as a user types them: split, mix, train, sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine


@pytest.mark.usefixtures("half_known")
@pytest.mark.long
def test_the_experiment_from_nothing_to_the_picture(
    run: CommandLine, tiny_model: Path, data_file: Path
) -> None:
    options = ("--n-ex", 1, "--shots", 2, "--samples", 2, "--relations", "P17,P36")
    split = run("split", "--ckpt", tiny_model, "--data", data_file, *options, "--json").json
    assert (split["kind"], split["status"], split["n_done"]) == ("split", "done", 42 * 3)
    assert split["splits"]["test"]["by_category"]["HighlyKnown"] == 10

    mix = run("mix", "--split", split["run_id"], "--levels", "0,100", "--size", 4, "--json").json
    assert mix["levels"]["100"]["by_category"]["Unknown"] == 4
    assert mix["dropped"] == {
        "shared_subject": 0,
        "other_category": 0,
        "several_answers": 0,
        "majority": 0,
        "in_subject": 0,
    }

    small = ("--rank", 2, "--alpha", 4, "--lr", 0.01, "--batch", 2, "--epochs", "1", "--no-early-stop")
    train = run("train", "--mix", mix["run_id"], *small, "--json").json
    paths = [Path(c["path"]) for t in train["trainings"] for c in t["checkpoints"]]
    assert [path.parent.name for path in paths] == ["level-000-seed-0", "level-100-seed-0"]
    assert all(path.is_relative_to(Path.cwd() / "checkpoints" / train["run_id"]) for path in paths)

    sweep = run("sweep", "--ckpts", train["run_id"], "--json").json
    assert sweep["groups"]["test Known"]["base"]["accuracy"] == 1.0
    assert [c["level"] for c in sweep["groups"]["test Known"]["checkpoints"]] == [0, 100]
    assert all(Path(path).stat().st_size > 0 for path in sweep["pictures"])
    assert [Path(path).suffix for path in sweep["pictures"]] == [".png", ".svg"]

    for kind, found in {"split": split, "mix": mix, "train": train, "sweep": sweep}.items():
        shown = run("show", found["run_id"])
        assert shown.code == 0, shown.err
        assert f"run {found['run_id']} (done)" in shown.out
        assert "attempt 1, " in shown.out
        again = run("show", found["run_id"], "--json").json
        assert (again["kind"], again["status"]) == (kind, "done")
    assert "picture" in run("sweep", "--ckpts", train["run_id"], "--figure", "mine.png").out
    assert Path("mine.svg").exists()
    listed = run("runs", "--json").json["runs"]
    assert [each["kind"] for each in listed] == ["sweep", "train", "mix", "split"]
    kinds = [each["kind"] for each in run("runs", "--all", "--json").json["runs"]]
    assert (len(kinds), kinds.count("sweep-eval")) == (7, 3)
    assert run("show", "last", "--json").json["run_id"] == sweep["run_id"]


@pytest.mark.long
def test_a_checkpoint_that_fails_gives_the_table_and_exit_code_1(
    run: CommandLine, own_experiment: tuple[Any, str], serving: Any
) -> None:
    made, train_run = own_experiment
    serving.unloadable = frozenset({"level-100-seed-0/epoch-01"})
    ended = run("sweep", "--ckpts", train_run, "--db", made.store.path, "--figure", "x", "--limit", 2)
    assert ended.code == 1
    assert "accuracy in % by share of Unknown" in ended.out
    assert (
        "checkpoints that failed: M_100, seed 0, epoch 1: level-100-seed-0/epoch-01 does not fit" in ended.err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("split",), "--ckpt is missing: give a preset"),
        (("split", "--ckpt", "smollm2", "--relations", "P17,"), '--relations is "P17,"; expected names'),
        (("split", "--ckpt", "smollm2", "--samples", "-1"), "--samples is -1; expected at least 0"),
        (("mix", "--split", "x", "--levels", "0,ten"), '--levels is "0,ten"; expected whole numbers'),
        (("mix", "--split", "x", "--levels", "0,101"), "--levels holds 101; expected whole percentages"),
        (("mix", "--split", "x", "--levels", "0,0"), "--levels holds 0 more than once"),
        (("mix", "--split", "x", "--known", "Unknown"), '"Unknown" cannot count as Known'),
        (("mix", "--split", "x"), "no such database; give --db"),
        (
            ("train", "--mix", "x", "--epochs", "1,"),
            '--epochs is "1,"; expected whole numbers between commas',
        ),
        (("train", "--mix", "x"), "no such database"),
        (("sweep", "--ckpts", "x", "--limit", "0"), "--limit is 0; expected at least 1"),
        (("sweep", "--ckpts", "x"), "no such database"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    run: CommandLine, arguments: tuple[str, ...], message: str
) -> None:
    ended = run(*arguments)
    assert ended.code == 2
    assert message in ended.err
    assert ended.out == ""
    assert not list(Path.cwd().glob("*.duckdb"))
