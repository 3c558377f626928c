"""What an experiment says: estimates against SciPy, and the rule by which claims hold."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from run_record import run_record
from scipy import stats

from morfi.interventions.groups import Group, Margin
from morfi.interventions.outcome import Recovery, share_of
from morfi.report.document.answer import answer_of
from morfi.report.document.gains import gained
from morfi.report.document.material import Material
from morfi.report.document.rules import seeds
from morfi.report.fdr_figure import few_of
from morfi.report.findings import CANNOT, FAILS, HOLDS, IN_PART, Claim, Experiment, Part
from morfi.report.findings.chain import Chain
from morfi.report.findings.estimate import QUESTIONS, SEEDS, Estimate, estimate
from morfi.report.findings.flips import Pair, Usual, usual_of
from morfi.report.findings.words import column, estimated, usual
from morfi.runs.compare import Difference
from morfi.statistics import Interval
from morfi.store.records import FalseDiscoveriesRow, SweepAccuracy

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
        ([(0.01, 0.2), (-0.1, 0.3)], IN_PART),
        ([(0.01, 0.2), None], IN_PART),
        ([(0.01, 0.2), (-0.3, -0.1)], IN_PART),
        ([None, (-0.3, -0.1)], FAILS),
        ([(0.0, 0.2)], CANNOT),
    ],
)
def test_a_claim_holds_as_far_as_the_intervals_of_its_numbers_say(
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


def test_gains_over_seeds_are_means_and_stand_by_seed_in_the_page() -> None:
    def seed(gain: float, best: str) -> Any:
        changed = SimpleNamespace(difference=gain, interval=Interval(gain - 0.1, gain + 0.1))
        margin = Margin(gain / 2, Interval(-0.1, 0.1))
        return SimpleNamespace(
            groups=[
                Group("latent", 3, gain, None, best, -1.0, 0.3, cast("Any", changed)),
                Group("control", 2, 0.0, None, "control 9", 1.0, 0.0, cast("Any", changed), margin),
            ]
        )

    found = {
        number: seed(gain, best) for number, (gain, best) in enumerate([(0.1, "a"), (0.2, "b"), (0.3, "a")])
    }
    swept = [SweepAccuracy(100, "3", "test Known", 3, 30, 15, 0.5, 0.3, 0.7, (0.4, 0.5, 0.6))]
    told = SimpleNamespace(sweep_accuracies=lambda _: swept)
    sweep = cast("Any", SimpleNamespace(run_id="sweep"))
    experiment = Experiment(
        cast("Any", told), Chain(sweep=sweep), {number: (sweep, one) for number, one in found.items()}
    )
    latent = experiment.groups["latent"]
    assert (latent.n, latent.best) == (3, ("a", "b", "a"))
    assert latent.chosen == pytest.approx(0.3)
    for one in (latent.gain, latent.best_gain):
        assert one.value == pytest.approx(0.2)
        assert one.over == SEEDS
    margin = experiment.groups["control"].margin
    assert margin is not None
    assert margin.values == (0.05, 0.1, 0.15)
    material = SimpleNamespace(experiment=experiment, steering=SimpleNamespace(report_on="test"))
    section = seeds(cast("Any", material))
    assert section is not None
    for cell in ("40.0", "60.0", "+20.0 (-4.8 to +44.8 over 3 seeds)", "seed 2"):
        assert cell in section.body


def test_no_number_of_one_seed_stands_for_the_experiment() -> None:
    """The answer at the top, the gains of every direction and the picture's caption."""

    def seed(gain: float, alpha: float) -> Any:
        changed = Difference(
            None, 9, 0.5, OWN[0], 0.5 + gain, OWN[0], gain, Interval(gain - 0.1, gain + 0.1), 0.5, 1, 0
        )
        recovered = Recovery(share_of([True, False]), share_of([]))
        outcome = SimpleNamespace(
            direction=SimpleNamespace(direction="latent 7", kind="latent", latent=7),
            best=SimpleNamespace(alpha=alpha, gain=gain),
            reported=changed,
            recovery={"reference": recovered},
        )
        return SimpleNamespace(
            accuracies={who: {"test": share_of([True, False])} for who in ("checkpoint", "reference")},
            groups=[Group("latent", 1, gain, None, "latent 7", alpha, gain, changed)],
            outcomes=[outcome],
        )

    config = {"ckpt": "M_100", "latents": "find", "reference": "M_0", "epochs": "3", "layer": 1}
    config |= {"median_norm": 1.0, "train_run": "train", "split_run": "split"}
    runs = [run_record(f"steer{n}", kind="steer", config={**config, "train_seed": n}) for n in range(3)]
    values = zip((0.1, 0.2, 0.3), (0.5, 0.5, 1.0), strict=True)
    by_seed = {n: (runs[n], seed(*one)) for n, one in enumerate(values)}
    material = Material(Experiment(cast("Any", None), Chain(steer=runs[0]), by_seed))
    said = answer_of(material)
    assert said.startswith("On average over 3 seeds, M_100 answers 50.0 % of 2 known questions")
    assert "it answers 70.0 % (+20.0 points, 95 % interval -4.8 to +44.8 over 3 seeds)" in said
    (along,) = material.experiment.directions
    assert along.gain.value == pytest.approx(0.2)
    assert (along.p, along.recovered.n) == (None, 6)
    assert gained(along) == "+20.0 (-4.8 to +44.8 over 3 seeds) points at alpha +0.5, +0.5, +1"
    assert material.one_seed == "seed 0 alone, one of 3"
    alone = Experiment(cast("Any", None), Chain(steer=runs[1]), {1: by_seed[1]})
    assert "it answers 70.0 % (+20.0 points, 95 % interval +10.0 to +30.0 over questions)" in answer_of(
        Material(alone)
    )
    assert (Material(alone).one_seed, alone.directions[0].p) == ("", 0.5)


def test_a_column_says_once_what_most_of_its_intervals_are_over() -> None:
    seeds, own = estimate((0.1, 0.2, 0.3), OWN), Estimate((0.1,), OWN[0], QUESTIONS)
    found = column([seeds, None, own, seeds])
    assert found.headed("gain") == "gain (95 % interval over 3 seeds)"
    most, other = "+20.0 (-4.8 to +44.8)", "+10.0 (-10.0 to +30.0 over questions)"
    assert found.cells == (most, "-", other, most)
    assert (column([None]).headed("gain"), column([]).cells) == ("gain", ())


def test_of_many_thresholds_a_few_stand_in_a_table_the_ends_and_the_one_selected_from_among_them() -> None:
    rates = [FalseDiscoveriesRow("level", s, s, 0.1) for s in range(1, 151)]
    for smallest in (*range(1, 151), None):
        shown = [row.s for row in few_of(rates, smallest)]
        assert len(shown) <= 20
        assert shown == sorted(set(shown), reverse=True)
        assert {150, 1, *([smallest] if smallest is not None else [])} <= set(shown)
        assert max(one - other for one, other in pairwise(shown)) <= 9
    assert few_of(rates[:20], 3) == rates[19::-1]


def test_the_most_frequent_answer_is_counted_in_normal_form_steered_and_before() -> None:
    texts = [("Peru", "France"), ("France", " france."), ("Peru", "the France"), ("", "Peru")]
    pairs = [Pair("d", "P17", "q", (), before, after, False, False, "", False) for before, after in texts]
    assert usual_of(pairs) == Usual("france", 0.75, 0.25)
    assert usual(usual_of(pairs[3:])) == "peru, 100.0 %; before 0.0 %"
