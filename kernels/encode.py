"""SAE encoding a tile of latents at a time, straight to its non-zeros: latents are zero almost everywhere."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

ACTIVATIONS = ("relu", "jumprelu", "topk", "gated")


@dataclass(frozen=True, eq=False, slots=True)
class Encoder:
    """An SAE's encoder: latents = activation((normalized(x) - b_dec) @ W_enc + b_enc).

    "jumprelu" keeps pre-activations above `threshold` [d_sae]; "topk" the k largest of a row, if positive;
    "gated" has the latent relu(p e^r_mag + b_mag) where p + b_enc > 0, with p = x @ W_enc. `normalization`
    is "none", "constant_norm_rescale" (to the norm sqrt(d_model)) or "layer_norm".
    """

    W_enc: torch.Tensor  # [d_model, d_sae]
    b_enc: torch.Tensor  # [d_sae]
    activation: str = "relu"
    threshold: torch.Tensor | None = None  # [d_sae]
    k: int | None = None
    r_mag: torch.Tensor | None = None  # [d_sae]
    b_mag: torch.Tensor | None = None  # [d_sae]
    b_dec: torch.Tensor | None = None  # [d_model], where it is subtracted from the input
    normalization: str = "none"

    def to(self, device: str | torch.device) -> Encoder:
        """The same encoder with its tensors on `device`."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, **moved)

    def select(self, latents: torch.Tensor) -> Encoder:
        """The encoder of these latents only, int64 [T]; for "topk" their `row_limits` remain those of all."""
        chosen: dict[str, Any] = {
            name: value[latents]
            for name in ("b_enc", "threshold", "r_mag", "b_mag")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, W_enc=self.W_enc[:, latents], **chosen)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]


@dataclass(frozen=True, eq=False, slots=True)
class Nonzeros:
    """The non-zeros of a tile's activations [T, n], in order of latent, then question."""

    starts: torch.Tensor  # int64 [T + 1]: where each latent's begin
    questions: torch.Tensor  # int64 [nnz]
    values: torch.Tensor  # float32 [nnz]


def prepare(x: torch.Tensor, encoder: Encoder) -> torch.Tensor:
    """x [n, d_model], normalised and shifted as the encoder needs it, in the dtype of its weights."""
    found = x
    if encoder.normalization != "none":
        shift, scale = _normalization(x.float(), encoder)
        found = (x.float() - shift) / scale
    if encoder.b_dec is not None:
        found = found.float() - encoder.b_dec.float()
    return found.to(encoder.W_enc.dtype)


def unscale(decoded: torch.Tensor, x: torch.Tensor, encoder: Encoder) -> torch.Tensor:
    """The rows of `decoded` [n, d_model] before the normalisation that `prepare` gave `x`."""
    shift, scale = _normalization(x.float(), encoder)
    return decoded * scale + shift


def _normalization(x: torch.Tensor, encoder: Encoder) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    if encoder.normalization == "constant_norm_rescale":
        return 0.0, x.norm(dim=1, keepdim=True) / encoder.d_model**0.5
    if encoder.normalization == "layer_norm":
        return x.mean(1, keepdim=True), x.std(1, keepdim=True) + 1e-5
    return 0.0, 1.0


def encode_reference(x: torch.Tensor, encoder: Encoder) -> torch.Tensor:
    """All latents of x [n, d_model], float32 [n, d_sae], the plain way."""
    p = prepare(x, encoder).float() @ encoder.W_enc.float()
    pre = p + encoder.b_enc.float()
    if encoder.activation == "relu":
        return pre.relu()
    if encoder.activation == "jumprelu":
        assert encoder.threshold is not None
        return torch.where(pre > encoder.threshold.float(), pre, 0.0).relu()
    if encoder.activation == "gated":
        assert encoder.r_mag is not None
        assert encoder.b_mag is not None
        return torch.where(pre > 0, (p * encoder.r_mag.exp() + encoder.b_mag).relu(), 0.0)
    assert encoder.k is not None
    values, places = pre.topk(encoder.k, dim=1)
    return torch.zeros_like(pre).scatter_(1, places, values.relu())


def tiles(encoder: Encoder, size: int) -> Iterator[slice]:
    """All latents in tiles of `size`, the last one smaller."""
    return subtiles(slice(0, encoder.d_sae), size)


def subtiles(latents: slice, size: int) -> Iterator[slice]:
    """These latents in tiles of `size`, the last one smaller."""
    for start in range(latents.start, latents.stop, size):
        yield slice(start, min(start + size, latents.stop))


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


def encode_tile(
    prepared: torch.Tensor, encoder: Encoder, latents: slice, limits: torch.Tensor | None = None
) -> Nonzeros:
    """The non-zero activations of some latents, see `start_tile`."""
    return start_tile(prepared, encoder, latents, limits)()


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
