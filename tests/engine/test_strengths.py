"""Operations and amounts become steerings, or are refused."""

from __future__ import annotations

from typing import Any

import pytest

from morfi.engine.steering import Latent, Steering
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
        ("add", True, "takes a number as its alpha, got True"),
        ("add", "1", "takes a number"),
        ("add", float("nan"), "not a finite number"),
        ("turn", None, '"turn" is none of'),
    ],
)
def test_amounts_that_do_not_fit_are_refused(operation: str, amount: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        steering_of(4, LATENT, operation, amount, median_norm=8.0)
