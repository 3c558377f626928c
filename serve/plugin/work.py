"""Requests that are steered or captured, and what they give the layers of one step to do."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
    reached: int = 0  # positions that were computed or came from the cache, from the first on
    steps: list[tuple[int, int]] = field(default_factory=list)  # not proven yet: number, and first position
    first: int = 0  # position that was computed, those before it came from the cache
    changed: array[int] = field(default_factory=lambda: array("H"))  # from `first` on, as the kernel says
    n_captured: dict[int, int] = field(default_factory=dict)  # rows, by layer
    captured: dict[int, list[Rows]] = field(default_factory=dict)  # those not written to shards


Steered = list[tuple[Live, int, int, int]]  # of a step: a request, its first row, its position, its rows


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
    slots: Mapping[str, int],
    layers: range,
    first_row: int,
    start: int,
    count: int,
) -> bool:
    """Adds a request's part of a step to the `work` of those of `layers` that have some; whether any has.

    The request has `count` rows from `first_row` on, which are its positions from `start` on.
    """
    has_work = False
    for entry in live.entries:
        if entry.layer not in layers:
            continue
        for low, high in within(entry.spans, start, start + count):
            one = work.setdefault(entry.layer, LayerWork())
            n = high - low
            one.rows.extend(range(first_row + low - start, first_row + high - start))
            one.slots.extend([slots[entry.direction]] * n)
            one.operations.extend([entry.operation.code] * n)
            one.strengths.extend([entry.strength] * n)
            one.lows.extend([entry.low] * n)
            one.users.extend([entry.users] * n)
            has_work = True
    if live.capture is None:
        return has_work
    # A preempted request computes positions again, to equal values.
    for low, high in within(live.capture_spans, max(start, live.reached), start + count):
        rows = range(first_row + low - start, first_row + high - start)
        for layer in live.capture.layers:
            if layer in layers:
                work.setdefault(layer, LayerWork()).captured.append((live, rows, range(low, high)))
                has_work = True
    return has_work
