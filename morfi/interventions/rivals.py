"""Rivals of the trend: other rules that select latents, from the ends of the levels alone.

The trend has to beat them to be worth trainings of all the levels between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from morfi.latents.activations import Residuals
from morfi.latents.find import Found

if TYPE_CHECKING:
    import torch

    from morfi.store import Store

CHANGE, KNOWLEDGE = "change", "knowledge"
RIVALS = (CHANGE, KNOWLEDGE)
_CHUNK = 256  # questions whose latents are held at once


@dataclass(frozen=True, slots=True)
class Rivals:
    """The latents that rival rules select, the first first, and whether each latent's mean rises or falls.

    `picks` has no latents of a rule that has nothing to go by. `change` is the sign of the change of mean
    from the lowest level to the highest, of every latent.
    """

    picks: Mapping[str, Sequence[int]]
    change: Sequence[int]


@dataclass(frozen=True, eq=False, slots=True)
class _Moments:
    """Sums over rows of every latent, float64 [d_sae]."""

    n: int
    total: torch.Tensor
    squares: torch.Tensor
    firing: torch.Tensor

    @property
    def mean(self) -> torch.Tensor:
        return self.total / max(1, self.n)

    @property
    def frequency(self) -> torch.Tensor:
        """The share of rows on which each latent fires."""
        return self.firing / max(1, self.n)


def find_rivals(found: Found, n: int, is_known: Mapping[str, bool] | None) -> Rivals:
    """The `n` latents that each rival rule puts first, of those that fire on enough questions.

    - change: the largest change of mean activation from the lowest level to the highest, in standard
      deviations over the questions of both;
    - knowledge: the largest difference, either way, between how often a latent fires on questions that the
      base model knew and on those that it did not, under the lowest level (after Ferrando et al., arXiv
      2411.14257). `is_known` says which, by question id; None, or one kind alone, gives none.
    """
    activations = found.activations
    levels = activations.levels
    ends = [
        [one for one, level in zip(activations.residuals, levels, strict=True) if level == end]
        for end in (min(levels), max(levels))
    ]
    low, high = ([_moments(found, one) for one in end] for end in ends)
    step = _mean_of([one.mean for one in high]) - _mean_of([one.mean for one in low])
    spread = _spread([*low, *high])
    fires = [row["latent"] for row in _firing(found)]
    scores = {CHANGE: _scaled(step, spread)}
    if is_known is not None:
        parts = [
            [place for place, one in enumerate(activations.questions) if is_known.get(one.id) is kind]
            for kind in (True, False)
        ]
        if all(parts):
            known, unknown = (
                _mean_of([_moments(found, one, part).frequency for one in ends[0]]) for part in parts
            )
            scores[KNOWLEDGE] = known - unknown
    picks = {rule: _first(scores[rule].abs().tolist(), fires, n) if rule in scores else [] for rule in RIVALS}
    return Rivals(picks, step.sign().int().tolist())


def known_questions(store: Store, split_run: str | None) -> dict[str, bool] | None:
    """Whether the base model knew each question, by id; None where no split run says so."""
    if split_run is None:
        return None
    return {row.question_id: row.known for row in store.knowledge(split_run)}


def _firing(found: Found) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = found.latents.select(["latent", "firing"]).to_pylist()
    return [row for row in rows if row["firing"] >= found.settings.min_firing]


def _first(scores: Sequence[float], among: Sequence[int], n: int) -> list[int]:
    """The `n` latents of `among` with the largest scores over 0; of equal ones the smaller number."""
    return sorted((one for one in among if scores[one] > 0), key=lambda one: (-scores[one], one))[:n]


def _moments(found: Found, residuals: Residuals, places: Sequence[int] | None = None) -> _Moments:
    """The sums over the questions at `places`, all by default."""
    import torch

    values = residuals.values if places is None else residuals.values[torch.tensor(places)]
    total, squares, firing = (torch.zeros(found.sae.encoder.d_sae, dtype=torch.float64) for _ in range(3))
    for start in range(0, len(values), _CHUNK):
        with torch.no_grad():
            latents = found.sae.encode(values[start : start + _CHUNK]).double()
        total += latents.sum(0)
        squares += latents.square().sum(0)
        firing += (latents > 0).sum(0)
    return _Moments(len(values), total, squares, firing)


def _mean_of(values: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.stack(list(values)).mean(0)


def _spread(moments: Sequence[_Moments]) -> torch.Tensor:
    """The standard deviation of every latent over all rows together."""
    n = sum(one.n for one in moments)
    mean = sum((one.total for one in moments), start=0 * moments[0].total) / n
    squares = sum((one.squares for one in moments), start=0 * moments[0].total) / n
    return (squares - mean.square()).clamp_min(0).sqrt()


def _scaled(step: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """`step` in units of `spread`; 0 where there is none."""
    return (step / spread.clamp_min(1e-12)).where(spread > 0, 0 * step)
