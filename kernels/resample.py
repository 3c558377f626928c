"""Which questions each bootstrap resample draws, as counts: the same for every condition and latent."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def resample_counts(strata: Sequence[object], n_resamples: int, seed: int) -> torch.Tensor:
    """How often each resample draws each question, float32 [n_questions, 1 + n_resamples].

    The first column is the full sample, each question once. Questions are drawn with replacement within their
    stratum (relation), as many as it has. The same arguments give the same counts on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(len(strata), 1 + n_resamples)
    counts[:, 0] = 1
    members: dict[object, list[int]] = {}
    for place, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(place)
    for places in members.values():
        drawn = torch.randint(len(places), (len(places), n_resamples), generator=generator)
        found = torch.zeros(len(places), n_resamples).scatter_add_(0, drawn, torch.ones(drawn.shape))
        counts[torch.tensor(places), 1:] = found
    return counts
