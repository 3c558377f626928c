"""Directions and steerings take numbers in any clothes, and refuse what could not be meant, by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from morfi.engine.directions import DecoderRows, Direction, SaeLatents, pack, unpack
from morfi.engine.steering import Capture, Latent, Steering
from morfi.errors import InputError

VECTOR = torch.tensor([1.0, -2.5, 0.5])


@pytest.mark.parametrize(
    "given",
    [
        VECTOR.bfloat16(),
        VECTOR.double(),
        VECTOR.half(),
        VECTOR.numpy(),
        VECTOR.double().numpy(),
        VECTOR.tolist(),
        VECTOR.clone().requires_grad_(),
        [np.float64(1), -2.5, torch.tensor(0.5)],
    ],
)
def test_vectors_are_held_as_float32(given: Any) -> None:
    bias: Any = np.float32(1)
    threshold: Any = torch.tensor(0.5)
    found = Direction(given, given, bias=bias, threshold=threshold)
    assert found.vector.dtype == torch.float32
    assert torch.equal(found.vector, VECTOR)
    assert found.sha256 == Direction(VECTOR, VECTOR, 1.0, 0.5).sha256
    assert torch.equal(unpack(pack(found)).vector, VECTOR)
    assert torch.equal(Direction(given).vector, VECTOR)
    rows = np.stack([VECTOR.numpy()] * 2)
    sae = SaeLatents(rows, torch.as_tensor(rows).bfloat16(), np.zeros(2), [0.0, 1.0])  # type: ignore[arg-type]
    assert torch.equal(sae.direction(1).vector, VECTOR)
    assert torch.equal(DecoderRows(rows).direction(0).vector, VECTOR)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([10**400, 1], "whole number of 300 digits"),
        ([1e300, 1], "expected finite float32 numbers"),
        (torch.tensor([1e300, 1], dtype=torch.float64), "float32 holds up to 3.4e38"),
        ([float("nan")], "got NaN or infinity"),
        ([True, 1.0], "expected a number, got bool"),
        (["1"], "expected a number, got str"),
        ("abc", "a list of numbers, got str"),
        (7, "a list of numbers, got int"),
        (np.array([1 + 2j]), "expected real numbers"),
        (torch.tensor([True]), "expected real numbers"),
        (np.array(["a"]), "not real numbers"),
        (torch.ones(2, 2), "the shape (2, 2), expected [d_model]"),
        (torch.tensor(1.0), "expected [d_model]"),
        ([], "expected [d_model]"),
        ([0.0, 0.0], "length 0"),
        ([1e-30, 0.0], "scale it to a length"),
        ([1e30, 0.0], "scale it to a length"),
    ],
)
def test_what_is_no_direction_is_refused(given: Any, message: str) -> None:
    with pytest.raises(InputError) as refused:
        Direction(given)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "strength", [np.float32(2), np.float64(2), np.int64(2), torch.tensor(2.0), np.array(2.0), 2]
)
def test_strengths_layers_and_positions_become_pythons_own(strength: Any) -> None:
    layer: Any = np.int64(1)
    index: Any = np.int32(3)
    positions: Any = (np.int64(3), (1, None))
    made = Steering(layer, Latent("sae", index), strength=strength, positions=positions)
    plain = Steering(1, Latent("sae", 3), strength=2.0, positions=(3, (1, None)))
    assert made == plain
    assert [type(one) for one in (made.layer, made.strength, made.positions[0])] == [int, float, int]
    assert Capture((np.int64(1),), (np.int64(2),)) == Capture((1,), (2,))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "strength", [1e308, -4e38, 10**400, float("inf"), float("nan"), True, "1", None, [1.0]]
)
def test_what_is_no_strength_is_refused(strength: Any) -> None:
    with pytest.raises(InputError, match="not a finite number"):
        Steering(0, "x", strength=strength)
