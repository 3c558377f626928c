"""Trends along the levels, along the epochs of one level, and along both; all are steered and served."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_engine import FakeEngine
from progress_log import Log
from scipy.stats import spearmanr

from morfi.errors import InputError
from morfi.interventions.config import SteerConfig
from morfi.interventions.plan import prepare_steer
from morfi.kernels.encoder import Encoder
from morfi.latents.activations import EPOCHS, Axis, load_activations
from morfi.latents.capture import CaptureConfig, run_capture
from morfi.latents.find import FindConfig, configure_find, joined, load_found, run_find
from morfi.latents.trends import find_trends
from morfi.report.pictures import draw
from morfi.report.runs import report_of
from morfi.serve.http.catalog import load_catalog
from morfi.store import Store

pytestmark = pytest.mark.long
NOTE = "checkpoints of one training: not independent trainings"


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Path,
    data_file: Path,
    new_experiment: Callable[..., Any],
    save_sae: Callable[[Path], Path],
) -> Any:
    """A store, a capture of three levels after 1 to 5 epochs, and an SAE; latent 0 rises along both."""
    from morfi.training.train import run_train

    folder = tmp_path_factory.mktemp("axes")
    given = {"epochs": (1, 2, 3, 4, 5), "rank": 2, "alpha": 4.0, "lr": 1e-2, "batch": 2, "micro_batch": 2}
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MORFI_CACHE", str(folder / "cache"))
        experiment = new_experiment(folder, tiny_model, data_file)
        train_run = run_train(
            given, experiment.mix_run, experiment.store, folder / "out", Log(), new=False, command=""
        )
        config = CaptureConfig(train_run, (0, 1))
        captured = run_capture(
            config, experiment.store, FakeEngine({}), folder / "out", Log(), new=False, command=""
        )
        yield experiment.store, captured.run_id, save_sae(folder / "sae")


def find(made: Any, **settings: Any) -> str:
    store, captured, sae = made
    config = configure_find({"activations": captured, "sae": str(sae), "resamples": 20, **settings})
    return run_find(config, store, Log(), new=False, command="")


def selected(store: Store, run_id: str) -> list[int]:
    return [row["latent"] for row in store.latents(run_id, selected=True).to_pylist()]


def test_the_epochs_of_one_level_are_in_their_order_each_checkpoint_once(made: Any) -> None:
    store, captured, _ = made
    found = load_activations(store, captured, 1, Axis(EPOCHS))
    assert (found.axis, found.epochs, found.levels) == (Axis(EPOCHS, at=100), "5", [1, 2, 3, 4, 5])
    assert [one.condition.epoch_setting for one in found.residuals] == ["1", "2", "3", "4", "5"]
    assert {one.condition.level for one in found.residuals} == {100}
    other = load_activations(store, captured, 1, Axis(EPOCHS, at=50))
    assert {one.condition.name for one in other.residuals} == {"M_50"}
    assert load_activations(store, captured, 1, Axis(epochs="2")).levels == [0, 50, 100]
    with pytest.raises(InputError, match="holds no checkpoints of level 30; it has: 0, 50, 100"):
        load_activations(store, captured, 1, Axis(EPOCHS, at=30))


def test_a_trend_along_epochs_is_marked_as_of_one_training(made: Any, tmp_path: Path) -> None:
    store, run_id = made[0], find(made, along="epochs")
    assert selected(store, run_id) == [0]
    (row,) = store.latents(run_id, selected=True).to_pylist()
    assert (row["s"], row["direction"], len(row["means"]), row["epochs_s"]) == (10, 1, 5, None)
    conditions = store.trend_conditions(run_id)
    assert [(one.axis, one.epoch, one.place) for one in conditions] == [("epochs", n, n) for n in range(1, 6)]
    stored = store.run(run_id).config
    assert (stored["along"], stored["at"], stored["epochs"]) == ("epochs", 100, "5")
    report = report_of(store, run_id)
    assert "5 conditions of 5 numbers of epochs, all of share of Unknown in training 100 %" in report.text
    assert NOTE in report.text
    assert (report.object["axis"], report.object["note"], report.object["at"]) == ("epochs", NOTE, 100)
    assert "epochs_s" not in report.object["latents"][0]
    _, svg = draw(store, run_id, tmp_path / "figure")
    assert NOTE in svg.read_text()
    assert find(made, along="epochs", at=100.0) == run_id
    assert find(made, along="epochs", at=50) != run_id


def test_levels_are_compared_as_ever(made: Any, tmp_path: Path) -> None:
    store, run_id = made[0], find(made, method="bootstrap", epochs="3")
    assert selected(store, run_id) == [0]
    report = report_of(store, run_id)
    assert (report.object["axis"], report.object["note"], report.object["at"]) == ("level", None, None)
    assert NOTE not in report.text
    _, svg = draw(store, run_id, tmp_path / "figure")
    assert NOTE not in svg.read_text()
    assert "share of Unknown" in svg.read_text()


def test_replicates_give_another_run_whose_rho_ranks_their_means(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoints after 1 to 5 epochs are taken for five trainings of each level."""
    store, alone = made[0], find(made, epochs="3")
    activations: Any = importlib.import_module("morfi.latents.activations")
    plain = activations.condition_of

    def replicate(row: Any) -> Any:
        found = plain(row)
        if row.level is None or row.epoch_setting == "early-stop":
            return found
        return replace(found, seed=found.epoch, epoch=3, epoch_setting="3")

    monkeypatch.setattr(activations, "condition_of", replicate)
    run_id = find(made, epochs="3")
    assert run_id != alone
    rows = store.latents(run_id).to_pylist()
    for row in rows:
        means = np.reshape(row["means"], (3, 5)).mean(1)
        expected = spearmanr(range(3), means).statistic if len(set(means)) > 1 else 0
        assert row["rho"] == pytest.approx(expected, abs=1e-6)
    report, before = report_of(store, run_id), report_of(store, alone)
    assert "0.05, also by p, its sign kept" in report.text
    assert "mean |rho| of replicates' means >= 0.9" in report.text
    assert "mean |rho| >= 0.9" in before.text
    assert "also by p" not in before.text
    assert (report.object["rho_of"], before.object["rho_of"]) == ("level means", "trainings")


