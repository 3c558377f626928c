"""Encoding by tiles, straight to the non-zeros, equals the plain way; so do resampled sums."""

from __future__ import annotations

import pytest
import torch

from morfi.kernels.encode import resampled_sums, row_limits, start_tile
from morfi.kernels.encoder import ACTIVATIONS, Encoder, encode_reference, prepare, tiles
from morfi.kernels.resample import resample_counts

D_MODEL, D_SAE, N = 24, 77, 53


def make_encoder(activation: str, normalization: str = "none") -> Encoder:
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return Encoder(
        normal(D_MODEL, D_SAE),
        normal(D_SAE) - 4,
        activation,
        threshold=normal(D_SAE).abs() if activation == "jumprelu" else None,
        k=5 if activation == "topk" else None,
        r_mag=normal(D_SAE) * 0.1 if activation == "gated" else None,
        b_mag=normal(D_SAE) if activation == "gated" else None,
        b_dec=normal(D_MODEL),
        normalization=normalization,
    )


@pytest.mark.parametrize("normalization", ["none", "constant_norm_rescale", "layer_norm"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("tile", [7, 32, 100])
def test_tiles_hold_the_non_zeros_of_the_whole(activation: str, normalization: str, tile: int) -> None:
    encoder = make_encoder(activation, normalization)
    x = torch.randn(N, D_MODEL, generator=torch.Generator().manual_seed(1)) * 2
    expected = encode_reference(x, encoder)
    assert 0 < int((expected > 0).sum()) < N * D_SAE / 2
    prepared = prepare(x, encoder)
    limits = row_limits(prepared, encoder, tile)
    for latents in tiles(encoder, tile):
        found = start_tile(prepared, encoder, latents, limits)()
        dense = torch.zeros(latents.stop - latents.start, N)
        for row in range(len(dense)):
            span = slice(int(found.starts[row]), int(found.starts[row + 1]))
            assert found.questions[span].diff().gt(0).all()
            dense[row, found.questions[span]] = found.values[span]
        torch.testing.assert_close(dense.T, expected[:, latents], rtol=1e-4, atol=1e-4)


def test_resampled_sums_equal_a_dense_product() -> None:
    encoder = make_encoder("relu")
    x = torch.randn(N, D_MODEL, generator=torch.Generator().manual_seed(1)) * 2
    counts = resample_counts([place % 3 for place in range(N)], 40, seed=0)
    found = start_tile(prepare(x, encoder), encoder, slice(0, D_SAE))()
    expected = (counts.double().T @ encode_reference(x, encoder).double()).T
    torch.testing.assert_close(resampled_sums(found, counts).double(), expected, rtol=1e-5, atol=1e-4)


def test_resamples_draw_within_strata_and_repeat() -> None:
    strata = ["P17"] * 30 + ["P36"] * 5
    counts = resample_counts(strata, 200, seed=3)
    assert torch.equal(counts, resample_counts(strata, 200, seed=3))
    assert not torch.equal(counts, resample_counts(strata, 200, seed=4))
    assert (counts[:, 0] == 1).all()
    assert (counts[:30].sum(0) == 30).all()
    assert (counts[30:].sum(0) == 5).all()
    variance = counts[:30, 1:].float().var(1).mean()
    assert variance == pytest.approx(1 - 1 / 30, rel=0.1)  # a binomial's


def test_resamples_draw_evenly_and_apart() -> None:
    n, n_resamples = 60, 4000
    counts = resample_counts(["P17"] * n, n_resamples, seed=7)[:, 1:].double()
    expected = n_resamples  # a question is drawn once a resample on average
    z = (counts.sum(1) - expected) / (n_resamples * (1 - 1 / n)) ** 0.5
    assert 0.6 < float(z.square().mean()) < 1.5  # chi square over its degrees of freedom, n - 1
    # Questions hang together as in a multinomial, by -1 / (n - 1); resamples do not.
    between = torch.corrcoef(counts)
    assert float(between.fill_diagonal_(0).sum() / (n * (n - 1))) == pytest.approx(-1 / (n - 1), abs=0.002)
    following = torch.corrcoef(torch.stack([counts[:, :-1].flatten(), counts[:, 1:].flatten()]))[0, 1]
    assert abs(float(following)) < 0.01
    other = resample_counts(["P17"] * n, n_resamples, seed=8)[:, 1:].double()
    assert abs(float(torch.corrcoef(torch.stack([counts.flatten(), other.flatten()]))[0, 1])) < 0.01
