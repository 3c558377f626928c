"""Where a live engine keeps its base's weights between swaps: one rule, for the engine and for plans."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

AT_ONCE = 1 << 24  # numbers that are merged at once, in whole rows
_RESERVE = 2 << 30  # bytes of a device that a kept base leaves free: for what is captured, and for pieces
_HOST_SHARE = 0.5  # of the memory that the machine can give, which pinned memory may take
_WORKING = 16  # bytes for each number that is merged: float32 results and what they are rounded to


class Room(StrEnum):
    """Where the base's weights are read from in each swap."""

    DEVICE = "on the device"
    PINNED = "in pinned memory"
    FILES = "in its files"


def working_bytes(largest: int) -> int:
    """The bytes of a device that a merge takes while it runs; `largest` numbers are merged at once."""
    return _WORKING * largest


def room_for(sizes: Iterable[int], working: int, *, device: int, host: int) -> Room:
    """Where parts of `sizes` bytes are kept, the fastest place first that has the room.

    `device` and `host` bytes are free; `working` of the device are needed beside (`working_bytes`).
    """
    sizes = list(sizes)
    if sum(sizes) + working + _RESERVE <= device:
        return Room.DEVICE
    # torch pins blocks of a power of two.
    pinned = sum(1 << (size - 1).bit_length() for size in sizes if size)
    return Room.PINNED if pinned <= _HOST_SHARE * host else Room.FILES
