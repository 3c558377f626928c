"""Sparse autoencoders, loaded by SAELens, as the plain tensors that kernels and steering compute with."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import textwrap
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.checkpoints.presets import PRESETS
from morfi.engine.directions import DecoderRows, SaeLatents
from morfi.errors import InputError, nearest
from morfi.files import note_source
from morfi.latents.sae_formats import check_folder, layer_read

if TYPE_CHECKING:
    import torch
    from sae_lens import SAE

    from morfi.kernels.encoder import Encoder

ARCHITECTURES = ("standard", "gated", "jumprelu", "topk")
_NORMALIZED = ("none", "constant_norm_rescale", "layer_norm")
# What the files of a release may be: none of these formats can hold code, as SAELens reads them.
_READABLE = (".json", ".npz", ".safetensors", ".yaml", ".yml")
_BROKEN_FILE = (KeyError, TypeError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile)
_MALFORMED = (*_BROKEN_FILE, AttributeError, IndexError, AssertionError)  # the last for odd configurations
_guarding = threading.Lock()


@dataclass(frozen=True, eq=False, slots=True)
class Sae:
    """An SAE of the residual stream: x is about decode(encode(x)), per token.

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
        """Digest of what is computed: the encoder's fields but its way, W_dec, b_dec, by name, shape and
        float32 value.

        It reads every tensor, some seconds for a large SAE: keep it. `layer` and `release` do not count.
        """
        import torch

        computed = [field.name for field in fields(self.encoder) if field.name != "way"]
        parts = {f"encoder.{name}": getattr(self.encoder, name) for name in computed}
        digest = hashlib.sha256()
        for name, value in {**parts, "W_dec": self.W_dec, "b_dec": self.b_dec}.items():
            if isinstance(value, torch.Tensor):
                digest.update(f"{name} {list(value.shape)}\n".encode())
                digest.update(value.detach().float().cpu().contiguous().numpy().data)
            else:
                digest.update(f"{name} {value!r}\n".encode())
        return digest.hexdigest()

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """All latents of x [n, d_model], float32 [n, d_sae]: for small n; `morfi.kernels` streams."""
        from morfi.kernels.encoder import encode_reference

        return encode_reference(x, self.encoder)

    def decode(self, latents: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The reconstruction of `x` [n, d_model] from `latents` [n, d_sae], float32 [n, d_model]."""
        from morfi.kernels.encoder import unscale

        return unscale(latents @ self.W_dec + self.b_dec, x, self.encoder)

    def directions(self) -> SaeLatents:
        """Its latents as directions to steer along, each computed from the residual stream alone.

        Raises InputError for an SAE whose latents depend on each other (TopK), or on an input that is
        centred (layer_norm): they have no such form.
        """
        encoder = self.encoder
        if not self.has_own_latents:
            what = "TopK activation" if encoder.activation == "topk" else "layer_norm"
            raise InputError(
                f"{self.release}: the latents of an SAE with {what} cannot be computed one by one, so they "
                "cannot be clamped or ablated; use an SAE saved as JumpReLU"
            )
        W_enc, bias = encoder.W_enc.float(), encoder.b_enc.float()
        threshold = bias.new_zeros(len(bias))
        if encoder.threshold is not None:
            threshold = encoder.threshold.float().clamp_min(0)
        shift = 0.0 if encoder.b_dec is None else encoder.b_dec.float() @ W_enc
        if encoder.activation == "gated":
            assert encoder.r_mag is not None
            assert encoder.b_mag is not None
            # The gate opens at p > -b_gate, where the magnitude is p e^r + b_mag.
            scale = encoder.r_mag.float().exp()
            threshold = (encoder.b_mag.float() - bias * scale).clamp_min(0)
            W_enc, bias, shift = W_enc * scale, encoder.b_mag.float(), shift * scale
        return SaeLatents(self.W_dec, W_enc.T.contiguous(), bias - shift, threshold, self.norm_rescaled)

    @property
    def norm_rescaled(self) -> bool:
        """Whether latents are those of x scaled to the norm sqrt(d_model)."""
        return self.encoder.normalization == "constant_norm_rescale"

    @property
    def has_own_latents(self) -> bool:
        """Whether each latent can be computed from the residual stream alone, as `directions` needs it."""
        return self.encoder.activation != "topk" and self.encoder.normalization != "layer_norm"

    def decoder_rows(self) -> DecoderRows:
        """Its decoder rows at unit length, to add or project; a row of 0 stays one."""
        return DecoderRows(self.W_dec / self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-30))


def encoder_of(sae: Encoder | Sae | SAE[Any]) -> Encoder:
    """The encoder of an SAE: itself, that of `load_sae`, or that of an SAE of SAELens as `load_sae` reads it.

    Raises InputError for one of SAELens that `load_sae` would refuse, and for one that is still in training.
    """
    from morfi.kernels.encoder import Encoder

    if isinstance(sae, Encoder):
        return sae
    if isinstance(sae, Sae):
        return sae.encoder
    if not hasattr(sae, "cfg"):
        raise InputError(f"a {type(sae).__name__} is no SAE; give one of `load_sae` or of SAELens")
    name = f"this {type(sae).__name__}"
    if hasattr(sae, "training_forward_pass"):
        raise InputError(
            f"{name} is an SAE in training, which SAELens encodes in another way; save it with "
            "save_inference_model and give load_sae(FOLDER)"
        )
    return from_sae_lens(sae, name).encoder


def load_sae(source: str) -> Sae:
    """The SAE of a preset, in a folder that SAELens wrote, or "RELEASE:ID" of SAELens' pretrained ones.

    "expected_average_only_in" is folded where SAELens lists a release's factor, or where its trainer left it
    in the folder (activation_scaler.json). Raises InputError where there is no such SAE, where it cannot be
    fetched, where only a pickle holds it, or where morfi would not compute exactly what SAELens does.

    >>> load_sae("gemma-scope-9b-pt-res-canonical:layer_20/width_16k/canonical").encoder
    """
    if source in PRESETS:
        source = _of_preset(source)
    is_folder = Path(source).is_dir()
    if not is_folder and ":" not in source:
        raise InputError(
            f"{source}: no such folder; give a folder with an SAE, RELEASE:ID of SAELens' pretrained SAEs, "
            f"or a preset that has one.{nearest(source, PRESETS)}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return from_sae_lens(_from_folder(source) if is_folder else _from_release(source), source)


def _of_preset(name: str) -> str:
    found = PRESETS[name].sae
    if found is None:
        having = ", ".join(known.name for known in PRESETS.values() if known.sae is not None)
        raise InputError(
            f"{name}: a preset without an SAE ({having} have one); give a folder with an SAE, or RELEASE:ID "
            "of SAELens' pretrained SAEs"
        )
    return found


def _from_folder(folder: str) -> Any:
    from sae_lens import SAE
    from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME
    from safetensors import SafetensorError

    note_source(Path(folder))
    check_folder(Path(folder), ARCHITECTURES)
    try:
        found = SAE.load_from_disk(folder)
        scaler = Path(folder) / ACTIVATION_SCALER_CFG_FILENAME
        if found.cfg.normalize_activations == "expected_average_only_in" and scaler.is_file():
            factor = json.loads(scaler.read_text(encoding="utf-8"))["scaling_factor"]
            if factor is not None:
                if not 0 < factor < math.inf:
                    raise ValueError(
                        f"scaling_factor of {scaler.name} is {factor}, expected a positive number"
                    )
                found.fold_activation_norm_scaling_factor(factor)
    except (*_MALFORMED, OSError, SafetensorError) as error:
        raise InputError(f"{folder}: no SAE that SAELens can load: {_reason(error)}") from error
    return found


def _from_release(source: str) -> Any:
    from huggingface_hub import errors
    from sae_lens import SAE
    from sae_lens.loading.pretrained_saes_directory import get_repo_id_and_folder_name
    from safetensors import SafetensorError

    release, _, sae_id = source.partition(":")
    try:
        with _without_pickles(source), _hub_silent():
            return SAE.from_pretrained(release, sae_id)
    # HTTPError is that of the client which the installed huggingface_hub uses.
    except (errors.EntryNotFoundError, errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        repo_id, folder = get_repo_id_and_folder_name(release, sae_id)
        raise InputError(
            f"{source}: could not be fetched from the hub ({type(error).__name__}); check the name, the "
            f'network and your access, or copy here what hf download {repo_id} --include "{folder}/*" puts '
            "into HF_HOME elsewhere"
        ) from error
    except (*_MALFORMED, SafetensorError) as error:
        raise InputError(f"SAELens could not load {source}: {_reason(error)}") from error


@contextmanager
def _hub_silent() -> Iterator[None]:
    """What the hub's client says of every try is left out: the last one is the error."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _without_pickles(source: str) -> Iterator[None]:
    """SAELens fetches no file that it might unpickle: all its loaders fetch by the name replaced here.

    Nor does it ask the hub for the shapes in a file that lies in the hub's cache.
    """
    from sae_lens.loading import pretrained_sae_loaders as loaders

    with _guarding:
        fetch = loaders.hf_hub_download

        def fetch_readable(repo_id: str, filename: str, **options: Any) -> str:
            if Path(filename).suffix not in _READABLE:
                raise InputError(
                    f"{source}: {filename} in {repo_id} may be a pickle, which can run code when it is read; "
                    "morfi reads safetensors, npz, JSON and YAML. If you trust it, load it in SAELens, save "
                    "it with save_model and give that folder"
                )
            return str(fetch(repo_id, filename, **options))

        loaders.hf_hub_download = fetch_readable
        shapes = loaders.get_safetensors_tensor_shapes
        loaders.get_safetensors_tensor_shapes = functools.partial(_shapes, shapes)
        try:
            yield
        finally:
            loaders.hf_hub_download = fetch
            loaders.get_safetensors_tensor_shapes = shapes


def _shapes(ask: Callable[..., Any], repo_id: str, filename: str) -> dict[str, list[int]]:
    """The shapes of a file's tensors: from the hub's cache where it is there, else by asking the hub."""
    from huggingface_hub import try_to_load_from_cache
    from safetensors import safe_open

    cached = try_to_load_from_cache(repo_id, filename)
    if not isinstance(cached, str):
        return dict(ask(repo_id, filename))
    with safe_open(cached, "pt") as file:
        return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {textwrap.shorten(str(error), 240, placeholder=' ...')}"


def from_sae_lens(sae: Any, release: str) -> Sae:
    """The tensors of a SAELens SAE, with what it does around them folded in or named.

    Raises InputError for an architecture or normalisation whose encoding morfi does not reproduce.
    """
    import torch

    from morfi.kernels.encoder import Encoder

    config = sae.cfg
    kind, normalization = config.architecture(), config.normalize_activations
    if kind not in ARCHITECTURES:
        raise InputError(f"{release}: an SAE of architecture {kind}; {', '.join(ARCHITECTURES)} are known")
    if normalization not in _NORMALIZED:
        raise InputError(
            f"{release}: normalize_activations is {normalization} and was not folded into the weights, so "
            "its latents cannot be computed; load it through its release, or fold it with SAELens and save it"
        )
    layer = layer_read(config.metadata, release)
    if config.reshape_activations != "none":
        raise InputError(
            f"{release}: reads attention heads ({config.reshape_activations}), no residual stream"
        )
    if kind == "topk" and not 0 < config.k <= config.d_sae:
        raise InputError(
            f"{release}: keeps k = {config.k} latents per token of d_sae = {config.d_sae}; expected 1 to "
            f"{config.d_sae}: the configuration is not that of the tensors"
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
    return Sae(encoder, W_dec.contiguous(), state["b_dec"], layer, release)
