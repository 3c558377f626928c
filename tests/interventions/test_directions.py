"""Baselines: control latents fire as often and have no trend; delta_u is between the ends of the levels."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from morfi.errors import InputError
from morfi.interventions.directions import composite, control_latents, unit

LEVELS = (0, 50, 100)  # |S| is at most 3


@dataclass(frozen=True)
class Row:
    """A latent as the store has it."""

    latent: int
    s: int
    firing: float
    selected: bool = False

    def __call__(self) -> dict[str, Any]:
        return {"latent": self.latent, "s": self.s, "firing": self.firing, "selected": self.selected}


def activations(values: list[torch.Tensor], levels: tuple[int, ...] = LEVELS) -> Any:
    residuals = [SimpleNamespace(values=value) for value in values]
    return SimpleNamespace(residuals=residuals, levels=levels, run=SimpleNamespace(run_id="capture-1"))


def test_controls_have_no_trend_and_the_nearest_firing_rate_each_once() -> None:
    chosen = [Row(0, 3, 0.5, selected=True)(), Row(1, 3, 0.1, selected=True)()]
    others = [
        Row(2, 3, 0.5)(),  # a trend
        Row(3, 1, 0.4)(),
        Row(4, 0, 0.52)(),
        Row(5, 0, 0.0)(),  # never fires
        Row(6, -1, 0.11)(),
        Row(7, -1, 0.5, selected=True)(),
        Row(8, 1, 0.52)(),  # as near as 4, with more of a trend
    ]
    found = control_latents([*chosen, *others], chosen, 3, activations([torch.zeros(1, 2)] * 3))
    assert [row["latent"] for row in found] == [4, 6, 8]
    every = control_latents([*chosen, *others], chosen, 9, activations([torch.zeros(1, 2)] * 3))
    assert sorted(row["latent"] for row in every) == [3, 4, 6, 8]
    assert control_latents(others, [], 3, activations([torch.zeros(1, 2)] * 3)) == []


def test_delta_u_is_from_the_lowest_to_the_highest_level_over_trainings() -> None:
    low, middle = torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.full((2, 2), 9.0)
    high, other = torch.tensor([[4.0, 1.0], [4.0, 1.0]]), torch.tensor([[8.0, 1.0], [8.0, 3.0]])
    found = composite(activations([low, middle, high, other], (0, 50, 100, 100)))
    assert found.tolist() == [5.0, 0.5]
    with pytest.raises(InputError, match="capture-1 holds level 50 only"):
        composite(activations([middle], (50,)))


def test_what_has_no_length_is_no_direction() -> None:
    assert float(unit(torch.tensor([3.0, 4.0]), "x").norm()) == pytest.approx(1)
    with pytest.raises(InputError, match="delta_u has the length 0"):
        unit(torch.zeros(3), "delta_u")
