"""The directions that an engine knows, by name, and the table of those that it computes with."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping

import torch

from morfi.engine.directions import DecoderRows, Direction, SaeLatents, unpack
from morfi.engine.steering import Latent
from morfi.errors import InputError
from morfi.kernels.residual import Directions, Numbers

_MOST_LATENTS = 4096


class Registry:
    """The directions and SAEs that an engine knows, by sha256, counted by how often each was registered."""

    def __init__(self) -> None:
        self._known: dict[str, Direction | SaeLatents | DecoderRows] = {}
        self._counts: dict[str, int] = {}
        self._latents: dict[Latent, Direction] = {}  # that were used, so that they need not be made again

    def __len__(self) -> int:
        return len(self._known)

    def add(self, what: Direction | SaeLatents | DecoderRows) -> str:
        """Registers a direction or SAE once more; returns its name."""
        name = what.sha256
        self._known.setdefault(name, what)
        self._counts[name] = self._counts.get(name, 0) + 1
        return name

    def get(self, name: str | Latent) -> Direction:
        """The direction called `name`, or a latent of an SAE; raises InputError for an unknown one."""
        if isinstance(name, Latent):
            sae = self._known.get(name.sae)
            if not isinstance(sae, SaeLatents | DecoderRows):
                raise InputError(
                    f"no SAE {name.sae[:80]!r} is registered with this engine; register it first"
                )
            if name not in self._latents:
                if len(self._latents) == _MOST_LATENTS:
                    self._latents.clear()
                self._latents[name] = sae.direction(name.index)
            return self._latents[name]
        found = self._known.get(name)
        if not isinstance(found, Direction):
            raise InputError(f"no direction {name[:80]!r} is registered with this engine; register it first")
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def hold(self, name: str) -> None:
        """Registers once more what is registered already."""
        self._counts[name] += 1

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
        self.n_slots = n_slots
        self.directions = Directions(
            vectors=torch.zeros(n_slots, d_model, device=device),
            encoders=torch.zeros(n_slots, d_model, device=device),
            numbers=torch.zeros(n_slots, len(Numbers._fields), device=device),
        )
        self._slots: OrderedDict[str, int] = OrderedDict()
        self._free = list(range(n_slots - 1, -1, -1))

    @property
    def n_used(self) -> int:
        """Rows that hold a direction, in use or not."""
        return len(self._slots)

    def slots(self, wanted: Mapping[str, bytes]) -> dict[str, int]:
        """The row of each packed direction, all of them at once; others may be overwritten for them."""
        if len(wanted) > self.n_slots:
            raise RuntimeError(f"{len(wanted)} directions in one step; {self.n_slots} fit")
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

    def forget(self, name: str) -> None:
        """Empties the row of a direction, if it has one; where it is wanted again it is written again."""
        slot = self._slots.pop(name, None)
        if slot is None:
            return
        for tensor in (self.directions.vectors, self.directions.encoders, self.directions.numbers):
            tensor[slot] = 0.0
        self._free.append(slot)

    def _write(self, slot: int, direction: Direction) -> None:
        square = float(direction.vector.double().square().sum())
        numbers = Numbers(
            bias=direction.bias,
            threshold=direction.threshold,
            inverse_square=1.0 / square,
            along=1.0 if direction.encoder is None else 1.0 / math.sqrt(square),
            is_rescaled=float(direction.norm_rescaled),
        )
        rows = self.directions
        rows.vectors[slot] = direction.vector
        rows.encoders[slot] = 0.0 if direction.encoder is None else direction.encoder
        rows.numbers[slot] = torch.tensor(numbers)
