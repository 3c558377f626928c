"""Steer runs of the experiment with the fake engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from morfi.engine.steering import Latent, Steering
from morfi.interventions import SteerConfig, run_steer

BRINGS_BACK = -3.0  # added along latent 0: half of what the base knew, at twice that all of it


@pytest.fixture
def knowing(trained_once: Any, serving: Any, questions: Any) -> Any:
    """An engine whose base model and M_0 know half of the questions, M_100 what steering brings back.

    That is done by latent 0, which rises, when it is steered down (delta_u points the same way), and by
    latent 0 clamped to 0.
    """
    known: dict[str, str] = dict(trained_once[0].serving.known)
    serving.known = known
    place = {text: i for i, text in enumerate(known)}

    def answers(question: str, wanted: Sequence[Steering], served: str) -> str | None:
        if served != "M_100":
            return None
        down = 0.0
        for one in wanted:
            if isinstance(one.direction, Latent):
                down -= 9.0 * (one.direction.index == 0 and one.strength == 0)
            elif one.operation == "add":
                along = float(serving.registered[one.direction].vector[0])
                down += one.strength * along if abs(along) > 0.7 else 0.0
        if down < 2 * BRINGS_BACK or (down < BRINGS_BACK and place.get(question, 0) % 2):
            return known.get(question, "no idea")
        return "no idea"

    serving.answers = answers
    return serving


@pytest.fixture
def steer(steerable: tuple[Any, str], knowing: Any, log: Any) -> Callable[..., str]:
    """Steers M_100 with few baselines and returns the run; options as of `SteerConfig`."""
    store, find_id = steerable

    def run(*, new: bool = False, latents: str = find_id, ckpt: str = "M_100", **options: Any) -> str:
        few: dict[str, Any] = {"controls": 2, "random": 1, "batch": 16}
        if options.get("op", "add") == "add":
            few["alphas"] = (-2.0, -1.0, 1.0)
        config = SteerConfig(latents, ckpt, **{**few, **options})
        return run_steer(config, store, knowing, log, new=new, command="morfi steer")

    return run
