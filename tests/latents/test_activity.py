"""The activity of latents: bands by resampled questions, firing by place, and questions at quantiles."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from run_record import run_record

from morfi.conditions.condition import Condition
from morfi.kernels.encoder import Encoder
from morfi.kernels.resample import resample_counts
from morfi.latents.activations import Activations, Axis, Residuals
from morfi.latents.activity import activity_along
from morfi.latents.sae import Sae
from morfi.questions.question import Question
from morfi.store.records import CapturedRow

N, D, D_SAE = 30, 4, 10
LEVELS = (0, 50, 50, 100)  # two trainings of one level


def made(activation: str) -> tuple[Sae, Activations]:
    generator = torch.Generator().manual_seed(0)
    encoder = Encoder(
        torch.randn(D, D_SAE, generator=generator),
        torch.zeros(D_SAE),
        activation,
        threshold=torch.full((D_SAE,), 0.3) if activation == "jumprelu" else None,
        k=3 if activation == "topk" else None,
    )
    questions = tuple(Question(f"q{i}", f"P{i % 2}", "s", f"question {i}", ("a",)) for i in range(N))
    row = cast("CapturedRow", None)
    residuals = tuple(
        Residuals(Condition(level, seed, "3", 3), row, torch.randn(N, D, generator=generator))
        for seed, level in enumerate(LEVELS)
    )
    return (
        Sae(encoder, torch.eye(D_SAE, D), torch.zeros(D), 1, "an SAE"),
        Activations(run_record("capture"), 1, Axis(), "3", questions, residuals, ()),
    )


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
def test_a_band_holds_the_means_of_resampled_questions(activation: str) -> None:
    sae, along = made(activation)
    found = activity_along(sae, along, [7, 2], range(N), n_resamples=41, seed=5)
    assert list(found) == [7, 2]
    counts = resample_counts([one.relation for one in along.questions], 41, 5)[:, 1:].numpy()
    assert (counts.sum(0) == N).all()
    for latent, own in found.items():
        values = [sae.encode(one.values)[:, latent].numpy() for one in along.residuals]
        by_place = [values[0], (values[1] + values[2]) / 2, values[3]]
        assert own.places == (0, 50, 100)
        for place, one in enumerate(by_place):
            means = np.sort(counts.T @ one / N)
            assert own.low[place] == pytest.approx(means[1], rel=1e-5)
            assert own.high[place] == pytest.approx(means[39], rel=1e-5)
            assert own.low[place] < one.mean() < own.high[place]
        assert own.firing[1] == pytest.approx((np.concatenate(values[1:3]) > 0).mean())
        fullest = max(values, key=lambda one: float(one.mean()))
        assert own.examples[0].question == f"question {fullest.argmax()}"
        assert [one.activation for one in own.examples] == sorted(
            (one.activation for one in own.examples), reverse=True
        )


def test_a_latent_that_never_fires_has_no_examples_and_only_some_questions_may_count() -> None:
    sae, along = made("relu")
    silent = replace(sae, encoder=replace(sae.encoder, b_enc=torch.full((D_SAE,), -100.0)))
    own = activity_along(silent, along, [0], range(N), n_resamples=3, seed=0)[0]
    assert (own.high, own.firing, own.examples) == ((0.0,) * 3, (0.0,) * 3, ())
    some = activity_along(sae, along, [0], [4, 9], n_resamples=3, seed=0)[0]
    assert {one.question for one in some.examples} <= {"question 4", "question 9"}
