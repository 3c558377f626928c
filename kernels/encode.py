"""SAE encoding a tile of latents at a time, straight to its non-zeros: latents are zero almost everywhere."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from morfi.kernels.encoder import Encoder, Nonzeros, tiles


def row_limits(prepared: torch.Tensor, encoder: Encoder, tile: int) -> torch.Tensor | None:
    """For "topk", the smallest pre-activation of each row that is kept, float32 [n]; else None."""
    if encoder.activation != "topk":
        return None
    assert encoder.k is not None
    best = torch.full((len(prepared), encoder.k), -torch.inf, device=prepared.device)
    for latents in tiles(encoder, tile):
        pre = encode_dense(prepared, encoder, latents)
        best = torch.cat([best, pre], 1).topk(encoder.k, dim=1).values
    return best[:, -1]


def start_tile(
    prepared: torch.Tensor, encoder: Encoder, latents: slice, limits: torch.Tensor | None = None
) -> Callable[[], Nonzeros]:
    """Starts to encode some latents, and returns what waits for their non-zero activations and gives them.

    A GPU may be given other work before that is called, and then never waits for us. `limits` are those of
    `row_limits`, on the same device.
    """
    if prepared.is_cuda:
        from morfi.kernels import encode_triton

        return encode_triton.start_tile(prepared, encoder, latents, limits)
    return lambda: _encode_tile(prepared, encoder, latents, limits)


def _encode_tile(
    prepared: torch.Tensor, encoder: Encoder, latents: slice, limits: torch.Tensor | None
) -> Nonzeros:
    p = _product(prepared, encoder, latents)  # [T, n]
    b_enc = encoder.b_enc[latents].float()[:, None]
    if encoder.activation == "gated":
        assert encoder.r_mag is not None
        assert encoder.b_mag is not None
        z = p * encoder.r_mag[latents].exp()[:, None] + encoder.b_mag[latents][:, None]
        return _compact(z, (z > 0) & (p + b_enc > 0))
    if encoder.activation == "relu":
        # p + b > 0 exactly where p > -b, and only what is kept needs the sum.
        found = _compact(p, p > -b_enc)
        found.values.add_(b_enc[:, 0].repeat_interleave(found.starts.diff()))
        return found
    z = p.add_(b_enc)
    if encoder.activation == "jumprelu":
        assert encoder.threshold is not None
        return _compact(z, z > encoder.threshold[latents].float().clamp_min(0)[:, None])
    assert limits is not None
    return _compact(z, (z > 0) & (z >= limits))


def _compact(z: torch.Tensor, keep: torch.Tensor) -> Nonzeros:
    """The values of z [T, n] where `keep` is true."""
    n_latents, n = z.shape
    places = _places(keep.view(-1))
    starts = torch.searchsorted(places, torch.arange(n_latents + 1, device=z.device) * n)
    return Nonzeros(starts, places % max(1, n), z.view(-1)[places])


def _places(flat: torch.Tensor) -> torch.Tensor:
    """Where `flat` is true, int64."""
    if flat.device.type != "cpu" or len(flat) % 8:
        return flat.nonzero()[:, 0]
    # Nearly all are false, so whole words of eight are looked at first: 3 times as fast.
    eights = flat.view(torch.int64)
    words = eights.nonzero()[:, 0]
    inside = eights[words].view(torch.bool).nonzero()[:, 0]
    return words[inside >> 3] * 8 + (inside & 7)


def resampled_sums(found: Nonzeros, counts: torch.Tensor) -> torch.Tensor:
    """Weighted sums over questions: float32 [T, R], where `counts` [n, R] are the weights."""
    if counts.is_cuda:
        from morfi.kernels import trend_triton

        return trend_triton.resampled_sums(found, counts)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        rows = torch.sparse_csr_tensor(
            found.starts,
            found.questions,
            found.values,
            (len(found.starts) - 1, len(counts)),
            check_invariants=False,
        )
    return rows @ counts.float()


def encode_dense(prepared: torch.Tensor, encoder: Encoder, latents: slice) -> torch.Tensor:
    """Pre-activations of some latents, float32 [n, T]."""
    if prepared.is_cuda:
        from morfi.kernels import encode_triton

        return encode_triton.encode_dense(prepared, encoder, latents)
    return _product(prepared, encoder, latents).T + encoder.b_enc[latents].float()


def _product(prepared: torch.Tensor, encoder: Encoder, latents: slice) -> torch.Tensor:
    """float32 [T, n]: a latent's activations lie side by side, so that its non-zeros come in order."""
    # Halves are multiplied as float32, for torch would round their products to halves.
    return encoder.W_enc[:, latents].float().T @ prepared.float().T
