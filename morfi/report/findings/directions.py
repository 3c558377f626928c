"""What steering does along each direction, over all seeds of an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from morfi.interventions.outcome import Outcome, Share, Steered, share_of
from morfi.interventions.verdicts import Answerer
from morfi.report.findings.estimate import Estimate, estimate


@dataclass(frozen=True, slots=True)
class Along:
    """Steering along one direction, each seed at its own best strength of `alphas`.

    `chosen` is the mean gain on the questions for choosing, `gain` that on those reported; `recovered` is
    R_K of the reference over the answers of all seeds. `p` is McNemar's, None of several seeds.
    """

    direction: str
    kind: str
    latent: int | None
    alphas: tuple[float, ...]
    chosen: float
    gain: Estimate
    p: float | None
    recovered: Share


def along_each(by_seed: Sequence[Steered]) -> list[Along]:
    """The directions that were reported, by kind; of a kind the best by what was chosen on first."""
    from morfi.interventions.directions import KINDS

    found: dict[str, list[Outcome]] = {}
    for one in by_seed:
        for outcome in one.outcomes:
            if outcome.reported is not None:
                found.setdefault(outcome.direction.direction, []).append(outcome)
    every = [_along(own) for own in found.values()]
    return sorted(every, key=lambda one: (KINDS.index(one.kind), -one.chosen))


def _along(own: Sequence[Outcome]) -> Along:
    reported = [one.reported for one in own if one.reported is not None]
    shares = [one.recovery[Answerer.REFERENCE].recovered for one in own if one.recovery is not None]
    n, n_right = sum(one.n for one in shares), sum(one.n_right for one in shares)
    return Along(
        direction=own[0].direction.direction,
        kind=own[0].direction.kind,
        latent=own[0].direction.latent,
        alphas=tuple(one.best.alpha for one in own),
        chosen=sum(one.best.gain for one in own) / len(own),
        gain=estimate([one.difference for one in reported], [one.interval for one in reported]),
        p=reported[0].p if len(reported) == 1 else None,
        recovered=share_of([True] * n_right + [False] * (n - n_right)),
    )
