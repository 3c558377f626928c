"""Directions of the residual stream to steer along, one or an SAE's, named by the sha256 of their content."""

from __future__ import annotations

import hashlib
import numbers
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from morfi.engine.steering import FLOAT32_MAX, plain_number
from morfi.errors import InputError

if TYPE_CHECKING:
    import torch


SHORTEST, LONGEST = 1e-15, 1e15  # a direction whose length float32 can square, and divide by


@dataclass(frozen=True, eq=False, slots=True)
class Direction:
    """A direction of the residual stream: `vector` [d_model], and how its latent is computed, if any.

    Vectors may be given as tensors or NumPy arrays of any real dtype, or as lists of numbers; they are held
    as float32 tensors on the CPU.

    With an `encoder` [d_model] the direction is an SAE's latent: f(x) = p if p > `threshold` else 0, where
    p = x . encoder + `bias`, all in the units of the residual stream, and `vector` is the decoder row in the
    same units. "add" then goes along the unit vector. With `norm_rescaled` the SAE scales every x to the norm
    sqrt(d_model) first, and f and its contribution are meant in those units.

    >>> name = engine.register(Direction([0.0, 1.0, 0.0]))
    """

    vector: torch.Tensor
    encoder: torch.Tensor | None = None
    bias: float = 0.0
    threshold: float = 0.0
    norm_rescaled: bool = False

    def __post_init__(self) -> None:
        for name in ("vector", "encoder"):
            if name == "encoder" and self.encoder is None:
                continue
            tensor = _numbers(getattr(self, name), f"a direction's {name}")
            object.__setattr__(self, name, tensor)
            if tensor.ndim != 1 or tensor.shape != self.vector.shape or not len(tensor):
                raise InputError(
                    f"a direction's {name} has the shape {tuple(tensor.shape)}, expected [d_model]"
                )
        length = float(self.vector.double().norm())
        if not length:
            raise InputError("a direction of length 0 leads nowhere")
        if not SHORTEST <= length <= LONGEST:
            raise InputError(
                f"a direction of length {length:g} cannot be computed with in float32; scale it to a length "
                f"from {SHORTEST:g} to {LONGEST:g}, and its strength the other way"
            )
        for name in ("bias", "threshold"):
            object.__setattr__(self, name, _number(getattr(self, name), f"a latent's {name}"))
        if not (abs(self.bias) <= FLOAT32_MAX and 0 <= self.threshold <= FLOAT32_MAX):
            raise InputError(
                "a latent's bias and threshold are finite numbers that float32 holds (to 3.4e38), the "
                f"threshold not negative; got {self.bias}, {self.threshold}"
            )

    @property
    def sha256(self) -> str:
        """The sha256 of its content: the name that requests use."""
        return hashlib.sha256(pack(self)).hexdigest()


@dataclass(frozen=True, eq=False, slots=True)
class SaeLatents:
    """The latents of an SAE as directions, a row each: `vectors` and `encoders` [d_sae, d_model],
    `biases` and `thresholds` [d_sae]; f, units and dtypes as for a `Direction`.

    Whatever scaling the SAE needs, other than `norm_rescaled`, is folded in. A latent whose activity depends
    on the other latents' (TopK) has no such form.

    >>> sae = engine.register(SaeLatents(W_dec, W_enc.T, b_enc, threshold))
    """

    vectors: torch.Tensor
    encoders: torch.Tensor
    biases: torch.Tensor
    thresholds: torch.Tensor
    norm_rescaled: bool = False

    def __post_init__(self) -> None:
        for name in ("vectors", "encoders", "biases", "thresholds"):
            object.__setattr__(self, name, _numbers(getattr(self, name), f"an SAE's {name}"))
        shape = self.vectors.shape
        expected = {"vectors": shape, "encoders": shape, "biases": shape[:1], "thresholds": shape[:1]}
        for name, wanted in expected.items():
            tensor = getattr(self, name)
            if len(shape) != 2 or not all(shape) or tensor.shape != wanted:
                raise InputError(
                    f"an SAE's {name} have the shape {tuple(tensor.shape)}; vectors and encoders are "
                    "[d_sae, d_model], biases and thresholds [d_sae]"
                )
        if bool((self.thresholds < 0).any()):
            raise InputError("an SAE's thresholds are not negative")

    def direction(self, index: int) -> Direction:
        """Latent `index`; raises InputError where there is none, or its vector is 0."""
        if index >= len(self.vectors):
            raise InputError(f"latent {index}: the SAE has the latents 0 to {len(self.vectors) - 1}")
        return Direction(
            self.vectors[index],
            self.encoders[index],
            float(self.biases[index]),
            float(self.thresholds[index]),
            self.norm_rescaled,
        )

    @property
    def sha256(self) -> str:
        """The sha256 of its content: the name that requests use."""
        parts = (self.vectors, self.encoders, self.biases, self.thresholds)
        found = hashlib.sha256(f"sae {tuple(self.vectors.shape)} {self.norm_rescaled} ".encode())
        for part in parts:
            found.update(_bytes_of(part))
        return found.hexdigest()


