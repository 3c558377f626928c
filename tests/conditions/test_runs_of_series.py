"""Runs of a series in TOML are those of a train run with its checkpoints, in the words of its property."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from morfi.checkpoints import resolve_live
from morfi.conditions.condition import Condition
from morfi.errors import InputError
from morfi.evaluation.sweep import run_sweep
from morfi.evaluation.sweep_plan import SweepConfig
from morfi.interventions import run_steer
from morfi.interventions.config import SteerConfig
from morfi.latents.activations import Axis, load_activations
from morfi.latents.capture import CaptureConfig, run_capture
from morfi.latents.find import FindConfig, run_find
from morfi.latents.sae_training import SaeTraining, train_sae
from morfi.questions import load_questions, with_splits
from morfi.report.pictures import draw
from morfi.report.runs import report_of
from morfi.serve.http.catalog import load_catalog
from morfi.serve.http.launch import chosen
from morfi.serve.http.questions import captured_questions, known_accuracies, lost_questions
from morfi.store import Store

ANSWERS = """
SELECT s.level, s.seed, s.epoch_setting, s.epoch, s.ckpt_sha256, c.* EXCLUDE (run_id, attempt)
FROM sweep_checkpoint s JOIN completion c ON c.run_id = s.eval_run_id
JOIN asked a ON a.run_id = c.run_id AND a.question_id = c.question_id
WHERE s.run_id = '{}' AND a.split = 'test' AND coalesce(s.epoch_setting, '1') = '1'
ORDER BY s.position, c.question_id
"""


@pytest.fixture
def own_series(series: Callable[..., Path], adapters: dict[int, Path]) -> Path:
    """The checkpoints of the train run's one epoch, as a series."""
    return series([{"path": path, "level": level, "epochs": 1} for level, path in adapters.items()])


def sweep(experiment: Any, log: Any, ckpts: object, **changes: Any) -> str:
    config = SweepConfig(str(ckpts), **changes)
    store, serving = experiment.store, experiment.serving
    return run_sweep(config, store, serving, log, new=False, command="").run_id


def capture(experiment: Any, log: Any, out: Path, ckpts: object, **changes: Any) -> str:
    experiment.serving.loaded.clear()
    config = CaptureConfig(str(ckpts), (0, 1), **changes)
    store, serving = experiment.store, experiment.serving
    return run_capture(config, store, serving, out, log, new=False, command="").run_id


def test_a_sweep_gives_the_rows_of_the_train_run(
    own_experiment: Any, own_series: Path, data_file: Path, tmp_path: Path, log: Any
) -> None:
    experiment, train_run = own_experiment
    store = experiment.store
    expected = sweep(experiment, log, train_run)
    found = sweep(experiment, log, own_series, data=str(data_file))
    rows = store.query(ANSWERS.format(found)).to_pylist()
    assert len(rows) == 4 * 20
    assert rows == store.query(ANSWERS.format(expected)).to_pylist()
    assert sweep(experiment, log, own_series, data=str(data_file)) == found
    assert sweep(experiment, log, own_series, data=str(data_file), relations=("P17",)) != found
    accuracies = store.sweep_accuracies(found)
    assert [(one.level, one.questions, one.n) for one in accuracies] == [
        (level, "test", 20) for level in (None, 0, 50, 100)
    ]
    report = report_of(store, found)
    assert "test, accuracy in % by dose (n = 20" in report.text
    assert "50 mg" in report.text
    assert (report.object["property"], report.object["unit"]) == ("dose", "mg")
    assert "dose (mg)" in draw(store, found, tmp_path / "sweep")[1].read_text()
    report = report_of(store, expected)
    assert "accuracy in % by share of Unknown in training" in report.text


def test_a_capture_and_its_trends_are_those_of_the_train_run(
    *,
    own_experiment: Any,
    own_series: Path,
    data_file: Path,
    identity_sae: Path,
    tmp_path: Path,
    log: Any,
) -> None:
    experiment, train_run = own_experiment
    store = experiment.store
    runs = (
        capture(experiment, log, tmp_path / "out", train_run),
        capture(experiment, log, tmp_path / "out", own_series, data=str(data_file)),
    )
    expected, found = (load_activations(store, run_id, 1, Axis(epochs="1")) for run_id in runs)
    assert found.questions == expected.questions
    assert found.levels == expected.levels == [0, 50, 100]
    for own, theirs in zip(found.residuals, expected.residuals, strict=True):
        assert own.condition == theirs.condition
        assert own.row.ckpt_sha256 == theirs.row.ckpt_sha256
        assert own.values.equal(theirs.values)
    configs = [FindConfig(run_id, str(identity_sae), epochs="1", resamples=20) for run_id in runs]
    trends = [run_find(config, store, log, new=False, command="") for config in configs]
    assert store.latents(trends[1]).equals(store.latents(trends[0]))
    assert "3 levels of dose, epochs 1;" in report_of(store, trends[1]).text
    assert "3 levels of share of Unknown in training, epochs 1;" in report_of(store, trends[0]).text
    assert "dose (mg)" in draw(store, trends[1], tmp_path / "find")[1].read_text()
    assert "50 mg" in report_of(store, runs[1]).text
    with pytest.raises(InputError, match=r"no split run says what the base model of .* knew"):
        run_find(FindConfig(runs[1], str(identity_sae), questions="known"), store, log, new=False, command="")


