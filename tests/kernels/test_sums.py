"""Partial sums: whatever order and chunks cells come in, the result is one."""

from __future__ import annotations

import random

import pytest
import torch

from morfi.kernels.encode import start_tile
from morfi.kernels.encoder import Encoder, Nonzeros, encode_reference
from morfi.kernels.resample import resample_counts
from morfi.kernels.sums import PartialSums

C, N, D_MODEL, D_SAE, B = 4, 37, 8, 19, 11


def make_inputs() -> tuple[torch.Tensor, Encoder, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(C, N, D_MODEL, generator=generator)
    x[2] = x[1]  # two conditions that tie
    encoder = Encoder(torch.randn(D_MODEL, D_SAE, generator=generator), torch.full((D_SAE,), -2.0))
    return x, encoder, resample_counts([0] * N, B, seed=0)[:, 1:]


def pieces(n: int, chance: random.Random) -> list[slice]:
    at = sorted(chance.sample(range(1, n), chance.randrange(1, 5)))
    return [slice(start, stop) for start, stop in zip([0, *at], [*at, n], strict=True)]


def test_sums_are_those_of_the_dense_activations() -> None:
    x, encoder, counts = make_inputs()
    latents = slice(0, D_SAE)
    sums = PartialSums(C, latents, B)
    for condition in range(C):
        sums.add(condition, latents, start_tile(x[condition], encoder, latents)(), counts)
    z = torch.stack([encode_reference(one, encoder).double() for one in x])  # [C, N, F]
    torch.testing.assert_close(sums.total, z.sum(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums.squares, z.square().sum(1), rtol=1e-5, atol=1e-5)
    assert torch.equal(sums.n_firing, (z > 0).sum(1))
    means = torch.cat([z.mean(1)[:, :, None], torch.einsum("cnf,nb->cfb", z, counts.double()) / N], 2)
    torch.testing.assert_close(sums.means(N), means.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_any_order_and_chunks_give_the_same(seed: int) -> None:
    x, encoder, counts = make_inputs()
    chance = random.Random(seed)
    whole, parted = PartialSums(C, slice(0, D_SAE), B), PartialSums(C, slice(0, D_SAE), B)
    for condition in range(C):
        whole.add(condition, whole.latents, start_tile(x[condition], encoder, whole.latents)(), counts)
    cells = [
        (condition, latents, questions)
        for condition in range(C)
        for latents in pieces(D_SAE, chance)
        for questions in pieces(N, chance)
    ]
    chance.shuffle(cells)
    for condition, latents, questions in cells:
        found = start_tile(x[condition, questions], encoder, latents)()
        parted.add(condition, latents, found, counts[questions])
    assert torch.equal(parted.n_firing, whole.n_firing)
    torch.testing.assert_close(parted.means(N), whole.means(N), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parted.squares, whole.squares, rtol=1e-5, atol=1e-6)


def test_conditions_that_tie_do_so_whatever_order_their_questions_came_in() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(3000, generator=generator)
    sums = PartialSums(2, slice(0, 1))
    for condition, order in enumerate((torch.arange(3000), torch.randperm(3000, generator=generator))):
        for chunk in torch.split(values[order], 100 + 100 * condition):
            found = Nonzeros(torch.tensor([0, len(chunk)]), torch.arange(len(chunk)), chunk)
            sums.add(condition, slice(0, 1), found, torch.zeros(len(chunk), 0))
    means = sums.means(3000)
    assert torch.equal(means[0], means[1])


def test_cells_that_are_missing_or_came_twice_are_refused() -> None:
    x, encoder, counts = make_inputs()
    latents = slice(3, 7)
    sums = PartialSums(C, latents, B)
    for condition in range(C):
        if condition != 2:
            sums.add(condition, latents, start_tile(x[condition], encoder, latents)(), counts)
    with pytest.raises(ValueError, match="latent 3 has seen 0 of 37 questions of condition 2"):
        sums.means(N)
    sums.add(2, latents, start_tile(x[2], encoder, latents)(), counts)
    sums.means(N)
    sums.add(0, latents, start_tile(x[0], encoder, latents)(), counts)
    with pytest.raises(ValueError, match="latent 3 has seen 74 of 37 questions of condition 0"):
        sums.means(N)
