"""A steer run with an engine that says what it was asked: what is asked, stored, chosen and reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from morfi.interventions import SteerConfig, run_steer
from morfi.interventions.outcome import Steered, steered
from morfi.steering import Steering
from morfi.store import Store

ALPHAS = (-2.0, -1.0, 1.0)
CONFIG = {"top": 2, "controls": 2, "random": 1, "alphas": ALPHAS, "batch": 16}
ROWS = "SELECT * EXCLUDE (run_id, attempt) FROM steered_answer WHERE run_id = '{}' ORDER BY ALL"


@pytest.fixture
def steer(find_run: tuple[Any, str], serving: Any, log: Any, experiment_known: Any) -> Callable[..., str]:
    """Steers M_100 of the experiment; options as of `SteerConfig`."""
    store, find_id = find_run

    def run(*, new: bool = False, latents: str = find_id, ckpt: str = "M_100", **options: Any) -> str:
        config = SteerConfig(latents, ckpt, **{**CONFIG, **options})
        return run_steer(config, store, serving, log, new=new, command="morfi steer")

    return run


@pytest.fixture
def store(find_run: tuple[Any, str]) -> Store:
    """The store of the experiment."""
    found: Store = find_run[0]
    return found


@pytest.fixture
def experiment_known(trained_once: Any, serving: Any, questions: Any) -> None:
    """The base model and M_0 know what the split run says; M_100 only what steering brings back.

    Latent 0, which rises, does so when it is steered down, on half of the questions at -1 and all at -2.
    """
    known = dict(trained_once[0].serving.known)
    serving.known = known
    place = {question.text: i for i, question in enumerate(q for s in questions.values() for q in s)}

    def answers(question: str, wanted: Sequence[Steering], served: str) -> str | None:
        if not served.startswith(("M_100", "level-100")):
            return None
        directions = [serving.registered[one.direction] for one in wanted if isinstance(one.direction, str)]
        along = [
            one.strength * float(direction.vector[0])
            for one, direction in zip(wanted, directions, strict=True)
            if abs(float(direction.vector[0])) > 0.999
        ]
        strong = min(along, default=0.0)
        if strong < -3 or (strong < 0 and place[question] % 4 == 0):
            return known.get(question, "no idea")
        return "no idea"

    serving.answers = answers


def result(store: Store, run_id: str) -> Steered:
    found = steered(store, store.run(run_id))
    assert found is not None
    return found


def test_strengths_are_chosen_on_dev_and_reported_on_test(steer: Callable[..., str], store: Store) -> None:
    run_id = steer()
    run = store.run(run_id)
    found = result(store, run_id)
    # dev has 5 known questions, test 10; latents 0 and 8 (falling), delta_u, 2 controls, 1 random
    assert (run.config["ckpt"], run.config["reference"], run.config["layer"]) == ("M_100", "M_0", 1)
    names = [one.direction.direction for one in found.outcomes]
    assert names[0] == "latent 0"
    assert found.outcomes[0].direction.trend == 1
    assert store.summary(run_id).status == "done"
