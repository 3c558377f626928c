"""Directions to steer along, named by their sha256, and the table of them that an engine computes with."""

from __future__ import annotations

import hashlib
import math
import struct
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from morfi.errors import InputError

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


def from_numbers(numbers: Iterable[object]) -> Direction:
    """A direction to add or project out; raises InputError for anything but finite numbers."""
    import torch

    values = list(numbers)
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise InputError("a direction is a list of numbers")
    return Direction(torch.tensor(values, dtype=torch.float32))


_HEAD = struct.Struct("<qdd??")


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
    return head + b"".join(part.detach().cpu().contiguous().numpy().astype("<f4").tobytes() for part in parts)


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
    """The directions that an engine knows, by sha256, counted by how often each was registered."""

    def __init__(self) -> None:
        self._directions: dict[str, tuple[Direction, bytes]] = {}
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._directions)

    def add(self, direction: Direction) -> str:
        """Registers `direction` once more; returns its name."""
        name = direction.sha256
        self._directions.setdefault(name, (direction, pack(direction)))
        self._counts[name] = self._counts.get(name, 0) + 1
        return name

    def get(self, name: str) -> tuple[Direction, bytes]:
        """The direction called `name`, and packed; raises InputError for an unknown one."""
        if name not in self._directions:
            raise InputError(f"no direction {name[:80]!r} is registered with this engine; register it first")
        return self._directions[name]

    def release(self, name: str) -> None:
        """Undoes one registration; after the last, new requests cannot use the direction any more."""
        self.get(name)
        self._counts[name] -= 1
        if not self._counts[name]:
            del self._directions[name], self._counts[name]


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
