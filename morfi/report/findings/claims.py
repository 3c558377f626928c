"""What the paper claims, held against one experiment: each claim holds, does not, or cannot be said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from morfi.conditions.levels import varied_in
from morfi.interventions.groups import CONTROL, DELTA_U, LATENT, RANDOM, UP
from morfi.interventions.rivals import CHANGE, KNOWLEDGE
from morfi.report.findings.estimate import Estimate
from morfi.report.findings.experiment import Experiment

HOLDS, IN_PART, FAILS, CANNOT = "holds", "holds in part", "does not hold", "is undecided"
NOT_MEASURED, ALIKE = "not measured", "the same latents"
RULE = (
    "A number speaks for its claim where its 95 % interval lies above 0, and against it where that lies "
    "below 0. A claim holds where all of its numbers speak for it, holds in part where some do, does "
    "not hold where one speaks against it and none for it, and is undecided otherwise. Intervals are "
    "Student's t over trainings where several seeds were trained, else over questions (the paired "
    "bootstrap), which says nothing of another training."
)


@dataclass(frozen=True, slots=True)
class Part:
    """A number that a claim says is above 0, in words; where `found` is None, `missing` says why."""

    says: str
    found: Estimate | None
    missing: str = NOT_MEASURED

    @property
    def verdict(self) -> str:
        """What its interval says."""
        interval = None if self.found is None else self.found.interval
        if interval is None:
            return CANNOT
        return HOLDS if interval.low > 0 else FAILS if interval.high < 0 else CANNOT


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of the paper with the numbers that decide it."""

    letter: str
    text: str
    parts: Sequence[Part]

    @property
    def verdict(self) -> str:
        """By `RULE`; says so where no number of it was measured."""
        if all(one.missing == NOT_MEASURED and one.found is None for one in self.parts):
            return "was not measured"
        found = {one.verdict for one in self.parts}
        if HOLDS in found:
            return HOLDS if found == {HOLDS} else IN_PART
        return FAILS if FAILS in found else CANNOT


def claims_of(experiment: Experiment) -> list[Claim]:
    """The claims (a) to (e), with this experiment's numbers."""
    return [
        _falls(experiment),
        Claim(
            "b",
            "Trends select latents that bring back more than control latents and random directions.",
            _beyond(experiment, {CONTROL: "control latents", RANDOM: "random directions"}),
        ),
        Claim(
            "c",
            "Trends select better latents than rules that need no trainings between the two ends.",
            _beyond(
                experiment,
                {
                    CHANGE: "the latents whose mean changes most",
                    KNOWLEDGE: "the latents that tell known questions from unknown ones",
                },
            ),
        ),
        Claim(
            "d",
            "Rising latents steered down bring back more than falling latents steered up.",
            [
                Part(
                    "mean gain of rising latents whose best strength is negative, beyond that of falling "
                    "ones whose best is positive",
                    _margin(experiment, UP),
                )
            ],
        ),
        Claim(
            "e",
            "The best single latent brings back more than delta_u.",
            [Part("gain along the best latent beyond that along delta_u", _ahead(experiment, DELTA_U))],
        ),
    ]


def _falls(experiment: Experiment) -> Claim:
    """Accuracy falls with the level, and more after more epochs."""
    epochs, sweep = experiment.epochs, experiment.chain.sweep
    level = "level" if sweep is None else varied_in(sweep).name
    last = experiment.fall(epochs[-1]) if epochs else None
    parts = [
        Part(
            f"accuracy on {experiment.group or 'known'} questions at the lowest {level}, less the highest"
            + (f", epochs {epochs[-1]}" if epochs else ""),
            last,
        )
    ]
    if len(epochs) > 1:
        first = epochs[0]
        parts.append(
            Part(
                f"that fall after epochs {epochs[-1]}, less that after {first}",
                experiment.fall(epochs[-1], first),
            )
        )
    else:
        parts.append(Part("that fall after more epochs, less that after fewer", None))
    return Claim(
        "a", f"Accuracy on what the model knew falls with the {level}, and more after more epochs.", parts
    )


def _beyond(experiment: Experiment, rivals: dict[str, str]) -> list[Part]:
    """What the latents with a trend have beyond each rival: on average, and the best of either on dev."""
    parts = []
    latents = experiment.groups.get(LATENT)
    for kind, name in rivals.items():
        group = experiment.groups.get(kind)
        parts.append(
            Part(f"mean gain of latents with a trend, beyond that of {name}", _margin(experiment, kind))
        )
        says = f"gain of the best of them on dev, beyond that of the best of {name}"
        if latents is None or group is None:
            parts.append(Part(says, None))
        elif latents.best == group.best:
            parts.append(Part(says, None, ALIKE))
        else:
            parts.append(Part(f"{says} ({latents.n} against {group.n})", group.best_margin))
    return parts


def _margin(experiment: Experiment, kind: str) -> Estimate | None:
    group = experiment.groups.get(kind)
    return None if group is None or LATENT not in experiment.groups else group.margin


def _ahead(experiment: Experiment, kind: str) -> Estimate | None:
    group = experiment.groups.get(kind)
    return None if group is None else group.best_margin
