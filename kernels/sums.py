"""Sums over questions of latents' activations, gathered in any order."""

from __future__ import annotations

import torch

from morfi.kernels.encode import resampled_sums
from morfi.kernels.encoder import Nonzeros


class PartialSums:
    """Sums for a range of latents under every condition, over the questions that have come so far.

    Questions, conditions and latents may come in any order and in any chunks, each cell once. Full-sample
    sums are float64, where a sum of some thousand float32 values hardly ever rounds: conditions that tie do
    so in any order.
    """

    def __init__(
        self, n_conditions: int, latents: slice, n_resamples: int = 0, device: str | torch.device = "cpu"
    ) -> None:
        shape = (n_conditions, latents.stop - latents.start)
        self.latents = latents
        self.total = torch.zeros(shape, dtype=torch.float64, device=device)  # [C, T]
        self.squares = torch.zeros_like(self.total)  # [C, T]
        self.n_firing = torch.zeros(shape, dtype=torch.int64, device=device)  # [C, T]
        self.n_seen = torch.zeros_like(self.n_firing)  # questions, [C, T]
        self.resampled = torch.zeros((*shape, n_resamples), device=device)  # [C, T, B]

    def add(self, condition: int, latents: slice, found: Nonzeros, counts: torch.Tensor) -> None:
        """Adds questions of some latents; `counts` [n, B] is how often each resample drew each."""
        cells = condition, slice(latents.start - self.latents.start, latents.stop - self.latents.start)
        values = found.values.double()
        self.total[cells] += _sums(values, found.starts)
        self.squares[cells] += _sums(values.square(), found.starts)
        self.n_firing[cells] += found.starts.diff()
        self.n_seen[cells] += len(counts)
        if counts.shape[1]:
            self.resampled[cells] += resampled_sums(found, counts)

    def means(self, n_questions: int) -> torch.Tensor:
        """Float32 [C, T, 1 + B], first of the full sample; ValueError unless every question came once."""
        if not bool((self.n_seen == n_questions).all()):
            condition, latent = (self.n_seen != n_questions).nonzero()[0].tolist()
            raise ValueError(
                f"latent {latent + self.latents.start} has seen {int(self.n_seen[condition, latent])} of "
                f"{n_questions} questions of condition {condition}"
            )
        full = (self.total / n_questions).float()[:, :, None]
        return torch.cat([full, self.resampled / n_questions], 2) if self.resampled.shape[2] else full


def _sums(values: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Sums of each latent's values, [T]."""
    return torch.segment_reduce(values, "sum", offsets=starts, initial=0.0)
