"""Swaps where the weights are: each changed part of a live parameter is computed anew on its own device."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from morfi.checkpoints.base_room import Room, room_for, working_bytes
from morfi.checkpoints.lora import Merge, is_narrowable, merged, narrowed
from morfi.checkpoints.merge_tolerance import allowed_difference
from morfi.checkpoints.weights import Weights
from morfi.device import available_memory, free_on
from morfi.engine.protocol import MergeDifference
from morfi.serve.weights.places import Place, are_parameters_served, places_of

_log = logging.getLogger("vllm.morfi")  # shown and silenced as vLLM's own


@dataclass(slots=True)
class InPlace:
    """The parts of a base's tensors that a live model on `device` holds, and the base's values of them.

    `rooms` says where the values of a tensor are kept, of each that was asked for and found live as it is
    in the files. `n_workers` share the machine's memory; `is_whole` says that each has a part of every layer.
    """

    weights: Weights
    places: Mapping[str, tuple[Place, ...]]
    device: torch.device
    n_workers: int
    is_whole: bool = True
    rooms: dict[str, Room] = field(default_factory=dict)
    kept: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def takes(self, names: Collection[str], dirty: Collection[str], merge: Merge | None) -> bool:
        """Whether the tensors called `names` can be computed in place, with `merge` or as in the base.

        Those of `dirty` may hold other values than the base's now. Keeps the base's values of all of them.
        """
        if self.is_whole and not all(self.places[name] for name in names):
            return False
        edits = {} if merge is None else merge.edits
        for name, edit in edits.items():
            shape = self.weights.tensors[name].shape
            if not all(is_narrowable(edit, place.box, shape) for place in self.places[name]):
                return False
        new = [name for name in names if name not in self.rooms]
        if any(name in dirty for name in new):
            return False  # whether they are where they are thought to be can be seen in a base's values only
        largest = max((place.live.numel() for name in names for place in self.places[name]), default=0)
        working = working_bytes(largest)
        return working <= free_on(self.device) and self._keep(new, working)

    def swap(self, names: Collection[str], merge: Merge | None) -> None:
        """Puts the values of `merge`, without one the base's, into the live parts of the tensors `names`.

        Parameters keep their addresses. Raises InputError where a result does not fit the serving dtype.
        """
        with full_precision():
            for name in names:
                for number, place in enumerate(self.places[name]):
                    place.live.copy_(self.value(name, number, merge))
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize(self.device)

    def value(self, name: str, number: int, merge: Merge | None) -> torch.Tensor:
        """What belongs in a place of the tensor `name`, on the device."""
        box = self.places[name][number].box
        held = self.kept.get(name)
        part = self.weights.part(name, box) if held is None else held[number]
        part = part.to(self.device, non_blocking=True)
        if merge is None or name not in merge.edits:
            return part
        return merged(name, part, narrowed(merge, name, box, self.device))

    def compare(self, merge: Merge) -> MergeDifference | None:
        """How the live parts differ from the CPU's `merge`; None where it was not made in place."""
        if not set(merge.edits) <= set(self.rooms):
            return None
        return MergeDifference.of_all(
            [
                _difference(place, name, merge, self.weights)
                for name in merge.edits
                for place in self.places[name]
            ]
        )

    def _keep(self, names: Collection[str], working: int) -> bool:
        """Keeps the base's values of `names` where there is room; false where the live ones are others."""
        if not names:
            return True
        sizes = [
            place.live.numel() * self.weights.tensors[name].item_bytes
            for name in names
            for place in self.places[name]
        ]
        host = (available_memory() or 0) // self.n_workers
        room = room_for(sizes, working, device=free_on(self.device), host=host)
        for name in names:
            parts = []
            for place in self.places[name]:
                part = self.weights.part(name, place.box)
                if room == Room.PINNED and self.device.type != "cpu":
                    part = part.pin_memory()
                there = part.to(self.device)
                if not torch.equal(place.live, there.to(place.live.dtype)):
                    _log.warning("morfi: %s is not live as it is stored; vLLM's loader makes swaps", name)
                    return False
                parts.append(there if room == Room.DEVICE else part)
            self.rooms[name] = room
            if room != Room.FILES:
                self.kept[name] = parts
        gigabytes = sum(sizes) / 1e9
        _log.info("morfi: swaps are made in place; %.2f GB of the base are kept %s", gigabytes, room)
        return True


def in_place_of(runner: Any, weights: Weights) -> InPlace | None:
    """The places of a base's `weights` in the model of vLLM's model runner.

    None for a model that computes with something else than its parameters, or whose loader does more than
    copy parts of tensors.
    """
    model = runner.get_model()
    if not are_parameters_served(model):
        return None
    places = places_of(model, weights.tensors)
    if places is None:
        return None
    parallel = runner.vllm_config.parallel_config
    is_whole = parallel.pipeline_parallel_size == 1
    return InPlace(weights, places, next(model.parameters()).device, parallel.world_size, is_whole)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """For a block: products of float32 matrices are not shortened to TF32 or bfloat16 on any device."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _difference(place: Place, name: str, merge: Merge, weights: Weights) -> MergeDifference:
    """How the live part of the tensor `name` differs from the CPU's merge of the base's `weights`."""
    cpu = torch.device("cpu")
    part, own = weights.part(name, place.box), narrowed(merge, name, place.box, cpu)
    with full_precision():
        expected = merged(name, part, own).to(place.live.dtype)
        allowed = allowed_difference(name, expected, own)
    apart = (place.live.to(cpu).float() - expected.float()).abs()
    # Where nothing is allowed, any difference is too much.
    worst = torch.where(apart == 0, 0.0, apart / allowed).max() if apart.numel() else apart.sum()
    return MergeDifference(apart.numel(), int((apart != 0).sum()), float(worst), name)