def test_a_train_run_keeps_its_questions_and_a_series_needs_some(
    *,
    own_experiment: Any,
    own_series: Path,
    data_file: Path,
    write_questions: Callable[..., Path],
    questions: Any,
    tmp_path: Path,
    log: Any,
) -> None:
    experiment, train_run = own_experiment
    with pytest.raises(InputError, match=r"--data .*: train-.* has its own questions, those of split-"):
        sweep(experiment, log, train_run, data=str(data_file))
    with pytest.raises(InputError, match=r"--relations P17: train-.* has its own questions"):
        capture(experiment, log, tmp_path, train_run, relations=("P17",))
    with pytest.raises(InputError, match=r"--data is missing: .*my-series\.toml brings no questions"):
        sweep(experiment, log, own_series)
    with pytest.raises(InputError, match=r'facts\.jsonl has no questions of "all"; it has: dev, test, train'):
        capture(experiment, log, tmp_path, own_series, data=str(data_file), split="all")
    plain = write_questions(tmp_path / "plain.jsonl", {"all": questions["dev"]})
    run_id = capture(experiment, log, tmp_path / "out", own_series, data=str(plain), limit=4)
    assert experiment.store.run(run_id).config["split"] == "all"
    assert len(experiment.store.asked(run_id)) == 4


def test_an_sae_is_trained_on_the_ends_of_a_series(
    own_experiment: Any, own_series: Path, data_file: Path, log: Any
) -> None:
    experiment, _ = own_experiment
    small: dict[str, Any] = {"d_sae": 32, "k": 4, "tokens": 640, "batch": 64, "lr": 1e-2}
    config = SaeTraining(layer=1, ckpts=str(own_series), data=str(data_file), **small)
    found = train_sae(config, experiment.store, experiment.serving, log)
    assert len(experiment.serving.loaded) == 2
    said = [line for line in log.phases if line.startswith(("base", "M_"))]
    assert said == ["base model", "M_0, seed 0, epoch 1", "M_100, seed 0, epoch 1"]
    assert train_sae(config, experiment.store, experiment.serving, log) == found
    text = own_series.read_text()
    own_series.write_text(text.replace('"level" = 0', '"level" = 70'))  # another end
    assert train_sae(config, experiment.store, experiment.serving, log).folder != found.folder


def test_a_server_shows_a_series(
    *,
    own_experiment: Any,
    own_series: Path,
    data_file: Path,
    identity_sae: Path,
    questions: Any,
    tmp_path: Path,
    log: Any,
) -> None:
    experiment, _ = own_experiment
    store = experiment.store
    run_id = capture(experiment, log, tmp_path / "out", own_series, data=str(data_file))
    find = FindConfig(run_id, str(identity_sae), resamples=20)
    catalog = load_catalog(store, run_find(find, store, log, new=False, command=""), None, log)
    high = "level-100-seed-0-epoch-1"
    assert list(catalog.checkpoints) == ["base", *(f"level-{n}-seed-0-epoch-1" for n in (0, 50, 100))]
    assert (catalog.order.name, catalog.order.unit, catalog.levels) == ("dose", "mg", [0, 50, 100])
    condition = catalog.checkpoints[high]
    assert isinstance(condition, Condition)
    expected = resolve_live(catalog.series.members[condition].path, base=catalog.series.base)
    assert catalog.open(high).sha256 == expected.sha256
    assert chosen("M_100", catalog, None, log)[0] == high
    assert {one.question.id for one in captured_questions(catalog)} == {one.id for one in questions["dev"]}
    assert known_accuracies(catalog) == {}
    with pytest.raises(InputError, match=r"run: morfi sweep --ckpts .*my-series\.toml"):
        lost_questions(catalog, high)
    sweep(experiment, log, own_series, data=str(data_file))
    assert known_accuracies(catalog) == dict.fromkeys(catalog.checkpoints, 0.5)
    assert lost_questions(catalog, high) == []


