"""Which questions each bootstrap resample draws, as counts: the same for every condition and latent."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_N_DRAWN = 2**20  # at a time, so that drawing takes no more memory for more questions


def resample_counts(strata: Sequence[object], n_resamples: int, seed: int) -> torch.Tensor:
    """How often each resample draws each question, uint8 [n_questions, 1 + n_resamples].

    The first column is the full sample, each question once. Questions are drawn with replacement within their
    stratum (relation), as many as it has. The same arguments give the same counts on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(len(strata), 1 + n_resamples, dtype=torch.uint8)
    counts[:, 0] = 1
    members: dict[object, list[int]] = {}
    for place, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(place)
    for places in members.values():
        rows, n = torch.tensor(places), len(places)
        width = max(1, _N_DRAWN // n)
        for start in range(1, 1 + n_resamples, width):
            stop = min(start + width, 1 + n_resamples)
            drawn = torch.randint(n, (n, stop - start), generator=generator)
            ones = torch.ones(drawn.shape, dtype=torch.uint8)
            counts[rows, start:stop] = torch.zeros_like(ones).scatter_add_(0, drawn, ones)
    return counts
