"""Recall and false discoveries of each rule where the truth is known: planted trends in superposition.

Each of 2,048 latents has a unit direction, a few questions on which it is active, and a height there; a
question's residual stream is the sum of what is active on it, 32 latents. A condition (one training) moves
every latent's height by a noise of its own; planted latents, 50 rising and 50 falling, also by a step for
each level, given in units of that noise. The SAE reads the latents' own directions (JumpReLU). In as many
dimensions as latents the directions are orthogonal and nothing else is read; in fewer, each latent reads a
little of all others (cosines of about 1 / sqrt(d_model)), so that what is planted also moves latents that
were not.

A latent is found if it was planted and has the right direction; all others that are selected are false. Two
things hide planted trends. Training noise puts the conditions out of order: no rule that asks for a perfect
trend finds more than the share that is in order, P(all steps of gap + sqrt(2) noise are positive). Few
questions make the order depend on which were drawn, which rejects a trend in the resamples. Writes
bench/results/planted_trends.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from morfi.kernels.encoder import Encoder
from morfi.kernels.null import trend_null
from morfi.kernels.trend import reduce_trends
from morfi.latents.selection import METHODS, Criteria, Method
from morfi.latents.trends import TrendResult, find_trends
from morfi.runs.provenance import versions

RESULTS = Path(__file__).resolve().parent / "results" / "planted_trends.md"
D_SAE, L0 = 2048, 32
LEVELS = (0, 10, 25, 50, 75, 90, 100)
N_PLANTED = 50  # rising, and as many falling
NOISE = 0.05  # of a condition, of a latent's height
OWN = 0.05  # of a question under a condition, in each direction
THRESHOLD = 1.0  # a latent's height is 1.5 and more
DIMENSIONS = (2048, 512, 128)


@dataclass(frozen=True, slots=True)
class Case:
    """The gap between neighbouring levels, questions a latent, dimensions, and trainings a level."""

    gap: float
    n_questions: int
    d_model: int
    n_seeds: int = 1


CASES = (
    *(Case(gap, n, d_model) for d_model in DIMENSIONS for n in (4, 8, 32) for gap in (0, 1, 2, 3.5)),
    *(Case(gap, 8, d_model, 3) for d_model in DIMENSIONS for gap in (0, 0.75, 1.5)),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run's findings on the planted latents."""

    n_found: int
    n_selected: int
    seconds: float

    @property
    def fdr(self) -> float:
        """The share of what was selected that is false."""
        return (self.n_selected - self.n_found) / max(1, self.n_selected)


