"""SAE encoding a tile of latents at a time, straight to its non-zeros: latents are zero almost everywhere.

There are two ways, which differ in the order in which products are added up and in nothing else: "fused",
a kernel whose epilogue keeps the non-zeros (`encode_fused`, for a GPU), and "library", the product of
cuBLAS or, on a CPU, of torch, and a pass over it (`encode_library`, and below).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import get_args

import torch

from morfi.errors import InputError
from morfi.kernels.encoder import Encoder, Nonzeros, Way, tiles

# Picoseconds a pre-activation on an H200 with bfloat16, where both multiply at one rate: of the fused kernel
# behind its product, and each that it keeps, an addition at one address; of cuBLAS and the pass over what it
# wrote (bench/results/trends_gpu.md).
_EPILOGUE, _KEPT, _PASS = 3.0, 350.0, 4.4
# Operations a picosecond with float32, which was not measured: as three products of TF32 at 71 % of an H100's
# peak, as cuBLAS reaches with halves, and in cuBLAS.
_TF32X3, _FLOATS = 117.0, 60.0
_DENSITY = 0.0015  # taken for what was not measured: 50 of 32,768


def is_fused_faster(d_model: int, dtype: torch.dtype, density: float) -> bool:
    """Whether the fused kernel is taken to be faster than cuBLAS and a pass over its products.

    `density` is the share of pre-activations that are kept, `dtype` that of the weights. Of halves the one
    is faster below a density of 0.4 %, whatever the width.
    """
    fused, library = _EPILOGUE + density * _KEPT, _PASS
    if dtype == torch.float32:
        fused += 2 * d_model / _TF32X3
        library += 2 * d_model / _FLOATS
    return fused < library


def chosen_way(encoder: Encoder, samples: Iterable[torch.Tensor], tile: int) -> Way:
    """The encoder's way; where it has none, the faster for the density of some prepared questions.

    What is compared with each other should be encoded by one way: two round differently, and what ties in
    one may not tie between them. Raises InputError for a way that there is not on the device.
    """
    if encoder.way is not None or not encoder.W_enc.is_cuda:
        return _way(encoder)
    if encoder.k is not None:
        return _faster(encoder, encoder.k / encoder.d_sae)
    n_kept, n_cells = 0, 0
    for prepared in samples:
        started = (start_tile(prepared, encoder, latents) for latents in tiles(encoder, tile))
        n_kept += sum(len(end().values) for end in started)
        n_cells += len(prepared) * encoder.d_sae
    return _faster(encoder, n_kept / max(1, n_cells))


def _way(encoder: Encoder) -> Way:
    if encoder.way not in (None, *get_args(Way)):
        raise InputError(f'the encoder\'s way is "{encoder.way}"; expected one of {", ".join(get_args(Way))}')
    if encoder.W_enc.is_cuda:
        return encoder.way or _faster(encoder, _DENSITY)
    if encoder.way == "fused":
        raise InputError('the encoder\'s way "fused" needs a GPU; leave it out, or give "library"')
    return "library"


def _faster(encoder: Encoder, density: float) -> Way:
    return "fused" if is_fused_faster(encoder.d_model, encoder.W_enc.dtype, density) else "library"


def row_limits(prepared: torch.Tensor, encoder: Encoder, tile: int) -> torch.Tensor | None:
    """For "topk" the limit of each row, which what it keeps reaches, float32 [n]; else None.

    It lies in the middle between the smallest pre-activation that is kept and the next, so that they stay on
    their sides of it where they are rounded otherwise: in other tiles, or by the other way.
    """
    if encoder.activation != "topk":
        return None
    assert encoder.k is not None
    lowest = torch.finfo(torch.float32).min
    best = torch.full((len(prepared), encoder.k + 1), lowest, device=prepared.device)
    for latents in tiles(encoder, tile):
        pre = encode_dense(prepared, encoder, latents)
        best = torch.cat([best, pre], 1).topk(encoder.k + 1, dim=1).values
    kept, left_out = best[:, -2], best[:, -1]
    middle = kept / 2 + left_out / 2
    return torch.where(middle > left_out, middle, kept)


def start_tile(
    prepared: torch.Tensor, encoder: Encoder, latents: slice, limits: torch.Tensor | None = None
) -> Callable[[], Nonzeros]:
    """Starts to encode some latents, and returns what waits for their non-zero activations and gives them.

    A GPU may be given other work before that is called, and then never waits for us. `limits` are those of
    `row_limits`, on the same device. Raises InputError for a way that there is not on the device.
    """
    way = _way(encoder)
    if not prepared.is_cuda:
        return lambda: _encode_tile(prepared, encoder, latents, limits)
    from morfi.kernels import compaction

    return compaction.start_tile(_kernels(way).launch, prepared, encoder, latents, limits)


def _kernels(way: Way) -> ModuleType:
    from morfi.kernels import encode_fused, encode_library

    return encode_fused if way == "fused" else encode_library


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
    way = _way(encoder)
    if prepared.is_cuda:
        found: torch.Tensor = _kernels(way).encode_dense(prepared, encoder, latents)
        return found
    return _product(prepared, encoder, latents).T + encoder.b_enc[latents].float()


def _product(prepared: torch.Tensor, encoder: Encoder, latents: slice) -> torch.Tensor:
    """float32 [T, n]: a latent's activations lie side by side, so that its non-zeros come in order."""
    # Halves are multiplied as float32, for torch would round their products to halves.
    return encoder.W_enc[:, latents].float().T @ prepared.float().T
