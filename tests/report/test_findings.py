"""What an experiment says: estimates against SciPy, and the rule by which claims hold."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from scipy import stats

from morfi.report.findings import CANNOT, FAILS, HOLDS, Claim, Experiment, Part
from morfi.report.findings.chain import Chain
from morfi.report.findings.estimate import QUESTIONS, SEEDS, Estimate, estimate
from morfi.report.findings.words import estimated
from morfi.statistics import Interval

OWN = (Interval(-0.1, 0.3), Interval(-0.2, 0.2), Interval(0.0, 0.4))


def test_several_seeds_have_students_interval_and_one_its_own() -> None:
    values = (0.10, 0.16, 0.22)
    found = estimate(values, OWN)
    expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx(expected)
    assert found.over == SEEDS
    assert estimated(found) == "+16.0 (+1.1 to +30.9 over 3 seeds)"
    assert estimate(values[:1], OWN[:1]) == Estimate((0.10,), OWN[0], QUESTIONS)
    alike = estimate((0.1, 0.1, 0.1), OWN)
    assert (alike.interval, alike.over) == (Interval(-0.2, 0.4), QUESTIONS)


@pytest.mark.parametrize(
    ("bounds", "verdict"),
    [
        ([(0.01, 0.2)], HOLDS),
        ([(0.01, 0.2), (0.1, 0.3)], HOLDS),
        ([(0.01, 0.2), (-0.1, 0.3)], CANNOT),
        ([(0.01, 0.2), None], CANNOT),
        ([(0.01, 0.2), (-0.3, -0.1)], FAILS),
        ([None, (-0.3, -0.1)], FAILS),
        ([(0.0, 0.2)], CANNOT),
    ],
)
def test_a_claim_holds_where_the_interval_of_each_number_does(
    bounds: list[tuple[float, float] | None], verdict: str
) -> None:
    found = [None if one is None else Estimate((0.1,), Interval(*one), QUESTIONS) for one in bounds]
    assert Claim("x", "", [Part("", one) for one in found]).verdict == verdict


def test_the_fall_is_paired_by_question_and_seed() -> None:
    right = {
        (0, "1"): [1, 1, 1, 1],
        (100, "1"): [1, 1, 1, 0],
        (0, "3"): [1, 1, 1, 1],
        (100, "3"): [1, 0, 0, 0],
    }
    rows = [
        {
            "level": level,
            "epoch_setting": epochs,
            "seed": seed,
            "question_id": f"q{place}",
            "correct": bool(one),
        }
        for seed in (0, 1)
        for (level, epochs), answers in right.items()
        for place, one in enumerate(answers if seed == 0 else [1, *answers[:-1]])
    ]
    told = SimpleNamespace(
        query=lambda _: SimpleNamespace(to_pylist=lambda: rows),
        sweep_accuracies=lambda _: [SimpleNamespace(questions="test Known", epoch_setting="3")],
    )
    chain = Chain(sweep=cast("Any", SimpleNamespace(run_id="sweep")))
    experiment = Experiment(cast("Any", told), chain, {})
    fall, more = experiment.fall("3"), experiment.fall("3", "1")
    assert fall is not None
    assert more is not None
    assert (fall.values, more.values) == ((0.75, 0.5), (0.5, 0.5))
    assert (fall.over, more.over) == (SEEDS, QUESTIONS)
    assert experiment.fall("9") is None
