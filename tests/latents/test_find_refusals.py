"""Checkpoints that cannot be compared are refused by name; finding nothing is an answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from morfi.conditions.levels import SHARE_UNKNOWN
from morfi.engine.shards import ShardWriter
from morfi.errors import InputError
from morfi.latents import find as finding
from morfi.latents.activations import load_activations
from morfi.latents.capture import CaptureConfig, run_capture
from morfi.latents.find import FindConfig, run_find
from morfi.latents.sae_check import SaeOnRun, check
from morfi.report.runs import report_of
from morfi.report.trend_figure import trend_figure


@pytest.fixture
def capture(own_experiment: Any, tmp_path: Path, log: Any) -> Any:
    """The store and the id of a capture of it, made when called."""
    experiment, train_run = own_experiment

    def run() -> tuple[Any, str]:
        result = run_capture(
            CaptureConfig(train_run, (1,)),
            experiment.store,
            experiment.serving,
            tmp_path / "out",
            log,
            new=False,
            command="morfi capture",
        )
        return experiment.store, result.run_id

    return run


def find(store: Any, captured: str, sae: Path, log: Any, **settings: Any) -> str:
    config = FindConfig(captured, str(sae), **{"method": "bootstrap", "resamples": 20, **settings})
    return run_find(config, store, log, new=False, command="morfi find")


def spoil(monkeypatch: pytest.MonkeyPatch, number: int, value: float | None) -> None:
    """Writes `value` into the row of prompt `number` of every shard, or leaves the row out."""
    plain = ShardWriter.add

    def add(
        self: ShardWriter, layer: int, values: torch.Tensor, request: tuple[int, int], *rest: Any
    ) -> None:
        if request[0] == number:
            if value is None:
                return
            values = values.clone()
            values[0, 3] = value
        plain(self, layer, values, request, *rest)

    monkeypatch.setattr(ShardWriter, "add", add)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_name_checkpoint_and_question(
    capture: Any, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    spoil(monkeypatch, 4, value)
    store, captured = capture()
    question = store.asked(captured)[4]
    with pytest.raises(InputError, match=r"^M_0, seed 0, epoch early-stop gave NaN or infinity") as refused:
        load_activations(store, captured, 1)
    assert f"first for question {question.id} ({question.text})" in str(refused.value)


def test_a_condition_without_one_of_the_questions_is_refused(
    capture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 7, None)
    store, captured = capture()
    with pytest.raises(InputError, match=r"does not hold one row of each question \(M_0, seed 0"):
        load_activations(store, captured, 1)


def test_a_sae_of_another_width_is_refused(capture: Any, identity_sae: Path, log: Any) -> None:
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

    store, captured = capture()
    metadata = SAEMetadata(hook_name="blocks.1.hook_resid_post")
    StandardSAE(StandardSAEConfig(d_in=6, d_sae=12, metadata=metadata)).save_model(identity_sae)
    says = f"--sae {identity_sae}: width 6; the residual stream of tiny, which {captured} captured, has "
    says += "the width 8"
    with pytest.raises(InputError) as refused:
        find(store, captured, identity_sae, log)
    assert says in str(refused.value)
    assert "reading the activations" not in log.phases
    with pytest.raises(InputError) as refused:
        check(store, SaeOnRun(captured, str(identity_sae)))
    assert says in str(refused.value)


@pytest.mark.parametrize("levels", [[0, 50], [0]])
def test_fewer_than_three_levels_are_refused(
    capture: Any, identity_sae: Path, log: Any, monkeypatch: pytest.MonkeyPatch, levels: list[int]
) -> None:
    store, captured = capture()

    def fewer(*arguments: Any) -> Any:
        found = load_activations(*arguments)
        return replace(found, residuals=found.residuals[: len(levels)])

    monkeypatch.setattr(finding, "load_activations", fewer)
    with pytest.raises(InputError) as refused:
        find(store, captured, identity_sae, log)
    shown = ", ".join(map(str, levels))
    assert str(refused.value) == f"the levels are {shown}; a trend needs at least three different ones"


@pytest.mark.parametrize("method", ["fdr", "bootstrap", "page"])
def test_no_latent_is_an_answer(
    capture: Any, identity_sae: Path, log: Any, tmp_path: Path, method: str
) -> None:
    store, captured = capture()
    weights = identity_sae / "sae_weights.safetensors"
    tensors = load_file(weights)
    tensors["W_enc"][0] = 0  # what rises is not read
    save_file(tensors, weights)
    found = find(store, captured, identity_sae, log, method=method, force=True)
    assert len(store.latents(found, selected=True)) == 0
    assert len(store.latents(found)) == 16
    assert store.summary(found).status == "done"
    report = report_of(store, found)
    assert "0 latents selected, 0 rising and 0 falling" in report.text
    assert report.object["latents"] == []
    picture = trend_figure(store.trend_conditions(found), [], SHARE_UNKNOWN, "title")
    png, svg = picture.write(tmp_path / "figure")
    assert png.stat().st_size > 5_000
    assert "0 rising latents" in svg.read_text()
