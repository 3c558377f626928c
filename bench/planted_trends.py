"""Recall and false discoveries where the truth is known: planted trends among drifting and null latents.

A SAE of 32,768 JumpReLU latents reads 1,024 dimensions: 100 latents each read a dimension of their own that
rises with the level, 100 one that falls, 200 one that drifts without being monotone, and all others random
directions among the remaining dimensions. Questions are Gaussian vectors, the same under every condition;
each condition adds its own noise to every dimension (a training's), in units of which the gap between
neighbouring levels is given. Claims: recall of at least 0.95 at a realised FDR of at most 0.10, with one
training a level at a gap of 3.5 and with three at 1.5; without planted trends as many are selected as
chance gives. Writes bench/results/planted_trends.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from morfi.device import device_name
from morfi.kernels.encode import Encoder
from morfi.provenance import versions
from morfi.trends import TrendResult, find_trends

RESULTS = Path(__file__).resolve().parent / "results" / "planted_trends.md"
D_MODEL, D_SAE, N_QUESTIONS = 1024, 32_768, 2000
LEVELS = (0, 10, 25, 50, 75, 90, 100)
N_PLANTED = 100  # rising, and as many falling; twice that drift
NOISE = 0.05  # of a condition, in standard deviations of the questions
THRESHOLD = 1.5  # so that a latent fires on 7 % of the questions
DRIFTS = torch.tensor(
    [[0, 2, 4, 6, 4, 2, 0], [0, 3, 1, 4, 0, 2, 1], [6, 3, 0, 0, 0, 3, 6], [0, 0, 6, 0, 0, 6, 0]]
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run found of the planted latents."""

    recall: float
    fdr: float
    n_selected: int
    expected_false: float
    seconds: float


def make_encoder(generator: torch.Generator) -> Encoder:
    """The SAE: latents 0 to 399 read a dimension each, the others the rest."""
    own = 4 * N_PLANTED
    weights = torch.zeros(D_MODEL, D_SAE)
    weights[:own, :own] = torch.eye(own)
    rest = torch.randn(D_MODEL - own, D_SAE - own, generator=generator)
    weights[own:, own:] = rest / rest.norm(dim=0)
    return Encoder(weights, torch.zeros(D_SAE), "jumprelu", threshold=torch.full((D_SAE,), THRESHOLD))


def make_activations(generator: torch.Generator, gap: float, n_seeds: int) -> list[torch.Tensor]:
    """A condition for each seed and level."""
    questions = torch.randn(N_QUESTIONS, D_MODEL, generator=generator)
    shape = torch.zeros(len(LEVELS), D_MODEL)
    steps = torch.arange(len(LEVELS), dtype=torch.float32)[:, None]
    shape[:, :N_PLANTED] = steps
    shape[:, N_PLANTED : 2 * N_PLANTED] = -steps
    shape[:, 2 * N_PLANTED : 4 * N_PLANTED] = DRIFTS.float().T.repeat(1, 2 * N_PLANTED // len(DRIFTS))
    found = []
    for _ in range(n_seeds):
        noise = torch.randn(len(LEVELS), D_MODEL, generator=generator)
        shifts = NOISE * (gap * shape + noise)
        for shift in shifts:
            own = torch.randn(N_QUESTIONS, D_MODEL, generator=generator) * 0.02
            found.append(questions + own + shift)
    return found


def run(gap: float, n_seeds: int, seed: int) -> Outcome:
    """Draws everything and looks for trends."""
    generator = torch.Generator().manual_seed(seed)
    encoder = make_encoder(generator)
    activations = make_activations(generator, gap, n_seeds)
    began = time.perf_counter()
    result = find_trends(activations, LEVELS * n_seeds, encoder, seed=seed)
    return outcome(result, time.perf_counter() - began, planted=gap > 0)


def outcome(result: TrendResult, seconds: float, *, planted: bool) -> Outcome:
    """Compares what was selected with the truth."""
    selected = torch.tensor(result.latents["selected"].to_pylist())
    direction = torch.tensor(result.latents["direction"].to_pylist())
    truth = torch.zeros(D_SAE)
    if planted:
        truth[:N_PLANTED], truth[N_PLANTED : 2 * N_PLANTED] = 1, -1
    hits = int((selected & (truth != 0) & (direction == truth)).sum())
    n_selected = int(selected.sum())
    return Outcome(
        hits / (2 * N_PLANTED) if planted else float("nan"),
        (n_selected - hits) / max(1, n_selected),
        n_selected,
        result.expected_false,
        seconds,
    )


def table(found: dict[tuple[float, int], list[Outcome]]) -> str:
    """The results as Markdown."""
    lines = [
        "# Planted trends",
        "",
        f"{2 * N_PLANTED} planted, {2 * N_PLANTED} drifting and {D_SAE - 4 * N_PLANTED} null latents; "
        f"{N_QUESTIONS} questions, 7 levels, 1,000 resamples, default criteria; {device_name()}. Gap: "
        "between neighbouring levels, in standard deviations of a training's noise; 0: nothing planted. "
        "Means over draws, with the lowest and highest.",
        "",
        "| gap | trainings a level | draws | recall | realised FDR | selected | perfect by chance | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (gap, n_seeds), outcomes in found.items():

        def spread(name: str, form: str, outcomes: list[Outcome] = outcomes) -> str:
            values = [getattr(one, name) for one in outcomes]
            mean = statistics.mean(values)
            return f"{mean:{form}} ({min(values):{form}} - {max(values):{form}})"

        recall = spread("recall", ".3f") if gap else "-"
        lines.append(
            f"| {gap:g} | {n_seeds} | {len(outcomes)} | {recall} | {spread('fdr', '.3f') if gap else '-'} | "
            f"{spread('n_selected', '.0f')} | {outcomes[0].expected_false:.1f} | "
            f"{statistics.median(one.seconds for one in outcomes):.0f} |"
        )
    lines += ["", ", ".join(f"{name} {version}" for name, version in versions().items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=3)
    options = parser.parse_args()
    found: dict[tuple[float, int], list[Outcome]] = {}
    for gap, n_seeds in [(0, 1), (1, 1), (2, 1), (2.75, 1), (3.5, 1), (5, 1), (0, 3), (0.75, 3), (1.5, 3)]:
        for seed in range(options.draws):
            one = run(gap, n_seeds, seed)
            found.setdefault((gap, n_seeds), []).append(one)
            print(f"gap {gap}, {n_seeds} a level: {one}", file=sys.stderr)
    text = table(found)
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
