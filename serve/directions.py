"""Directions to steer along, named by their sha256, and the table of them that an engine computes with."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from morfi.errors import InputError
from morfi.steering import Latent

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False, slots=True)
class Direction:
    """A direction of the residual stream: float32 `vector` [d_model], and how its latent is computed, if any.

    With an `encoder` [d_model] the direction is a SAE's latent: f(x) = p if p > `threshold` else 0, where
    p = x . encoder + `bias`, all in the units of the residual stream, and `vector` is the decoder row in the
    same units. "add" then goes along the unit vector. With `norm_rescaled` the SAE scales every x to the norm
    sqrt(d_model) first, and f and its contribution are meant in those units.
    """

    vector: torch.Tensor
    encoder: torch.Tensor | None = None
    bias: float = 0.0
    threshold: float = 0.0
    norm_rescaled: bool = False

    def __post_init__(self) -> None:
        import torch

        for name, tensor in (("vector", self.vector), ("encoder", self.encoder)):
            if tensor is None:
                continue
            if tensor.ndim != 1 or tensor.shape != self.vector.shape or not len(tensor):
                raise InputError(
                    f"a direction's {name} has the shape {tuple(tensor.shape)}, expected [d_model]"
                )
            if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
                raise InputError(f"a direction's {name} is not made of finite float32 numbers")
        if not bool(self.vector.any()):
            raise InputError("a direction of length 0 leads nowhere")
        if not (math.isfinite(self.bias) and math.isfinite(self.threshold)) or self.threshold < 0:
            raise InputError(
                f"a latent's bias and threshold are finite, the threshold not negative; got {self.bias}, "
                f"{self.threshold}"
            )

    @property
    def sha256(self) -> str:
        """The sha256 of its content: the name that requests use."""
        return hashlib.sha256(pack(self)).hexdigest()


@dataclass(frozen=True, eq=False, slots=True)
class SaeLatents:
    """The latents of a SAE as directions, a row each: float32 `vectors` and `encoders` [d_sae, d_model],
    `biases` and `thresholds` [d_sae]; f and units as for a `Direction`.

    Whatever scaling the SAE needs, other than `norm_rescaled`, is folded in. A latent whose activity depends
    on the other latents' (TopK) has no such form.
    """

    vectors: torch.Tensor
    encoders: torch.Tensor
    biases: torch.Tensor
    thresholds: torch.Tensor
    norm_rescaled: bool = False

    def __post_init__(self) -> None:
        import torch

        shape = self.vectors.shape
        expected = {"vectors": shape, "encoders": shape, "biases": shape[:1], "thresholds": shape[:1]}
        for name, wanted in expected.items():
            tensor = getattr(self, name)
            if len(shape) != 2 or not all(shape) or tensor.shape != wanted:
                raise InputError(
                    f"a SAE's {name} have the shape {tuple(tensor.shape)}; vectors and encoders are "
                    "[d_sae, d_model], biases and thresholds [d_sae]"
                )
            if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
                raise InputError(f"a SAE's {name} are not made of finite float32 numbers")
        if bool((self.thresholds < 0).any()):
            raise InputError("a SAE's thresholds are not negative")

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


def from_numbers(numbers: Iterable[object]) -> Direction:
    """A direction to add or project out; raises InputError for anything but finite numbers."""
    import torch

    values = list(numbers)
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise InputError("a direction is a list of numbers")
    return Direction(torch.tensor(values, dtype=torch.float32))


def from_safetensors(data: bytes) -> Direction | SaeLatents:
    """What a safetensors file holds: a direction, or all latents of a SAE.

    Its tensors are "vector", and for a latent "encoder" (both [d_model]), "bias" and "threshold" (one number
    each, 0 where absent); or the same with a dimension [d_sae] before. Its metadata may say
    "norm_rescaled": "true". Raises InputError for anything else.
    """
    import safetensors
    import torch
    from safetensors.torch import load

    try:
        tensors = {name: tensor.float() for name, tensor in load(data).items()}
        (head_size,) = struct.unpack_from("<Q", data)
        metadata = json.loads(data[8 : 8 + head_size]).get("__metadata__") or {}
    except (safetensors.SafetensorError, struct.error, ValueError) as error:
        raise InputError(f"the bytes are no safetensors file: {error}") from error
    if "vector" not in tensors or not set(tensors) <= {"vector", "encoder", "bias", "threshold"}:
        raise InputError(
            'a direction\'s tensors are "vector", "encoder", "bias" and "threshold"; got '
            + ", ".join(sorted(tensors) or ["none"])
        )
    vector, encoder = tensors["vector"], tensors.get("encoder")
    rescaled = metadata.get("norm_rescaled") == "true"
    zeros = torch.zeros(vector.shape[:-1])
    bias, threshold = (tensors.get(name, zeros) for name in ("bias", "threshold"))
    if vector.ndim > 1:
        if encoder is None:
            raise InputError('several directions at once are the latents of a SAE and need "encoder"')
        return SaeLatents(vector, encoder, bias, threshold, rescaled)
    if bias.numel() != 1 or threshold.numel() != 1:
        raise InputError("a latent's bias and threshold are one number each")
    return Direction(vector, encoder, float(bias), float(threshold), rescaled)


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
            raise InputError("the bytes are no packed direction: their length does not fit")
    except struct.error as error:
        raise InputError(f"the bytes are no packed direction: {error}") from error
    rows = torch.frombuffer(bytearray(data[_HEAD.size :]), dtype=torch.float32).reshape(n_rows, d_model)
    return Direction(rows[0], rows[1] if is_latent else None, bias, threshold, norm_rescaled)


class Registry:
    """The directions and SAEs that an engine knows, by sha256, counted by how often each was registered."""

    def __init__(self) -> None:
        self._known: dict[str, Direction | SaeLatents] = {}
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._known)

    def add(self, what: Direction | SaeLatents) -> str:
        """Registers a direction or SAE once more; returns its name."""
        name = what.sha256
        self._known.setdefault(name, what)
        self._counts[name] = self._counts.get(name, 0) + 1
        return name

    def get(self, name: str | Latent) -> Direction:
        """The direction called `name`, or a latent of a SAE; raises InputError for an unknown one."""
        if isinstance(name, Latent):
            sae = self._known.get(name.sae)
            if not isinstance(sae, SaeLatents):
                raise InputError(
                    f"no SAE {name.sae[:80]!r} is registered with this engine; register it first"
                )
            return sae.direction(name.index)
        found = self._known.get(name)
        if not isinstance(found, Direction):
            raise InputError(f"no direction {name[:80]!r} is registered with this engine; register it first")
        return found

    def release(self, name: str) -> None:
        """Undoes one registration; after the last, new requests cannot use it any more.

        Raises InputError for a name that is not registered.
        """
        if name not in self._known:
            raise InputError(f"nothing called {name[:80]!r} is registered with this engine")
        self._counts[name] -= 1
        if not self._counts[name]:
            del self._known[name], self._counts[name]


class Bank:
    """The directions in use, as rows of tensors with fixed addresses; the longest unused row goes first."""

    def __init__(self, n_slots: int, d_model: int, device: torch.device) -> None:
        import torch

        self.vectors = torch.zeros(n_slots, d_model, device=device)
        self.encoders = torch.zeros(n_slots, d_model, device=device)
        # bias, threshold, 1 / |d|^2, what "add" multiplies d with, whether norms are rescaled
        self.numbers = torch.zeros(n_slots, 5, device=device)
        self._slots: OrderedDict[str, int] = OrderedDict()
        self._free = list(range(n_slots - 1, -1, -1))

    @property
    def n_used(self) -> int:
        """Rows that hold a direction, in use or not."""
        return len(self._slots)

    def slots(self, wanted: Mapping[str, bytes]) -> dict[str, int]:
        """The row of each packed direction, all of them at once; others may be overwritten for them."""
        if len(wanted) > len(self.vectors):
            raise RuntimeError(f"{len(wanted)} directions in one step; {len(self.vectors)} fit")
        missing = [name for name in wanted if name not in self._slots]
        for name in wanted:
            if name in self._slots:
                self._slots.move_to_end(name)
        for name in missing:
            # What is wanted now was moved to the end or comes later, so the first is not wanted.
            slot = self._free.pop() if self._free else self._slots.popitem(last=False)[1]
            self._slots[name] = slot
            self._write(slot, unpack(wanted[name]))
        return {name: self._slots[name] for name in wanted}

    def _write(self, slot: int, direction: Direction) -> None:
        import torch

        square = float(direction.vector.double().square().sum())
        along = 1.0 if direction.encoder is None else 1.0 / math.sqrt(square)
        numbers = (direction.bias, direction.threshold, 1.0 / square, along, float(direction.norm_rescaled))
        self.vectors[slot] = direction.vector
        self.encoders[slot] = 0.0 if direction.encoder is None else direction.encoder
        self.numbers[slot] = torch.tensor(numbers)
