"""Which questions each bootstrap resample draws, as counts: the same for every condition and latent."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_N_DRAWN = 2**18  # at a time: what stays in a CPU's cache
# Of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), as signed numbers.
_STEP, _MIX_1, _MIX_2 = -7046029254386353131, -4658895280553007687, -7723592293110705685


def resample_counts(
    strata: Sequence[object], n_resamples: int, seed: int, device: str | torch.device = "cpu"
) -> torch.Tensor:
    """How often each resample draws each question, uint8 [n_questions, 1 + n_resamples].

    The first column is the full sample, each question once. Questions are drawn with replacement within their
    stratum (relation), as many as it has. The same arguments give the same counts on every device: a draw is
    the hash of its own number.
    """
    counts = torch.zeros(len(strata), 1 + n_resamples, dtype=torch.uint8, device=device)
    counts[:, 0] = 1
    if isinstance(strata, torch.Tensor):  # whose elements are equal to nothing but themselves
        strata = strata.tolist()
    members: dict[object, list[int]] = {}
    for place, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(place)
    n_drawn = 0
    for places in members.values():
        rows, n = torch.tensor(places, device=device), len(places)
        width = max(1, (_N_DRAWN if counts.device.type == "cpu" else 64 * _N_DRAWN) // n)
        for start in range(1, 1 + n_resamples, width):
            stop = min(start + width, 1 + n_resamples)
            numbers = torch.arange(n_drawn, n_drawn + n * (stop - start), device=device)
            n_drawn += len(numbers)
            # The upper 31 bits of the hash, scaled to 0 to n - 1.
            drawn = _hashed(numbers, seed).bitwise_right_shift_(33).bitwise_and_(2**31 - 1).mul_(n) >> 31
            ones = torch.ones(stop - start, n, dtype=torch.uint8, device=device)
            counts[rows, start:stop] = torch.zeros_like(ones).scatter_add_(1, drawn.view_as(ones), ones).T
    return counts


def _hashed(numbers: torch.Tensor, seed: int) -> torch.Tensor:
    """SplitMix64's numbers, int64 in place; products wrap."""
    numbers.add_(1).mul_(_STEP).add_(seed % 2**31 * 2**32)
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        numbers.bitwise_xor_((numbers >> shift).bitwise_and_(2 ** (64 - shift) - 1)).mul_(factor)
    return numbers.bitwise_xor_((numbers >> 31).bitwise_and_(2**33 - 1))
