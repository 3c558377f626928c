"""The outcome of a steer run, from its stored answers: the best strengths, gains and knowledge recovery."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from morfi.interventions.config import SteerRun
from morfi.interventions.groups import CONTROL, DELTA_U, DOWN, LATENT, RANDOM, UP, Group, Margin
from morfi.interventions.rivals import RIVALS
from morfi.interventions.verdicts import UNSTEERED, Answerer, Arm, Verdicts, read_verdicts
from morfi.runs.compare import Difference, difference
from morfi.runs.settings import settings_of
from morfi.statistics import Interval, paired_bootstrap_interval, spread_interval, wilson_interval
from morfi.store.records import DirectionRow, RunRecord

if TYPE_CHECKING:
    from morfi.store import Store


@dataclass(frozen=True, slots=True)
class Share:
    """`n_right` of `n`, with its Wilson 95 % interval; `share` is None for n = 0."""

    n: int
    n_right: int
    share: float | None
    interval: Interval


@dataclass(frozen=True, slots=True)
class Recovery:
    """R_K: of the questions that steering brought back (wrong before, right steered), those that a reference
    answers right; and `base_rate`, the same of all that was wrong before.
    """

    recovered: Share
    base_rate: Share


@dataclass(frozen=True, slots=True)
class Tried:
    """One direction at one strength on the questions for choosing: accuracy against that unsteered."""

    alpha: float
    strength: float
    n: int
    accuracy: float
    gain: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """One direction: every strength that was tried, the best one, and what that does as reported.

    `reported` and `recovery` (by reference: "reference" and "base") are None where it was not asked there.
    """

    direction: DirectionRow
    tried: tuple[Tried, ...]
    best: Tried
    reported: Difference | None
    recovery: Mapping[str, Recovery] | None


@dataclass(frozen=True, slots=True)
class Steered:
    """All that a steer run found; `accuracies` are unsteered ones, by what answered and split."""

    layer: int
    accuracies: Mapping[str, Mapping[str, Share]]
    outcomes: tuple[Outcome, ...]  # the best of each kind first, by what was chosen on
    groups: tuple[Group, ...]
    n_answers: int
    n_full_grid: int  # answers that every strength of every direction on all questions would have taken


def steered(store: Store, run: RunRecord) -> Steered | None:
    """The outcome of the run; None while answers are missing."""
    rows = store.steered(run.run_id)
    if len(rows) < run.n_planned:
        return None
    settings = settings_of(run, SteerRun)
    verdicts = read_verdicts(rows)
    splits: dict[str, list[str]] = {}
    strengths: dict[Arm, float] = {}
    names = ("served", "direction", "alpha", "strength", "split", "question_id")
    for served, direction, alpha, strength, split, question_id in zip(
        *(rows[name].to_pylist() for name in names), strict=True
    ):
        strengths[Arm(direction, alpha)] = strength
        if served == Answerer.BASE:
            splits.setdefault(split, []).append(question_id)
    choosing, reporting = splits[settings.choose_on], splits[settings.report_on]
    directions = store.steer_directions(run.run_id)
    outcomes = [_outcome(one, verdicts, strengths, choosing, reporting) for one in directions]
    outcomes.sort(key=_rank)
    arms = [arm for served, arm in verdicts.right if served == Answerer.CHECKPOINT and arm != UNSTEERED]
    return Steered(
        layer=settings.layer,
        accuracies={
            served: {
                split: share_of([verdicts.of(UNSTEERED, served)[one] for one in ids])
                for split, ids in splits.items()
            }
            for served in (Answerer.BASE, Answerer.REFERENCE, Answerer.CHECKPOINT)
        },
        outcomes=tuple(outcomes),
        groups=tuple(_groups(outcomes, settings.picks, _Reported(verdicts, reporting))),
        n_answers=len(rows),
        n_full_grid=3 * (len(choosing) + len(reporting))
        + len(arms) * len(choosing)
        + sum(one.reported is not None for one in outcomes) * len(reporting),
    )


def share_of(right: Sequence[bool]) -> Share:
    """How many of these are right."""
    n, n_right = len(right), sum(right)
    return Share(n, n_right, n_right / n if n else None, wilson_interval(n_right, n))


def recovery(before: Sequence[bool], after: Sequence[bool], reference: Sequence[bool]) -> Recovery:
    """R_K of one reference; the verdicts are of the same questions in the same order."""
    wrong = [(b, r) for a, b, r in zip(before, after, reference, strict=True) if not a]
    return Recovery(share_of([r for b, r in wrong if b]), share_of([r for _, r in wrong]))


def _outcome(
    row: DirectionRow,
    verdicts: Verdicts,
    strengths: Mapping[Arm, float],
    choosing: Sequence[str],
    reporting: Sequence[str],
) -> Outcome:
    own = [
        arm
        for served, arm in verdicts.right
        if served == Answerer.CHECKPOINT and arm.direction == row.direction
    ]
    plain = verdicts.of(UNSTEERED)
    tried = []
    for arm in sorted(own, key=lambda arm: arm.alpha):
        found = verdicts.of(arm)
        asked = [one for one in choosing if one in found]
        n_right, n_plain = sum(found[one] for one in asked), sum(plain[one] for one in asked)
        n = len(asked)
        tried.append(Tried(arm.alpha, strengths[arm], n, n_right / n, (n_right - n_plain) / n))
    on_report = [arm for arm in own if all(one in verdicts.of(arm) for one in reporting)]
    if not on_report:
        most = max(one.n for one in tried)
        best = max((one for one in tried if one.n == most), key=lambda one: (one.accuracy, -abs(one.alpha)))
        return Outcome(row, tuple(tried), best, None, None)
    (arm,) = on_report
    before, after = [plain[one] for one in reporting], [verdicts.of(arm)[one] for one in reporting]
    by_reference: dict[str, Recovery] = {
        served: recovery(before, after, [verdicts.of(UNSTEERED, served)[one] for one in reporting])
        for served in (Answerer.REFERENCE, Answerer.BASE)
    }
    best = next(one for one in tried if one.alpha == arm.alpha)
    return Outcome(row, tuple(tried), best, difference(before, after), by_reference)


def _rank(outcome: Outcome) -> tuple[int, float, int]:
    from morfi.interventions.directions import KINDS

    return KINDS.index(outcome.direction.kind), -outcome.best.gain, outcome.direction.position


@dataclass(frozen=True, slots=True)
class _Reported:
    """The verdicts of the questions that are reported, by arm."""

    verdicts: Verdicts
    question_ids: Sequence[str]

    def right(self, one: Outcome) -> list[bool]:
        """Whether each question is right along a direction at its best strength."""
        found = self.verdicts.of(Arm(one.direction.direction, one.best.alpha))
        return [found[question_id] for question_id in self.question_ids]

    def mean_right(self, group: Sequence[Outcome]) -> list[float]:
        """The share of directions along which each question is right."""
        every = [self.right(one) for one in group]
        return [sum(column) / len(every) for column in zip(*every, strict=True)]


def _groups(
    outcomes: Sequence[Outcome], picks: Mapping[str, Sequence[int]], reported: _Reported
) -> list[Group]:
    """The groups among `outcomes`, in order; those without directions are left out."""
    asked = [one for one in outcomes if one.reported is not None]
    members = {
        kind: [one for one in asked if one.direction.kind == kind]
        for kind in (LATENT, CONTROL, RANDOM, DELTA_U)
    }
    by_latent = {one.direction.latent: one for one in asked if one.direction.kind in (LATENT, "rival")}
    rivals = {
        rule: [by_latent[latent] for latent in picks.get(rule, ()) if latent in by_latent] for rule in RIVALS
    }
    latents = members.pop(LATENT)
    found = [_group(LATENT, latents, [], reported)]
    found += [_group(kind, own, latents, reported) for kind, own in (rivals | members).items()]
    down = [one for one in latents if one.direction.trend > 0 and one.best.alpha < 0]
    up = [one for one in latents if one.direction.trend < 0 and one.best.alpha > 0]
    found += [_group(DOWN, down, [], reported), _group(UP, up, down, reported)]
    return [one for one in found if one is not None]


def _group(
    kind: str, own: Sequence[Outcome], against: Sequence[Outcome], reported: _Reported
) -> Group | None:
    """One group, held against the directions of `against`; None without directions."""
    if not own:
        return None
    best = _best(own)
    gains = [one.reported.difference for one in own if one.reported is not None]
    assert best.reported is not None
    return Group(
        kind=kind,
        n=len(own),
        gain=math.fsum(gains) / len(gains),
        interval=spread_interval(gains),
        best=best.direction.direction,
        best_alpha=best.best.alpha,
        best_chosen=best.best.gain,
        best_gain=best.reported,
        margin=_margin(against, own, reported) if against else None,
        best_margin=difference(reported.right(best), reported.right(_best(against))) if against else None,
    )


def _best(own: Sequence[Outcome]) -> Outcome:
    """The best by what strengths were chosen on; of equally good ones the first."""
    return max(own, key=lambda one: (one.best.gain, -one.direction.position))


def _margin(first: Sequence[Outcome], second: Sequence[Outcome], reported: _Reported) -> Margin:
    """The mean gain of the first less that of the second."""
    pairs = zip(reported.mean_right(first), reported.mean_right(second), strict=True)
    differences = [round(one - other, 12) for one, other in pairs]
    return Margin(math.fsum(differences) / len(differences), paired_bootstrap_interval(differences))