def test_runs_by_older_rules_are_not_taken_for_todays(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = find(made, along="both")
    assert find(made, along="both") == before
    module: Any = importlib.import_module("morfi.latents.find")
    monkeypatch.setattr(module, "RULES", module.RULES + 1)
    assert find(made, along="both") != before


def test_both_axes_select_what_holds_on_both(made: Any, tmp_path: Path) -> None:
    store = made[0]
    run_id = find(made, along="both", method="bootstrap", epochs="3")
    level, epochs = (
        find(made, method="bootstrap", epochs="3"),
        find(made, along="epochs", method="bootstrap"),
    )
    rows, along_level, along_epochs = (
        {row["latent"]: row for row in store.latents(one).to_pylist()} for one in (run_id, level, epochs)
    )
    for latent, row in rows.items():
        one, other = along_level[latent], along_epochs[latent]
        of_epochs = {"epochs_rho": "rho", "epochs_s": "s", "epochs_p": "p_exact", "epochs_means": "means"}
        assert {name: row[name] for name in of_epochs} == {
            name: other[column] for name, column in of_epochs.items()
        }
        assert {**row, "selected": None} == {
            **one,
            **{name: row[name] for name in of_epochs},
            "selected": None,
        }
        agree = one["direction"] == other["direction"]
        assert row["selected"] == (one["selected"] and other["selected"] and agree)
    assert selected(store, run_id) == [0]
    report = report_of(store, run_id)
    assert (
        "along both: 1 latent selected, 1 rising and 0 falling; the condition on both axes: M_100"
        in report.text
    )
    assert "rho, epochs" in report.text
    assert NOTE in report.text
    found = json.loads(json.dumps(report.object))
    assert (found["along"], found["axis"], found["other_axis"]["axis"]) == ("both", "level", "epochs")
    assert (found["note"], found["other_axis"]["note"]) == (None, NOTE)
    assert found["shared"] == ["M_100, seed 0, epoch 3"]
    assert [one["level"] for one in found["conditions"]] == [0, 50, 100]
    assert [one["epoch"] for one in found["other_axis"]["conditions"]] == [1, 2, 3, 4, 5]
    assert found["latents"][0]["epochs_s"] == 10
    _, svg = draw(store, run_id, tmp_path / "figure")
    assert NOTE in svg.read_text()


def test_a_latent_that_turns_is_on_neither_of_both(made: Any) -> None:
    """With opposite directions along the two axes it has no trend that holds on both."""
    x = torch.rand(20, 3) + 1
    encoder = Encoder(torch.eye(3), torch.zeros(3))
    rising = [x * (1 + step) for step in range(5)]
    turned = [x * torch.tensor([1 + step, 6 - step, 1 + step]) for step in range(5)]
    tables = [find_trends(one, range(5), encoder, n_resamples=20).latents for one in (rising, turned)]
    assert joined(tables)["selected"].to_pylist() == [True, False, True]


@pytest.mark.parametrize("method", ["fdr", "bootstrap", "page"])
@pytest.mark.parametrize("along", ["level", "epochs", "both"])
def test_steering_and_serving_read_every_kind_of_run(made: Any, along: str, method: str) -> None:
    store = made[0]
    if method == "page":  # which resamples nothing
        config = FindConfig(made[1], str(made[2]), along=along, method=method)
        run_id = run_find(config, store, Log(), new=False, command="")
    else:
        run_id = find(made, along=along, method=method, **({"fdr": 0.5} if method == "fdr" else {}))
    assert selected(store, run_id) == [0]
    found = load_found(store, run_id)
    catalog = load_catalog(store, run_id, None, Log())
    assert (catalog.n_selected, catalog.chance.summary.axis) == (
        1,
        "epochs" if along == "epochs" else "level",
    )
    assert len(catalog.levels) == len(catalog.rows([0])[0]["means"])
    plan = prepare_steer(SteerConfig(run_id, "M_100", random=0, controls=0), store, Log())
    assert [one.row.direction for one in plan.targets] == ["latent 0", "delta_u"]
    epochs = "5" if along == "epochs" else "early-stop"
    assert plan.stored["epochs"] == epochs
    assert catalog.id_of("M_100") == f"level-100-seed-0-epoch-{epochs}"
    ends = [found.activations.residuals[place].values.double().mean(0) for place in (-1, 0)]
    delta = (ends[0] - ends[1]).float()
    torch.testing.assert_close(plan.targets[1].vector, delta / delta.norm())


def test_what_means_nothing_to_an_axis_is_refused(made: Any) -> None:
    for settings, message in (
        ({"at": 50}, "--at means nothing to --along level"),
        ({"along": "epochs", "epochs": "3"}, "--epochs means nothing to --along epochs"),
        ({"along": "seeds"}, '--along "seeds" is none of level, epochs, both'),
    ):
        with pytest.raises(InputError, match=message):
            find(made, **settings)


def test_epochs_that_are_no_number_have_no_place(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    activations: Any = importlib.import_module("morfi.latents.activations")

    plain = activations.condition_of

    def unknown(row: Any) -> Any:
        found = plain(row)
        return replace(found, epoch=None) if row.level is not None else found

    monkeypatch.setattr(activations, "condition_of", unknown)
    with pytest.raises(InputError, match="M_100, seed 0, epoch 1: its epochs are no number"):
        find(made, along="epochs")


def test_checkpoints_without_a_place_are_named_with_the_reason(made: Any) -> None:
    store = made[0]
    report = report_of(store, find(made, epochs="3"))
    why = "a trend along levels is of one epochs setting, here 3; see --epochs"
    assert "3 levels of share of Unknown in training, epochs 3;" in report.text
    assert (
        f"left out: 15 checkpoints (levels 0, 50 and 100, epochs 1, 2, 4, 5 and early-stop): {why}"
        in report.text
    )
    assert len(report.object["left_out"]) == 15
    assert {one["why"] for one in report.object["left_out"]} == {why}
    both = report_of(store, find(made, along="both", epochs="3"))
    assert "left out: 1 checkpoint (levels 100, epochs early-stop): it is M_100, seed 0, epoch" in both.text
    assert "a trend along epochs is of one level, here 100; see --at" in both.text
    assert len(both.object["other_axis"]["left_out"]) == 13


def test_a_setting_that_a_level_lacks_is_not_taken_unasked(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    activations: Any = importlib.import_module("morfi.latents.activations")
    plain = activations.condition_of

    def other(row: Any) -> Any:
        found = plain(row)
        return (
            replace(found, epoch_setting="last")
            if (row.level, row.epoch_setting) == (0, "early-stop")
            else found
        )

    monkeypatch.setattr(activations, "condition_of", other)
    with pytest.raises(
        InputError, match="early-stop, which is taken without --epochs, there is none of M_0, seed 0"
    ):
        load_activations(made[0], made[1], 1)
    left = load_activations(made[0], made[1], 1, Axis(epochs="early-stop"))
    assert (left.levels, len(left.left_out)) == ([50, 100], 16)