def test_names_are_no_epochs_to_choose_from(
    own_experiment: Any, series: Callable[..., Path], adapters: dict[int, Path], data_file: Path, log: Any
) -> None:
    experiment, _ = own_experiment
    names = dict(zip(adapters, ("short", "short", "long"), strict=True))
    file = series([{"path": adapters[n], "level": n, "epochs": names[n]} for n in adapters])
    run_id = capture(experiment, log, file.parent / "out", file, data=str(data_file))
    with pytest.raises(InputError, match=r"several epoch settings.* give --epochs, one of long, short"):
        load_activations(experiment.store, run_id, 1)
    assert load_activations(experiment.store, run_id, 1, Axis(epochs="short")).levels == [0, 50]


def test_texts_are_captured_as_they_are(
    *,
    own_experiment: Any,
    own_series: Path,
    identity_sae: Path,
    data_file: Path,
    tmp_path: Path,
    log: Any,
) -> None:
    experiment, train_run = own_experiment
    texts = tmp_path / "texts.txt"
    texts.write_text("The sky is\n\nOnce upon a time\n{odd} braces\n")
    for ckpts in (own_series, train_run):
        run_id = capture(experiment, log, tmp_path / "out", ckpts, prompts=str(texts))
        run = experiment.store.run(run_id)
        assert (run.prompt, run.data, run.config["split_run"]) == ("{question}", "texts.txt", None)
        asked = experiment.store.asked(run_id)
        assert [(one.id, one.text, one.answers) for one in asked] == [
            ("1", "The sky is", ()),
            ("3", "Once upon a time", ()),
            ("4", "{odd} braces", ()),
        ]
        read = [bytes(token - 3 for token in prompt[1:]) for prompt, _ in experiment.serving.captured]
        assert read == [b"The sky is", b"Once upon a time", b"{odd} braces"]
        found = load_activations(experiment.store, run_id, 1, Axis(epochs="1"))
        assert {one.values.shape for one in found.residuals} == {(3, 8)}
        config = FindConfig(run_id, str(identity_sae), epochs="1", resamples=20)
        assert run_find(config, experiment.store, log, new=False, command="")
    with pytest.raises(InputError, match="are asked as they are; leave --data and --relations out"):
        capture(experiment, log, tmp_path, own_series, prompts=str(texts), data=str(data_file))


def test_a_series_is_steered_on_all_questions_of_its_data(
    *,
    own_experiment: Any,
    own_series: Path,
    data_file: Path,
    write_questions: Callable[..., Path],
    questions: Any,
    identity_sae: Path,
    tmp_path: Path,
    log: Any,
) -> None:
    experiment, _ = own_experiment
    store, serving = experiment.store, experiment.serving
    run_id = capture(experiment, log, tmp_path / "out", own_series, data=str(data_file))
    found = FindConfig(run_id, str(identity_sae), resamples=20)
    latents = run_find(found, store, log, new=False, command="")
    config = SteerConfig(latents, "M_100", alphas=(1.0,), controls=0, random=0, ids=(0,))
    steered = run_steer(config, store, serving, log, new=False, command="")
    assert store.splits(steered) == ["dev", "test"]
    assert store.run(steered).config["reference"] == "M_0"
    assert any("questions of all kinds are asked" in phase for phase in log.phases)
    assert "gains reported on test, all questions" in report_of(store, steered).text
    # Where no run has been made yet.
    fresh = SimpleNamespace(store=Store(tmp_path / "new.duckdb"), serving=serving)
    assert capture(fresh, log, tmp_path / "new", own_series, data=str(data_file)).startswith("capture-")
    every = [one for own in questions.values() for one in own]
    plain = write_questions(tmp_path / "plain.jsonl", {"all": every})
    run_id = capture(experiment, log, tmp_path / "out", own_series, data=str(plain))
    found = FindConfig(run_id, str(identity_sae), resamples=20)
    unsplit = dataclasses.replace(config, latents=run_find(found, store, log, new=False, command=""))
    steered = run_steer(unsplit, store, serving, log, new=False, command="")
    asked = with_splits(load_questions(str(plain))).splits
    assert store.splits(steered) == ["dev", "test"]
    assert {one.id for one in store.asked(steered)} == {one.id for s in ("dev", "test") for one in asked[s]}
    assert "plain.jsonl has no splits: it is parted by subject, as `morfi split` does" in log.phases
    own_series.write_text(own_series.read_text().replace('"level" = 50', '"level" = 60'))
    with pytest.raises(InputError, match="names other checkpoints than when it was captured"):
        run_steer(config, store, serving, log, new=True, command="")
