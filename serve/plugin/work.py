"""Requests that are steered or captured, and what they give the layers of one step to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from morfi.engine.steering import Capture, within
from morfi.serve.plugin.joint import Entry, Spans


@dataclass(frozen=True, slots=True)
class Rows:
    """Residuals of one request, one step and one layer: `values` float32 [n, d_model]."""

    positions: list[int]
    token_ids: list[int]
    values: torch.Tensor


@dataclass(slots=True)
class Live:
    """A request that is steered or captured, as one worker sees it."""

    request_id: str
    report: bool  # whether it is kept until it is asked for
    entries: Sequence[Entry]
    directions: Mapping[str, bytes]  # packed, by name
    capture: Capture | None
    capture_spans: Spans
    labels: tuple[int, int] | None  # its number and the sample's in shards, where it is to be written to them
    seat: int = 0  # where `Progress` keeps what becomes of it
    slots: Mapping[str, int] | None = None  # the bank's rows that it holds, None before its first step
    left: Standing | None = None  # when it has left its seat
    n_captured: Counter[int] = field(default_factory=Counter)  # rows, by layer
    captured: dict[int, list[Rows]] = field(default_factory=dict)  # those not written to shards


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a request has come: `reached` positions were computed or came from the cache."""

    first: int  # position that was computed, those before it came from the cache
    reached: int
    changed: bytes  # uint16 for each position from `first` on, as the kernel says


@dataclass(frozen=True, slots=True)
class Batch:
    """The requests of a step in order, int64 [n] each: request i has `counts[i]` rows."""

    seats: np.ndarray  # 0 for one that is neither steered nor captured
    first_rows: np.ndarray
    starts: np.ndarray  # the position of the first row
    counts: np.ndarray

    @property
    def stops(self) -> np.ndarray:
        """The position behind each one's last row."""
        stops: np.ndarray = self.starts + self.counts
        return stops

    @property
    def n_rows(self) -> int:
        """Rows of the whole step."""
        return int(self.counts.sum())

    def only(self, which: np.ndarray) -> Batch:
        """Those of the requests for which `which` [n] is true."""
        return Batch(self.seats[which], self.first_rows[which], self.starts[which], self.counts[which])


@dataclass(frozen=True, slots=True)
class Captured:
    """What a device captures of a request in a step: after each of `layers`, the same positions."""

    live: Live
    layers: Sequence[int]
    positions: Sequence[int]
    rows: Sequence[int]  # of the step
    place: (
        int  # of the first position and layer among all that is captured; the layers follow, then positions
    )


@dataclass(slots=True)
class LayerWork:
    """The work of one layer in one step; rows are those of the batch."""

    rows: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    operations: list[int] = field(default_factory=list)  # codes of `morfi.engine.operations`
    strengths: list[float] = field(default_factory=list)
    lows: list[float] = field(default_factory=list)
    users: list[int] = field(default_factory=list)
    captured: list[tuple[Live, range, range]] = field(default_factory=list)  # its rows and their positions


def add_work(
    work: dict[int, LayerWork],
    live: Live,
    *,
    layers: range,
    reached: int,
    first_row: int,
    start: int,
    count: int,
) -> bool:
    """Adds a request's part of a step to the `work` of those of `layers` that have some; whether any has.

    The request has `count` rows from `first_row` on, which are its positions from `start` on, and has come to
    the position `reached` before.
    """
    has_work = False
    for entry in live.entries:
        if entry.layer not in layers:
            continue
        for low, high in within(entry.spans, start, start + count):
            assert live.slots is not None
            one = work.setdefault(entry.layer, LayerWork())
            n = high - low
            one.rows.extend(range(first_row + low - start, first_row + high - start))
            one.slots.extend([live.slots[entry.direction]] * n)
            one.operations.extend([entry.operation.code] * n)
            one.strengths.extend([entry.strength] * n)
            one.lows.extend([entry.low] * n)
            one.users.extend([entry.users] * n)
            has_work = True
    if live.capture is None:
        return has_work
    # A preempted request computes positions again, to equal values.
    for low, high in within(live.capture_spans, max(start, reached), start + count):
        rows = range(first_row + low - start, first_row + high - start)
        for layer in live.capture.layers:
            if layer in layers:
                work.setdefault(layer, LayerWork()).captured.append((live, rows, range(low, high)))
                has_work = True
    return has_work
