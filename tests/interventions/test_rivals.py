"""Rival rules against NumPy, on activations whose latents are the dimensions themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch

from morfi.interventions.rivals import find_rivals

N, LEVELS = 40, (0, 0, 50, 100)
KNOWN = {f"q{place}": place < N // 2 for place in range(N)}


def make_found(values: list[torch.Tensor], firing: list[float]) -> Any:
    """A find run whose SAE gives what is above 0 of each dimension."""
    sae = SimpleNamespace(encode=torch.relu, encoder=SimpleNamespace(d_sae=len(firing)))
    questions = [SimpleNamespace(id=f"q{place}") for place in range(N)]
    residuals = [SimpleNamespace(values=one) for one in values]
    return cast(
        "Any",
        SimpleNamespace(
            sae=sae,
            activations=SimpleNamespace(levels=LEVELS, residuals=residuals, questions=questions),
            latents=pa.table({"latent": range(len(firing)), "firing": firing}),
            settings=SimpleNamespace(min_firing=0.01),
        ),
    )


@pytest.fixture
def values() -> list[torch.Tensor]:
    """Of four conditions; latent 0 rises, 1 falls by less, 2 fires on known and 3 on unknown questions."""
    draw = torch.Generator().manual_seed(0)
    made = [torch.randn(N, 6, generator=draw) for _ in LEVELS]
    known = torch.arange(N) < N // 2
    for one, level in zip(made, LEVELS, strict=True):
        one[:, 0] += 3 * level / 100
        one[:, 1] -= 1.5 * level / 100
        one[:, 2] += torch.where(known, 1.0, -1.0)
        one[:, 3] += torch.where(known, -2.0, 2.0)
    return made


def test_latents_are_ranked_by_scaled_change_and_by_difference_of_firing(values: list[torch.Tensor]) -> None:
    found = find_rivals(make_found(values, [0.5] * 6), 2, KNOWN)
    acts = [np.maximum(one.numpy(), 0) for one in values]
    step = acts[3].mean(0) - (acts[0].mean(0) + acts[1].mean(0)) / 2
    scaled = np.abs(step / np.concatenate([acts[0], acts[1], acts[3]]).std(0))
    assert found.picks["change"] == np.argsort(-scaled)[:2].tolist() == [0, 1]
    assert found.change == np.sign(step).tolist()
    fires = [(one > 0)[: N // 2].mean(0) - (one > 0)[N // 2 :].mean(0) for one in acts[:2]]
    expected = np.abs((fires[0] + fires[1]) / 2)
    assert found.picks["knowledge"] == np.argsort(-expected)[:2].tolist() == [3, 2]


def test_what_hardly_fires_is_not_picked_and_nothing_known_picks_nothing(values: list[torch.Tensor]) -> None:
    found = make_found(values, [0.001, *[0.5] * 5])
    assert 0 not in find_rivals(found, 6, KNOWN).picks["change"]
    assert find_rivals(found, 0, KNOWN).picks == {"change": [], "knowledge": []}
    for nobody in (None, dict.fromkeys(KNOWN, True), {}):
        assert find_rivals(found, 2, nobody).picks["knowledge"] == []
