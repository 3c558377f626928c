"""What operations do, by their definitions."""

from __future__ import annotations

import pytest
import torch

from morfi.engine.directions import Direction
from morfi.engine.operations import OPERATIONS
from morfi.engine.steering import Steering
from morfi.verification.arithmetic import KNOWN, activations, steered

D_MODEL = 16


def rows(seed: int = 0) -> torch.Tensor:
    return torch.randn(5, D_MODEL, generator=torch.Generator().manual_seed(seed))


def latent(**more: float | bool) -> Direction:
    vector, encoder = rows(1)[:2]
    return Direction(vector, encoder, bias=0.2, **more)  # type: ignore[arg-type]


def test_every_operation_of_the_table_is_defined() -> None:
    assert set(OPERATIONS) == KNOWN


def test_an_operation_that_is_not_defined_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morfi.verification.arithmetic.KNOWN", frozenset())
    with pytest.raises(NotImplementedError, match="the operation add has no reference arithmetic"):
        steered(rows(), [(Steering(0, "d", strength=1.0), latent())])


def test_an_addition_is_the_strength_along_the_direction() -> None:
    plain = Direction(rows(1)[0])
    found = steered(rows(), [(Steering(0, "d", strength=2.0), plain)])
    torch.testing.assert_close(found.x, rows() + 2 * plain.vector)
    one = latent()
    moved = steered(rows(), [(Steering(0, "d", strength=2.0), one)]).x - rows()
    torch.testing.assert_close(moved, (2 * one.vector / one.vector.norm()).expand(5, D_MODEL))


def test_nothing_is_left_along_what_is_projected_out() -> None:
    directions = [Direction(row) for row in rows(2)[:2]]
    found = steered(rows(), [(Steering(0, "d", "project"), one) for one in directions])
    for one in directions:
        assert (found.x @ one.vector).abs().max() < 1e-5
    assert all(changed.all() for changed in found.changed)


@pytest.mark.parametrize("norm_rescaled", [False, True])
def test_a_latent_is_replaced_by_its_value(norm_rescaled: bool) -> None:
    one = latent(threshold=0.5, norm_rescaled=norm_rescaled)
    x = rows()
    unit = x.norm(dim=1, keepdim=True) / 4 if norm_rescaled else 1.0
    f = activations(x, one)
    assert 0 < int((f > 0).sum()) < len(f)
    ablated = steered(x, [(Steering(0, "d", "ablate"), one)])
    torch.testing.assert_close(ablated.x, x - f[:, None] * unit * one.vector)
    assert ablated.changed[0].tolist() == (f > 0).tolist()
    clamped = steered(x, [(Steering(0, "d", "clamp", 3.0), one)])
    torch.testing.assert_close(clamped.x, x + (3.0 - f)[:, None] * unit * one.vector)


def test_additions_come_on_top_of_a_projection() -> None:
    one = Direction(rows(1)[0])
    both = [(Steering(0, "d", strength=2.0), one), (Steering(0, "d", "project"), one)]
    length = (steered(rows(), both).x @ one.vector) / one.vector.norm() ** 2
    torch.testing.assert_close(length, torch.full((5,), 2.0))