@dataclass(frozen=True, eq=False, slots=True)
class DecoderRows:
    """The decoder rows of an SAE as directions to add or project: float32 `vectors` [d_sae, d_model].

    For SAEs whose latents cannot be computed one by one, so that nothing can be ablated or clamped. "add"
    goes along a row as it is: give rows of length 1.
    """

    vectors: torch.Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "vectors", _numbers(self.vectors, "decoder rows"))
        if self.vectors.ndim != 2 or not all(self.vectors.shape):
            raise InputError(
                f"decoder rows have the shape {tuple(self.vectors.shape)}, expected [d_sae, d_model]"
            )

    def direction(self, index: int) -> Direction:
        """Row `index`; raises InputError where there is none, or it is 0."""
        if index >= len(self.vectors):
            raise InputError(f"latent {index}: the SAE has the latents 0 to {len(self.vectors) - 1}")
        return Direction(self.vectors[index])

    @property
    def sha256(self) -> str:
        """The sha256 of its content: the name that requests use."""
        found = hashlib.sha256(f"rows {tuple(self.vectors.shape)} ".encode())
        found.update(_bytes_of(self.vectors))
        return found.hexdigest()


def is_numbers(value: object) -> bool:
    """Whether `value` is meant as a vector: a list, a tuple, a tensor or an array."""
    return isinstance(value, list | tuple) or hasattr(value, "__array__")


def _numbers(value: Any, what: str) -> torch.Tensor:
    """`value` as a float32 tensor on the CPU; raises InputError where that is not what it is."""
    import numpy as np
    import torch

    if isinstance(value, list | tuple):
        value = [_number(one, f"a number of {what}") for one in value]
    elif not hasattr(value, "__array__"):
        raise InputError(
            f"{what}: expected a tensor, an array or a list of numbers, got {type(value).__name__}"
        )
    if isinstance(value, torch.Tensor) and (value.is_meta or value.layout != torch.strided):
        raise InputError(f"{what}: expected a dense tensor with values, got one that is meta or sparse")
    try:
        # A copy, because torch refuses negative strides.
        tensor = torch.as_tensor(value if isinstance(value, torch.Tensor | list) else np.array(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what}: these are not real numbers ({error})") from error
    if tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise InputError(f"{what}: expected real numbers, got {tensor.dtype}")
    made = tensor.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(made).all()):
        held = " (float32 holds up to 3.4e38)" if bool(torch.isfinite(tensor).all()) else ""
        raise InputError(f"{what}: expected finite float32 numbers, got NaN or infinity{held}")
    return made


def _number(value: Any, what: str) -> float:
    value = plain_number(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(f"{what}: expected a number, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError as error:
        raise InputError(f"{what}: a whole number of 300 digits or more is not finite in float32") from error


_HEAD = struct.Struct("<qdd??")


def _bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().astype("<f4").tobytes()


def pack(direction: Direction) -> bytes:
    """The direction as bytes, for another process; equal directions give equal bytes."""
    encoder = direction.encoder
    head = _HEAD.pack(
        len(direction.vector),
        direction.bias,
        direction.threshold,
        direction.norm_rescaled,
        encoder is not None,
    )
    parts = [direction.vector] if encoder is None else [direction.vector, encoder]
    return head + b"".join(map(_bytes_of, parts))


def unpack(data: bytes) -> Direction:
    """The direction that `pack` made `data` from; raises InputError for other bytes."""
    import torch

    try:
        d_model, bias, threshold, norm_rescaled, is_latent = _HEAD.unpack_from(data)
        n_rows = 1 + is_latent
        if not d_model > 0 or len(data) != _HEAD.size + 4 * d_model * n_rows:
            raise InputError("the bytes are not a packed direction: their length does not fit")
    except struct.error as error:
        raise InputError(f"the bytes are not a packed direction: {error}") from error
    rows = torch.frombuffer(bytearray(data[_HEAD.size :]), dtype=torch.float32).reshape(n_rows, d_model)
    return Direction(rows[0], rows[1] if is_latent else None, bias, threshold, norm_rescaled)
