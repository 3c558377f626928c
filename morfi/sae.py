"""Sparse autoencoders, loaded by SAELens, as the plain tensors that kernels and steering compute with."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.errors import InputError

if TYPE_CHECKING:
    import torch

    from morfi.kernels.encode import Encoder

ARCHITECTURES = ("standard", "gated", "jumprelu", "topk")
_NORMALIZED = ("none", "constant_norm_rescale", "layer_norm")


@dataclass(frozen=True, eq=False, slots=True)
class Sae:
    """A SAE of the residual stream: x is about decode(encode(x)), per token.

    `layer` is the decoder layer after which it reads, by Hugging Face's count, None where unknown; `release`
    says where it came from.
    """

    encoder: Encoder
    W_dec: torch.Tensor  # float32 [d_sae, d_model]
    b_dec: torch.Tensor  # float32 [d_model]
    layer: int | None
    release: str

    @property
    def sha256(self) -> str:
        """Of all that its latents and reconstructions depend on."""
        import torch

        digest = hashlib.sha256()
        parts = {field.name: getattr(self.encoder, field.name) for field in fields(self.encoder)}
        for name, part in {**parts, "W_dec": self.W_dec, "decoder b_dec": self.b_dec}.items():
            digest.update(f"{name} {tuple(part.shape) if isinstance(part, torch.Tensor) else part}".encode())
            if isinstance(part, torch.Tensor):
                digest.update(part.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """All latents of x [n, d_model], float32 [n, d_sae]: for small n; `morfi.kernels` streams."""
        from morfi.kernels.encode import encode_reference

        return encode_reference(x, self.encoder)

    def decode(self, latents: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """What `latents` [n, d_sae] of `x` [n, d_model] stand for, float32 [n, d_model]."""
        from morfi.kernels.encode import unscale

        return unscale(latents @ self.W_dec + self.b_dec, x, self.encoder)


def load_sae(source: str) -> Sae:
    """The SAE in a folder that SAELens wrote, or "release:id" of SAELens' pretrained ones.

    Raises InputError where there is none, or where morfi does not compute exactly what SAELens would.
    """
    if not Path(source).is_dir() and ":" not in source:
        raise InputError(
            f"{source}: no such folder; give a folder with a SAE, or RELEASE:ID of SAELens' pretrained SAEs"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sae_lens import SAE
        from safetensors import SafetensorError

        if Path(source).is_dir():
            try:
                found = SAE.load_from_disk(source)
            except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
                raise InputError(f"{source}: no SAE that SAELens can load: {error}") from error
        else:
            release, _, sae_id = source.partition(":")
            try:
                found = SAE.from_pretrained(release, sae_id)
            except (OSError, KeyError, ValueError, RuntimeError) as error:
                raise InputError(f"SAELens could not load {source}: {error}") from error
    return from_sae_lens(found, source)


def from_sae_lens(sae: Any, release: str) -> Sae:
    """The tensors of a SAELens SAE, with what it does around them folded in or named.

    Raises InputError for an architecture or normalisation whose encoding morfi does not reproduce.
    """
    import torch

    from morfi.kernels.encode import Encoder

    config = sae.cfg
    kind, normalization = config.architecture(), config.normalize_activations
    if kind not in ARCHITECTURES:
        raise InputError(f"{release}: a SAE of architecture {kind}; {', '.join(ARCHITECTURES)} are known")
    if normalization not in _NORMALIZED:
        raise InputError(
            f"{release}: normalize_activations is {normalization} and was not folded into the weights, so "
            "its latents cannot be computed; load it through its release, or fold it with SAELens and save"
        )
    if config.reshape_activations != "none":
        raise InputError(
            f"{release}: reads attention heads ({config.reshape_activations}), no residual stream"
        )
    state = {name: tensor.detach().float() for name, tensor in sae.state_dict().items()}
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{release}: {name} holds NaN or infinity")
    W_enc, W_dec = state["W_enc"], state["W_dec"]
    b_enc = state["b_gate"] if kind == "gated" else state["b_enc"]
    if getattr(config, "rescale_acts_by_decoder_norm", False):
        norms = W_dec.norm(dim=1)
        W_enc, b_enc, W_dec = W_enc * norms, b_enc * norms, W_dec / norms[:, None]
    encoder = Encoder(
        W_enc.contiguous(),
        b_enc,
        {"standard": "relu"}.get(kind, kind),
        threshold=state.get("threshold"),
        k=getattr(config, "k", None) if kind == "topk" else None,
        r_mag=state.get("r_mag"),
        b_mag=state.get("b_mag"),
        b_dec=state["b_dec"] if config.apply_b_dec_to_input else None,
        normalization=normalization,
    )
    return Sae(encoder, W_dec.contiguous(), state["b_dec"], _layer_of(config.metadata), release)


def _layer_of(metadata: Any) -> int | None:
    """The decoder layer whose output the SAE reads; what comes before layer L is what layer L - 1 gives."""
    parts = str(getattr(metadata, "hook_name", "") or "").split(".")
    if len(parts) != 3 or parts[0] != "blocks" or not parts[1].isdecimal():
        return None
    before = {"hook_resid_post": 0, "hook_resid_pre": 1}.get(parts[2])
    return None if before is None else int(parts[1]) - before
