"""The numbers of one experiment, read from the store: accuracies, and what steering did by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from morfi.conditions.condition import in_order
from morfi.interventions.config import SteerRun
from morfi.interventions.groups import DELTA_U, LATENT, Group
from morfi.interventions.outcome import Recovery, Share, Steered, steered
from morfi.interventions.replicates import replicates
from morfi.report.findings.chain import Chain, chain_of
from morfi.report.findings.directions import Along, along_each
from morfi.report.findings.estimate import DIRECTIONS, Estimate, estimate
from morfi.report.findings.flips import Pair, Usual, pairs_of, recovery_of, usual_of
from morfi.runs.compare import difference
from morfi.runs.settings import settings_of
from morfi.statistics import Interval, paired_bootstrap_interval

if TYPE_CHECKING:
    from morfi.store import Store
    from morfi.store.records import RunRecord, SweepAccuracy

_ANSWERS = """
SELECT s.level, s.epoch_setting, s.seed, c.question_id, c.correct
FROM sweep_checkpoint s
JOIN run r ON r.run_id = s.run_id
JOIN completion c ON c.run_id = s.eval_run_id AND c.sample = 0
JOIN asked a ON a.run_id = c.run_id AND a.question_id = c.question_id
LEFT JOIN knowledge k ON k.run_id = r.config ->> 'split_run' AND k.question_id = c.question_id
WHERE s.run_id = '{run}' AND s.level IS NOT NULL AND a.split || CASE WHEN k.category IS NULL THEN ''
    WHEN k.category = 'Unknown' THEN ' Unknown' ELSE ' Known' END = '{group}'
"""

# Whether each question is right, by level, epoch setting and seed, then by question id.
Answers = Mapping[tuple[float, str, int], Mapping[str, bool]]


@dataclass(frozen=True, slots=True)
class GroupOverSeeds:
    """A way of choosing directions, over all seeds: its mean gain, and that of its best.

    `best` names each seed's best by what was chosen on; `chosen` is their mean gain there. `margin` and
    `best_margin` are as a `Group` has them.
    """

    kind: str
    n: int  # directions of one seed, the most
    gain: Estimate
    best: tuple[str, ...]
    chosen: float
    best_gain: Estimate
    margin: Estimate | None
    best_margin: Estimate | None


@dataclass(frozen=True, slots=True)
class Regained:
    """Of the best latent or of delta_u, all seeds together: gain and recovery on a relation's questions."""

    kind: str
    relation: str | None  # None is all
    n: int
    gain: float
    recovery: Recovery
    usual: Usual


