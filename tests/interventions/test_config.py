"""Settings that mean nothing are refused, with what to give instead."""

from __future__ import annotations

import math
from typing import Any

import pytest

from morfi.errors import InputError
from morfi.interventions import SteerConfig
from morfi.interventions.config import ALPHAS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alphas": (0.5, 0.0)}, "--alphas is 0.5,0; 0 changes nothing"),
        ({"alphas": (math.nan,)}, "--alphas is nan; expected finite numbers"),
        ({"alphas": (math.inf, 1.0)}, "expected finite numbers"),
        ({"alphas": ()}, "--alphas is empty"),
        ({"alphas": (1.0, 1.0)}, "--alphas is 1,1; expected each number once"),
        ({"alphas": (1.0,), "op": "clamp", "values": (1.0,)}, "--alphas belongs to --op add, not to clamp"),
        ({"values": (1.0,)}, "--values belongs to --op clamp or clamp_firing, not to add"),
        ({"op": "clamp"}, "--op clamp needs --values"),
        ({"op": "ad"}, '--op "ad" is none of add, ablate, clamp, project, clamp_firing, clamp_interval. Did'),
        ({"op": "clamp_interval"}, "--op clamp_interval needs --highs"),
        ({"op": "clamp_interval", "highs": (1.0, 3.0), "low": 2.0}, "--low is 2 and --highs is 1,3"),
        ({"op": "clamp_interval", "highs": (1.0,), "low": math.nan}, "--low is nan; expected a finite"),
        ({"op": "clamp", "values": (1.0,), "low": 1.0}, "--low belongs to --op clamp_interval, not to clamp"),
        ({"positions": "generated", "max_tokens": 1}, "steers nothing with --max-tokens 1"),
        ({"positions": "everywhere"}, "none of all, prompt, generated, last_prompt"),
        ({"questions": "unknown"}, "none of known, all, HighlyKnown"),
        ({"questions": "HighlyKnown,all,"}, "none of known, all, HighlyKnown"),
        ({"trend": "up"}, "none of any, rising, falling"),
        ({"choose_on": "test"}, 'both "test"; strengths that are chosen on the questions that are reported'),
        ({"top": -1}, "--top is -1; expected at least 0"),
        ({"limit": 0}, "--limit is 0"),
        ({"controls": -1}, "--controls is -1"),
        ({"batch": 0}, "--batch is 0"),
        ({"match": "fuzzy"}, "fuzzy"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SteerConfig("run", "M_100", **options)


@pytest.mark.parametrize(("n_latents", "n_compared"), [(0, 5), (3, 5), (17, 17)])
def test_as_many_directions_are_compared_as_there_are_latents(n_latents: int, n_compared: int) -> None:
    config = SteerConfig("run", "M_100")
    assert (config.n_controls(n_latents), config.n_random(n_latents)) == (n_compared, n_compared)
    given = SteerConfig("run", "M_100", controls=0, random=2)
    assert (given.n_controls(n_latents), given.n_random(n_latents)) == (0, 2)


def test_strengths_of_each_operation() -> None:
    assert SteerConfig("run", "M_100").amounts == ALPHAS
    for op in ("clamp", "clamp_firing"):
        assert SteerConfig("run", "M_100", op=op, values=(0.0, 2.0)).amounts == (0.0, 2.0)
    assert SteerConfig("run", "M_100", op="ablate").amounts == (0.0,)
