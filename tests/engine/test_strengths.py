"""Operations and amounts become steerings, or are refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from morfi.engine.steering import Latent, Steering, from_json, to_json
from morfi.engine.strengths import steering_of
from morfi.errors import InputError

LATENT = Latent("sae", 3)


def test_alpha_is_in_median_norms_and_a_value_is_the_latents_own() -> None:
    assert steering_of(4, "d", "add", -0.5, median_norm=8.0) == Steering(4, "d", "add", -4.0)
    expected = Steering(4, LATENT, "clamp", 2.0, "generated")
    assert steering_of(4, LATENT, "clamp", 2, median_norm=8.0, positions="generated") == expected
    assert steering_of(4, LATENT, "ablate", None, median_norm=8.0) == Steering(4, LATENT, "ablate")


@pytest.mark.parametrize(
    ("operation", "amount", "message"),
    [
        ("add", None, "add needs an alpha"),
        ("clamp", None, "clamp needs a value"),
        ("project", 1.0, "project takes no strength"),
        ("clamp_interval", None, "clamp_interval needs a high"),
        ("clamp_interval", -1.0, "clamp_interval from 0 to -1: expected low to be at most"),
        ("add", True, "takes a number as its alpha, got True"),
        ("add", "1", "takes a number"),
        ("add", float("nan"), "not a finite number"),
        ("turn", None, '"turn" is none of'),
    ],
)
def test_amounts_that_do_not_fit_are_refused(operation: str, amount: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        steering_of(4, LATENT, operation, amount, median_norm=8.0)


def test_an_interval_has_its_bounds_in_the_latents_own_units() -> None:
    found = steering_of(4, LATENT, "clamp_interval", 3, median_norm=8.0, low=1.0)
    assert found == Steering(4, LATENT, "clamp_interval", 3.0, low=1.0)
    assert from_json(to_json([found], None)) == ((found,), None)


@pytest.mark.parametrize(
    ("operation", "strength", "low", "message"),
    [
        ("clamp_interval", 1.0, 1.5, "clamp_interval from 1.5 to 1: expected low to be at most the strength"),
        ("clamp_interval", 1.0, math.nan, "steering low nan is not a finite number"),
        ("clamp_interval", math.nan, 0.0, "steering strength nan is not a finite number"),
        ("clamp_interval", 1.0, None, "steering low None is not a finite number"),
        ("clamp", 1.0, 0.5, "clamp takes no low, got 0.5; leave it out"),
    ],
)
def test_bounds_that_are_no_interval_are_refused(
    operation: str, strength: Any, low: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Steering(4, LATENT, operation, strength, low=low)