@dataclass(frozen=True)
class Experiment:
    """An experiment: its runs, and its steer runs by seed with what each found."""

    store: Store
    chain: Chain
    by_seed: Mapping[int, tuple[RunRecord, Steered]]

    @property
    def steering(self) -> SteerRun | None:
        """The settings of the steer run."""
        return None if self.chain.steer is None else settings_of(self.chain.steer, SteerRun)

    @property
    def steered(self) -> Steered | None:
        """What the chain's own steer run found, of one seed; None where it is missing or has not ended."""
        own = self.chain.steer
        every = self.by_seed.values()
        return next((found for run, found in every if own is not None and run.run_id == own.run_id), None)

    @cached_property
    def runs(self) -> list[RunRecord]:
        """All runs in the order of their commands, with the steer runs of every seed."""
        steer_runs = {run.run_id: run for run, _ in self.by_seed.values()}
        return [run for run in self.chain.runs if run.run_id not in steer_runs] + list(steer_runs.values())

    def unsteered(self, served: str) -> list[Share]:
        """What answers right unsteered on the questions reported, a share for each seed."""
        return [
            found.accuracies[served][settings_of(run, SteerRun).report_on]
            for run, found in self.by_seed.values()
        ]

    @cached_property
    def accuracies(self) -> list[SweepAccuracy]:
        """The rows of the sweep; none where there is none."""
        run = self.chain.sweep
        return [] if run is None else self.store.sweep_accuracies(run.run_id)

    @cached_property
    def group(self) -> str | None:
        """The group of questions on which accuracy falls: the Known ones of the sweep's split."""
        groups = dict.fromkeys(row.questions for row in self.accuracies)
        known = [one for one in groups if one.endswith(" Known")]
        return next(iter([*known, *(one for one in groups if not one.endswith(" Unknown"))]), None)

    @cached_property
    def epochs(self) -> list[str]:
        """The numbers of epochs among the sweep's settings, rising; its others where there is none."""
        found = in_order(row.epoch_setting for row in self.accuracies if row.epoch_setting is not None)
        return [one for one in found if one.isdecimal()] or found

    @cached_property
    def answers(self) -> Answers:
        """The verdicts of the sweep on the questions of `group`."""
        found: dict[tuple[float, str, int], dict[str, bool]] = {}
        if self.chain.sweep is not None and self.group is not None:
            rows = self.store.query(_ANSWERS.format(run=self.chain.sweep.run_id, group=self.group))
            for row in rows.to_pylist():
                place = row["level"], row["epoch_setting"], row["seed"]
                found.setdefault(place, {})[row["question_id"]] = row["correct"]
        return found

    def fall(self, epochs: str, less: str | None = None) -> Estimate | None:
        """What accuracy loses from the lowest level to the highest; beyond what it loses at `less` epochs."""
        levels = sorted({level for level, _, _ in self.answers})
        seeds = sorted({seed for _, _, seed in self.answers})
        values, intervals = [], []
        for seed in seeds:
            ends = [
                self.answers.get((level, setting, seed))
                for setting in (epochs, *([less] if less is not None else []))
                for level in (levels[0], levels[-1])
            ]
            whole = [one for one in ends if one is not None]
            if len(levels) < 2 or len(whole) < len(ends):
                continue
            shared = sorted(set.intersection(*(set(one) for one in whole)))
            signs = (1, -1, -1, 1)[: len(whole)]
            by_question = [
                sum(sign * one[name] for sign, one in zip(signs, whole, strict=True)) for name in shared
            ]
            if not by_question:
                continue
            values.append(sum(by_question) / len(by_question))
            if less is None:
                interval = difference(*([one[name] for name in shared] for one in whole[::-1])).interval
            else:
                interval = paired_bootstrap_interval(by_question)
            intervals.append(interval)
        return estimate(values, intervals) if values else None

    @cached_property
    def groups(self) -> dict[str, GroupOverSeeds]:
        """The ways of choosing directions, by kind."""
        every: dict[str, list[Group]] = {}
        for _, found in self.by_seed.values():
            for one in found.groups:
                every.setdefault(one.kind, []).append(one)
        return {kind: _over_seeds(kind, own) for kind, own in every.items()}

    @cached_property
    def directions(self) -> list[Along]:
        """Every direction that was reported, as `along_each` gives them."""
        return along_each([found for _, found in self.by_seed.values()])

    @property
    def latent_gains(self) -> dict[int, Estimate]:
        """The reported gain along each latent that was steered along, by number."""
        return {one.latent: one.gain for one in self.directions if one.latent is not None}

    @cached_property
    def regained(self) -> list[Regained]:
        """Gain and recovery by relation, then of all, of the best latent and of delta_u."""
        found = []
        for kind in (LATENT, DELTA_U):
            pairs = self._pairs(kind)
            for relation in (*sorted({one.relation for one in pairs}), None):
                own = [one for one in pairs if relation in (None, one.relation)]
                if own:
                    gain = sum(one.is_right - one.was_right for one in own) / len(own)
                    found.append(Regained(kind, relation, len(own), gain, recovery_of(own), usual_of(own)))
        return found

    def _pairs(self, kind: str) -> list[Pair]:
        """The answers of every seed along its best direction of a kind."""
        pairs = []
        for run, found in self.by_seed.values():
            own = [one for one in found.outcomes if one.direction.kind == kind and one.reported is not None]
            for one in own[:1]:
                pairs += pairs_of(self.store, run, one, settings_of(run, SteerRun).report_on)
        return pairs


def experiment_of(store: Store, run_id: str) -> Experiment:
    """The experiment that ends with a run, as `chain_of` takes it, with the steer runs of all its seeds."""
    chain = chain_of(store, run_id)
    runs = [] if chain.steer is None else replicates(store, chain.steer)
    whole = [(run, found) for run in runs if (found := steered(store, run)) is not None]
    return Experiment(store, chain, {run.config["train_seed"]: (run, found) for run, found in whole})


def _over_seeds(kind: str, groups: Sequence[Group]) -> GroupOverSeeds:
    margins = [one.margin for one in groups if one.margin is not None]
    ahead = [one.best_margin for one in groups if one.best_margin is not None]
    return GroupOverSeeds(
        kind=kind,
        n=max(one.n for one in groups),
        gain=estimate([one.gain for one in groups], [one.interval for one in groups], DIRECTIONS),
        best=tuple(one.best for one in groups),
        chosen=sum(one.best_chosen for one in groups) / len(groups),
        best_gain=_estimated([(one.best_gain.difference, one.best_gain.interval) for one in groups]),
        margin=_estimated([(one.difference, one.interval) for one in margins]) if margins else None,
        best_margin=_estimated([(one.difference, one.interval) for one in ahead]) if ahead else None,
    )


def _estimated(found: Sequence[tuple[float, Interval]]) -> Estimate:
    return estimate([value for value, _ in found], [interval for _, interval in found])