def make(case: Case, seed: int) -> tuple[list[torch.Tensor], Encoder]:
    """The conditions' residual streams and the SAE."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    if case.d_model == D_SAE:
        directions = torch.eye(D_SAE)
    else:
        directions = normal(D_SAE, case.d_model)
        directions /= directions.norm(dim=1, keepdim=True)
    n = case.n_questions * D_SAE // L0
    # Each latent is active on as many questions, each question has about L0 latents.
    places = torch.stack([torch.randperm(n, generator=generator)[: case.n_questions] for _ in range(D_SAE)])
    heights = 1.5 + 0.5 * normal(D_SAE, case.n_questions).abs()
    step = torch.zeros(D_SAE)
    step[:N_PLANTED], step[N_PLANTED : 2 * N_PLANTED] = 1, -1
    latent = torch.arange(D_SAE).repeat_interleave(case.n_questions)
    torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]  # or it warns
    activations = []
    for _ in range(case.n_seeds):
        for place in range(len(LEVELS)):
            level = place if case.gap else 0
            shift = case.gap * (step * level + (step < 0) * (len(LEVELS) - 1)) + normal(D_SAE)
            values = (heights + NOISE * shift[:, None]).view(-1)
            active = torch.sparse_coo_tensor(torch.stack([places.view(-1), latent]), values, (n, D_SAE))
            activations.append(torch.sparse.mm(active, directions) + OWN * normal(n, case.d_model))
    threshold = torch.full((D_SAE,), THRESHOLD)
    return activations, Encoder(
        directions.T.contiguous(), torch.zeros(D_SAE), "jumprelu", threshold=threshold
    )


def run(case: Case, seed: int) -> dict[Method, Outcome]:
    """Draws everything and looks for trends by each rule."""
    activations, encoder = make(case, seed)
    found: dict[Method, Outcome] = {}
    for method in METHODS:
        began = time.perf_counter()
        result = find_trends(activations, LEVELS * case.n_seeds, encoder, method=method, seed=seed)
        found[method] = outcome(result, time.perf_counter() - began, planted=case.gap > 0)
    return found


def outcome(result: TrendResult, seconds: float, *, planted: bool) -> Outcome:
    """Compares what was selected with the truth."""
    selected = torch.tensor(result.latents["selected"].to_pylist())
    direction = torch.tensor(result.latents["direction"].to_pylist())
    truth = torch.zeros(D_SAE)
    if planted:
        truth[:N_PLANTED], truth[N_PLANTED : 2 * N_PLANTED] = 1, -1
    n_found = int((selected & (truth != 0) & (direction == truth)).sum())
    return Outcome(n_found, int(selected.sum()), seconds)


def in_order(case: Case) -> float:
    """The share of planted trends whose S has p <= alpha by training noise alone: drawn."""
    null = trend_null(tuple(range(len(LEVELS))) * case.n_seeds)
    smallest = float((null.tail > max(Criteria().alpha, float(null.tail[-1]))).sum())
    generator = torch.Generator().manual_seed(0)
    means = case.gap * torch.arange(len(LEVELS)).repeat(case.n_seeds)
    means = means[:, None] + torch.randn(len(means), 20_000, generator=generator)
    return float((reduce_trends(means[:, :, None], null, 1.0).s >= smallest).double().mean())


def row(case: Case, outcomes: list[dict[Method, Outcome]]) -> str:
    """A line of the table."""
    cells = [
        "orthogonal" if case.d_model == D_SAE else f"1/{case.d_model**0.5:.0f}",
        str(case.n_questions),
        str(case.n_seeds),
        f"{case.gap:g}",
        f"{in_order(case):.2f}" if case.gap else "-",
    ]
    for method in METHODS:
        own = [one[method] for one in outcomes]
        n_selected = statistics.mean(one.n_selected for one in own)
        if case.gap:
            recall = statistics.mean(one.n_found for one in own) / (2 * N_PLANTED)
            cells.append(f"{recall:.2f} / {statistics.mean(one.fdr for one in own):.2f}")
        else:
            cells.append(f"{n_selected:.1f} selected")
    return f"| {' | '.join(cells)} |"


def table(found: dict[Case, list[dict[Method, Outcome]]]) -> str:
    """The results as Markdown."""
    n_draws = {len(outcomes) for outcomes in found.values()}
    lines = [
        "# Planted trends",
        "",
        f"{2 * N_PLANTED} planted latents of {D_SAE}, {L0} active on a question, 7 levels, 1,000 resamples "
        f"and default criteria. Draws of each case, whose means these are: {max(n_draws)}. Of each rule: "
        "recall / realised false discovery rate; where nothing is planted (gap 0), how many are selected.",
        "",
        "Cross-talk: the size of the cosine between two latents' directions. Questions: on which a latent is "
        "active. Trainings: of each level. Gap: between neighbouring levels, in standard deviations of a "
        "training's noise. In order: the share of planted trends whose S has p <= 0.001 if there were no "
        "questions, only trainings' noise; the rule `bootstrap`, the paper's, cannot find more.",
        "",
        f"| cross-talk | questions | trainings | gap | in order | {' | '.join(METHODS)} |",
        f"|---|---|---|---|---|{'---|' * len(METHODS)}",
        *(row(case, outcomes) for case, outcomes in found.items()),
        "",
        ", ".join(f"{name} {version}" for name, version in versions().items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1, help="of each case")
    options = parser.parse_args()
    found: dict[Case, list[dict[Method, Outcome]]] = {}
    for case in CASES:
        found[case] = [run(case, seed) for seed in range(options.draws)]
        print(f"{case}: {found[case]}", file=sys.stderr)
        text = table(found)  # what there is so far, should it be stopped
        RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
