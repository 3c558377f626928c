"""An SAE's encoder, tiles of its latents and their non-zeros, the same on either device; the reference."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch

ACTIVATIONS = ("relu", "jumprelu", "topk", "gated")
Way = Literal["fused", "library"]


@dataclass(frozen=True, eq=False, slots=True)
class Encoder:
    """An SAE's encoder: latents = activation((normalized(x) - b_dec) @ W_enc + b_enc).

    "jumprelu" keeps pre-activations above `threshold` [d_sae]; "topk" the k largest of a row, if positive;
    "gated" has the latent relu(p e^r_mag + b_mag) where p + b_enc > 0, with p = x @ W_enc. `normalization`
    is "none", "constant_norm_rescale" (to the norm sqrt(d_model)) or "layer_norm".

    `way` is how it is computed and not what: by one kernel of ours ("fused"), by the library's product and
    a pass over it ("library"), or, if None, as `morfi.kernels.encode.chosen_way` says.
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
    way: Way | None = None

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
        shift, scale = normalization(x.float(), encoder)
        found = (x.float() - shift) / scale
    if encoder.b_dec is not None:
        found = found.float() - encoder.b_dec.float()
    return found.to(encoder.W_enc.dtype)


def unscale(decoded: torch.Tensor, x: torch.Tensor, encoder: Encoder) -> torch.Tensor:
    """The rows of `decoded` [n, d_model] before the normalisation that `prepare` gave `x`."""
    shift, scale = normalization(x.float(), encoder)
    return decoded * scale + shift


def normalization(x: torch.Tensor, encoder: Encoder) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """What is subtracted from rows [n, d_model], and what they are divided by: each [n, 1] or a number."""
    if encoder.normalization == "constant_norm_rescale":
        return 0.0, x.norm(dim=1, keepdim=True) / encoder.d_model**0.5
    if encoder.normalization == "layer_norm":
        return x.mean(1, keepdim=True), x.std(1, keepdim=True) + 1e-5
    return 0.0, 1.0


def most_norm(encoder: Encoder, n: int) -> float:
    """Up to which norm of a prepared row float32 holds every product, latent, and sum over `n` questions.

    A sum of products of two vectors is at most the product of their norms, however it is split.
    """
    column = float(torch.linalg.vector_norm(encoder.W_enc, dim=0, dtype=torch.float32).max())
    biases = [one.abs().max() for one in (encoder.b_enc, encoder.b_mag) if one is not None]
    factor = 1.0 if encoder.r_mag is None else max(1.0, float(encoder.r_mag.double().exp().max()))
    room = torch.finfo(torch.float32).max / (2 * max(1, n)) - float(torch.stack(biases).max())
    return room / (column * factor) if column else math.inf


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
