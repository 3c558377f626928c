"""The directions that an engine knows, by name, and the table of those that it computes with."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from morfi.engine.directions import DecoderRows, Direction, SaeLatents, unpack
from morfi.engine.steering import Latent
from morfi.errors import InputError
from morfi.kernels.residual import Directions, Numbers
from morfi.serve.plugin.transfers import to_device

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
    """The directions in use, as rows of tensors with fixed addresses.

    A row is one direction's while requests hold it, and until another needs it: what nobody has held for
    longest goes first.
    """

    def __init__(self, n_slots: int, d_model: int, device: torch.device) -> None:
        self.n_slots = n_slots
        self.directions = Directions(
            vectors=torch.zeros(n_slots, d_model, device=device),
            encoders=torch.zeros(n_slots, d_model, device=device),
            numbers=torch.zeros(n_slots, len(Numbers._fields), device=device),
        )
        self._slots: dict[str, int] = {}
        self._holders: Counter[str] = Counter()
        self._unheld: OrderedDict[str, None] = OrderedDict()  # that have a row, the longest unheld first
        self._forgotten: set[str] = set()  # to be emptied when nobody holds them
        self._free = list(range(n_slots - 1, -1, -1))
        self._new: dict[int, Direction] = {}  # by slot, not on the device yet

    @property
    def n_used(self) -> int:
        """Rows that hold a direction, in use or not."""
        return len(self._slots)

    def hold(self, wanted: Mapping[str, bytes]) -> dict[str, int] | None:
        """The row of each packed direction, kept until it is released; None where too few are not held.

        `write` brings them to the device.
        """
        missing = [name for name in wanted if name not in self._slots]
        n_unheld = len(self._unheld) - sum(name in self._unheld for name in wanted)
        if len(missing) > len(self._free) + n_unheld:
            return None
        self._holders.update(wanted.keys())
        for name in wanted:
            self._unheld.pop(name, None)
        for name in missing:
            slot = self._free.pop() if self._free else self._slots.pop(self._unheld.popitem(last=False)[0])
            self._slots[name] = slot
            self._new[slot] = unpack(wanted[name])
        return {name: self._slots[name] for name in wanted}

    def release(self, names: Iterable[str]) -> None:
        """Undoes one `hold` of each."""
        for name in names:
            self._holders[name] -= 1
            if self._holders[name]:
                continue
            del self._holders[name]
            self._unheld[name] = None
            if name in self._forgotten:
                self.forget(name)

    def forget(self, name: str) -> None:
        """Empties the row of a direction, if it has one, as soon as nobody holds it."""
        if name in self._holders:
            self._forgotten.add(name)
            return
        self._forgotten.discard(name)
        if name not in self._slots:
            return
        slot = self._slots.pop(name)
        del self._unheld[name]
        self._new.pop(slot, None)
        for tensor in (self.directions.vectors, self.directions.encoders, self.directions.numbers):
            tensor[slot] = 0.0
        self._free.append(slot)

    def write(self) -> None:
        """Brings new directions to the device, all in one copy, for which the host does not wait."""
        if not self._new:
            return
        rows = self.directions
        d_model = rows.vectors.shape[1]
        values = np.zeros((len(self._new), 2 * d_model + len(Numbers._fields) + 1), np.float32)
        values[:, -1] = np.array(list(self._new), np.int32).view(np.float32)
        for row, direction in zip(values, self._new.values(), strict=True):
            row[:d_model] = direction.vector.numpy()
            if direction.encoder is not None:
                row[d_model : 2 * d_model] = direction.encoder.numpy()
            row[2 * d_model : -1] = _numbers(direction)
        self._new.clear()
        staged = to_device(values, rows.vectors.device)
        slots = staged[:, -1].view(torch.int32).long()
        rows.vectors.index_copy_(0, slots, staged[:, :d_model])
        rows.encoders.index_copy_(0, slots, staged[:, d_model : 2 * d_model])
        rows.numbers.index_copy_(0, slots, staged[:, 2 * d_model : -1])


def _numbers(direction: Direction) -> Numbers:
    square = float(direction.vector.double().square().sum())
    return Numbers(
        bias=direction.bias,
        threshold=direction.threshold,
        inverse_square=1.0 / square,
        along=1.0 if direction.encoder is None else 1.0 / math.sqrt(square),
        is_rescaled=float(direction.norm_rescaled),
    )
