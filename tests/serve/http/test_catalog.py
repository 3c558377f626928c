"""The find run that a server shows, and the questions that a sweep says fine-tuning cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from morfi.errors import InputError
from morfi.evaluation.sweep import run_sweep
from morfi.evaluation.sweep_plan import configure_sweep
from morfi.latents.capture import CaptureConfig, run_capture
from morfi.latents.find import FindConfig, run_find
from morfi.serve.http.catalog import Catalog, load_catalog
from morfi.serve.http.questions import asked_questions, captured_questions, known_accuracies, lost_questions

M_0, M_100 = "level-0-seed-0-epoch-early-stop", "level-100-seed-0-epoch-early-stop"


@pytest.fixture
def make_catalog(own_experiment: Any, tmp_path: Path, log: Any) -> Any:
    """Makes the catalog of a find run with the SAE in a folder, beside the fake engine."""
    experiment, train_run = own_experiment

    def make(sae: Path) -> Catalog:
        store = experiment.store
        config = CaptureConfig(train_run, (1,))
        captured = run_capture(
            config, store, experiment.serving, tmp_path / "out", log, new=False, command=""
        )
        find = FindConfig(captured.run_id, str(sae), method="bootstrap", resamples=20, force=True)
        return load_catalog(store, run_find(find, store, log, new=False, command=""), None, log)

    return make


@pytest.fixture
def topk_sae(tmp_path: Path) -> Path:
    """As `identity_sae`, but of each row only the two largest latents are kept, and rows have length 3."""
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    metadata = SAEMetadata(hook_name="blocks.1.hook_resid_post")
    made = TopKSAE(
        TopKSAEConfig(d_in=8, d_sae=16, k=2, rescale_acts_by_decoder_norm=False, metadata=metadata)
    )
    with torch.no_grad():
        made.W_enc.copy_(torch.cat([torch.eye(8), -torch.eye(8)], 1))
        made.W_dec.copy_(made.W_enc.T * 3)
        made.b_enc.zero_()
        made.b_dec.zero_()
    made.save_model(tmp_path / "topk")
    return tmp_path / "topk"


def test_ids_and_levels_name_checkpoints(make_catalog: Any, identity_sae: Path) -> None:
    catalog = make_catalog(identity_sae)
    assert next(iter(catalog.checkpoints)) == "base"
    assert [catalog.id_of(name) for name in ("base", "M_0", "M_100", M_100)] == ["base", M_0, M_100, M_100]
    for name in ("M_33", "M_", "D_100", "", "../base"):
        assert catalog.id_of(name) is None
    assert catalog.levels == [0, 50, 100]
    assert catalog.open("base") is catalog.series.base
    assert catalog.open(M_100).adapter_dir is not None


@pytest.mark.long
@pytest.mark.quick
def test_neighbours_and_questions_of_a_latent(make_catalog: Any, identity_sae: Path) -> None:
    catalog = make_catalog(identity_sae)
    assert len(catalog.sae.neighbours(3)) == 10
    assert catalog.sae.neighbours(3)[-1].cosine == 0
    assert 11 not in [one.latent for one in catalog.sae.neighbours(3)]  # its negative, at cosine -1
    condition = catalog.found.activations.residuals[-1]
    found = catalog.firing(2, condition.row.ckpt_sha256).top
    expected = sorted((value for value in condition.values[:, 2].tolist() if value > 0), reverse=True)
    assert [one.activation for one in found] == pytest.approx(expected[:10])
    assert catalog.sae.operations == ("add", "ablate", "clamp", "project", "clamp_firing", "clamp_interval")
    firing = catalog.firing(2, condition.row.ckpt_sha256)
    assert [one.quantile for one in firing.at_quantiles] == sorted(
        {one.quantile for one in firing.at_quantiles}, reverse=True
    )
    values = {one.question.id: one.activation for one in firing.at_quantiles}
    assert set(values.values()) <= set(expected)
    density = firing.density
    assert (density.n_questions, density.n_firing) == (len(condition.values), len(expected))
    assert (sum(density.counts), density.edges[-1]) == (len(expected), pytest.approx(expected[0]))
    rows = catalog.rows([5, 0, 15])
    assert [row["id"] for row in rows] == [5, 0, 15]
    assert rows[1]["direction"] == "rising"


def test_topk_latents_are_shown_and_can_be_added(make_catalog: Any, topk_sae: Path) -> None:
    catalog = make_catalog(topk_sae)
    assert catalog.sae.operations == ("add", "project")
    direction = catalog.sae.directions().direction(4)
    assert direction.encoder is None
    assert direction.vector.tolist() == [0, 0, 0, 0, 1, 0, 0, 0]
    condition = catalog.found.activations.residuals[-1]
    latents = catalog.found.sae.encode(condition.values)
    for latent in range(16):
        expected = sorted((value for value in latents[:, latent].tolist() if value > 0), reverse=True)
        found = catalog.firing(latent, condition.row.ckpt_sha256).top
        assert [one.activation for one in found] == pytest.approx(expected[:10])


def test_lost_questions_need_a_sweep_and_are_those_that_flipped(
    make_catalog: Any, identity_sae: Path, own_experiment: Any, log: Any
) -> None:
    catalog = make_catalog(identity_sae)
    experiment, train_run = own_experiment
    assert len(captured_questions(catalog)) == 10
    assert known_accuracies(catalog) == {}
    captured = [one.question for one in captured_questions(catalog)]
    assert asked_questions(catalog) == captured
    with pytest.raises(InputError, match=f"run: morfi sweep --ckpts {train_run}"):
        lost_questions(catalog, M_100)
    experiment.serving.loaded.clear()
    run_sweep(
        configure_sweep({"ckpts": train_run}),
        experiment.store,
        experiment.serving,
        log,
        new=False,
        command="",
    )
    swept = asked_questions(catalog)[len(captured) :]
    assert {question.id.split("-")[0] for question in swept} == {"train", "test"}
    assert lost_questions(catalog, M_100) == []  # the fake engine knows the same under all checkpoints
    accuracies = known_accuracies(catalog)
    assert set(accuracies) == set(catalog.checkpoints)
    assert all(0 < value < 1 for value in accuracies.values())
    with pytest.raises(InputError, match="not a checkpoint of"):
        lost_questions(catalog, "another")


def test_what_chance_gives_is_read_with_the_run(make_catalog: Any, identity_sae: Path) -> None:
    catalog = make_catalog(identity_sae)
    run_id, store = catalog.found.run.run_id, catalog.store
    assert [catalog.chance.summary] == store.trend_summaries(run_id)
    rates = store.false_discoveries(run_id)
    assert list(catalog.chance.false_discoveries) == rates
    rows = catalog.rows(range(16))
    told = [catalog.with_chance(row)["false_discovery_rate"] for row in rows]
    assert told == [{one.s: one.fdr for one in rates}.get(abs(row["s"])) for row in rows]
