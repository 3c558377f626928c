from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from morfi.conditions.levels import SHARE_UNKNOWN
from morfi.errors import InputError
from morfi.latents.activations import Axis, layer_of, load_activations
from morfi.latents.capture import CaptureConfig, run_capture
from morfi.latents.find import FindConfig, configure_find, run_find
from morfi.report.runs import report_of
from morfi.report.trend_figure import trend_figure
from morfi.store.records import CapturedRow


def capture(experiment: Any, run_id: str, out: Path, log: Any, **changes: Any) -> Any:
    config = CaptureConfig(run_id, **{"layers": (0, 1), **changes})
    return run_capture(
        config, experiment.store, experiment.serving, out, log, new=False, command="morfi capture"
    )


def test_every_checkpoint_is_captured_once_with_the_same_questions(
    own_experiment: Any, tmp_path: Path, log: Any
) -> None:
    experiment, run_id = own_experiment
    result = capture(experiment, run_id, tmp_path / "out", log)
    assert result.failures == ()
    rows = experiment.store.captured(result.run_id)
    assert [row.level for row in rows] == [None, 0, 0, 50, 50, 100, 100]
    assert all(Path(row.path).is_dir() and row.files for row in rows)
    assert experiment.store.summary(result.run_id).status == "done"
    found = load_activations(experiment.store, result.run_id, 1)
    assert found.epochs == "early-stop"
    assert [question.id for question in found.questions] == sorted(q.id for q in found.questions)
    assert found.levels == [0, 50, 100]
    assert {one.values.shape for one in found.residuals} == {(10, 8)}
    n = len(experiment.serving.batches)
    assert capture(experiment, run_id, tmp_path / "out", log).run_id == result.run_id
    assert len(experiment.serving.batches) == n
    assert "early-stop" in report_of(experiment.store, result.run_id).text


def test_a_stopped_capture_goes_on_at_the_checkpoint_that_is_missing(
    own_experiment: Any, tmp_path: Path, log: Any
) -> None:
    experiment, run_id = own_experiment
    experiment.serving.stop_after = 3
    with pytest.raises(RuntimeError, match="the engine died"):
        capture(experiment, run_id, tmp_path / "out", log)
    experiment.serving.stop_after = None
    result = capture(experiment, run_id, tmp_path / "out", log)
    assert len(experiment.serving.batches) == 7
    assert len(experiment.store.captured(result.run_id)) == 7


@pytest.mark.long
@pytest.mark.quick
def test_missing_and_altered_shards_are_named(own_experiment: Any, tmp_path: Path, log: Any) -> None:
    experiment, run_id = own_experiment
    result = capture(experiment, run_id, tmp_path / "out", log)
    row: CapturedRow = experiment.store.captured(result.run_id)[-1]
    file = next(path for path in Path(row.path).iterdir() if path.name.startswith("worker"))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"worker-00000.safetensors is not what was captured \(M_100"):
        load_activations(experiment.store, result.run_id, 1, Axis(epochs=row.epoch_setting))
    file.unlink()
    with pytest.raises(InputError, match=r"worker-00000.safetensors is missing \(M_100"):
        load_activations(experiment.store, result.run_id, 1, Axis(epochs=row.epoch_setting))
    with pytest.raises(InputError, match="holds layers 0, 1, not 2"):
        load_activations(experiment.store, result.run_id, 2)
    with pytest.raises(InputError, match='no checkpoints of epoch setting "9"'):
        load_activations(experiment.store, result.run_id, 1, Axis(epochs="9"))
    with pytest.raises(InputError, match="after layer 1, not 0"):
        layer_of(experiment.store, result.run_id, 1, 0, "the SAE")


@pytest.mark.quick
def test_find_ranks_the_latent_that_rises_and_stores_all(
    own_experiment: Any, tmp_path: Path, log: Any, identity_sae: Path
) -> None:
    experiment, run_id = own_experiment
    captured = capture(experiment, run_id, tmp_path / "out", log).run_id
    config = FindConfig(captured, str(identity_sae), method="bootstrap", resamples=50)
    found = run_find(config, experiment.store, log, new=False, command="morfi find")
    store = experiment.store
    latents = store.latents(found, selected=True).to_pylist()
    assert [row["latent"] for row in latents] == [0]
    assert latents[0]["direction"] == 1
    assert latents[0]["s"] == 3
    assert sorted(latents[0]["means"]) == latents[0]["means"]
    assert len(store.latents(found)) == 16
    (summary,) = store.trend_summaries(found)
    assert summary.is_descriptive
    assert summary.layer == 1
    assert store.summary(found).status == "done"
    assert min(row.explained_variance for row in store.trend_conditions(found)) > 0.999
    assert run_find(config, store, log, new=False, command="morfi find") == found
    report = report_of(store, found)
    of_capture = report_of(store, captured)
    assert "10 prompts each, the last token after layers 0 and 1; level: " in of_capture.text
    assert (of_capture.object["n_questions"], of_capture.object["layers"]) == (10, [0, 1])
    assert "1 latent selected, 1 rising and 0 falling" in report.text
    assert report.object["latents"][0]["latent"] == 0
    picture = trend_figure(store.trend_conditions(found), latents, SHARE_UNKNOWN, "title")
    png, svg = picture.write(tmp_path / "figure")
    assert png.stat().st_size > 10_000
    assert "1 rising latent" in svg.read_text()


