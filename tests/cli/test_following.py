"""What to type next stands under whatever a command makes, and is a command with all that it needs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from command_line import CommandLine, Ended, commands_of

from morfi.cli import cli
from morfi.latents.sae_training import SaeTraining
from morfi.report.following import after_fetching, after_training
from morfi.store import Store
from morfi.store.records import RunKind

MAKING = {kind.value for kind in RunKind if kind != RunKind.SWEEP_EVAL}
MAKING |= {"run", "verify", "conditions check", "sae train", "sae get", "sae check"}
READING = {"plan", "report", "serve", "runs", "show", "compare", "sql", "export", "cache ls", "cache rm"}


def following(text: str) -> list[list[str]]:
    """The words of the commands that a text ends with, each checked to be one with all that it needs."""
    found = [shlex.split(line) for line in text.splitlines() if line.startswith("  morfi ")]
    for words in found:
        command: Any = cli
        rest = words[1:]
        while isinstance(command, click.Group):
            command, rest = command.commands[rest[0]], rest[1:]
        command.make_context(" ".join(words), ["1" if word == "LAYER" else word for word in rest])
    return found


def of_run(run: CommandLine, store: Store, run_id: str) -> list[list[str]]:
    """The commands that a run's report ends with, after the one that shows it again."""
    ended: Ended = run("show", run_id, "--db", store.path)
    report = ended.out.partition("\nattempt ")[0]
    again, *others = following(report)
    assert again == ["morfi", "show", run_id, "--db", str(store.path)]
    assert all(one[-2:] == ["--db", str(store.path)] for one in others)
    return [one[1:-2] for one in others]


def test_every_command_makes_something_or_reads() -> None:
    assert {name for name, _ in commands_of(cli)} == MAKING | READING


@pytest.mark.long
def test_the_experiment_is_a_chain_of_commands(
    run: CommandLine, steerable: tuple[Store, str], data_file: Path
) -> None:
    store, find_id = steerable
    ids = {one.kind: one.run_id for one in reversed(store.runs())}
    assert of_run(run, store, ids["split"]) == [["mix", "--split", ids["split"]]]
    assert of_run(run, store, ids["mix"]) == [["train", "--mix", ids["mix"]]]
    assert of_run(run, store, ids["train"]) == [["sweep", "--ckpts", ids["train"]]]
    capture = ids["capture"]
    assert of_run(run, store, capture) == [
        ["sae", "train", "--ckpts", ids["train"], "--data", str(data_file), "--layer", "1"],
        ["find", "--activations", capture, "--sae", "SAE"],
    ]
    (steering,) = of_run(run, store, find_id)
    assert steering == ["steer", "--ckpt", "M_100", "--latents", find_id]
    small = ("--alphas", "1", "--controls", 0, "--random", 0, "--limit", 2, "--db", store.path)
    steered = run(*steering, *small)
    assert following(steered.out)[-1][1:-2] == ["serve", "--ckpt", "M_100", "--latents", find_id]
    other = run(*steering, *small, "--epochs", "1")
    assert following(other.out)[-1][3] == "level-100-seed-0-epoch-1"
    swept = run("sweep", "--ckpts", ids["train"], "--limit", 2, "--db", store.path)
    assert following(swept.out)[-1][1:-2] == ["capture", "--ckpts", ids["train"], "--layers", "LAYER"]
    said = run("sweep", "--ckpts", ids["train"], "--limit", 2, "--db", store.path, "--json")
    assert said.json["kind"] == "sweep"
    asked = store.runs(1)[0].run_id
    assert of_run(run, store, asked)[0][:1] == ["sql"]


@pytest.mark.long
def test_an_sae_leads_to_the_newest_capture_of_its_layer(
    run: CommandLine, steerable: tuple[Store, str], tmp_path: Path
) -> None:
    store, find_id = steerable
    config = store.run(find_id).config
    train = store.run(config["activations"]).config["ckpts"]
    (found,) = following(after_training(store, SaeTraining(layer=0, ckpts=train), "my sae"))
    assert found[1:-2] == ["find", "--activations", config["activations"], "--sae", "my sae"]
    (found,) = following(after_training(store, SaeTraining(layer=7, ckpts=train), "my sae"))
    assert found[1:-2] == ["capture", "--ckpts", train, "--layers", "7"]
    (found,) = following(after_training(Store(tmp_path / "none"), SaeTraining(layer=7), "my sae"))
    assert found[1:-2] == ["capture", "--ckpts", "RUN", "--layers", "7"]
    (found,) = following(after_fetching(store, "gemma-2-9b", 20))
    assert found[1:-2] == ["capture", "--ckpts", "RUN", "--layers", "20"]
    (found,) = following(after_fetching(store, "a:b", None))
    assert found[1:-2] == ["find", "--activations", "RUN", "--sae", "a:b"]
    options = ("--activations", config["activations"], "--sae", config["sae"], "--db", store.path)
    (found,) = following(run("sae", "check", *options, "--epochs", "1").out)
    assert found[1:-2] == ["find", *map(str, options[:4]), "--epochs", "1"]
    assert run("sae", "check", *options, "--json").json["conditions"]
