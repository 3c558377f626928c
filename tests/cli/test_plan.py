"""`morfi plan` as a user types it: what it counts is what `morfi run` then does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, refused
from small_experiment import changed

from morfi.store import Store

# What a plan counts, beside what the small experiment has of it.
MORE = changed(
    "split.n-ex=2",
    "train.epochs=1,2",
    "train.early-stop=true",
    "train.seeds=2",
    "train.dev-limit=3",
    "find.epochs=2",
    "steer.ids=0,1",
    "steer.controls=0",
    "steer.random=2",
    "steer.layer-scan=true",
    "steer.combine=true",
)


def stages_of(plan: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["stage"]: one for one in plan["stages"]}


def row(store: Store, statement: str) -> dict[str, Any]:
    (found,) = store.query(statement).to_pylist()
    return dict(found)


@pytest.mark.long
def test_what_is_counted_is_what_the_experiment_then_does(run: CommandLine, experiment: Path) -> None:
    before = stages_of(run("plan", experiment, *MORE, "--json").json)
    assert before["split"]["state"] == "missing"
    assert not Path("morfi.duckdb").exists()
    assert run("run", experiment, *MORE).code == 0
    after = run("plan", experiment, *MORE, "--json").json
    assert {one["state"] for one in after["stages"]} == {"done"}
    assert (after["total"]["seconds"], after["total"]["disk_bytes"]) == (0, 0)
    counted = {name: one["counts"] for name, one in stages_of(after).items()}
    store = Store(Path("morfi.duckdb"))

    answered = "count(*)::INT AS answers, sum(prompt_tokens)::INT AS prompt_tokens"
    of_kind = f"SELECT {answered} FROM completion JOIN run USING (run_id) WHERE kind = "
    # A mixture's Unknown questions are taken to be as long as those of the split.
    for stage, kind, off in (("split", "split", 0), ("sweep", "sweep-eval", 0.02)):
        found, own = row(store, f"{of_kind}'{kind}'"), counted[stage]["answering"]
        assert own["answers"] == found["answers"], stage
        assert own["prompt_tokens"] == pytest.approx(found["prompt_tokens"], rel=off), stage
    assert before["split"]["counts"] == counted["split"]
    steered = row(store, f"SELECT {answered} FROM steered_answer")
    assert counted["steer"]["answering"]["answers"] == steered["answers"]
    assert counted["steer"]["answering"]["prompt_tokens"] == pytest.approx(steered["prompt_tokens"], rel=0.02)

    epochs = row(
        store,
        "SELECT count(*)::INT AS epochs, sum(n_steps)::INT AS steps, sum(n_dev)::INT AS dev_answers "
        "FROM training_epoch",
    )
    training = counted["train"]["training"]
    assert {name: training[name] for name in epochs} == epochs
    assert training["examples"] == 3 * 2 * 2 * 4  # levels, seeds, epochs, questions
    adapters = list(Path("checkpoints").rglob("adapter_model.safetensors"))
    kept = training["checkpoints"]
    assert kept == len(adapters) == 3 * 2 * 2
    assert counted["train"]["disk"]["adapters"] == kept * tensor_bytes(adapters[0])
    rows = row(store, "SELECT count(*)::INT AS n FROM captured_checkpoint")["n"]
    assert counted["capture"]["rows"] == rows * 10


def tensor_bytes(path: Path) -> int:
    """The bytes of the tensors in a safetensors file, without its header."""
    content = path.read_bytes()
    return len(content) - 8 - int.from_bytes(content[:8], "little")


def test_a_gpu_that_is_not_known_and_a_model_of_unknown_size_are_refused(run: CommandLine) -> None:
    unknown = run("plan", "--preset", "smollm2", "--gpu", "h10")
    refused(unknown, '--gpu is "h10"; expected one of h100', 'Did you mean "h100"?')
    ended = run("plan", "--preset", "smollm2", "--fast", "--gpu", "h100", "--set", "ckpt=no/model")
    refused(ended, 'the sizes of "no/model" are not known here')
    refused(run("plan"), "give the TOML file of an experiment, or --preset")


@pytest.mark.long
def test_what_cannot_fit_is_told_after_the_table(run: CommandLine) -> None:
    large = ("--set", "ckpt=gemma-2-9b", "--set", "layer=20", "--set", "split.limit=60", "--gpu", "rtx-4090")
    fits = run("plan", "--preset", "smollm2", "--fast", *large)
    assert (fits.code, "rtx-4090 x 1" in fits.out) == (0, True), fits.err
    wide = run(
        "plan",
        "--preset",
        "smollm2",
        "--fast",
        *large,
        "--set",
        "train.gradient-checkpointing=false",
        "--json",
    )
    assert wide.code == 2
    assert "gradient-checkpointing = true" in wide.err
    found = json.loads(wide.out)
    assert found["faults"]
    assert sum(one["seconds"] for one in found["stages"]) == pytest.approx(found["total"]["seconds"])