def test_the_false_discovery_rate_is_chosen_by_itself_and_says_what_it_cannot_tell(
    own_experiment: Any, tmp_path: Path, log: Any, identity_sae: Path
) -> None:
    experiment, run_id = own_experiment
    store = experiment.store
    captured = capture(experiment, run_id, tmp_path / "out", log).run_id
    given = {"activations": captured, "sae": str(identity_sae), "resamples": 50}
    few = run_find(configure_find(given), store, log, new=False, command="morfi find")
    assert store.run(few).config["method"] == "fdr"
    assert len(store.latents(few, selected=True)) == 0
    report = report_of(store, few)
    assert "with a probability of 0.33, above --fdr 0.05; take more levels or replicate" in report.text
    assert report.object["smallest_s"] is None
    assert report.object["significance"]["bonferroni"] == 0
    assert "S is Mann-Kendall's; by its p, the smallest of which is 0.33, of " in report.text
    assert report.object["is_descriptive"]
    found = run_find(configure_find(given | {"fdr": 0.5}), store, log, new=False, command="morfi find")
    assert [row["latent"] for row in store.latents(found, selected=True).to_pylist()] == [0]
    report = report_of(store, found)
    assert (
        "|S| >= 3, at a false discovery rate of at most 0.5, its sign kept in 0.95 of 50 resamples"
        in report.text
    )
    assert (report.object["smallest_s"], report.object["is_descriptive"]) == (3, False)


def test_pages_test_is_chosen_stored_and_reported(
    own_experiment: Any, tmp_path: Path, log: Any, identity_sae: Path
) -> None:
    experiment, run_id = own_experiment
    store = experiment.store
    captured = capture(experiment, run_id, tmp_path / "out", log).run_id
    given = {
        "activations": captured,
        "sae": str(identity_sae),
        "method": "page",
        "page_fdr": 0.1,
        "seed": None,
    }
    config = configure_find(given)
    found = run_find(config, store, log, new=False, command="morfi find")
    assert store.run(found).config["method"] == "page"
    assert store.run(found).config["page_fdr"] == 0.1
    latents = store.latents(found, selected=True).to_pylist()
    assert [(row["latent"], row["direction"]) for row in latents] == [(0, 1)]
    assert latents[0]["stability"] is None
    assert latents[0]["page_z"] > 4
    report = report_of(store, found)
    assert "Page's L within questions at a false discovery rate of at most 0.1" in report.text
    assert "page z" in report.text
    assert report.object["method"] == "page"
    plain = run_find(replace(config, method="bootstrap"), store, log, new=False, command="morfi find")
    assert plain != found
    assert "p <= 0.001 in 0.95 of 1000 resamples" in report_of(store, plain).text
    with pytest.raises(InputError, match='--method "median" is none of fdr, bootstrap, page'):
        configure_find(given | {"method": "median"})
    for option, method in (
        ("resamples", "page"),
        ("stability", "page"),
        ("page_fdr", "bootstrap"),
        ("fdr", "bootstrap"),
        ("fdr", "page"),
        ("alpha", "fdr"),
        ("page_fdr", "fdr"),
    ):
        with pytest.raises(InputError, match=f"means nothing to --method {method}"):
            configure_find(given | {"page_fdr": None, option: 1, "method": method})


def test_a_sae_that_explains_too_little_is_refused_unless_forced(
    own_experiment: Any, tmp_path: Path, log: Any, identity_sae: Path
) -> None:
    experiment, run_id = own_experiment
    captured = capture(experiment, run_id, tmp_path / "out", log).run_id
    weights = load_file(identity_sae / "sae_weights.safetensors")
    save_file(weights | {"W_dec": weights["W_dec"] / 2}, identity_sae / "sae_weights.safetensors")
    config = FindConfig(captured, str(identity_sae), resamples=20, min_explained=0.9)
    with pytest.raises(InputError, match="of the variance of M_100, seed 0"):
        run_find(config, experiment.store, log, new=False, command="morfi find")
    forced = replace(config, force=True)
    assert run_find(forced, experiment.store, log, new=False, command="morfi find")
    with pytest.raises(InputError, match="is none of all, known, unknown"):
        FindConfig(captured, str(identity_sae), questions="some")
