"""A steer run with an engine that says what it was asked: what is asked, stored, chosen and reported."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from morfi.engine.operations import OPERATIONS
from morfi.engine.steering import Latent
from morfi.errors import InputError, MorfiError
from morfi.interventions.outcome import Outcome, Steered, steered
from morfi.latents.find import load_found
from morfi.store import Store

CHILD = Path(__file__).parents[1] / "evaluation" / "sweep_child.py"
ROWS = "SELECT * EXCLUDE (run_id, attempt) FROM steered_answer WHERE run_id = '{}' ORDER BY ALL"
N_DEV, N_TEST = 6, 10  # questions that the base knew


@pytest.fixture
def store(steerable: tuple[Any, str]) -> Store:
    """The store of the experiment."""
    found: Store = steerable[0]
    return found


def result(store: Store, run_id: str) -> Steered:
    found = steered(store, store.run(run_id))
    assert found is not None
    return found


def named(found: Steered, name: str) -> Outcome:
    return next(one for one in found.outcomes if one.direction.direction == name)


def rows(store: Store, run_id: str) -> list[dict[str, Any]]:
    return list(store.query(ROWS.format(run_id)).to_pylist())


@pytest.mark.quick
def test_strengths_are_chosen_on_dev_and_reported_on_test(steer: Callable[..., str], store: Store) -> None:
    run_id = steer()
    run, found = store.run(run_id), result(store, run_id)
    assert (run.config["ckpt"], run.config["reference"], run.config["layer"]) == ("M_100", "M_0", 1)
    names = [one.direction.direction for one in found.outcomes]
    assert (names[:2], names[-1], len(names)) == (["latent 0", "delta_u"], "random 1", 5)
    latent = named(found, "latent 0")
    assert (latent.direction.trend, latent.best.alpha, latent.best.gain) == (1, -2.0, 1.0)
    assert [one.gain for one in latent.tried] == [1.0, 0.5, 0.0]
    reported, recovery = latent.reported, latent.recovery
    assert reported is not None
    assert recovery is not None
    assert (reported.n, reported.accuracy_a, reported.accuracy_b, reported.n_lost) == (N_TEST, 0, 1, 0)
    assert reported.p == pytest.approx(2 / 2**N_TEST)
    for reference in ("reference", "base"):
        assert (recovery[reference].recovered.n_right, recovery[reference].base_rate.n) == (N_TEST, N_TEST)
    assert {name: by_split["test"].n_right for name, by_split in found.accuracies.items()} == {
        "base": N_TEST,
        "reference": N_TEST,
        "checkpoint": 0,
    }
    assert [(group.kind, group.n, group.gain) for group in found.groups] == [
        ("latent", 1, 1.0),
        ("control", 2, 0.0),
        ("random", 1, 0.0),
        ("delta_u", 1, 1.0),
        ("down", 1, 1.0),
    ]
    groups = {group.kind: group for group in found.groups}
    assert groups["delta_u"].best_margin is not None
    assert groups["delta_u"].best_margin.difference == 0
    margin, latents = groups["control"].margin, groups["latent"]
    assert margin is not None
    assert (margin.difference, latents.margin) == (1.0, None)
    assert (latents.best, latents.best_alpha, latents.best_gain.difference) == ("latent 0", -2.0, 1.0)
    assert found.n_answers == found.n_full_grid == run.n_planned


def test_every_request_is_steered_as_its_row_says(
    steer: Callable[..., str], store: Store, knowing: Any, steerable: tuple[Any, str]
) -> None:
    run_id = steer()
    found = load_found(*steerable)
    assert knowing.loaded[-2:] == ["M_0", "M_100"]
    run = store.run(run_id)
    norm = found.median_norm(run.ckpt_sha256)
    assert run.config["median_norm"] == norm > 0
    asked = [one for batch in knowing.steerings for one in batch]
    assert len(asked) == run.n_planned
    for wanted in asked:
        for one in wanted:
            assert (one.layer, one.operation, one.positions) == (1, "add", "all")
            assert float(knowing.registered[one.direction].vector.norm()) == pytest.approx(1)
    for row in rows(store, run_id):
        assert row["strength"] == pytest.approx(row["alpha"] * norm)
        assert (row["steered_tokens"] > 0) == bool(row["direction"])
    means = [one.values.mean(0) for one in found.activations.residuals]
    names = {row.direction: row for row in store.steer_directions(run_id)}
    vectors = [direction.vector for direction in knowing.registered.values()]
    delta_u = (means[-1] - means[0]) / (means[-1] - means[0]).norm()
    assert any(torch.allclose(vector, delta_u, atol=1e-6) for vector in vectors)
    assert any(torch.equal(vector, torch.eye(8)[0]) for vector in vectors)
    assert all(abs(row.s or 0) <= 1 for row in names.values() if row.kind == "control")


def test_a_stopped_run_goes_on_at_the_first_missing_batch(
    steer: Callable[..., str], store: Store, knowing: Any, log: Any
) -> None:
    expected = rows(store, steer(batch=15))
    for stop_after in (1, 4, 9):
        knowing.batches.clear()
        knowing.stop_after = stop_after
        with pytest.raises(RuntimeError, match="the engine died"):
            steer(batch=15, new=stop_after == 1)
        assert "goes on at the first batch" in log.phases[-1]
        interrupted = store.runs(1)[0]
        assert (interrupted.status, 0 < interrupted.n_done < interrupted.n_planned) == ("failed", True)
        assert steered(store, store.run(interrupted.run_id)) is None
    knowing.stop_after = None
    run_id = steer(batch=15)
    assert run_id == interrupted.run_id
    assert rows(store, run_id) == expected
    n_starts = len(knowing.starts)
    assert steer(batch=15) == run_id
    assert len(knowing.starts) == n_starts, "a finished run starts no engine"
    summary = store.summary(run_id)
    assert (summary.status, summary.n_done, summary.n_attempts) == ("done", summary.n_planned, 4)


@pytest.mark.long
def test_a_killed_run_leaves_no_row_lost_or_doubled(
    steerable: tuple[Store, str], steer: Callable[..., str], knowing: Any, tmp_path: Path
) -> None:
    store, find_run = steerable
    knowing.answers = lambda *_: " no idea "  # as the child's engine
    knowing.known = {}
    options = ("--ckpt", "M_100", "--latents", find_run, "--controls", "2", "--random", "1")
    whole = steer(batch=64)
    expected = rows(store, whole)
    command = [sys.executable, str(CHILD), "0.05", "steer", *options, "--alphas", "-2,-1,1", "--batch", "5"]
    command += ["--db", str(store.path), "--figure", str(tmp_path / "figure")]
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    ) as child:
        deadline = time.monotonic() + 240
        while not n_done(store, whole) and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(random.random() / 2)
        child.send_signal(signal.SIGKILL)
        said = child.communicate()[1].decode()
    killed = store.runs(1)[0]
    assert killed.status == "interrupted", said[-2000:]
    assert 0 < killed.n_done < killed.n_planned
    assert killed.n_done % 5 == 0 or killed.n_done >= N_DEV + N_TEST, "only whole batches are stored"
    run_id = steer(batch=5)
    assert (run_id, store.summary(run_id).n_attempts) == (killed.run_id, 2)
    changing = ("prompt_tokens", "cached_tokens", "output_tokens", "steered_tokens")
    kept = [
        [{key: value for key, value in row.items() if key not in changing} for row in found]
        for found in (rows(store, run_id), expected)
    ]
    assert kept[0] == kept[1]


def n_done(store: Store, without: str) -> int:
    found = store.query(f"SELECT count(*) AS n FROM steered_answer WHERE run_id <> '{without}'")
    n: int = found.to_pylist()[0]["n"]
    return n


def test_an_answer_that_was_not_steered_is_not_stored(
    steer: Callable[..., str], store: Store, knowing: Any
) -> None:
    knowing.n_unsteered = N_DEV + N_TEST + 1
    with pytest.raises(MorfiError, match="was not steered along latent 0 as asked"):
        steer(batch=512)
    assert all(not row["direction"] for row in rows(store, store.runs(1)[0].run_id))
    knowing.n_unsteered, knowing.n_lost = 0, 1
    with pytest.raises(MorfiError, match="none is stored"):
        steer(batch=512, new=True)
    assert rows(store, store.runs(1)[0].run_id) == []


def test_the_best_latents_are_steered_together_at_shares_of_their_best(
    steer: Callable[..., str], store: Store, knowing: Any
) -> None:
    run_id = steer(ids=(1, 0, 2), combine=True, controls=0, random=0)
    found = result(store, run_id)
    assert [one.direction.direction for one in found.outcomes] == [
        "latent 0",
        "latent 1",
        "latent 2",
        "best 2",
        "best 3",
        "delta_u",
    ]
    best = named(found, "best 2")
    assert best.direction.parts == {"0": -2.0, "1": -1.0}, "of equally good strengths the smallest"
    assert [one.alpha for one in best.tried] == [0.25, 0.5, 1.0]
    assert best.best.alpha == 1.0
    assert best.direction.median_norm == named(found, "latent 0").direction.median_norm
    expected = -2.0 * torch.eye(8)[0] - torch.eye(8)[1]
    assert any(torch.allclose(one.vector, expected) for one in knowing.registered.values())
    assert store.run(run_id).n_planned == found.n_answers


def test_rivals_are_as_many_as_the_latents_and_one_of_several_rules_is_steered_along_once(
    steer: Callable[..., str], store: Store, knowing: Any
) -> None:
    run_id = steer(rivals=True, new=True)
    run, found = store.run(run_id), result(store, run_id)
    picks = run.config["picks"]
    assert set(picks) == {"change", "knowledge"}
    assert [len(own) for own in picks.values()] == [1, 1]
    others = {latent for own in picks.values() for latent in own} - {0}
    kinds = {one.direction.latent: one.direction.kind for one in found.outcomes if one.direction.latent}
    assert {latent for latent, kind in kinds.items() if kind == "rival"} == others
    groups = {group.kind: group for group in found.groups}
    for rule, (latent,) in picks.items():
        assert groups[rule].n == 1
        assert groups[rule].best == f"{'latent' if latent == 0 else 'rival'} {latent}"
    assert run.n_planned == found.n_answers
    assert steer(rivals=True) == run_id


@pytest.mark.long
def test_halving_asks_less_and_finds_the_same(steer: Callable[..., str], store: Store) -> None:
    options = {"questions": "all", "alphas": tuple(a / 2 for a in range(-8, 9) if a)}
    whole, halved = result(store, steer(**options)), result(store, steer(**options, halving=True))
    assert halved.n_answers < 0.6 * whole.n_answers
    assert halved.n_full_grid == whole.n_full_grid == whole.n_answers
    for one in whole.outcomes[:2]:
        other = named(halved, one.direction.direction)
        assert other.best.gain == one.best.gain > 0
        assert other.reported == one.reported
        assert len(other.tried) == 16, "what was left out is shown with the questions it was asked"
        assert {tried.n for tried in other.tried} > {10}


def test_a_layer_scan_steers_at_every_captured_layer_in_its_own_units(
    steer: Callable[..., str], store: Store, knowing: Any
) -> None:
    run_id = steer(layer_scan=True, top=0, controls=0, random=0)
    found = result(store, run_id)
    scanned = named(found, "delta_u@0")
    assert (scanned.direction.layer, scanned.reported) == (0, None)
    assert scanned.direction.median_norm != named(found, "delta_u").direction.median_norm
    layers = {one.layer for batch in knowing.steerings for wanted in batch for one in wanted}
    assert layers == {0, 1}
    assert [group.kind for group in found.groups] == ["delta_u"]
    assert found.groups[0].best_margin is None


@pytest.mark.parametrize("op", ["ablate", "clamp", "clamp_firing", "clamp_interval", "project"])
def test_other_operations_take_latents_of_the_sae_and_project_out_what_is_none(
    steer: Callable[..., str], store: Store, knowing: Any, op: str
) -> None:
    amount = OPERATIONS[op].amount
    values = {amount.option: (0.0, 5.0)} if amount else {}
    low = {"low": -1.0} if OPERATIONS[op].has_low else {}
    found = result(store, steer(op=op, combine=True, ids=(0, 3), **values, **low))
    operations = {one.direction.kind: one.direction.operation for one in found.outcomes}
    assert operations == {
        "latent": op,
        "combined": op,
        "delta_u": "project",
        "control": op,
        "random": "project",
    }
    steerings = [one for batch in knowing.steerings for wanted in batch for one in wanted]
    is_latent = {isinstance(one.direction, Latent) for one in steerings if one.operation == op}
    assert is_latent == {op != "project"}
    assert {one.low for one in steerings if one.operation == op} == {low.get("low", 0.0)}
    latent = named(found, "latent 0")
    assert [one.alpha for one in latent.tried] == list(next(iter(values.values()), (0.0,)))
    assert latent.best.gain == (0.0 if op == "project" else 1.0)
    together = [wanted for batch in knowing.steerings for wanted in batch if len(wanted) == 2]
    assert len(together) == N_DEV + N_TEST


def test_the_base_and_adapter_folders_can_be_steered(
    steer: Callable[..., str], store: Store, trained_once: Any
) -> None:
    train_run = trained_once[1]
    row = next(one for one in store.checkpoints(train_run) if one.level == 50)
    run = store.run(steer(ckpt=row.path, top=1, controls=0, random=0))
    assert run.adapter_sha256 == row.adapter_sha256
    run = store.run(steer(ckpt="base", reference="M_50", controls=0, random=0))
    assert (run.ckpt_sha256, run.config["reference"]) == (run.base_sha256, "M_50")


def test_latents_of_a_topk_sae_can_be_added_but_not_clamped(
    steer: Callable[..., str], store: Store, steerable: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = load_found(*steerable)
    encoder = dataclasses.replace(found.sae.encoder, activation="topk", k=2)
    topk = dataclasses.replace(found, sae=dataclasses.replace(found.sae, encoder=encoder))
    monkeypatch.setattr("morfi.interventions.plan.load_found", lambda *_: topk)
    with pytest.raises(InputError, match="TopK activation cannot be computed one by one"):
        steer(op="clamp", values=(0.0,))
    assert result(store, steer()).outcomes[0].best.gain == 1.0


@pytest.mark.quick
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ckpt": "M_7"}, r"has no M_7 of epoch setting early-stop and seed 0; it has M_0, M_50, M_100"),
        (
            {"ckpt": "nowhere"},
            r'"nowhere" is not a checkpoint of train-.*M_0, M_50, M_100, "base", or the folder',
        ),
        ({"epochs": "9"}, "no checkpoints of epoch setting 9 and seed 0"),
        ({"train_seed": 4}, "epoch setting early-stop and seed 4"),
        ({"reference": "M_100"}, "is its own reference"),
        ({"ids": (0, 16)}, "latent 16 is out of range for d_sae = 16; give 0 to 15"),
        ({"trend": "falling"}, "selected no falling latents; name some with --ids"),
        ({"choose_on": "train", "report_on": "tests"}, 'no questions of "tests"; it has: dev, test, train'),
        ({"engine": {"max_model_len": 40}}, "do not fit in the context of 40"),
    ],
)
def test_what_cannot_be_steered_is_refused_before_the_engine_starts(
    steer: Callable[..., str], knowing: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        steer(**options)
    assert knowing.starts == []


def test_a_reference_of_the_same_weights_is_refused_by_name(
    steer: Callable[..., str], store: Store, trained_once: Any
) -> None:
    same = next(one for one in store.checkpoints(trained_once[1]) if one.level == 100)
    with pytest.raises(InputError, match=f"M_100, which .* its reference {same.path} have the same weights"):
        steer(reference=same.path)


def test_a_run_of_another_command_is_refused(steer: Callable[..., str], trained_once: Any) -> None:
    with pytest.raises(InputError, match="is a run of `morfi train`; give one of `morfi find`"):
        steer(latents=trained_once[1])
